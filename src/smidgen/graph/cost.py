"""What a network costs: parameters, multiply-accumulates, bytes of values. Counted here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from smidgen.graph.ops import Convolution, Graph

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass of one image.

    Attributes:
        parameters: scalars, each counted once however often it is shared.
        macs: multiply-accumulates of convolutions and linear layers; biases and elementwise work are not counted.
        value_bytes: of all values but the image, as float32.
    """

    parameters: int
    macs: int
    value_bytes: int


def weight_shape(inputs: int, outputs: int, kernel: Sequence[int], groups: int = 1) -> tuple[int, ...]:
    """The shape of a convolution's weight; a linear layer has a kernel of ()."""
    return outputs, inputs // groups, *kernel


def macs_of_convolution(weight_shape: Sequence[int], places: int) -> int:
    """Multiply-accumulates of a convolution or linear layer: each weight once at each place of the output.

    Products with padding count too, as in every published table.

    Args:
        weight_shape: of its weight.
        places: pixels of its output; 1 for a linear layer on a vector.
    """
    return math.prod(weight_shape) * places


def macs_of_layer(layer: nn.Module, output_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one of PyTorch's layers for one image; 0 for layers that are not linear.

    Args:
        layer: as it was called.
        output_shape: of its output, without the batch.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        shape = weight_shape(layer.in_channels, layer.out_channels, layer.kernel_size, layer.groups)
        return macs_of_convolution(shape, math.prod(output_shape[1:]))
    if isinstance(layer, nn.Linear):
        return macs_of_convolution((layer.out_features, layer.in_features), math.prod(output_shape[:-1]))
    return 0


def macs_by_layer(graph: Graph) -> dict[str, int]:
    """Multiply-accumulates of each convolution or linear layer for one image; a layer that is called twice, added."""
    found: dict[str, int] = {}
    for operation in graph.operations:
        if isinstance(operation, Convolution):
            _, height, width = graph.shapes[operation.output]
            macs = macs_of_convolution(operation.weight.shape, height * width)
            found[operation.name] = found.get(operation.name, 0) + macs
    return found


def cost(graph: Graph) -> Cost:
    """The cost of a network, traced or folded; a folded one's parameters are those that are left."""
    tensors = [getattr(operation, name, None) for operation in graph.operations for name in _PARAMETERS]
    parameters = {id(tensor): tensor.numel() for tensor in tensors if tensor is not None}
    values = {operation.output for operation in graph.operations}
    return Cost(
        sum(parameters.values()),
        sum(macs_by_layer(graph).values()),
        FLOAT_BYTES * sum(math.prod(graph.shapes[value]) for value in values),
    )


_PARAMETERS = ("weight", "bias", "scale", "shift")
"""The fields of operations that hold parameters."""


def count_parameters(network: nn.Module) -> int:
    """Trainable scalars of a module, each counted once however often it is shared."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
