"""Operations on numbered values: a network, independent of any engine or export.

Value 0 is the image. Every other value is written by exactly one operation and never changed afterwards. A value
is an image [channels, height, width]; a flattened one keeps that shape, since its values lie in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from smidgen.graph.activations import ActivationKind

Shape = tuple[int, int, int]
"""Channels, height, width."""
Pair = tuple[int, int]
"""Along the height, along the width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """Reads values, writes one.

    Attributes:
        name: of the layer or function that it comes from.
        inputs: values that it reads.
        output: the value that it writes.
    """

    name: str
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Operation):
    """A convolution; a linear layer is one whose kernel is its whole input.

    Attributes:
        weight: [outputs, inputs / groups, kernel height, kernel width], of a linear layer [outputs, features].
        bias: [outputs], or None.
        kernel: pixels.
        stride: pixels.
        padding: zeros on each side.
        dilation: pixels.
        groups: of channels that do not see each other.
    """

    weight: Tensor
    bias: Tensor | None
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchNorm(Operation):
    """Batch normalization of each channel (Ioffe and Szegedy 2015).

    Attributes:
        weight: [channels], or None for 1; likewise `bias`, or None for 0.
        bias: see `weight`.
        running_mean: [channels], or None where none is kept; likewise `running_var` and `batches_tracked`.
        running_var: see `running_mean`.
        batches_tracked: a counter, int64.
        momentum: of the running statistics.
        epsilon: added to the variance.
        batch: whether it normalizes by the statistics of the batch, not by the running ones.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches_tracked: Tensor | None
    momentum: float
    epsilon: float
    batch: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Operation):
    """Each channel times `scale` plus `shift`, both [channels]: a BatchNorm that cannot be folded."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation(Operation):
    """A function of each value.

    Attributes:
        kind: which function.
        parameters: of the function, one for each of `kind.parameters`.
    """

    kind: ActivationKind
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Operation):
    """Max or average pooling; padding never wins a maximum, and counts as zeros in a mean if `count_padding`."""

    kind: Literal["max", "average"]
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    count_padding: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Dropout(Operation):
    """Zeroes values with probability `rate` and scales the others by 1 / (1 - rate)."""

    rate: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Operation):
    """The sum of two values of the same shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Concatenate(Operation):
    """Values one after another, by channels."""


@dataclass(frozen=True, eq=False)
class ModuleTensor:
    """A parameter or buffer of the module that a graph was traced from.

    Attributes:
        name: of layer and tensor, for messages.
        tensor: the module's own, not a copy.
        is_parameter: or a buffer.
        owner: the dictionary in which the module keeps it.
        key: its name there.
    """

    name: str
    tensor: Tensor
    is_parameter: bool
    owner: dict[str, Any]
    key: str


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as operations.

    Attributes:
        operations: in an order in which they can be run.
        shapes: of each value; the first is the image's.
        output: the value that is the network's output.
        flat: whether the output is [count, features] rather than [count, channels, height, width].
        tensors: the module's parameters and buffers that the operations use, each once.
    """

    operations: tuple[Operation, ...]
    shapes: tuple[Shape, ...]
    output: int
    flat: bool
    tensors: tuple[ModuleTensor, ...] = ()

    def readers(self) -> Counter[int]:
        """How often each value is read, counting the network's output once more."""
        return count_readers(self.operations, self.output)

    def renumbered(self) -> Graph:
        """The values that operations write, numbered in the order in which they are written."""
        numbers = {0: 0} | {op.output: number for number, op in enumerate(self.operations, start=1)}
        operations = tuple(
            replace(op, inputs=tuple(numbers[value] for value in op.inputs), output=numbers[op.output])
            for op in self.operations
        )
        shapes = (self.shapes[0], *(self.shapes[op.output] for op in self.operations))
        return replace(self, operations=operations, shapes=shapes, output=numbers[self.output])


def count_readers(operations: Iterable[Operation], output: int) -> Counter[int]:
    """How often each value is read, counting the network's output once more."""
    return Counter([output, *(value for operation in operations for value in operation.inputs)])
