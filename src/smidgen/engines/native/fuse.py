"""Fusing a graph into the operations of the compiled part: one operation per pass of its kernels over memory.

The classes here have the names and fields of those in `native/operations.h`, which refuses any other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import ModuleType
from typing import Any, Literal

from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.graph import ops
from smidgen.graph.activations import RELU
from smidgen.graph.ops import Graph, Pair, Shape

NONE = -1
"""In place of a tensor's number where an operation has none."""
DEPTHWISE_KERNELS, DEPTHWISE_STRIDES = (3, 5), (1, 2)
"""Sides and strides of the depthwise convolutions that have kernels of their own."""
MOST_POINTWISE_WEIGHTS = 2**16
"""Of a 1 × 1 convolution that works on rows: while it does, each of its gradients takes 64 bytes of the cache."""
DROPOUT_STEPS = 2**16
"""Rates of dropout are multiples of 1 / this."""


class UnsupportedError(SmidgenError):
    """A network that the native engine cannot run.

    Attributes:
        layer: the layer or function that is in the way.
        reason: why.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"the native engine cannot run {layer}: {reason}")
        self.layer = layer
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Operation:
    """As in `smidgen.graph.ops`; tensors are their positions in `Fused.tensors`, -1 for none."""

    name: str
    inputs: list[int]
    output: int


@dataclass(frozen=True, kw_only=True)
class FoldedNorm:
    """A BatchNorm by running statistics that a convolution applies to its sums."""

    weight: int
    bias: int
    running_mean: int
    running_var: int
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Products(Operation):
    """Sums of products, then `before`, ReLU, `after`, those of them that there are.

    Attributes:
        bias: added to the sums.
        relu: whether ReLU follows.
        input_relu: whether the operation that reads the output does the gradient of that ReLU.
        before: BatchNorm before the ReLU.
        after: BatchNorm after it.
    """

    bias: int
    relu: bool = False
    input_relu: bool = False
    before: FoldedNorm | None = None
    after: FoldedNorm | None = None


@dataclass(frozen=True, kw_only=True)
class Convolution(Products):
    """Any convolution."""

    weight: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True, kw_only=True)
class Separable(Products):
    """A depthwise convolution, a 1 × 1 convolution, or the second after the first.

    Attributes:
        depthwise: weights of the depthwise part; -1: there is none.
        middle_bias: its bias, where the 1 × 1 part follows; otherwise the bias is `bias`.
        pointwise: weights of the 1 × 1 part; -1: there is none.
        kernel: side of the depthwise kernel; 0: there is none.
        stride: of the depthwise part.
        padding: of the depthwise part.
    """

    depthwise: int = NONE
    middle_bias: int = NONE
    pointwise: int = NONE
    kernel: int = 0
    stride: int = 1
    padding: Pair = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Norm(Operation):
    """BatchNorm, then ReLU, then 2 × 2 pooling or dropout, those of them that there are.

    Attributes:
        relu: whether ReLU follows.
        pool: which pooling follows.
        dropped: of 65,536 values, by dropout; 0: none follows.
        input_relu: whether its input is a convolution's ReLU, whose gradient it does.
    """

    weight: int
    bias: int
    running_mean: int
    running_var: int
    batches: int
    momentum: float
    epsilon: float
    batch: bool
    relu: bool = False
    pool: Literal["none", "max", "average"] = "none"
    dropped: int = 0
    input_relu: bool = False

    @property
    def folded(self) -> FoldedNorm:
        """The part that a convolution can apply."""
        return FoldedNorm(
            weight=self.weight,
            bias=self.bias,
            running_mean=self.running_mean,
            running_var=self.running_var,
            epsilon=self.epsilon,
        )


@dataclass(frozen=True, kw_only=True)
class Activation(Operation):
    """A function of each value; the compiled part knows it by name."""

    function: str
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Pool(Operation):
    """Max or average pooling."""

    kind: Literal["max", "average"]
    kernel: Pair
    stride: Pair
    padding: Pair
    count_padding: bool


@dataclass(frozen=True, kw_only=True)
class Dropout(Operation):
    """Zeroes `dropped` of 65,536 values."""

    dropped: int


@dataclass(frozen=True, kw_only=True)
class Add(Operation):
    """The sum of two values."""


@dataclass(frozen=True, kw_only=True)
class Concatenate(Operation):
    """Values one after another, by channels."""


@dataclass(frozen=True, eq=False)
class Fused:
    """A network as the compiled part runs it.

    Attributes:
        graph: that it was made from; shapes, output and tensors are the graph's.
        operations: in the order in which they run.
    """

    graph: Graph
    operations: tuple[Operation, ...]

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether any normalization uses the statistics of the batch."""
        return any(isinstance(op, Norm) and op.batch for op in self.operations)

    @property
    def is_random(self) -> bool:
        """Whether values are dropped at random."""
        return any(isinstance(op, Norm | Dropout) and op.dropped for op in self.operations)

    def to_core(self, core: ModuleType) -> list[Any]:
        """The operations as the compiled part's own."""
        return [_to_core(core, operation) for operation in self.operations]


