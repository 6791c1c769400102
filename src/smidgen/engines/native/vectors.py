"""The optimizer's and the average's arithmetic on flat vectors, each in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from smidgen.engines.flat import FlatState
from smidgen.engines.native.core import find_core
from smidgen.trial import SGD


class FlatSGD:
    """`torch.optim.SGD` on flat vectors, without its bookkeeping, which takes longer than the step.

    Args:
        settings: the trial's.
        flat: contiguous float32 on the CPU, whose gradients stay the same tensors.
    """

    def __init__(self, settings: SGD, flat: FlatState) -> None:
        core = find_core()
        assert core is not None
        self._core, self._settings, self._rate = core, settings, settings.lr
        decayed = {"weights": (flat.weights, settings.weight_decay), "vectors": (flat.vectors, 0.0)}
        self._parameters = {name: pair for name, pair in decayed.items() if pair[0].numel()}
        # With buffers of zeros the first step equals PyTorch's, which has none yet.
        self._buffers = self.state_after(0)

    def set_rate(self, rate: float) -> None:
        """As `Optimizer` says."""
        self._rate = rate

    def step(self) -> None:
        """As `Optimizer` says."""
        settings = self._settings
        for (p, decay), buffer in zip(self._parameters.values(), self._buffers.values(), strict=True):
            assert p.grad is not None
            self._core.sgd(
                p.data_ptr(), p.grad.data_ptr(), buffer.data_ptr(), p.numel(),
                self._rate, settings.momentum, settings.nesterov, decay,
            )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """As `Optimizer` says."""
        return self._buffers

    def state_after(self, steps: int) -> dict[str, Tensor]:  # noqa: ARG002 - the same after any number
        """As `Optimizer` says."""
        return {
            f"{name}.momentum_buffer": torch.zeros_like(p, requires_grad=False)
            for name, (p, _) in self._parameters.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """As `Optimizer` says."""
        self._buffers = state


def move_towards(means: Tensor, values: Tensor, weight: float) -> None:
    """`means.lerp_(values, weight)` for contiguous float32 vectors of one length."""
    core = find_core()
    assert core is not None
    assert means.shape == values.shape
    core.average(means.data_ptr(), values.data_ptr(), means.numel(), weight)
