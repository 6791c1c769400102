"""Inference without BatchNorm: folded into the convolutions; and the reference run of a graph, in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from smidgen.graph.ops import (
    Activation,
    Add,
    Affine,
    BatchNorm,
    Concatenate,
    Convolution,
    Dropout,
    Graph,
    Operation,
    Pool,
)
from smidgen.graph.trace import TraceError


def fold(graph: Graph) -> Graph:
    """A graph for inference, in which every BatchNorm is folded into the convolution before it or after it.

    What cannot be folded without changing results becomes an `Affine`. Weights are computed in double precision
    and rounded to float32; those of the result are copies, [outputs, inputs / groups, height, width] each.

    Args:
        graph: traced in evaluation mode.

    Raises:
        TraceError: a BatchNorm uses the statistics of the batch, or values are dropped at random.
    """
    return _affine_maps_moved_on(_norms_folded_back(graph))


def _norms_folded_back(graph: Graph) -> Graph:
    """Each BatchNorm folded into the convolution that wrote its input, or else an affine map."""
    readers = graph.readers()
    folded: dict[int, tuple[Tensor, Tensor]] = {}  # double precision, by the value that the convolution writes
    made: dict[int, Operation] = {}
    for operation in graph.operations:
        source = operation.inputs[0]
        match operation:
            case Convolution():
                outputs = operation.weight.shape[0]
                weight = operation.weight.detach().cpu().double().reshape(outputs, -1, *operation.kernel)
                bias = torch.zeros(outputs, dtype=torch.float64)
                if operation.bias is not None:
                    bias = operation.bias.detach().cpu().double()
                folded[operation.output] = weight, bias
                made[operation.output] = operation
            case BatchNorm():
                scale, shift = _scale_and_shift(operation)
                if source in folded and readers[source] == 1:
                    weight, bias = folded.pop(source)
                    folded[operation.output] = weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift
                    made[operation.output] = replace(made.pop(source), output=operation.output)
                else:
                    made[operation.output] = Affine(
                        name=operation.name,
                        inputs=operation.inputs,
                        output=operation.output,
                        scale=scale.float(),
                        shift=shift.float(),
                    )
            case Dropout():
                raise TraceError(operation.name, "it drops values at random")
            case _:
                made[operation.output] = operation
    for value, (weight, bias) in folded.items():
        convolution = made[value]
        assert isinstance(convolution, Convolution)
        made[value] = replace(convolution, weight=weight.float(), bias=bias.float())
    kept = tuple(made[op.output] for op in graph.operations if op.output in made)
    return replace(graph, operations=kept, tensors=()).renumbered()


def _scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """A BatchNorm in evaluation mode as a factor and an offset for each channel, float64."""
    if norm.batch or norm.running_mean is None or norm.running_var is None:
        raise TraceError(norm.name, "it normalizes by the statistics of the batch")
    scale = 1 / torch.sqrt(norm.running_var.detach().cpu().double() + norm.epsilon)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().cpu().double()
    shift = -norm.running_mean.detach().cpu().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().cpu().double()
    return scale, shift


def _affine_maps_moved_on(graph: Graph) -> Graph:
    """Affine maps moved into the next convolution, where that changes nothing.

    It does not where the convolution pads (the padding would have to be shifted too) or where somebody
    else reads the value; a max pooling in between commutes with positive scales only.
    """
    readers: dict[int, list[int]] = {value: [] for value in range(len(graph.shapes))}
    for index, operation in enumerate(graph.operations):
        for value in operation.inputs:
            readers[value].append(index)
    result: list[Operation | None] = list(graph.operations)
    aliases: dict[int, int] = {}
    for index, affine in enumerate(graph.operations):
        if not isinstance(affine, Affine):
            continue
        value = affine.output
        while value != graph.output and len(readers[value]) == 1:
            at = readers[value][0]
            following = result[at]
            if isinstance(following, Pool) and following.padding == (0, 0):
                if following.kind == "max" and not bool((affine.scale > 0).all()):
                    break
                value = following.output
                continue
            if isinstance(following, Convolution) and following.padding == (0, 0):
                result[at] = _with_mapped_input(following, affine)
                result[index] = None
                aliases[affine.output] = affine.inputs[0]
            break
    kept = [
        replace(op, inputs=tuple(aliases.get(value, value) for value in op.inputs)) for op in result if op is not None
    ]
    return replace(graph, operations=tuple(kept)).renumbered()


def _with_mapped_input(convolution: Convolution, affine: Affine) -> Convolution:
    """A convolution that does the affine map of its input too."""
    assert convolution.bias is not None
    weight, bias = convolution.weight.double(), convolution.bias.double()
    channels, groups = len(affine.scale), convolution.groups
    outputs = len(weight) // groups
    # A linear layer on a flattened image has as many inputs as the image has channels: its kernel is the image.
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        seen = slice(group * channels // groups, (group + 1) * channels // groups)
        bias[own] += torch.einsum("oihw,i->o", weight[own], affine.shift[seen].double())
        weight[own] *= affine.scale[seen].double().reshape(1, -1, 1, 1)
    return replace(convolution, weight=weight.float(), bias=bias.float())


def run(graph: Graph, images: Tensor) -> dict[int, Tensor]:
    """Every value of a folded graph for a batch, by its number: what exports are calibrated with and checked against.

    Args:
        graph: as `fold` gives it.
        images: [count, channels, height, width], normalized; their dtype is that of the arithmetic.
    """
    values = {0: images}
    for operation in graph.operations:
        values[operation.output] = apply(operation, [values[value] for value in operation.inputs])
    return values


def apply(operation: Operation, inputs: list[Tensor]) -> Tensor:
    """The output of an operation of a folded graph for inputs [count, channels, height, width]."""
    x = inputs[0]
    match operation:
        case Convolution():
            weight = operation.weight.to(x.dtype)
            bias = None if operation.bias is None else operation.bias.to(x.dtype)
            return F.conv2d(x, weight, bias, operation.stride, operation.padding, operation.dilation, operation.groups)
        case Affine():
            return x * by_channel(operation.scale.to(x.dtype)) + by_channel(operation.shift.to(x.dtype))
        case Activation():
            return operation.kind.evaluate(x, *operation.parameters)
        case Pool(kind="max"):
            return F.max_pool2d(x, operation.kernel, operation.stride, operation.padding)
        case Pool():
            return F.avg_pool2d(
                x, operation.kernel, operation.stride, operation.padding, count_include_pad=operation.count_padding
            )
        case Add():
            return x + inputs[1]
        case Concatenate():
            return torch.cat(inputs, 1)
    raise AssertionError(operation)


def by_channel(values: Tensor) -> Tensor:
    """Values [channels] in a shape that broadcasts over [count, channels, height, width]."""
    return values.reshape(1, -1, 1, 1)
