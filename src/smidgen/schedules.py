"""Learning-rate schedules: each a value with settings, and a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from smidgen.settings import Settings, setting


@dataclass(frozen=True)
class Constant(Settings):
    """The learning rate stays as it is."""

    def fraction(self, step: int, steps_per_epoch: int, epochs: int) -> float:  # noqa: ARG002 - it is always 1
        """The factor of the optimizer's learning rate in a step.

        Args:
            step: counted from 0 over the whole training.
            steps_per_epoch: optimizer steps in an epoch.
            epochs: epochs of the whole training.

        Returns:
            0 to 1; 1 at the schedule's highest point.
        """
        return 1.0


@dataclass(frozen=True)
class Step(Settings):
    """The learning rate is multiplied by `factor` after every `every` epochs."""

    every: int = setting(least=1, help="epochs")
    factor: float = setting(0.1, above=0, most=1)

    def fraction(self, step: int, steps_per_epoch: int, epochs: int) -> float:  # noqa: ARG002 - of any length
        """As in `Constant`."""
        return float(self.factor ** (step // steps_per_epoch // self.every))


@dataclass(frozen=True)
class Cosine(Settings):
    """Linear warm-up from 0, then half a cosine down to `final` times the learning rate."""

    warmup: float = setting(0.0, least=0, below=1, help="fraction of all steps")
    final: float = setting(0.0, least=0, most=1, help="last learning rate, as a fraction of the highest")

    def fraction(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """As in `Constant`."""
        total = steps_per_epoch * epochs
        rising = round(self.warmup * total)
        if step < rising:
            return (step + 1) / rising
        return _half_cosine(1.0, self.final, (step - rising) / max(1, total - 1 - rising))


@dataclass(frozen=True)
class OneCycle(Settings):
    """Half a cosine up to the peak, another down (Smith 2018), step for step as PyTorch's OneCycleLR."""

    rise: float = setting(0.2, above=0, below=1, help="fraction of all steps on the way up")
    start: float = setting(0.1, above=0, most=1, help="first learning rate, as a fraction of the peak")
    final: float = setting(1e-4, least=0, most=1, help="last learning rate, as a fraction of the peak")

    def fraction(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """As in `Constant`."""
        total = steps_per_epoch * epochs
        # The turning points are those of torch.optim.lr_scheduler.OneCycleLR.
        peak = self.rise * total - 1
        if step < peak:
            return _half_cosine(self.start, 1.0, step / peak)
        if step == peak:  # which may be the very first step
            return 1.0
        return _half_cosine(1.0, self.final, (step - peak) / max(1e-9, total - 1 - peak))


Schedule = Constant | Step | Cosine | OneCycle


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
