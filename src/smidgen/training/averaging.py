"""The exponential moving average of weights and running statistics that is evaluated instead of them."""

from __future__ import annotations

from torch import nn

from smidgen.engines.engine import Average


class WeightAverage:
    """An exponential moving average of everything floating in a network, updated after each step.

    The decay is ramped, min(decay, (1 + t) / (10 + t)) after t steps, so that the average forgets
    the initial weights early on (the ramp of TensorFlow's ExponentialMovingAverage).

    Args:
        average: of the network, as its engine makes it.
        decay: 0 to 1, a step.
    """

    def __init__(self, average: Average, decay: float) -> None:
        self.decay = decay
        self._average = average

    @property
    def network(self) -> nn.Module:
        """A copy of the network with the averaged weights and statistics, in evaluation mode."""
        return self._average.network

    def update(self, steps: int) -> None:
        """Take in the weights after `steps` optimizer steps."""
        self._average.move(1 - min(self.decay, (1 + steps) / (10 + steps)))

    def settle(self) -> None:
        """Take over the counters, which are not averaged; after the steps, before the network is used."""
        self._average.settle()
