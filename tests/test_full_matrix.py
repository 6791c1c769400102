"""Adam with a whole matrix of second moments, against its formula in float64 and by what it promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smidgen.engines.full_matrix import GATHERED, MOST_PARAMETERS, FullMatrixOptimizer
from smidgen.engines.optimizers import optimizer_support, trained_parameters
from smidgen.errors import SettingError, SmidgenError, TrainingError, TrialError
from smidgen.runs.progress import Silent
from smidgen.runs.run import run
from smidgen.trial import Conv, FullMatrixAdam, Linear, Network, Trial

SETTINGS = FullMatrixAdam(lr=0.03, beta1=0.8, beta2=0.95, epsilon=0.1, every=20, weight_decay=0.2)


def by_the_formula(settings: FullMatrixAdam, start: Tensor, decayed: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The parameters after a step along each gradient, as a naive loop; all in float64."""
    w, count = start.clone(), len(start)
    mean, matrix, root = torch.zeros_like(w), torch.zeros(count, count, dtype=w.dtype), None
    for step, g in enumerate(gradients, 1):
        mean = settings.beta1 * mean + (1 - settings.beta1) * g
        matrix = settings.beta2 * matrix + (1 - settings.beta2) * torch.outer(g, g)
        if step in (10, 20, 40, 60):  # doubling up to `every`, then every so many
            c = matrix / (1 - settings.beta2**step)
            c += settings.epsilon * c.trace() / count * torch.eye(count, dtype=w.dtype)
            values, vectors = torch.linalg.eigh(c)
            root = vectors @ torch.diag(values**-0.5) @ vectors.T
        if root is not None:
            ahead = (settings.beta1 * mean + (1 - settings.beta1) * g) / (1 - settings.beta1 ** (step + 1))
            w = w * torch.where(decayed, 1 - settings.lr * settings.weight_decay, 1.0) - settings.lr * root @ ahead
    return w


def test_steps_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))
    start = torch.cat([matrix.detach().flatten(), vector.detach()]).double()
    gradients = [torch.randn(17) * torch.linspace(0.1, 3, 17) for _ in range(65)]
    optimizer = FullMatrixOptimizer(SETTINGS, [matrix, vector])
    for gradient in gradients:
        matrix.grad, vector.grad = gradient[:12].view(4, 3), gradient[12:]
        optimizer.step()
    decayed = torch.arange(17) < 12
    expected = by_the_formula(SETTINGS, start, decayed, [g.double() for g in gradients])
    found = torch.cat([matrix.detach().flatten(), vector.detach()]).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert optimizer.state()["step"] == 65


def descended(turn: Tensor, make: Callable[[nn.Parameter], FullMatrixOptimizer | torch.optim.Optimizer]) -> Tensor:
    """Where 300 steps down a narrow valley end, which is turned first; seen from the valley."""
    steep = torch.diag(torch.logspace(-3, 1, 12))
    w = nn.Parameter(turn @ torch.ones(12))
    optimizer = make(w)
    for _ in range(300):
        w.grad = turn @ steep @ turn.T @ w.detach()
        optimizer.step()
    return turn.T @ w.detach()


def test_the_axes_do_not_matter() -> None:
    """Unlike Adam: a turned problem has the turned solution, and a valley across the axes is no harder."""
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(12, 12))[0]
    settings = FullMatrixAdam(lr=0.02, every=10, epsilon=1e-3)
    ours = [descended(t, lambda w: FullMatrixOptimizer(settings, [w])) for t in (torch.eye(12), turn)]
    theirs = [descended(t, lambda w: torch.optim.Adam([w], lr=0.02)) for t in (torch.eye(12), turn)]
    torch.testing.assert_close(ours[0], ours[1], rtol=1e-2, atol=1e-2)
    assert (theirs[0] - theirs[1]).abs().max() > 0.1


def test_before_there_is_a_matrix_nothing_moves() -> None:
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = FullMatrixOptimizer(SETTINGS, [w])
    for step in range(1, GATHERED + 1):
        w.grad = torch.full((3, 2), float(step))
        optimizer.step()
        assert torch.equal(w.detach(), torch.ones(3, 2)) == (step < GATHERED)


@pytest.mark.parametrize("count", [3, 60])
def test_gradients_that_are_not_finite_do_not_go_unnoticed(count: int) -> None:
    w = nn.Parameter(torch.ones(count))
    optimizer = FullMatrixOptimizer(SETTINGS, [w])
    w.grad = torch.full((count,), torch.nan)
    for _ in range(GATHERED - 1):
        optimizer.step()
    try:
        optimizer.step()
    except TrainingError as error:
        assert str(error) == "the gradients are not finite"
    else:
        assert torch.isnan(w).all()


def test_gradients_of_zero_move_nothing_and_are_forgotten() -> None:
    w = nn.Parameter(torch.ones(4))
    optimizer = FullMatrixOptimizer(replace(SETTINGS, weight_decay=0.0), [w])
    for gradient in (0.0, 1e-3):
        w.grad = torch.full((4,), gradient)
        for _ in range(2 * GATHERED):
            optimizer.step()
        assert 0.1 < w.min() <= 1
        assert (w.detach() == 1).all() == (gradient == 0)


def test_a_frozen_parameter_stays_and_is_not_counted(small_trial: Trial) -> None:
    network = nn.Sequential(nn.Linear(70, 60), nn.Linear(60, 2))
    assert not optimizer_support(FullMatrixAdam(lr=0.1), network)
    network[0].requires_grad_(False)
    assert optimizer_support(FullMatrixAdam(lr=0.1), network)
    assert trained_parameters(network) == list(network[1].parameters())


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(SettingError, match=r"FullMatrixAdam.every is 15; allowed: a multiple of 10"):
        FullMatrixAdam(lr=0.1, every=15)


def test_a_training_that_would_end_before_the_first_step_is_refused(small_trial: Trial, tmp_path: Path) -> None:
    trial = replace(small_trial, optimizer=FullMatrixAdam(lr=0.02), batch_size=600, epochs=3)
    with pytest.raises(TrialError, match=r"gathers gradients in its first 9 steps, and this training has 3"):
        run(trial, out=tmp_path / "r", progress=Silent())
    assert not (tmp_path / "r").exists()


def test_a_network_that_is_too_large_is_refused_before_anything_is_written(small_trial: Trial, tmp_path: Path) -> None:
    network = Network((Conv(64), Conv(64, stride=9), Linear()))
    trial = replace(
        small_trial,
        network=network,
        goal=replace(small_trial.goal, parameters=100_000),
        optimizer=FullMatrixAdam(lr=0.02),
    )
    with pytest.raises(SmidgenError, match=f"full-matrix-adam is for at most {MOST_PARAMETERS:,} trained parameters"):
        run(trial, out=tmp_path / "r", progress=Silent())
    assert not (tmp_path / "r").exists()
