"""SOAP: Adam along the axes in which the gradients of each weight matrix are least correlated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.errors import TrainingError
from smidgen.trial import SOAP

MOST_SIDE = 512
"""Longest side of a matrix that gets axes of its own: their cost grows with its third power."""
EPSILON = 1e-8
"""Added to each root, as in Adam."""
FIRST_AXES = 8
"""The step after which a matrix has its first axes, of the gradients until then; a power of 2."""


@dataclass
class Matrix:
    """A parameter of more than one dimension, as a matrix with a row for each index of the first, and its state.

    Attributes:
        parameter: of the network.
        mean: [rows, columns], first moments along the axes.
        square: second moments, likewise.
        products: means of the gradients' products with themselves, [rows, rows] and [columns, columns]; empty for a
            side that is too long, which is not rotated.
        axes: likewise, a column an axis.
    """

    parameter: nn.Parameter
    mean: Tensor
    square: Tensor
    products: tuple[Tensor, Tensor]
    axes: tuple[Tensor, Tensor]


@dataclass
class Vector:
    """A parameter of at most one dimension and its state: each value is an axis of its own."""

    parameter: nn.Parameter
    mean: Tensor
    square: Tensor


@dataclass(frozen=True)
class Factors:
    """The factors of one step.

    Attributes:
        rate: the learning rate, divided by the bias correction of the first moments.
        beta1: share of the first moments that is kept.
        beta2: share of the second moments and the products that is kept.
        correction2: bias correction of the second moments, which are divided by it.
        epsilon: added to their roots.
        decay: what weights are multiplied by.
    """

    rate: float
    beta1: float
    beta2: float
    correction2: float
    epsilon: float
    decay: float


class SoapOptimizer:
    """`SOAP` for a network's trained parameters, on any device.

    With G the gradient of a weight as a matrix, L and R the means of G Gᵀ and Gᵀ G and U and V their eigenvectors, all
    means from 0 and by `beta2` a step but M's, in step t:

        G' = Uᵀ G V
        M  ← beta1 M + (1 - beta1) G'
        S  ← beta2 S + (1 - beta2) G'²
        D  = (beta1 M + (1 - beta1) G') / (1 - beta1^(t + 1))      Nesterov's look ahead
        W  ← (1 - rate * weight_decay) W - rate * U (D / (sqrt(S / (1 - beta2^t)) + epsilon)) Vᵀ

    U and V begin as identities. They are renewed after the steps 8, 16, 32 and so on below `every`, and after each
    multiple of `every`. M is then rotated to the new axes; S is not, but both orders of axes are by eigenvalue.

    The paper's authors take no step before the first axes, refine axes by one round of a power iteration instead of
    finding them anew, and have no look ahead.

    Args:
        settings: the trial's.
        parameters: that are trained.
    """

    def __init__(self, settings: SOAP, parameters: Sequence[nn.Parameter]) -> None:
        self._settings, self._rate, self._steps = settings, settings.lr, 0
        self._parameters = [p for p in parameters if p.numel()]
        self._take(self.state_after(0))

    def set_rate(self, rate: float) -> None:
        """As `Optimizer` says."""
        self._rate = rate

    @torch.no_grad()
    def step(self) -> None:
        """As `Optimizer` says. Gradients that are not finite make parameters that are not, as the next loss shows.

        Raises:
            TrainingError: there are no new axes, because gradients were not finite or too large to be multiplied.
        """
        beta1, beta2 = self._settings.beta1, self._settings.beta2
        self._steps += 1
        self._state["step"].fill_(self._steps)
        factors = Factors(
            rate=self._rate / (1 - beta1 ** (self._steps + 1)),
            beta1=beta1,
            beta2=beta2,
            correction2=1 - beta2**self._steps,
            epsilon=EPSILON,
            decay=1 - self._rate * self._settings.weight_decay,
        )
        self.move(factors)
        if self._renews:
            self.renew()

    def move(self, factors: Factors) -> None:
        """Update products, moments and parameters by the gradients."""
        for matrix in self.matrices:
            gradient = gradient_of(matrix.parameter).reshape(matrix.mean.shape)
            for products, along in zip(matrix.products, (gradient, gradient.T), strict=True):
                if products.numel():
                    products.lerp_(along @ along.T, 1 - factors.beta2)
            rows, columns = matrix.axes
            change = _rotated(_adam(matrix, _rotated(gradient, rows, columns, back=False), factors), rows, columns)
            matrix.parameter.mul_(factors.decay).sub_(change.view_as(matrix.parameter), alpha=factors.rate)
        for vector in self.vectors:
            change = _adam(vector, gradient_of(vector.parameter), factors)
            vector.parameter.sub_(change, alpha=factors.rate)

    @property
    def _renews(self) -> bool:
        """Whether the axes are to be renewed after this step."""
        steps, every = self._steps, self._settings.every
        doubled = FIRST_AXES <= steps < every and steps & (steps - 1) == 0
        return doubled or steps % every == 0

    def renew(self) -> None:
        """Replace the axes by the eigenvectors of the products as they are now.

        Raises:
            TrainingError: a small matrix has no eigenvectors, as it is not finite; of a large one, LAPACK gives NaN.
        """
        for matrix in self.matrices:
            rotations = []
            for products, axes in zip(matrix.products, matrix.axes, strict=True):
                if not products.numel():
                    rotations.append(axes)
                    continue
                try:
                    found = torch.linalg.eigh(products)[1]
                except torch.linalg.LinAlgError:  # type: ignore[attr-defined] # missing in torch's stubs
                    raise TrainingError("the gradients are not finite, or too large") from None
                rotations.append(axes.T @ found)
                axes.copy_(found)
            matrix.mean.copy_(_rotated(matrix.mean, *rotations, back=False))

    def state(self) -> dict[str, Tensor]:
        """As `Optimizer` says."""
        return self._state

    def state_after(self, steps: int) -> dict[str, Tensor]:  # noqa: ARG002 - the same after any number
        """As `Optimizer` says."""
        device = self._parameters[0].device if self._parameters else None
        state = {"step": torch.zeros((), dtype=torch.int64, device=device)}
        for number, parameter in enumerate(self._parameters):
            rows, columns = _sides(parameter)
            is_matrix = parameter.dim() > 1
            shape = (rows, columns) if is_matrix else tuple(parameter.shape)
            for name in ("mean", "square"):
                state[f"{number}.{name}"] = torch.zeros(shape, device=device)
            if is_matrix:
                for side, name in ((rows, "rows"), (columns, "columns")):
                    room = side if side <= MOST_SIDE else 0
                    state[f"{number}.{name}.products"] = torch.zeros(room, room, device=device)
                    state[f"{number}.{name}.axes"] = torch.eye(room, device=device)
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """As `Optimizer` says."""
        self._steps = int(state["step"])
        self._take(state)

    def _take(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)
        self.matrices: list[Matrix] = []
        self.vectors: list[Vector] = []
        for number, parameter in enumerate(self._parameters):
            mean, square = state[f"{number}.mean"], state[f"{number}.square"]
            if parameter.dim() > 1:
                products, axes = (
                    (state[f"{number}.rows.{name}"], state[f"{number}.columns.{name}"]) for name in ("products", "axes")
                )
                self.matrices.append(Matrix(parameter, mean, square, products, axes))
            else:
                self.vectors.append(Vector(parameter, mean, square))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient, which there must be."""
    assert parameter.grad is not None
    return parameter.grad


def _sides(parameter: Tensor) -> tuple[int, int]:
    rows = parameter.shape[0] if parameter.dim() else 1
    return rows, parameter.numel() // rows


def _rotated(values: Tensor, rows: Tensor, columns: Tensor, *, back: bool = True) -> Tensor:
    """Values along a matrix's axes, rotated to the plain ones; or, not `back`, the reverse."""
    if rows.numel():
        values = (rows if back else rows.T) @ values
    if columns.numel():
        values = values @ (columns.T if back else columns)
    return values


def _adam(moments: Matrix | Vector, gradient: Tensor, factors: Factors) -> Tensor:
    """Update the moments by a gradient along their axes, and give Adam's step for a rate of 1."""
    moments.mean.lerp_(gradient, 1 - factors.beta1)
    moments.square.mul_(factors.beta2).addcmul_(gradient, gradient, value=1 - factors.beta2)
    ahead = moments.mean.lerp(gradient, 1 - factors.beta1)
    return ahead / ((moments.square / factors.correction2).sqrt() + factors.epsilon)
