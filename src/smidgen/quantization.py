"""Weights rounded to few bits: the steps that exports use, and that training can get used to."""

from __future__ import annotations

import torch
from torch import Tensor

_NARROWER = torch.linspace(0.4, 1.0, 13, dtype=torch.float64)


def weight_steps(weight: Tensor, bits: int, *, together: bool = False) -> Tensor:
    """The step of the weights of each output channel.

    With 8 bits, the largest weight takes the largest integer. With fewer, it is the step of the least squared error,
    of some smaller ones too, so weights that are multiples of a step are given that step.

    Args:
        weight: [outputs, ...], floating.
        bits: of an integer, 2 to 8; it has a sign, and its range is symmetrical.
        together: whether all channels have one step.

    Returns:
        [outputs], like `weight`; 0 where all weights are.
    """
    rows = weight.reshape(1 if together else len(weight), -1)
    most = 2 ** (bits - 1) - 1
    largest = rows.abs().amax(1)
    if bits == 8:
        found = largest / most
    else:
        divided = 1 / torch.arange(1, most, dtype=torch.float64)
        candidates = torch.cat([_NARROWER / most, divided]).to(weight)[:, None] * largest
        steps = torch.where(candidates > 0, candidates, 1.0)[:, :, None]
        errors = ((rows / steps).round().clamp(-most, most) * steps - rows).square().sum(2)
        found = candidates.gather(0, errors.argmin(0)[None])[0]
    by_channel: Tensor = found.expand(len(weight)).clone()
    return by_channel


def rounded(weight: Tensor, bits: int, *, together: bool = False) -> Tensor:
    """The weights as multiples of their steps; arguments as of `weight_steps`."""
    most = 2 ** (bits - 1) - 1
    steps = weight_steps(weight, bits, together=together)
    steps = torch.where(steps > 0, steps, 1.0).reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / steps).round().clamp(-most, most) * steps
