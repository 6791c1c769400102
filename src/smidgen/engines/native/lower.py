"""From a PyTorch module to the operations that the native kernels have.

The module is traced with torch.fx, so anything counts that comes down to supported operations, in
whatever classes it is written. Shapes are worked out on the way; then operations are fused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from smidgen.errors import SmidgenError
from smidgen.graph.layers import Dropout

Shape = tuple[int, int, int]
Pair = tuple[int, int]


class CannotLowerError(SmidgenError):
    """A module that the native engine cannot run; names the layer and the reason."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"the native engine cannot run {layer}: {reason}")
        self.layer = layer
        self.reason = reason


@dataclass
class Operation:
    """One operation on values.

    Attributes:
        kind: `conv`, `norm`, `activation`, `max_pool`, `average_pool`, `dropout`, `add`, `concat`.
        name: of the layer.
        inputs: values that it reads.
        output: the value that it writes.
        settings: what else the kernels need to know; a tensor stands as its position in
            `Lowered.tensors`.
    """

    kind: str
    name: str
    inputs: list[int]
    output: int
    settings: dict[str, Any] = field(default_factory=dict)

    def to_core(self, core: Any) -> Any:
        """The operation as the compiled part takes it."""
        base = {"name": self.name, "inputs": self.inputs, "output": self.output}
        has = self.settings.get
        if self.kind == "conv":
            return core.Convolution(
                **base,
                weight=has("weight"),
                bias=has("bias"),
                kernel=has("kernel"),
                stride=has("stride", (1, 1)),
                padding=has("padding", (0, 0)),
                dilation=has("dilation", (1, 1)),
                groups=has("groups", 1),
                relu=has("relu", False),
                input_relu=has("input_relu", False),
                before=_folded(core, has("before")),
                after=_folded(core, has("after")),
            )
        if self.kind == "norm":
            return core.Norm(
                **base,
                weight=has("weight"),
                bias=has("bias"),
                running_mean=has("running_mean", -1),
                running_var=has("running_var", -1),
                batches=has("batches", -1),
                momentum=has("momentum"),
                epsilon=has("epsilon"),
                batch=has("batch"),
                relu=has("relu", False),
                pool=has("pool", False),
                dropped=has("dropped", 0),
                input_relu=has("input_relu", False),
            )
        if self.kind == "activation":
            function = next(name for name, which in _WHICH.items() if which == has("which"))
            return core.Activation(**base, function=function, low=has("low"), high=has("high"))
        if self.kind in ("max_pool", "average_pool"):
            return core.Pool(
                **base,
                kind=self.kind.removesuffix("_pool"),
                kernel=has("kernel"),
                stride=has("stride"),
                padding=has("padding"),
                count_padding=has("count_padding", True),
            )
        if self.kind == "dropout":
            return core.Dropout(**base, dropped=has("dropped"))
        return {"add": core.Add, "concat": core.Concatenate}[self.kind](**base)


def _folded(core: Any, norm: dict[str, Any] | None) -> Any:
    names = ("weight", "bias", "running_mean", "running_var", "epsilon")
    return core.FoldedNorm(**{name: norm[name] for name in names}) if norm else None


@dataclass
class Lowered:
    """A network as operations.

    Attributes:
        shapes: channels, height, width of each value; the first is the input.
        operations: in the order in which they are run.
        output: the value that comes out.
        flat: whether the output is [count, features] rather than [count, channels, height, width].
        tensors: parameters and buffers, each once.
        names: of those tensors, for messages.
        learns: for each tensor, whether it is a parameter.
        homes: for each tensor the module's dictionary that holds it, and its name there.
        batch: whether any normalization uses the statistics of the batch.
        random: whether there is any dropout.
    """

    shapes: list[Shape]
    operations: list[Operation]
    output: int
    flat: bool
    tensors: list[Tensor]
    names: list[str]
    learns: list[bool]
    homes: list[tuple[dict[str, Any], str]]

    @property
    def batch(self) -> bool:
        """Whether any normalization uses the statistics of the batch."""
        return any(op.settings.get("batch") for op in self.operations)

    @property
    def random(self) -> bool:
        """Whether values are dropped at random."""
        return any(op.settings.get("dropped") for op in self.operations)