def _to_core(core: ModuleType, value: Any) -> Any:
    if not is_dataclass(value):
        return value
    given = {field.name: _to_core(core, getattr(value, field.name)) for field in fields(value)}
    return getattr(core, type(value).__name__)(**given)


def fuse(graph: Graph, *, keep: bool, activations: Collection[str]) -> Fused:
    """The operations of the compiled part for a graph.

    Args:
        graph: traced in the mode in which it is to run.
        keep: values are kept for a backward pass; otherwise normalization by running statistics is folded
            into the convolution before it.
        activations: names of those that the kernels have.

    Raises:
        UnsupportedError: an operation that the kernels do not have.
    """
    positions = {id(entry.tensor): position for position, entry in enumerate(graph.tensors)}
    readers = graph.readers()
    fused: dict[int, Operation] = {}  # by the value that they write, in the order in which they run
    for source in graph.operations:
        if isinstance(source, ops.Activation) and source.kind.name not in activations:
            raise UnsupportedError(source.name, f"{source.kind.title} is not among its activations")
        operation = _plain(source, positions, graph.shapes)
        value = source.inputs[0]
        before = fused.get(value)
        if before is not None and readers[value] == 1:
            joined = _joined(before, operation, keep=keep)
            if joined is not None:
                fused = {joined.output if v == value else v: joined if v == value else op for v, op in fused.items()}
                continue
            if isinstance(before, Products) and before.relu and isinstance(operation, Norm):
                fused[value] = replace(before, input_relu=True)
                operation = replace(operation, input_relu=True)
        fused[operation.output] = operation
    return Fused(graph, tuple(fused.values()))


