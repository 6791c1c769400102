"""Adam with a whole matrix of second moments: a step along all parameters together, for networks of a few thousand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from smidgen.errors import TrainingError
from smidgen.trial import FullMatrixAdam

MOST_PARAMETERS = 4_096
"""Bound on the trained parameters: the matrix and its root take 64 MiB each then, as they do in each checkpoint, and
the root some seconds."""
GATHERED = 10
"""Gradients that enter the matrix at once: one product of matrices instead of as many passes over the whole matrix."""


class FullMatrixOptimizer:
    """`FullMatrixAdam` for a network's trained parameters, on any device.

    With g the gradient of all n parameters, it keeps m, the mean of g that decays by `beta1` a step, and C, that of
    g gᵀ, by `beta2`, both from 0. In step t it uses what they would be without that beginning, and looks ahead as
    Nesterov's momentum does:

        C' = C / (1 - beta2^t)
        m' = (beta1 m + (1 - beta1) g) / (1 - beta1^(t + 1))
        w ← w - rate (C' + epsilon trace(C') / n)^(-1/2) m'

    after decay by `rate * weight_decay`. C takes in ten gradients at a time. The root is renewed every `every` steps,
    at first whenever they have doubled; before step 10 there is none, and nothing moves.

    Args:
        settings: the trial's.
        parameters: that are trained.
    """

    def __init__(self, settings: FullMatrixAdam, parameters: Sequence[nn.Parameter]) -> None:
        self._settings, self._rate = settings, settings.lr
        self._parameters: list[Tensor] = [p for p in parameters if p.numel()]
        self._sizes = [p.numel() for p in self._parameters]
        self._decayed = [p for p in self._parameters if p.dim() > 1]
        self._state = self.state_after(0)
        self._steps = 0

    def set_rate(self, rate: float) -> None:
        """As `Optimizer` says."""
        self._rate = rate

    @torch.no_grad()
    def step(self) -> None:
        """As `Optimizer` says. Gradients that are not finite make parameters that are not, as the next loss shows."""
        settings, state = self._settings, self._state
        gradient = torch.cat([_values(p.grad) for p in self._parameters])
        state["mean"].lerp_(gradient, 1 - settings.beta1)
        place = self._steps % GATHERED
        state["gathered"][place] = gradient
        self._steps += 1
        state["step"].fill_(self._steps)
        if place == GATHERED - 1:
            self._gather()
        if self._renews:
            self._renew()
        if self._steps < GATHERED:
            return  # there is no root yet
        ahead = state["mean"].lerp(gradient, 1 - settings.beta1) / (1 - settings.beta1 ** (self._steps + 1))
        change = state["root"] @ ahead
        if settings.weight_decay and self._decayed:
            torch._foreach_mul_(self._decayed, 1 - self._rate * settings.weight_decay)
        parts = [part.view_as(p) for part, p in zip(change.split(self._sizes), self._parameters, strict=True)]
        torch._foreach_add_(self._parameters, parts, alpha=-self._rate)

    def _gather(self) -> None:
        """Let the gradients since the last time into the matrix."""
        matrix, gathered, decay = self._state["matrix"], self._state["gathered"], self._settings.beta2
        ages = torch.arange(GATHERED - 1, -1, -1, device=gathered.device)
        weights = (1 - decay) * decay**ages
        matrix.mul_(decay**GATHERED).addmm_(gathered.T, gathered * weights[:, None])

    @property
    def _renews(self) -> bool:
        """Whether the root is to be renewed: every so many steps, and at first whenever they have doubled."""
        sets, rest = divmod(self._steps, GATHERED)
        doubled = self._steps < self._settings.every and sets & (sets - 1) == 0
        return rest == 0 and (doubled or self._steps % self._settings.every == 0)

    def _renew(self) -> None:
        """Compute the root of the matrix as it is now.

        Raises:
            TrainingError: a small matrix is not finite; of a large one, LAPACK gives NaN.
        """
        matrix = self._state["matrix"] / (1 - self._settings.beta2**self._steps)
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined] # missing in torch's stubs
            raise TrainingError("the gradients are not finite") from None
        values = values.clamp(min=0)  # rounding can make them negative
        mean = values.mean()
        damping = self._settings.epsilon * mean + torch.finfo(values.dtype).tiny
        root = (vectors * (values + damping).rsqrt()) @ vectors.T
        self._state["root"].copy_(root * (mean > 0))  # none, as long as all gradients were 0

    def state(self) -> dict[str, Tensor]:
        """As `Optimizer` says."""
        return self._state

    def state_after(self, steps: int) -> dict[str, Tensor]:  # noqa: ARG002 - the same after any number
        """As `Optimizer` says."""
        count, device = sum(self._sizes), self._parameters[0].device if self._parameters else None
        shapes = {"mean": (count,), "gathered": (GATHERED, count), "matrix": (count, count), "root": (count, count)}
        made = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        return {**made, "step": torch.zeros((), dtype=torch.int64, device=device)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """As `Optimizer` says."""
        self._state = dict(state)
        self._steps = int(state["step"])


def _values(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.reshape(-1)
