"""Tracing any PyTorch module into a graph of operations, by torch.fx.

Any module is accepted whose calls map to the operations of `smidgen.graph.ops`, whatever its classes. Shapes are
computed along the way.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from smidgen.errors import SmidgenError, first_line
from smidgen.graph.activations import ACTIVATIONS, ActivationKind, Call
from smidgen.graph.layers import Dropout
from smidgen.graph.ops import (
    Activation,
    Add,
    BatchNorm,
    Concatenate,
    Convolution,
    Graph,
    ModuleTensor,
    Operation,
    Pair,
    Pool,
    Shape,
)
from smidgen.graph.ops import Dropout as DropoutOperation
from smidgen.machine import exclusive


class TraceError(SmidgenError):
    """A module that the operations cannot express.

    Attributes:
        layer: the layer or function that is in the way.
        reason: why.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


@exclusive()
def trace(network: nn.Module, input_shape: Shape) -> Graph:
    """The graph of a network, with each module in its present mode (training or evaluation).

    Operations with unused results are left out, unless they update BatchNorm's statistics.

    Args:
        network: takes one batch of images.
        input_shape: channels, height, width of an image.

    Raises:
        TraceError: names the layer and the reason.
    """
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise TraceError(name or type(network).__name__, "it has hooks, which would be ignored")
    tracing = _Tracing(network, input_shape)
    before = _python_state(network)
    try:
        tracing.follow(_Tracer().trace(network))
    except TraceError:
        raise
    except Exception as error:  # whatever the module's own code raises when traced
        raise TraceError(type(network).__name__, f"it cannot be traced ({first_line(error)})") from error
    if _python_state(network) != before:
        raise TraceError(
            type(network).__name__,
            "its forward draws random numbers in Python or counts its calls, so it differs from call to call",
        )
    return tracing.graph()


def _python_state(network: nn.Module) -> object:
    """State besides its input that a forward can depend on: tracing would fix a single outcome."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 - the one that users' code draws from
    attributes = [
        [(key, value) for key, value in vars(module).items() if isinstance(value, int | float | str)]
        for module in network.modules()
    ]
    return random.getstate(), (numpy[1].tobytes(), numpy[2:]), torch.get_rng_state().tolist(), attributes


class _Tracer(fx.Tracer):
    """PyTorch's own layers, and the project's Dropout, are not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Dropout) or super().is_leaf_module(m, module_qualified_name)


# What a node of torch.fx's graph stands for.


class _Value:
    """A numbered value, as an image or flattened."""

    def __init__(self, number: int, flat: bool) -> None:
        self.number, self.flat = number, flat


class _Count:
    """The number of images in the batch, as `x.size(0)` gives it."""


def _pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