def _plain(operation: ops.Operation, positions: dict[int, int], shapes: Sequence[Shape]) -> Operation:
    """An operation of the graph as one of the compiled part."""

    def position(tensor: Tensor | None) -> int:
        return NONE if tensor is None else positions[id(tensor)]

    about: dict[str, Any] = {
        "name": operation.name,
        "inputs": list(operation.inputs),
        "output": operation.output,
    }
    match operation:
        case ops.Convolution() if _is_depthwise(operation, shapes):
            return Separable(
                **about,
                depthwise=position(operation.weight),
                bias=position(operation.bias),
                kernel=operation.kernel[0],
                stride=operation.stride[0],
                padding=operation.padding,
            )
        case ops.Convolution() if _is_pointwise(operation, shapes):
            return Separable(**about, pointwise=position(operation.weight), bias=position(operation.bias))
        case ops.Convolution():
            return Convolution(
                **about,
                weight=position(operation.weight),
                bias=position(operation.bias),
                kernel=operation.kernel,
                stride=operation.stride,
                padding=operation.padding,
                dilation=operation.dilation,
                groups=operation.groups,
            )
        case ops.BatchNorm():
            return Norm(
                **about,
                weight=position(operation.weight),
                bias=position(operation.bias),
                running_mean=position(operation.running_mean),
                running_var=position(operation.running_var),
                batches=position(operation.batches_tracked),
                momentum=operation.momentum,
                epsilon=operation.epsilon,
                batch=operation.batch,
            )
        case ops.Activation():
            low, high = (*operation.parameters, 0.0, 0.0)[:2]
            return Activation(**about, function=operation.kind.name, low=low, high=high)
        case ops.Pool():
            return Pool(
                **about,
                kind=operation.kind,
                kernel=operation.kernel,
                stride=operation.stride,
                padding=operation.padding,
                count_padding=operation.count_padding,
            )
        case ops.Dropout():
            dropped = round(operation.rate * DROPOUT_STEPS)
            if not 0 < dropped < DROPOUT_STEPS:
                raise UnsupportedError(operation.name, f"dropout at a rate of {operation.rate:g}")
            return Dropout(**about, dropped=dropped)
        case ops.Add():
            return Add(**about)
        case ops.Concatenate():
            return Concatenate(**about)
    raise UnsupportedError(operation.name, f"{type(operation).__name__} is not among its operations")


def _is_depthwise(convolution: ops.Convolution, shapes: Sequence[Shape]) -> bool:
    """Whether the separable kernels can do it; the others can do any."""
    channels, side, stride = shapes[convolution.inputs[0]][0], convolution.kernel[0], convolution.stride[0]
    return (
        convolution.groups == channels == shapes[convolution.output][0]
        and convolution.kernel == (side, side)
        and convolution.stride == (stride, stride)
        and convolution.dilation == (1, 1)
        and side in DEPTHWISE_KERNELS
        and stride in DEPTHWISE_STRIDES
        and max(convolution.padding) < side
    )


def _is_pointwise(convolution: ops.Convolution, shapes: Sequence[Shape]) -> bool:
    """Whether it is a 1 × 1 convolution of more than one pixel, with few weights."""
    one, none = (1, 1), (0, 0)
    return (
        (convolution.kernel, convolution.stride, convolution.padding, convolution.groups) == (one, one, none, 1)
        and shapes[convolution.output][1:] != one
        and convolution.weight.numel() <= MOST_POINTWISE_WEIGHTS
    )  # fmt: skip


def _joined(before: Operation, operation: Operation, *, keep: bool) -> Operation | None:
    """An operation done in the same pass as the one whose result it alone reads; None where that cannot be."""
    output = operation.output
    is_relu = isinstance(operation, Activation) and operation.function == RELU.name
    match before, operation:
        case (
            Separable(pointwise=-1, relu=False, before=None, after=None),
            Separable(depthwise=-1),
        ):
            return replace(
                before, output=output, name=f"{before.name}+{operation.name}", middle_bias=before.bias,
                pointwise=operation.pointwise, bias=operation.bias,
            )  # fmt: skip
        case Products(relu=False, after=None), Activation() if is_relu:
            return replace(before, output=output, relu=True)
        case Products(before=None, after=None), Norm(batch=False) if not keep:
            # In evaluation it is an affine map, before or after the convolution's ReLU.
            if before.relu:
                return replace(before, output=output, after=operation.folded)
            return replace(before, output=output, before=operation.folded)
        case Norm(relu=False, pool="none", dropped=0), Activation() if is_relu:
            return replace(before, output=output, relu=True)
        case Norm(pool="none", dropped=0), Dropout() if keep:
            return replace(before, output=output, dropped=operation.dropped)
        case Norm(pool="none", dropped=0), Pool(kernel=(2, 2), stride=(2, 2), padding=(0, 0)):
            return replace(before, output=output, pool=operation.kind)
    return None
