"""The optimizer's and the average's arithmetic on flat vectors, each in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smidgen.engines.native.core import find_core


class FlatSGD:
    """`torch.optim.SGD` on flat vectors, without its bookkeeping, which takes longer than the step.

    Args:
        groups: dictionaries with `params`, contiguous float32 leaves on the CPU whose `grad` stays
            the same tensor, and `lr`, `momentum`, `nesterov`, `weight_decay`, as in PyTorch.

    Attributes:
        param_groups: the groups.
        state: for each parameter its `momentum_buffer`; zeros to begin with, which is what PyTorch's
            first step comes to as well.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        core = find_core()
        assert core is not None
        self._core = core
        self.param_groups = groups
        self.state: dict[Tensor, dict[str, Tensor]] = {
            p: {"momentum_buffer": torch.zeros_like(p, requires_grad=False)} for g in groups for p in g["params"]
        }

    def step(self) -> None:
        """One step along the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                assert p.grad is not None
                self._core.sgd(
                    p.data_ptr(), p.grad.data_ptr(), self.state[p]["momentum_buffer"].data_ptr(), p.numel(),
                    group["lr"], group["momentum"], group["nesterov"], group["weight_decay"],
                )  # fmt: skip


def move_towards(means: Tensor, values: Tensor, weight: float) -> None:
    """`means.lerp_(values, weight)` for contiguous float32 vectors of one length."""
    core = find_core()
    assert core is not None
    assert means.shape == values.shape
    core.average(means.data_ptr(), values.data_ptr(), means.numel(), weight)
