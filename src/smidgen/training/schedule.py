"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from smidgen.trial import Constant, Cosine, OneCycle, Schedule, Step


def rate_factor(schedule: Schedule, step: int, steps_per_epoch: int, epochs: int) -> float:
    """What the optimizer's learning rate is multiplied by in a step.

    Args:
        schedule: the trial's schedule.
        step: counted from 0 over the whole training.
        steps_per_epoch: optimizer steps in an epoch.
        epochs: epochs of the whole training.

    Returns:
        0 to 1; 1 at the schedule's highest point.
    """
    total = steps_per_epoch * epochs
    match schedule:
        case Constant():
            return 1.0
        case Step(every=every, factor=factor):
            return float(factor ** (step // steps_per_epoch // every))
        case Cosine(warmup=warmup, final=final):
            rising = round(warmup * total)
            if step < rising:
                return (step + 1) / rising
            return _half_cosine(1.0, final, (step - rising) / max(1, total - 1 - rising))
        case OneCycle(rise=rise, start=start, final=final):
            # The turning points are those of torch.optim.lr_scheduler.OneCycleLR.
            peak = rise * total - 1
            if step < peak:
                return _half_cosine(start, 1.0, step / peak)
            if step == peak:  # which may be the very first step
                return 1.0
            return _half_cosine(1.0, final, (step - peak) / max(1e-9, total - 1 - peak))


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
