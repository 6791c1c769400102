"""The cost of a network: parameters, multiply-accumulates, bytes of values. Counted only here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import flop_counter

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


def macs_of_operator(
    operator: torch._ops.OpOverload, given: Mapping[str, Any], results: Sequence[Tensor]
) -> int | None:
    """Multiply-accumulates of one call of one of PyTorch's operators; None where it is not known as a product.

    Args:
        operator: that was called.
        given: all its arguments by name.
        results: the tensors that it returned.
    """
    name = operator._schema.name.partition("::")[2]
    if name == "mkldnn_rnn_layer":
        weights: int = given["weight0"].numel() + given["weight1"].numel()
        image: Tensor = given["input"]
        return weights * math.prod(image.shape[:-1])
    if name in ("mv", "dot", "vdot", "addmv"):
        factor: Tensor = given["mat" if name == "addmv" else "self"]
        return factor.numel()
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        query, key, value = (tuple(map(int, given[part].shape)) for part in ("query", "key", "value"))
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    formula = flop_counter.flop_registry.get(operator.overloadpacket)
    if formula is None:
        return None
    schema = [argument for argument in operator._schema.arguments if argument.name != "out"]
    positional = [given[argument.name] for argument in schema if not argument.kwarg_only]
    named = {argument.name: given[argument.name] for argument in schema if argument.kwarg_only}
    flops: int = formula(*positional, **named, out_val=results[0] if len(results) == 1 else tuple(results))
    return flops // 2


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
    """Scalars of a module's parameters, trained or frozen, each counted once however often it is shared.

    Those of a lazy module count once it has seen an input.
    """
    return sum(p.numel() for p in network.parameters() if not is_lazy(p))


def count_trainable(network: nn.Module) -> int:
    """Scalars of a module's parameters that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad and not is_lazy(p))
