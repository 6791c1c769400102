"""Layer tables: shapes, costs and receptive fields of every layer, from one run of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from smidgen.anatomy.receptive import Account, Field, NetworkTracer
from smidgen.errors import TrialError
from smidgen.graph.cost import FLOAT_BYTES, count_parameters, count_trainable
from smidgen.nets.build import build_network, measure
from smidgen.nets.code import where
from smidgen.tables import TableFormat, render
from smidgen.trial import Module, Trial

_TINY = 50_000_000
"""MACs an image up to which a network is walked with real tensors: hundredths of a second."""

_MIB = 2**20


@dataclass(frozen=True)
class Layer:
    """One call of one layer.

    Attributes:
        name: of the module within the network.
        type: its class.
        input_shape: of its first input, without the batch.
        output_shape: of its output, without the batch.
        parameters: scalars of its own, trained or frozen; 0 where an earlier layer has counted them.
        trainable: how many of them are trained.
        macs: multiply-accumulates for one image of convolutions and products of matrices, however they are written;
            biases, elementwise work, pooling, interpolation and products of parameters alone are not counted.
        uncounted: operators that may multiply and accumulate, but are not counted.
        kernel: height and width, where the layer has one; likewise stride, padding and dilation.
        receptive_field: height and width of the input region that one output unit sees, the edges
            of the image not counted; 0 for a constant, None where it is unknown.
        jump: input pixels between neighbouring output units, along height and width; None where that varies.
        start: the first input row and column that the first output unit sees; negative in padding.
    """

    name: str
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    trainable: int
    macs: int
    uncounted: tuple[str, ...] = ()
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    receptive_field: tuple[int, int] | None = None
    jump: tuple[float, float] | None = None
    start: tuple[int, int] | None = None

    @property
    def activation_bytes(self) -> int:
        """Bytes of its float32 output for one image."""
        return torch.Size(self.output_shape).numel() * FLOAT_BYTES

    def to_json(self) -> dict[str, Any]:
        """The layer as JSON data; what is the same along both axes is one number."""
        return {name: _one(value) for name, value in asdict(self).items()} | {
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "uncounted": list(self.uncounted),
            "activation_bytes": self.activation_bytes,
        }

    @property
    def macs_text(self) -> str:
        """The multiply-accumulates for people; `?`, or "at least", where some are not counted."""
        if not self.uncounted:
            return f"{self.macs:,}"
        return f"at least {self.macs:,}" if self.macs else "?"


@dataclass(frozen=True)
class Anatomy:
    """A network's layers in the order in which they run, and their totals.

    Attributes:
        layers: one for each call of a layer.
        parameters: scalars of the whole network, trained or frozen, each counted once.
        trainable: how many of them are trained.
        macs: multiply-accumulates of one forward pass of one image; a lower bound if some are not counted.
        input_shape: channels, height, width.
    """

    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    macs: int
    input_shape: tuple[int, ...]

    @property
    def activation_bytes(self) -> int:
        """Bytes of all layers' float32 outputs for one image, and as much again for their gradients."""
        return 2 * sum(layer.activation_bytes for layer in self.layers)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters as float32."""
        return self.parameters * FLOAT_BYTES

    def to_json(self) -> dict[str, Any]:
        """The anatomy as JSON data."""
        return {
            "parameters": self.parameters,
            "trainable": self.trainable,
            "macs": self.macs,
            "uncounted": sorted({name for layer in self.layers for name in layer.uncounted}),
            "input_shape": list(self.input_shape),
            "activation_bytes": self.activation_bytes,
            "parameter_bytes": self.parameter_bytes,
            "layers": [layer.to_json() for layer in self.layers],
        }

    def table(self, format: TableFormat = "table") -> str:
        """The layer table as text."""
        columns = ["layer", "type", "kernel", "input", "output", "parameters", "trainable", "MACs"]
        columns += ["receptive field", "jump", "start"]
        rows: list[list[object]] = [
            [
                x.name,
                x.type,
                _side_by_side(x.kernel),
                _times(x.input_shape),
                _times(x.output_shape),
                x.parameters,
                x.trainable,
                x.macs_text if x.uncounted else x.macs,
                _side_by_side(x.receptive_field, unknown="?"),
                _one_text(x.jump),
                _one_text(x.start),
            ]
            for x in self.layers
        ]
        return render(columns, rows, format, left=2)

    def totals(self) -> str:
        """The totals, three lines of text."""
        uncounted = [f"{', '.join(x.uncounted)} in {x.name or x.type}" for x in self.layers if x.uncounted]
        macs = f"{self.macs:,} MACs an image"
        if uncounted:
            macs = f"at least {macs}; not counted: {'; '.join(dict.fromkeys(uncounted))}"
        unused = self.parameters - sum(layer.parameters for layer in self.layers)
        without = f", {unused:,} in layers that no image passes" if unused else ""
        return (
            f"{self.parameters:,} parameters ({self.parameter_bytes / 1024:.1f} KiB as float32), "
            f"{self.trainable:,} of them trainable{without}\n"
            f"{macs}\n"
            f"{self.activation_bytes / _MIB:.2f} MiB of activations and their gradients an image"
        )

    def __str__(self) -> str:
        return f"{self.table()}\n{self.totals()}"


def examine(network: nn.Module, input_shape: Sequence[int]) -> Anatomy:
    """Walk over a network with one blank image.

    A layer is a module without children, one with parameters of its own, or one that computes products itself.

    Args:
        network: any module that takes [count, channels, height, width].
        input_shape: channels, height, width.

    Raises:
        TrialError: the network does not take an input of this shape.
    """
    was_training = [(module, module.training) for module in network.modules()]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *input_shape, device=device, dtype=_image_dtype(network))
    try:
        network.eval()
        if any(is_lazy(tensor) for tensor in [*network.parameters(), *network.buffers()]):
            with torch.no_grad():
                network(image)
        tracer = NetworkTracer(network, image)
        walk = _Walk(network, tracer)
        with walk.watching():
            tracer.run(network, walk.restart)
    except (Exception, SystemExit) as error:  # anything can happen in a user's code
        shape = "x".join(map(str, input_shape))
        raise TrialError(f"the network does not take an input of {shape}: {where(error)}") from None
    finally:
        for module, training in was_training:
            module.training = training
    layers = walk.layers()
    macs = sum(layer.macs for layer in layers)
    return Anatomy(layers, count_parameters(network), count_trainable(network), macs, tuple(input_shape))


def _image_dtype(network: nn.Module) -> torch.dtype:
    """float32, the type of the images that networks are given, unless the whole network is of another precision."""
    kinds = [p.dtype for p in network.parameters() if p.is_floating_point()]
    return kinds[0] if kinds and torch.float32 not in kinds else torch.float32


@dataclass(frozen=True)
class _Visit:
    """One call of one module, and whether it is a layer whatever it computes."""

    layer: Layer
    account: Account
    is_layer: bool


class _Walk:
    """The calls of a network's modules, in the order in which they return."""

    def __init__(self, network: nn.Module, tracer: NetworkTracer) -> None:
        self._network, self._tracer = network, tracer
        self.restart()

    def restart(self) -> None:
        """Forget the calls."""
        self._visits: list[_Visit] = []
        self._counted: set[int] = set()
        self._called: set[int] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile, record the calls of modules, including direct calls of `forward`."""
        # In the instances' dictionaries, since scripted modules refuse other ways; some may have a forward there.
        replaced = {module: module.__dict__.get("forward") for module in self._network.modules()}
        for name, module in self._network.named_modules():
            module.__dict__["forward"] = self._watched(name, module, module.forward)
        try:
            yield
        finally:
            for module, own in replaced.items():
                if own is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = own

    def _watched(self, name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            outer, account = self._tracer.account, Account()
            self._tracer.account = account
            try:
                output = forward(*args, **kwargs)
            finally:
                self._tracer.account = outer
            with self._tracer.own_work():
                self._note(name, module, next(iter((*args, *kwargs.values())), None), output, account)
            return output

        return watched

    def _note(self, name: str, module: nn.Module, input: Any, output: Any, account: Account) -> None:
        own = list(module.parameters(recurse=False))
        new = [p for p in own if id(p) not in self._counted]
        self._counted.update(id(p) for p in new)
        self._called.add(id(module))
        first = output[0] if isinstance(output, tuple | list) and output else output
        layer = Layer(
            name=name,
            type=getattr(module, "original_name", type(module).__name__),  # of a scripted module
            input_shape=_shape(input),
            output_shape=_shape(first),
            parameters=sum(p.numel() for p in new),
            trainable=sum(p.numel() for p in new if p.requires_grad),
            macs=account.macs,
            uncounted=tuple(sorted(account.uncounted)),
            **_window(module),
            **_sight(self._tracer.field(first)),
        )
        self._visits.append(_Visit(layer, account, bool(own) or not list(module.children())))

    def layers(self) -> tuple[Layer, ...]:
        """The rows of the table; parameters of a module that was not called belong to the first user."""
        unclaimed = {
            id(p): p
            for module in self._network.modules()
            if id(module) not in self._called
            for p in module.parameters(recurse=False)
            if id(p) not in self._counted
        }
        layers = []
        for visit in self._visits:
            layer, used = visit.layer, [unclaimed.pop(p) for p in visit.account.parameters & set(unclaimed)]
            if visit.is_layer or used or layer.macs or layer.uncounted:
                parameters = layer.parameters + sum(p.numel() for p in used)
                trainable = layer.trainable + sum(p.numel() for p in used if p.requires_grad)
                layers.append(replace(layer, parameters=parameters, trainable=trainable))
        return tuple(layers)


def examine_trial(trial: Trial, input_shape: Sequence[int], classes: int) -> Anatomy:
    """The anatomy of a trial's network; one that is not tiny takes no memory for its weights.

    Args:
        trial: whose network it is.
        input_shape: channels, height, width.
        classes: number of scores.

    Raises:
        TrialError: the network does not fit the shape or the classes.
    """

    def build() -> nn.Module:
        return build_network(trial.network, input_shape=input_shape, classes=classes, dropout=trial.dropout)

    if isinstance(trial.network, Module):
        with torch.random.fork_rng(devices=[]):
            return examine(build(), input_shape)
    with torch.device("meta"):
        network = build()
    if measure(trial.network, input_shape=input_shape, classes=classes)[1] <= _TINY:
        # Operations on the meta device make PyTorch import its compiler first, which takes more than a second.
        with torch.random.fork_rng(devices=[]):
            network = build()
    return examine(network, input_shape)


def _window(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Kernel, stride, padding and dilation of a convolution or pooling, as far as it has them."""
    found = {}
    for name, attribute in (
        ("kernel", "kernel_size"), ("stride", "stride"), ("padding", "padding"), ("dilation", "dilation"),
    ):  # fmt: skip
        value = getattr(module, attribute, None)
        if isinstance(value, int):
            found[name] = (value, value)
        elif isinstance(value, tuple) and len(value) == 2:
            found[name] = value
    return found


def _sight(field: Field | None) -> dict[str, Any]:
    """Receptive field, jump and start, as far as they are known."""
    if field is None:
        return {}
    height, width = field.jump
    if height is None or width is None:
        return {"receptive_field": field.size}
    return {"receptive_field": field.size, "jump": (_plain(height), _plain(width)), "start": field.start}


def _plain(jump: Fraction) -> float:
    return jump.numerator if jump.denominator == 1 else float(jump)


def _one(value: Any) -> Any:
    """A pair of equal numbers as one number."""
    if isinstance(value, tuple) and len(value) == 2:
        return value[0] if value[0] == value[1] else list(value)
    return value


def _one_text(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return ""
    numbers = pair[:1] if pair[0] == pair[1] else pair
    return " x ".join(f"{number:g}" for number in numbers)


def _side_by_side(pair: tuple[int, int] | None, unknown: str = "") -> str:
    return f"{pair[0]}x{pair[1]}" if pair else unknown


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "-"
