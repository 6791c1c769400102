"""The budgets in bytes of a trial's goal, held against its network before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from smidgen.errors import SmidgenError, TrialError
from smidgen.lowering.c.sizes import BITS, Needs, int8_needs
from smidgen.trial import BUDGETS, IN_BYTES, Goal, Trial


def bits_of(trial: Trial) -> int:
    """How many bits the weights of a trial's network need in integer code."""
    wanted = trial.quantization.weights if trial.quantization else max(BITS)
    return min(bits for bits in BITS if bits >= wanted)


def check_bytes(trial: Trial, network: nn.Module, input_shape: Sequence[int]) -> Needs | None:
    """Refuse a trial whose network is over a budget in bytes, before any time is spent on it.

    Args:
        trial: the recipe with its goal.
        network: the trial's, on the CPU, whatever its weights; it is not changed.
        input_shape: channels, height, width.

    Returns:
        What the network needs; None where the goal has no budget in bytes.

    Raises:
        TrialError: the network needs more than the goal allows, or cannot be exported as integer code.
    """
    if not trial.goal.in_bytes:
        return None
    channels, height, width = input_shape
    try:
        with torch.random.fork_rng(devices=[]):
            needs = int8_needs(network, (channels, height, width), bits=bits_of(trial), most_ram=trial.goal.ram)
    except SmidgenError as error:
        raise TrialError(
            f"{trial.name} has a budget in bytes, but its network cannot be exported as C in integers: {error}; "
            f"change the network, or unset goal.flash and goal.ram"
        ) from None
    over = excess(trial.goal, needs)
    if over:
        name, reason = over
        raise TrialError(f"{trial.name} is over budget: {reason}; make the network smaller, or raise goal.{name}")
    return needs


def excess(goal: Goal, needs: Needs) -> tuple[str, str] | None:
    """The first budget in bytes that is exceeded, and by what, for people; None if all are kept."""
    for name, used in zip(IN_BYTES, (needs.flash, needs.ram), strict=True):
        limit = goal.budgets.get(name)
        if limit is not None and used > limit:
            return name, (
                f"{used:,} {BUDGETS[name]}, at most {limit:,} allowed; most is taken by {needs.costliest[name]}"
            )
    return None
