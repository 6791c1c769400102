"""The folded graph as exports need it: everything that one loop over an output computes is one operation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smidgen.graph import ops
from smidgen.graph.activations import RELU
from smidgen.graph.cost import cost
from smidgen.graph.fold import fold, run
from smidgen.graph.ops import Activation, Graph, Operation, Pair, Shape
from smidgen.graph.trace import trace

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Operation):
    """A convolution with bias, then ReLU where it says so, then an affine map of each channel where there is one.

    A linear layer is one whose kernel is its whole input.

    Attributes:
        weight: [outputs, inputs / groups, kernel height, kernel width].
        bias: [outputs].
        stride: rows, columns.
        padding: rows, columns of zeros on each side.
        dilation: rows, columns.
        groups: of channels that do not see each other.
        relu: whether negative results become 0.
        scale: [outputs], applied after the ReLU; None: nothing follows.
        shift: [outputs], added after that; None where scale is.
    """

    weight: Array
    bias: Array
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    relu: bool = False
    scale: Array | None = None
    shift: Array | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Operation):
    """Each channel times `scale` plus `shift` (a BatchNorm that nothing absorbs), then perhaps ReLU."""

    scale: Array
    shift: Array
    relu: bool = False


@dataclass(frozen=True, eq=False)
class FusedGraph:
    """A network for inference.

    The input is an image of float32 values, normalized as (pixel / 255 - mean) / std.

    Attributes:
        operations: in an order in which they can be run; a `Convolution` or `Affine` as above, or another of
            `smidgen.graph.ops`.
        shapes: channels, height, width of each value; the first is the input's.
        output: the value that holds the scores, one a class.
        mean: to subtract from pixels of 0 to 1.
        std: to divide by after that.
        folded: the graph that it was made from.
        folded_values: for each value its number there.
    """

    operations: tuple[Operation, ...]
    shapes: tuple[Shape, ...]
    output: int
    mean: float
    std: float
    folded: Graph
    folded_values: tuple[int, ...]

    @property
    def input_shape(self) -> Shape:
        """Channels, height, width of an image."""
        return self.shapes[0]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return cost(self.folded).macs

    @property
    def classes(self) -> int:
        """Number of scores."""
        channels, height, width = self.shapes[self.output]
        return channels * height * width

    def values(self, images: Tensor, dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
        """Every value for a batch, computed by PyTorch, for calibration and for checks.

        Args:
            images: uint8 [count, channels, height, width].
            dtype: of the arithmetic.
        """
        found = run(self.folded, (images.to(dtype) / 255 - self.mean) / self.std)
        return {number: found[value] for number, value in enumerate(self.folded_values)}

    def scores(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scores (logits) [count, classes] of uint8 images [count, channels, height, width]."""
        return self.values(images, dtype)[self.output].flatten(1)


def fuse(network: nn.Module, input_shape: Shape, mean: float, std: float) -> FusedGraph:
    """A network as operations, with BatchNorm folded into the convolutions.

    Args:
        network: in evaluation mode, on the CPU.
        input_shape: channels, height, width.
        mean: of the images' normalization, as of `FusedGraph`.
        std: likewise.

    Raises:
        TraceError: it has a layer that cannot be expressed; names it and the reason.
    """
    graph = fold(trace(network, input_shape))
    fused = replace(graph, operations=tuple(_fused(graph)))
    values = (0, *(operation.output for operation in fused.operations))
    compact = fused.renumbered()
    return FusedGraph(compact.operations, compact.shapes, compact.output, mean, std, graph, values)


def _fused(graph: Graph) -> list[Operation]:
    """Convolutions and affine maps with the ReLU, and then the affine map, that alone read their result."""
    readers = graph.readers()
    fused: dict[int, Operation] = {}  # by the value that they write
    for operation in graph.operations:
        value = operation.inputs[0]
        before = fused.get(value) if readers[value] == 1 else None
        is_relu = isinstance(operation, Activation) and operation.kind is RELU
        match before, operation:
            case ((Convolution(relu=False, scale=None) | Affine(relu=False)), Activation()) if is_relu:
                joined: Operation = replace(before, output=operation.output, relu=True)
            case Convolution(scale=None), ops.Affine():
                scale, shift = _array(operation.scale), _array(operation.shift)
                joined = replace(before, output=operation.output, scale=scale, shift=shift)
            case _:
                fused[operation.output] = _plain(operation)
                continue
        fused = {joined.output if v == value else v: joined if v == value else op for v, op in fused.items()}
    return list(fused.values())


def _plain(operation: Operation) -> Operation:
    """An operation of the folded graph with arrays in place of tensors."""
    match operation:
        case ops.Convolution():
            assert operation.bias is not None
            return Convolution(
                name=operation.name,
                inputs=operation.inputs,
                output=operation.output,
                weight=_array(operation.weight),
                bias=_array(operation.bias),
                stride=operation.stride,
                padding=operation.padding,
                dilation=operation.dilation,
                groups=operation.groups,
            )
        case ops.Affine():
            return Affine(
                name=operation.name,
                inputs=operation.inputs,
                output=operation.output,
                scale=_array(operation.scale),
                shift=_array(operation.shift),
            )
    return operation


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
