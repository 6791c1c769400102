"""A network's tensors laid one after another in memory, so that one operation reaches them all.

The networks are tiny: an optimizer or an average that goes through forty tensors of a few hundred
values spends its time on the going.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_ALIGNED = 16
"""Each tensor begins at a multiple of so many values: 64 bytes, a cache line. cuDNN needs 16 bytes, and stops the
whole process's work on the GPU where they are not."""

Move = Callable[[Tensor, Tensor, float], object]
"""`means.lerp_(values, weight)` for contiguous float32 vectors of one length, in an engine's own arithmetic."""


class FlatState:
    """A network's float32 state in one vector; its parameters and buffers become views of it.

    Attributes:
        floats: every float32 value: weights, then vectors, then what is not trained; zeros in between, so that each
            tensor is aligned.
        others: the parameters and buffers of other types, which stay as they are.
        weights: the trained float32 parameters of more than one dimension, a part of `floats`.
        vectors: those of one dimension (biases, BatchNorm's scale and shift), on which no weight decay acts.

    The gradients of `weights` and `vectors` are shared with the network's parameters too.
    """

    def __init__(self, network: nn.Module) -> None:
        state = _saved_state(network)
        floats = [t for t in state if t.dtype == torch.float32]
        trained = [t for t in floats if t.requires_grad]
        weights, vectors = [t for t in trained if t.dim() > 1], [t for t in trained if t.dim() <= 1]
        self.others = [t for t in state if t.dtype != torch.float32]
        self.floats = _joined([*weights, *vectors, *[t for t in floats if not t.requires_grad]])
        cut = sum(map(_room, weights))
        self.weights = _leaf(self.floats[:cut], weights)
        self.vectors = _leaf(self.floats[cut : cut + sum(map(_room, vectors))], vectors)


def _saved_state(network: nn.Module) -> list[Tensor]:
    """Every parameter and every buffer that is saved, each once."""
    kept = set(network.state_dict())
    named = [*network.named_parameters(), *network.named_buffers()]
    return [tensor for name, tensor in named if name in kept]


def _joined(tensors: list[Tensor]) -> Tensor:
    """One vector with all the values; the tensors become views of it, in their memory layout."""
    if not tensors:
        return torch.empty(0)
    flat = torch.zeros(sum(map(_room, tensors)), device=tensors[0].device)
    start = 0
    for tensor in tensors:
        view = flat.as_strided(tensor.shape, _dense_strides(tensor), start)
        view.copy_(tensor.data)
        tensor.data = view
        start += _room(tensor)
    return flat


def _room(tensor: Tensor) -> int:
    """Values that a tensor takes up, with those after it that fill up the alignment."""
    return math.ceil(tensor.numel() / _ALIGNED) * _ALIGNED


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta").stride()


def _leaf(part: Tensor, parameters: Sequence[Tensor]) -> nn.Parameter:
    leaf = nn.Parameter(part.detach())
    leaf.grad = torch.zeros_like(part)
    start = 0
    for parameter in parameters:
        parameter.grad = leaf.grad.as_strided(parameter.shape, parameter.stride(), start)
        start += _room(parameter)
    return leaf


class FlatAverage:
    """As `smidgen.engines.engine.Average` says, in one operation for all float32 values.

    Args:
        network: to be averaged.
        state: of that network.
        move: the engine's arithmetic.
    """

    def __init__(self, network: nn.Module, state: FlatState, move: Move) -> None:
        self.network = copy.deepcopy(network)
        self._mean, self._state, self._move = FlatState(self.network), state, move
        others = list(zip(self._mean.others, state.others, strict=True))
        self._averaged = [pair for pair in others if _is_averaged(pair[0])]
        self._counters = [pair for pair in others if not _is_averaged(pair[0])]
        for parameter in self.network.parameters():
            parameter.grad = None
        self.network.eval().requires_grad_(False)

    @torch.no_grad()
    def move(self, weight: float) -> None:
        """As `Average` says."""
        self._move(self._mean.floats, self._state.floats, weight)
        for mean, value in self._averaged:
            mean.lerp_(value, weight)

    @torch.no_grad()
    def settle(self) -> None:
        """As `Average` says."""
        for mean, value in self._counters:
            mean.copy_(value)


def _is_averaged(tensor: Tensor) -> bool:
    """Whether a mean of its values exists; PyTorch computes none of its 8-bit floating-point types."""
    return tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize > 1)