class _Tracing:
    """The operations so far."""

    def __init__(self, network: nn.Module, input_shape: Shape) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.shapes = [input_shape]
        self.operations: list[Operation] = []
        self.output = _Value(0, False)
        self.tensors: dict[int, ModuleTensor] = {}
        self.env: dict[fx.Node, Any] = {}
        self.overwritten: dict[int, str] = {}

    def follow(self, traced: fx.Graph) -> None:
        """Take in torch.fx's graph."""
        inputs = [node for node in traced.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise TraceError(type(self.network).__name__, f"it takes {len(inputs)} inputs, not one")
        for node in traced.nodes:
            self.env[node] = self._node(node)

    def graph(self) -> Graph:
        """The finished graph."""
        graph = Graph(
            tuple(self.operations),
            tuple(self.shapes),
            self.output.number,
            self.output.flat,
            tuple(self.tensors.values()),
        )
        readers = graph.readers()
        for value, name in self.overwritten.items():
            if readers[value] > 1:
                raise TraceError(name, "it works in place on values that are also used elsewhere")
        needed = {graph.output}
        kept: list[Operation] = []
        for operation in reversed(self.operations):
            # Statistics are gathered even where nothing needs the normalized values, as PyTorch does.
            if operation.output in needed or (isinstance(operation, BatchNorm) and operation.batch):
                needed.update(operation.inputs)
                kept.append(operation)
        return replace(graph, operations=tuple(reversed(kept)))

    def _node(self, node: fx.Node) -> Any:
        args = fx.node.map_arg(node.args, lambda n: self.env[n])
        kwargs = dict(fx.node.map_arg(node.kwargs, lambda n: self.env[n]))
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
            raise TraceError(name, f"{_title(node)} is not among its operations")
        if node.target is operator.iadd or str(node.target).endswith("_") or kwargs.pop("inplace", False):
            self.overwrites(name, args[0])
        try:
            return handler(self, name, *args, **kwargs)
        except TypeError as error:
            raise TraceError(name, f"{_title(node)} with these arguments is not supported ({error})") from None

    def _output(self, value: Any) -> None:
        if not isinstance(value, _Value):
            raise TraceError("output", "the network must return one tensor")
        if value.number == 0:
            raise TraceError("output", "the network does nothing")
        self.output = value

    # Bookkeeping.

    def tensor(self, layer: str, module: nn.Module, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """A module's parameter or buffer, taken down; None where it has none."""
        is_parameter = key in module._parameters
        owner: dict[str, Any] = module._parameters if is_parameter else module._buffers
        found, name = owner.get(key), f"{layer}.{key}"
        if found is None:
            return None
        assert isinstance(found, Tensor)
        if found.shape != shape:
            raise TraceError(name, f"its shape is {list(found.shape)}, not {list(shape)} as the layer's sizes say")
        wanted = torch.int64 if found.dtype == torch.int64 and not is_parameter else torch.float32
        if found.dtype != wanted:
            raise TraceError(name, f"its dtype is {found.dtype}, not float32")
        self.tensors.setdefault(id(found), ModuleTensor(name, found, is_parameter, owner, key))
        return found

    def shape(self, value: _Value) -> Shape:
        return self.shapes[value.number]

    def value(self, name: str, value: Any) -> _Value:
        if not isinstance(value, _Value):
            raise TraceError(name, "its input is not the network's data")
        return value

    def image(self, name: str, value: Any) -> Shape:
        shape = self.shape(self.value(name, value))
        if value.flat:
            raise TraceError(name, "its input has been flattened")
        return shape

    def add(self, operation: type[Operation], name: str, inputs: list[_Value], shape: Shape, **settings: Any) -> _Value:
        """An operation, and the value that it writes; flat where its first input is."""
        if min(shape) < 1:
            raise TraceError(name, f"the output is empty for an input of {'x'.join(map(str, self.shape(inputs[0])))}")
        self.shapes.append(shape)
        output = len(self.shapes) - 1
        self.operations.append(operation(name=name, inputs=tuple(v.number for v in inputs), output=output, **settings))
        return _Value(output, inputs[0].flat)

    def overwrites(self, name: str, value: Any) -> None:
        """Note that the module's own code changes a value in place."""
        if isinstance(value, _Value):
            self.overwritten[value.number] = name

    # Layers.

    def _module(self, name: str, module: nn.Module, *args: Any, **kwargs: Any) -> _Value:
        if len(args) != 1 or kwargs:
            raise TraceError(name, "it is called with more than one input")
        x = self.value(name, args[0])
        if getattr(module, "inplace", False):
            self.overwrites(name, x)
        handler = _MODULES.get(type(module))
        if handler is None:
            raise TraceError(name, f"{type(module).__name__} is not among its layers")
        value: _Value = handler(self, name, module, x)
        return value

    def conv(self, name: str, m: nn.Conv2d, x: _Value) -> _Value:
        channels, height, width = self.image(name, x)
        if m.padding_mode != "zeros":
            raise TraceError(name, f"padding mode {m.padding_mode!r}")
        if channels != m.in_channels:
            raise TraceError(name, f"it takes {m.in_channels} channels, but gets {channels}")
        kernel, stride, dilation = _pair(m.kernel_size), _pair(m.stride), _pair(m.dilation)
        if m.padding == "same":
            spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            if any(span % 2 for span in spans):
                raise TraceError(name, "padding 'same' with an even kernel")
            padding = (spans[0] // 2, spans[1] // 2)
        else:
            padding = (0, 0) if m.padding == "valid" else _pair(m.padding)
        sides = [
            (side + 2 * p - d * (k - 1) - 1) // s + 1
            for side, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
        ]
        return self.add(
            Convolution, name, [x], (m.out_channels, sides[0], sides[1]),
            weight=self.tensor(name, m, "weight", (m.out_channels, channels // m.groups, *kernel)),
            bias=self.tensor(name, m, "bias", (m.out_channels,)),
            kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=m.groups,
        )  # fmt: skip

    def linear(self, name: str, m: nn.Linear, x: _Value) -> _Value:
        # A linear layer on a flattened image is a convolution whose kernel is the whole image.
        channels, height, width = self.shape(x)
        if not x.flat:
            raise TraceError(name, "a linear layer on images that are not flattened")
        if channels * height * width != m.in_features:
            raise TraceError(name, f"it takes {m.in_features} values, but gets {channels * height * width}")
        return self.add(
            Convolution, name, [x], (m.out_features, 1, 1),
            weight=self.tensor(name, m, "weight", (m.out_features, m.in_features)),
            bias=self.tensor(name, m, "bias", (m.out_features,)),
            kernel=(height, width),
        )  # fmt: skip

    def norm(self, name: str, m: nn.BatchNorm1d | nn.BatchNorm2d, x: _Value) -> _Value:
        shape = self.shape(x)
        if isinstance(m, nn.BatchNorm2d) == x.flat:
            raise TraceError(name, f"{type(m).__name__} on {'flat values' if x.flat else 'images'}")
        if x.flat and shape[1:] != (1, 1):
            raise TraceError(name, "normalization of a flattened image larger than 1x1")
        if shape[0] != m.num_features:
            raise TraceError(name, f"it takes {m.num_features} channels, but gets {shape[0]}")
        if m.momentum is None and m.track_running_stats:
            raise TraceError(name, "momentum None (a cumulative average)")
        one = (m.num_features,)
        running = m.running_mean is not None and (m.track_running_stats or not m.training)
        return self.add(
            BatchNorm, name, [x], shape,
            running_mean=self.tensor(name, m, "running_mean", one) if running else None,
            running_var=self.tensor(name, m, "running_var", one) if running else None,
            batches_tracked=self.tensor(name, m, "num_batches_tracked", ()) if running else None,
            weight=self.tensor(name, m, "weight", one),
            bias=self.tensor(name, m, "bias", one),
            momentum=m.momentum or 0.0,
            epsilon=m.eps,
            batch=m.training or m.running_mean is None,
        )  # fmt: skip

    def activation(self, name: str, kind: ActivationKind, x: Any, *parameters: float) -> _Value:
        x = self.value(name, x)
        return self.add(Activation, name, [x], self.shape(x), kind=kind, parameters=tuple(map(float, parameters)))

    def dropout(self, name: str, input: Any, p: float = 0.5, training: bool = True) -> _Value:
        x = self.value(name, input)
        if not training or p == 0:
            return x
        return self.add(DropoutOperation, name, [x], self.shape(x), rate=float(p))

    def max_pool(
        self, name: str, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> _Value:  # fmt: skip
        if _pair(dilation) != (1, 1) or ceil_mode or return_indices:
            raise TraceError(name, "pooling with dilation, ceil_mode or indices")
        return self._pool(name, x, kernel_size, stride, padding, kind="max")

    def average_pool(
        self, name: str, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> _Value:  # fmt: skip
        if ceil_mode or divisor_override is not None:
            raise TraceError(name, "pooling with ceil_mode or another divisor")
        return self._pool(name, x, kernel_size, stride, padding, kind="average", count_padding=count_include_pad)

    def _pool(self, name: str, x: Any, kernel: Any, stride: Any, padding: Any, **more: Any) -> _Value:
        channels, height, width = self.image(name, x)
        kernel = _pair(kernel)
        stride, padding = kernel if stride in (None, []) else _pair(stride), _pair(padding)
        sides = [
            (side + 2 * p - k) // s + 1 for side, p, k, s in zip((height, width), padding, kernel, stride, strict=True)
        ]
        shape = (channels, sides[0], sides[1])
        return self.add(Pool, name, [x], shape, kernel=kernel, stride=stride, padding=padding, **more)

    def adaptive_pool(self, name: str, x: Any, output_size: Any) -> _Value:
        _, height, width = self.image(name, x)
        wanted = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
        wanted = tuple(side if want is None else want for want, side in zip(wanted, (height, width), strict=True))
        if height % wanted[0] or width % wanted[1]:
            raise TraceError(name, f"adaptive pooling of {height}x{width} to {wanted[0]}x{wanted[1]}")
        kernel = (height // wanted[0], width // wanted[1])
        return self._pool(name, x, kernel, kernel, 0, kind="average")

    def mean(self, name: str, x: Any, dim: Any = None, keepdim: bool = False) -> _Value:
        _, height, width = self.image(name, x)
        if not isinstance(dim, tuple | list) or {d % 4 for d in dim} != {2, 3}:
            raise TraceError(name, "a mean over other dimensions than height and width")
        pooled = self._pool(name, x, (height, width), None, 0, kind="average")
        return _Value(pooled.number, flat=not keepdim)

    def flatten(self, name: str, x: Any, start_dim: int = 0, end_dim: int = -1) -> _Value:
        x = self.value(name, x)
        if start_dim != 1 or end_dim not in (-1, 1 if x.flat else 3):
            raise TraceError(name, "flattening other than from dimension 1 to the last")
        return _Value(x.number, flat=True)

    def view(self, name: str, x: Any, *sizes: Any) -> _Value:
        x = self.value(name, x)
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        channels, height, width = self.shape(x)
        features = channels * height * width
        count_first = len(sizes) == 2 and (isinstance(sizes[0], _Count) or sizes[0] == -1)
        if count_first and (sizes[1] == features or (sizes[1] == -1 and isinstance(sizes[0], _Count))):
            return _Value(x.number, flat=True)
        raise TraceError(name, "a view other than [count, all values]")

    def size(self, name: str, x: Any, dim: Any = None) -> _Count:
        self.value(name, x)
        if dim != 0:
            raise TraceError(name, "a size other than that of dimension 0")
        return _Count()

    def addition(self, name: str, a: Any, b: Any, *, alpha: float = 1) -> _Value:
        first, second = self.value(name, a), self.value(name, b)
        if alpha != 1:
            raise TraceError(name, f"an addition with alpha={alpha}")
        if self.shape(first) != self.shape(second) or first.flat != second.flat:
            raise TraceError(name, "an addition of values of different shapes")
        return self.add(Add, name, [first, second], self.shape(first))

    def concat(self, name: str, tensors: Any, dim: int = 0) -> _Value:
        values = [self.value(name, t) for t in tensors]
        shapes = [self.shape(v) for v in values]
        flats = {v.flat for v in values}
        sides = {shape[1:] for shape in shapes}
        if len(flats) != 1 or dim not in ((1, -1) if flats == {True} else (1, -3)):
            raise TraceError(name, "a concatenation other than over channels")
        if len(sides) != 1:
            raise TraceError(name, "a concatenation of images of different sizes")
        channels = sum(shape[0] for shape in shapes)
        return self.add(Concatenate, name, values, (channels, *shapes[0][1:]))

    def identity(self, name: str, *args: Any) -> _Value:
        return self.value(name, args[-1])

    def attribute(self, name: str, _x: Any, attribute: str) -> Any:
        raise TraceError(name, f"the attribute {attribute!r} of a tensor")


def _title(node: fx.Node) -> str:
    target = node.target
    return getattr(target, "__name__", None) or str(target)


_Handler = Callable[..., Any]


def _refuse_other(kind: ActivationKind, name: str, given: Any) -> None:
    """Refuse a variant of an activation that is not the one which `kind` stands for."""
    for attribute, value in kind.required.items():
        if given(attribute) != value:
            raise TraceError(name, f"{kind.title} other than with {attribute}={value!r}")


def _activation_layer(kind: ActivationKind) -> _Handler:
    def handle(tracing: _Tracing, name: str, module: nn.Module, x: _Value) -> _Value:
        _refuse_other(kind, name, lambda attribute: getattr(module, attribute))
        return tracing.activation(name, kind, x, *[getattr(module, attribute) for attribute in kind.attributes])

    return handle


def _activation_call(kind: ActivationKind, call: Call) -> _Handler:
    def handle(tracing: _Tracing, name: str, x: Any, *args: Any, **kwargs: Any) -> _Value:
        _refuse_other(kind, name, lambda attribute: kwargs.pop(attribute, None))
        given = dict(zip(call.arguments, args, strict=False)) | kwargs
        if len(args) > len(call.arguments) or not set(given) <= set(call.arguments):
            raise TypeError(f"it takes {', '.join(call.arguments) or 'none but its input'}")
        values = dict(zip(call.arguments, call.defaults, strict=True)) | given if call.arguments else {}
        return tracing.activation(name, kind, x, *(values.values() if call.arguments else call.defaults))

    return handle


def _activation_method(kind: ActivationKind) -> _Handler:
    return lambda tracing, name, x: tracing.activation(name, kind, x)


_MODULES: dict[type[nn.Module], _Handler] = {
    nn.Conv2d: _Tracing.conv,
    nn.Linear: _Tracing.linear,
    nn.BatchNorm2d: _Tracing.norm,
    nn.BatchNorm1d: _Tracing.norm,
    nn.Dropout: lambda tracing, name, m, x: tracing.dropout(name, x, m.p, m.training),
    Dropout: lambda tracing, name, m, x: tracing.dropout(name, x, m.p, m.training),
    nn.Identity: _Tracing.identity,
    nn.Flatten: lambda tracing, name, m, x: tracing.flatten(name, x, m.start_dim, m.end_dim),
    nn.MaxPool2d: lambda tracing, name, m, x: tracing.max_pool(
        name, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda tracing, name, m, x: tracing.average_pool(
        name, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda tracing, name, m, x: tracing.adaptive_pool(name, x, m.output_size),
    **{module: _activation_layer(kind) for kind in ACTIVATIONS for module in kind.modules},
}

_FUNCTIONS: dict[Any, _Handler] = {
    operator.add: _Tracing.addition,
    operator.iadd: _Tracing.addition,
    torch.add: _Tracing.addition,
    torch.cat: _Tracing.concat,
    torch.concat: _Tracing.concat,
    torch.flatten: _Tracing.flatten,
    torch.mean: _Tracing.mean,
    getattr: _Tracing.attribute,
    F.dropout: _Tracing.dropout,
    F.max_pool2d: _Tracing.max_pool,
    torch.max_pool2d: _Tracing.max_pool,
    F.avg_pool2d: _Tracing.average_pool,
    F.adaptive_avg_pool2d: _Tracing.adaptive_pool,
    **{call.function: _activation_call(kind, call) for kind in ACTIVATIONS for call in kind.calls},
}

_METHODS: dict[str, _Handler] = {
    "add": _Tracing.addition,
    "add_": _Tracing.addition,
    "flatten": _Tracing.flatten,
    "view": _Tracing.view,
    "reshape": _Tracing.view,
    "size": _Tracing.size,
    "mean": _Tracing.mean,
    "contiguous": _Tracing.identity,
    **{method: _activation_method(kind) for kind in ACTIVATIONS for method in kind.methods},
}
