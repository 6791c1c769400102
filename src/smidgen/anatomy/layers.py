"""What a network is made of: one walk over it gives every layer's shapes, costs and receptive field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.anatomy.receptive import Field, FieldTracer, trace
from smidgen.errors import TrialError
from smidgen.graph.cost import FLOAT_BYTES, count_parameters, macs_of_layer
from smidgen.nets.build import build_network, measure
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
        parameters: trainable scalars of its own, 0 where an earlier layer has counted them.
        macs: multiply-accumulates for one image; convolutions and linear layers only, biases and
            elementwise work not counted.
        kernel: height and width, where the layer has one; likewise stride, padding and dilation.
        receptive_field: height and width of the input region that one output unit sees, the edges
            of the image not counted; None where it is unknown.
        jump: input pixels between neighbouring output units, along height and width.
        start: the first input row and column that the first output unit sees; negative in padding.
    """

    name: str
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
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
            "activation_bytes": self.activation_bytes,
        }


@dataclass(frozen=True)
class Anatomy:
    """A network's layers in the order in which they run, and their totals.

    Attributes:
        layers: one for each call of a layer.
        parameters: trainable scalars of the whole network, each counted once.
        macs: multiply-accumulates of one forward pass of one image.
        input_shape: channels, height, width.
    """

    layers: tuple[Layer, ...]
    parameters: int
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
            "macs": self.macs,
            "input_shape": list(self.input_shape),
            "activation_bytes": self.activation_bytes,
            "parameter_bytes": self.parameter_bytes,
            "layers": [layer.to_json() for layer in self.layers],
        }

    def table(self, format: TableFormat = "table") -> str:
        """The layer table as text."""
        columns = [
            "layer",
            "type",
            "kernel",
            "input",
            "output",
            "parameters",
            "MACs",
            "receptive field",
            "jump",
            "start",
        ]
        rows: list[list[object]] = [
            [
                x.name,
                x.type,
                _side_by_side(x.kernel),
                _times(x.input_shape),
                _times(x.output_shape),
                x.parameters,
                x.macs,
                _side_by_side(x.receptive_field, unknown="?"),
                _one_text(x.jump),
                _one_text(x.start),
            ]
            for x in self.layers
        ]
        return render(columns, rows, format, left=2)

    def totals(self) -> str:
        """The totals, three lines of text."""
        return (
            f"{self.parameters:,} parameters ({self.parameter_bytes / 1024:.1f} KiB as float32)\n"
            f"{self.macs:,} MACs an image\n"
            f"{self.activation_bytes / _MIB:.2f} MiB of activations and their gradients an image"
        )

    def __str__(self) -> str:
        return f"{self.table()}\n{self.totals()}"


def examine(network: nn.Module, input_shape: Sequence[int]) -> Anatomy:
    """Walk over a network with one blank image.

    A layer is a module without children, or one with parameters of its own.

    Args:
        network: any module that takes [count, channels, height, width].
        input_shape: channels, height, width.

    Raises:
        TrialError: the network does not take an input of this shape.
    """
    counted: set[int] = set()
    layers: list[Layer] = []

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in counted]
        counted.update(id(p) for p in own)
        layers.append(
            Layer(
                name=name,
                type=type(module).__name__,
                input_shape=_shape(inputs[0] if inputs else None),
                output_shape=_shape(output),
                parameters=sum(p.numel() for p in own),
                macs=macs_of_layer(module, _shape(output)),
                **_window(module),
                **_sight(tracer.field(output)),
            )
        )

    hooks = []
    for name, module in network.named_modules(remove_duplicate=True):
        if not list(module.children()) or any(True for _ in module.parameters(recurse=False)):
            hooks.append(
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: record(name, module, inputs, output)
                )
            )
    was_training = [(module, module.training) for module in network.modules()]
    reference = next(network.parameters(), torch.zeros(0))
    image = torch.zeros(1, *input_shape, device=reference.device, dtype=reference.dtype)
    tracer = FieldTracer(image)
    try:
        network.eval()
        trace(tracer, network, image)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = "x".join(map(str, input_shape))
        raise TrialError(f"the network does not take an input of {shape}: {error}") from None
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in was_training:
            module.training = training
    return Anatomy(tuple(layers), count_parameters(network), sum(layer.macs for layer in layers), tuple(input_shape))


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
    height, width = field.axes
    return {
        "receptive_field": (height.size, width.size),
        "jump": (_plain(height.jump), _plain(width.jump)),
        "start": (height.start, width.start),
    }


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
