"""The exponential moving average of weights and running statistics that is judged instead of them."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """An exponential moving average of everything floating in a network, updated after each step.

    The decay is ramped, min(decay, (1 + t) / (10 + t)) after t steps, so that the average forgets
    the initial weights early on (the ramp of TensorFlow's ExponentialMovingAverage).

    Attributes:
        network: a copy of the network with the averaged weights and statistics, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        self._pairs = [(mean.data, value.data) for mean, value in pairs]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` optimizer steps."""
        weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
        for mean, value in self._pairs:
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)
