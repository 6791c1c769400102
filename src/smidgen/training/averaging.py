"""The exponential moving average of weights and running statistics that is judged instead of them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from smidgen.engines.native.module import NativeNetwork
from smidgen.engines.native.vectors import move_towards
from smidgen.training.flat import FlatState


class WeightAverage:
    """An exponential moving average of everything floating in a network, updated after each step.

    The decay is ramped, min(decay, (1 + t) / (10 + t)) after t steps, so that the average forgets
    the initial weights early on (the ramp of TensorFlow's ExponentialMovingAverage).

    Args:
        network: to be averaged.
        state: that network's, flat.
        decay: 0 to 1, a step.

    Attributes:
        network: a copy of the network with the averaged weights and statistics, in evaluation mode.
    """

    def __init__(self, network: nn.Module, state: FlatState, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network)
        self._mean, self._state = FlatState(self.network), state
        for parameter in self.network.parameters():
            parameter.grad = None
        self.network.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` optimizer steps."""
        weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
        if isinstance(self.network, NativeNetwork):
            move_towards(self._mean.floats, self._state.floats, weight)
        else:
            self._mean.floats.lerp_(self._state.floats, weight)

    def settle(self) -> None:
        """Take over the counters, which are not averaged; after the steps, before the network is used."""
        self._mean.integers.copy_(self._state.integers)