def lower(network: nn.Module, input_shape: Shape, *, keep: bool) -> Lowered:
    """Lower a network in the mode (training or evaluation) that each of its modules is in.

    Args:
        network: any module that takes one batch of images.
        input_shape: channels, height, width of an image.
        keep: values are kept for a backward pass; otherwise normalization by running statistics is
            folded into the convolution before it.

    Raises:
        CannotLowerError: names the layer and the reason.
    """
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise CannotLowerError(name or type(network).__name__, "it has hooks, which the engine would not call")
    try:
        graph = _Tracer().trace(network)
        lowering = _Lowering(network, input_shape)
        lowered = lowering.lower(graph)
    except CannotLowerError:
        raise
    except Exception as error:  # whatever the module's own code raises when traced
        raise CannotLowerError(type(network).__name__, f"it cannot be traced ({_first_line(error)})") from error
    _refuse_shared_overwriting(lowered, lowering.overwritten)
    _drop_unused(lowered)
    _fuse(lowered, keep=keep)
    return lowered


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


class _Tracer(fx.Tracer):
    """PyTorch's own layers, and the project's Dropout, are not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Dropout) or super().is_leaf_module(m, module_qualified_name)


# What a node of the graph stands for.


@dataclass(frozen=True)
class _Value:
    id: int
    flat: bool


class _Count:
    """The number of images in the batch, as `x.size(0)` gives it."""


_WHICH = {"relu": 1, "leaky_relu": 2, "clamp": 3, "hardswish": 4, "gelu": 5, "silu": 6, "sigmoid": 7, "tanh": 8}


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


class _Lowering:
    def __init__(self, network: nn.Module, input_shape: Shape) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.lowered = Lowered([input_shape], [], 0, False, [], [], [], [])
        self.places: dict[int, int] = {}
        self.env: dict[fx.Node, Any] = {}
        self.overwritten: dict[int, str] = {}

    def lower(self, graph: fx.Graph) -> Lowered:
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise CannotLowerError(type(self.network).__name__, f"it takes {len(inputs)} inputs, not one")
        for node in graph.nodes:
            self.env[node] = self._node(node)
        return self.lowered

    def _node(self, node: fx.Node) -> Any:
        args = fx.node.map_arg(node.args, lambda n: self.env[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.env[n])
        if node.op == "placeholder":
            return _Value(0, False)
        if node.op == "output":
            return self._output(args[0])
        name = str(node.target) if node.op == "call_module" else node.name
        if node.op == "call_module":
            return self._module(name, self.modules[name], *args, **kwargs)
        if node.op == "call_function":
            handler = _FUNCTIONS.get(node.target)
        elif node.op == "call_method":
            handler = _METHODS.get(str(node.target))
        else:
            handler = None
        if handler is None:
            raise CannotLowerError(name, f"{_title(node)} is not among its operations")
        if node.target is operator.iadd or str(node.target).endswith("_") or kwargs.get("inplace"):
            self.overwrites(name, args[0])
        try:
            return handler(self, name, *args, **kwargs)
        except TypeError as error:
            raise CannotLowerError(name, f"{_title(node)} with these arguments is not supported ({error})") from None

    def _output(self, value: Any) -> None:
        if not isinstance(value, _Value):
            raise CannotLowerError("output", "the network must give one tensor")
        if value.id == 0:
            raise CannotLowerError("output", "the network does nothing")
        self.lowered.output, self.lowered.flat = value.id, value.flat

    # Bookkeeping.

    def tensor(self, layer: str, module: nn.Module, attribute: str, shape: tuple[int, ...]) -> int:
        """The place of a module's parameter or buffer among the tensors; -1 where it has none."""
        learns = attribute in module._parameters
        home: dict[str, Any] = module._parameters if learns else module._buffers
        value, name = home.get(attribute), f"{layer}.{attribute}"
        if value is None:
            return -1
        if value.shape != shape:
            raise CannotLowerError(
                name, f"its shape is {list(value.shape)}, not {list(shape)} as the layer's sizes say"
            )
        if id(value) not in self.places:
            wanted = torch.int64 if value.dtype == torch.int64 and not learns else torch.float32
            if value.dtype != wanted:
                raise CannotLowerError(name, f"its dtype is {value.dtype}, not float32")
            self.places[id(value)] = len(self.lowered.tensors)
            self.lowered.tensors.append(value)
            self.lowered.names.append(name)
            self.lowered.learns.append(learns)
            self.lowered.homes.append((home, attribute))
        return self.places[id(value)]

    def shape(self, value: _Value) -> Shape:
        return self.lowered.shapes[value.id]

    def value(self, name: str, value: Any) -> _Value:
        if not isinstance(value, _Value):
            raise CannotLowerError(name, "its input is not the network's data")
        return value

    def image(self, name: str, value: Any) -> Shape:
        shape = self.shape(self.value(name, value))
        if value.flat:
            raise CannotLowerError(name, "its input has been flattened")
        return shape

    def add(self, kind: str, name: str, inputs: list[_Value], shape: Shape, flat: bool, **settings: Any) -> _Value:
        if min(shape) < 1:
            raise CannotLowerError(name, f"nothing is left of an input of {'x'.join(map(str, self.shape(inputs[0])))}")
        self.lowered.shapes.append(shape)
        output = len(self.lowered.shapes) - 1
        self.lowered.operations.append(Operation(kind, name, [v.id for v in inputs], output, settings))
        return _Value(output, flat)

    def overwrites(self, name: str, value: Any) -> None:
        """Note that the module's own code changes a value in place."""
        if isinstance(value, _Value):
            self.overwritten[value.id] = name

    # Layers.

    def _module(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> _Value:
        if len(args) != 1 or kwargs:
            raise CannotLowerError(name, "it is called with more than one input")
        x = self.value(name, args[0])
        if getattr(module, "inplace", False):
            self.overwrites(name, x)
        for kind, handler in _MODULES:
            if type(module) is kind or (kind is nn.Dropout and type(module) is Dropout):
                lowered: _Value = handler(self, name, module, x)
                return lowered
        raise CannotLowerError(name, f"{type(module).__name__} is not among its layers")

    def conv(self, name: str, m: nn.Conv2d, x: _Value) -> _Value:
        channels, height, width = self.image(name, x)
        if m.padding_mode != "zeros":
            raise CannotLowerError(name, f"padding mode {m.padding_mode!r}")
        if channels != m.in_channels:
            raise CannotLowerError(name, f"it takes {m.in_channels} channels, but gets {channels}")
        kernel, stride, dilation = _pair(m.kernel_size), _pair(m.stride), _pair(m.dilation)
        if m.padding == "same":
            spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            if any(span % 2 for span in spans):
                raise CannotLowerError(name, "padding 'same' with an even kernel")
            padding = (spans[0] // 2, spans[1] // 2)
        else:
            padding = (0, 0) if m.padding == "valid" else _pair(m.padding)
        sides = [
            (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
        ]
        return self.add(
            "conv", name, [x], (m.out_channels, sides[0], sides[1]), False,
            weight=self.tensor(name, m, "weight", (m.out_channels, channels // m.groups, *kernel)),
            bias=self.tensor(name, m, "bias", (m.out_channels,)),
            kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=m.groups,
        )  # fmt: skip

    def linear(self, name: str, m: nn.Linear, x: _Value) -> _Value:
        # A linear layer on a flattened image is a convolution whose kernel is the whole image.
        channels, height, width = self.shape(x)
        if not x.flat:
            raise CannotLowerError(name, "a linear layer on images that are not flattened")
        if channels * height * width != m.in_features:
            raise CannotLowerError(name, f"it takes {m.in_features} values, but gets {channels * height * width}")
        return self.add(
            "conv", name, [x], (m.out_features, 1, 1), True,
            weight=self.tensor(name, m, "weight", (m.out_features, m.in_features)),
            bias=self.tensor(name, m, "bias", (m.out_features,)),
            kernel=(height, width),
        )  # fmt: skip

    def norm(self, name: str, m: nn.BatchNorm1d | nn.BatchNorm2d, x: _Value) -> _Value:
        shape = self.shape(x)
        if isinstance(m, nn.BatchNorm2d) == x.flat:
            raise CannotLowerError(name, f"{type(m).__name__} on {'flat values' if x.flat else 'images'}")
        if x.flat and shape[1:] != (1, 1):
            raise CannotLowerError(name, "normalization of a flattened image larger than 1x1")
        if shape[0] != m.num_features:
            raise CannotLowerError(name, f"it takes {m.num_features} channels, but gets {shape[0]}")
        if m.momentum is None and m.track_running_stats:
            raise CannotLowerError(name, "momentum None (a cumulative average)")
        one = (m.num_features,)
        batch = m.training or m.running_mean is None
        running: dict[str, int] = {}
        if m.running_mean is not None and (m.track_running_stats or not m.training):
            running = {
                "running_mean": self.tensor(name, m, "running_mean", one),
                "running_var": self.tensor(name, m, "running_var", one),
                "batches": self.tensor(name, m, "num_batches_tracked", ()),
            }
        return self.add(
            "norm", name, [x], shape, x.flat,
            weight=self.tensor(name, m, "weight", one), bias=self.tensor(name, m, "bias", one),
            momentum=m.momentum or 0.0, epsilon=m.eps, batch=batch, **running,
        )  # fmt: skip

    def activation(self, name: str, which: str, x: Any, low: float = 0.0, high: float = 0.0) -> _Value:
        x = self.value(name, x)
        return self.add("activation", name, [x], self.shape(x), x.flat, which=_WHICH[which], low=low, high=high)

    def dropout(self, name: str, input: Any, p: float, active: bool) -> _Value:
        x = self.value(name, input)
        dropped = round(p * 2**16)
        if not active or dropped == 0:
            return x
        if dropped == 2**16:
            raise CannotLowerError(name, "dropout of everything")
        return self.add("dropout", name, [x], self.shape(x), x.flat, dropped=dropped)

    def max_pool(
        self, name: str, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> _Value:  # fmt: skip
        if _pair(dilation) != (1, 1) or ceil_mode or return_indices:
            raise CannotLowerError(name, "pooling with dilation, ceil_mode or indices")
        return self._pool("max_pool", name, x, kernel_size, stride, padding)

    def average_pool(
        self, name: str, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> _Value:  # fmt: skip
        if ceil_mode or divisor_override is not None:
            raise CannotLowerError(name, "pooling with ceil_mode or another divisor")
        return self._pool("average_pool", name, x, kernel_size, stride, padding, count_padding=count_include_pad)

    def _pool(self, kind: str, name: str, x: Any, kernel: Any, stride: Any, padding: Any, **more: Any) -> _Value:
        channels, height, width = self.image(name, x)
        kernel = _pair(kernel)
        stride, padding = kernel if stride in (None, []) else _pair(stride), _pair(padding)
        sides = [
            (side + 2 * p - k) // s + 1 for side, p, k, s in zip((height, width), padding, kernel, stride, strict=True)
        ]
        shape = (channels, sides[0], sides[1])
        return self.add(kind, name, [x], shape, False, kernel=kernel, stride=stride, padding=padding, **more)

    def adaptive_pool(self, name: str, x: Any, output_size: Any) -> _Value:
        _, height, width = self.image(name, x)
        wanted = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
        wanted = tuple(side if want is None else want for want, side in zip(wanted, (height, width), strict=True))
        if height % wanted[0] or width % wanted[1]:
            raise CannotLowerError(name, f"adaptive pooling of {height}x{width} to {wanted[0]}x{wanted[1]}")
        kernel = (height // wanted[0], width // wanted[1])
        return self._pool("average_pool", name, x, kernel, kernel, 0)

    def mean(self, name: str, x: Any, dim: Any = None, keepdim: bool = False) -> _Value:
        _, height, width = self.image(name, x)
        if not isinstance(dim, tuple | list) or {d % 4 for d in dim} != {2, 3}:
            raise CannotLowerError(name, "a mean over other dimensions than height and width")
        pooled = self._pool("average_pool", name, x, (height, width), None, 0)
        return _Value(pooled.id, flat=not keepdim)

    def flatten(self, name: str, x: Any, start_dim: int = 0, end_dim: int = -1) -> _Value:
        x = self.value(name, x)
        if start_dim != 1 or end_dim not in (-1, 1 if x.flat else 3):
            raise CannotLowerError(name, "flattening other than from dimension 1 to the last")
        return _Value(x.id, flat=True)

    def view(self, name: str, x: Any, *sizes: Any) -> _Value:
        x = self.value(name, x)
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        channels, height, width = self.shape(x)
        features = channels * height * width
        count_first = len(sizes) == 2 and (isinstance(sizes[0], _Count) or sizes[0] == -1)
        if count_first and (sizes[1] == features or (sizes[1] == -1 and isinstance(sizes[0], _Count))):
            return _Value(x.id, flat=True)
        raise CannotLowerError(name, "a view other than [count, all values]")

    def size(self, name: str, x: Any, dim: Any = None) -> _Count:
        self.value(name, x)
        if dim != 0:
            raise CannotLowerError(name, "a size other than that of dimension 0")
        return _Count()

    def addition(self, name: str, a: Any, b: Any, *, alpha: float = 1) -> _Value:
        first, second = self.value(name, a), self.value(name, b)
        if alpha != 1 or self.shape(first) != self.shape(second) or first.flat != second.flat:
            raise CannotLowerError(name, "an addition of values of different shapes")
        return self.add("add", name, [first, second], self.shape(first), first.flat)

    def concat(self, name: str, tensors: Any, dim: int = 0) -> _Value:
        values = [self.value(name, t) for t in tensors]
        shapes = [self.shape(v) for v in values]
        flats = {v.flat for v in values}
        sides = {shape[1:] for shape in shapes}
        if len(flats) != 1 or dim not in ((1, -1) if flats == {True} else (1, -3)):
            raise CannotLowerError(name, "a concatenation other than over channels")
        if len(sides) != 1:
            raise CannotLowerError(name, "a concatenation of images of different sizes")
        channels = sum(shape[0] for shape in shapes)
        return self.add("concat", name, values, (channels, *shapes[0][1:]), values[0].flat)

    def attribute(self, name: str, _x: Any, attribute: str) -> Any:
        raise CannotLowerError(name, f"the attribute {attribute!r} of a tensor")


def _title(node: fx.Node) -> str:
    target = node.target
    return getattr(target, "__name__", None) or str(target)


def _gelu(low: _Lowering, name: str, x: Any, approximate: str = "none") -> _Value:
    if approximate != "tanh":
        raise CannotLowerError(name, "GELU other than by tanh (approximate='tanh')")
    return low.activation(name, "gelu", x)


_Handler = Callable[..., Any]


def _acts(which: str, *limits: str) -> _Handler:
    """A layer that is an activation, with the attributes that are its slope or limits."""
    return lambda low, name, m, x: low.activation(name, which, x, *[getattr(m, limit) for limit in limits])


def _acts_by_function(which: str, *limits: float) -> _Handler:
    return lambda low, name, x, **_: low.activation(name, which, x, *limits)


def _leaky(low: _Lowering, name: str, x: Any, negative_slope: float = 0.01, **_: Any) -> _Value:
    return low.activation(name, "leaky_relu", x, negative_slope)


def _same(low: _Lowering, name: str, *args: Any) -> _Value:
    return low.value(name, args[-1])


_MODULES: list[tuple[type[nn.Module], _Handler]] = [
    (nn.Conv2d, _Lowering.conv),
    (nn.Linear, _Lowering.linear),
    (nn.BatchNorm2d, _Lowering.norm),
    (nn.BatchNorm1d, _Lowering.norm),
    (nn.Dropout, lambda low, name, m, x: low.dropout(name, x, m.p, m.training)),
    (nn.Identity, _same),
    (nn.Flatten, lambda low, name, m, x: low.flatten(name, x, m.start_dim, m.end_dim)),
    (nn.ReLU, _acts("relu")),
    (nn.LeakyReLU, _acts("leaky_relu", "negative_slope")),
    (nn.ReLU6, _acts("clamp", "min_val", "max_val")),
    (nn.Hardtanh, _acts("clamp", "min_val", "max_val")),
    (nn.Hardswish, _acts("hardswish")),
    (nn.GELU, lambda low, name, m, x: _gelu(low, name, x, m.approximate)),
    (nn.SiLU, _acts("silu")),
    (nn.Sigmoid, _acts("sigmoid")),
    (nn.Tanh, _acts("tanh")),
    (
        nn.MaxPool2d,
        lambda low, name, m, x: low.max_pool(
            name, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
        ),
    ),
    (
        nn.AvgPool2d,
        lambda low, name, m, x: low.average_pool(
            name, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
        ),
    ),
    (nn.AdaptiveAvgPool2d, lambda low, name, m, x: low.adaptive_pool(name, x, m.output_size)),
]

_FUNCTIONS: dict[Any, _Handler] = {
    operator.add: _Lowering.addition,
    operator.iadd: _Lowering.addition,
    torch.add: _Lowering.addition,
    torch.cat: _Lowering.concat,
    torch.concat: _Lowering.concat,
    torch.flatten: _Lowering.flatten,
    torch.mean: _Lowering.mean,
    getattr: _Lowering.attribute,
    torch.relu: _acts_by_function("relu"),
    F.relu: _acts_by_function("relu"),
    F.leaky_relu: _leaky,
    F.relu6: _acts_by_function("clamp", 0.0, 6.0),
    F.hardswish: _acts_by_function("hardswish"),
    F.gelu: _gelu,
    F.silu: _acts_by_function("silu"),
    F.sigmoid: _acts_by_function("sigmoid"),
    torch.sigmoid: _acts_by_function("sigmoid"),
    F.tanh: _acts_by_function("tanh"),
    torch.tanh: _acts_by_function("tanh"),
    F.dropout: lambda low, name, x, p=0.5, training=True, **_: low.dropout(name, x, p, training),
    F.max_pool2d: _Lowering.max_pool,
    torch.max_pool2d: _Lowering.max_pool,
    F.avg_pool2d: _Lowering.average_pool,
    F.adaptive_avg_pool2d: _Lowering.adaptive_pool,
}

_METHODS: dict[str, _Handler] = {
    "add": _Lowering.addition,
    "add_": _Lowering.addition,
    "flatten": _Lowering.flatten,
    "view": _Lowering.view,
    "reshape": _Lowering.view,
    "size": _Lowering.size,
    "mean": _Lowering.mean,
    "contiguous": _same,
    "relu": _acts_by_function("relu"),
    "relu_": _acts_by_function("relu"),
    "sigmoid": _acts_by_function("sigmoid"),
    "tanh": _acts_by_function("tanh"),
}


# Fusing.


def _drop_unused(lowered: Lowered) -> None:
    """Leave out operations whose result nothing needs."""
    needed = {lowered.output}
    kept = []
    for op in reversed(lowered.operations):
        # Statistics are gathered even where nothing needs the normalized values, as PyTorch does.
        if op.output in needed or op.settings.get("batch"):
            needed.update(op.inputs)
            kept.append(op)
    lowered.operations = kept[::-1]


def _refuse_shared_overwriting(lowered: Lowered, overwritten: dict[int, str]) -> None:
    """The kernels change nothing in place: who else reads a value would see it as it was."""
    for value, name in overwritten.items():
        readers = sum(op.inputs.count(value) for op in lowered.operations) + (value == lowered.output)
        if readers > 1:
            raise CannotLowerError(name, "it works in place on values that are also used elsewhere")


def _fuse(lowered: Lowered, *, keep: bool) -> None:
    """Join what the kernels do in one pass over memory."""
    operations = lowered.operations
    readers: dict[int, int] = {lowered.output: 1}
    for op in operations:
        for value in op.inputs:
            readers[value] = readers.get(value, 0) + 1
    writer: dict[int, Operation] = {}
    kept: list[Operation] = []

    def absorb(into: Operation, op: Operation) -> None:
        into.output = op.output
        writer[op.output] = into

    for op in operations:
        source = writer.get(op.inputs[0])
        alone = source is not None and readers[op.inputs[0]] == 1
        if alone and source is not None and _absorbs(source, op, keep):
            if op.kind == "norm":
                # Folded away in evaluation: an affine map before or after the convolution's ReLU.
                source.settings["after" if source.settings.get("relu") else "before"] = op.settings
            elif op.kind == "max_pool":
                source.settings["pool"] = True
            elif op.kind == "dropout":
                source.settings["dropped"] = op.settings["dropped"]
            else:
                source.settings["relu"] = True
            absorb(source, op)
            continue
        if alone and source is not None and source.kind == "conv" and source.settings.get("relu") and op.kind == "norm":
            source.settings["input_relu"] = op.settings["input_relu"] = True
        writer[op.output] = op
        kept.append(op)
    lowered.operations = kept


def _absorbs(source: Operation, op: Operation, keep: bool) -> bool:
    """Whether an operation can be done in the same pass as the one whose result it alone reads."""
    has = source.settings.get
    if source.kind == "conv":
        if op.kind == "activation" and op.settings["which"] == _WHICH["relu"]:
            return not has("relu") and not has("after")
        return op.kind == "norm" and not keep and not op.settings["batch"] and not has("before") and not has("after")
    if source.kind == "norm":
        if op.kind == "activation" and op.settings["which"] == _WHICH["relu"]:
            return not has("relu") and not has("pool") and not has("dropped")
        if op.kind == "dropout":
            return keep and not has("pool") and not has("dropped")
        settings = op.settings
        return (
            op.kind == "max_pool"
            and not has("pool")
            and not has("dropped")
            and settings["kernel"] == (2, 2)
            and settings["stride"] == (2, 2)
            and settings["padding"] == (0, 0)
        )
    return False
