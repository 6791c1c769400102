"""A network's tensors laid one after another in memory, so that one operation reaches them all.

The networks are tiny: an optimizer or an average that goes through forty tensors of a few hundred
values spends its time on the going.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FlatState:
    """All of a network's state in two vectors; its parameters and buffers become views of them.

    Attributes:
        floats: every floating value: weights, then vectors, then running statistics; those weights
            and vectors that are not trained come last.
        integers: every counter.
        weights: the trained parameters of more than one dimension, a part of `floats`.
        vectors: the trained parameters of one dimension (biases, BatchNorm's scale and shift).

    The gradients of `weights` and `vectors` are shared with the network's parameters too.
    """

    def __init__(self, network: nn.Module) -> None:
        parameters = [p for p in network.parameters() if p.requires_grad]
        weights = [p for p in parameters if p.dim() > 1]
        vectors = [p for p in parameters if p.dim() <= 1]
        trained = {id(p) for p in parameters}
        rest = [t for t in _state(network) if id(t) not in trained]
        floating = [*weights, *vectors, *[t for t in rest if t.is_floating_point()]]
        self.floats = _joined(floating)
        self.integers = _joined([t for t in rest if not t.is_floating_point()])
        cut = sum(p.numel() for p in weights)
        self.weights = _leaf(self.floats[:cut], weights)
        self.vectors = _leaf(self.floats[cut : cut + sum(p.numel() for p in vectors)], vectors)


def _state(network: nn.Module) -> list[Tensor]:
    """Every parameter and every buffer that is saved, each once."""
    kept = set(network.state_dict())
    named = [*network.named_parameters(), *network.named_buffers()]
    return [tensor for name, tensor in named if name in kept]


def _joined(tensors: list[Tensor]) -> Tensor:
    """One vector with all the values; the tensors become views of it, in their memory layout."""
    if not tensors:
        return torch.empty(0)
    flat = torch.empty(sum(t.numel() for t in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
    start = 0
    for tensor in tensors:
        view = flat.as_strided(tensor.shape, _dense_strides(tensor), start)
        view.copy_(tensor.data)
        tensor.data = view
        start += tensor.numel()
    return flat


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta").stride()


def _leaf(part: Tensor, parameters: Sequence[Tensor]) -> nn.Parameter:
    leaf = nn.Parameter(part.detach())
    leaf.grad = torch.zeros_like(part)
    start = 0
    for parameter in parameters:
        parameter.grad = leaf.grad.as_strided(parameter.shape, parameter.stride(), start)
        start += parameter.numel()
    return leaf
