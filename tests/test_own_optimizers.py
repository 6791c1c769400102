"""What the optimizers that PyTorch lacks have in common: engines, memory layouts, and being worth their time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from smidgen.engines.full_matrix import FullMatrixOptimizer
from smidgen.engines.soap import SoapOptimizer
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import run
from smidgen.trial import SOAP, Adam, AdamW, FullMatrixAdam, Trial

MATRIX = FullMatrixAdam(lr=0.02, every=10, weight_decay=1e-3)
AXES = SOAP(lr=0.01, every=10, weight_decay=0.02)
both = pytest.mark.parametrize("settings", [MATRIX, AXES], ids=lambda settings: settings.type_name)

Made = Callable[[list[nn.Parameter]], FullMatrixOptimizer | SoapOptimizer]


@pytest.mark.parametrize(
    "make",
    [lambda p: FullMatrixOptimizer(MATRIX, p), lambda p: SoapOptimizer(AXES, p)],
    ids=["full-matrix-adam", "soap"],
)
def test_memory_layouts_and_parameters_that_are_empty_do_not_matter(make: Made) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    extra = nn.Parameter(torch.zeros(0, 2))
    extra.grad = torch.zeros(0, 2)
    optimizers = [make(list(plain.parameters())), make([*other.parameters(), extra])]
    for _ in range(30):
        gradients = [torch.randn_like(p) for p in plain.parameters()]
        for network in (plain, other):
            for p, g in zip(network.parameters(), gradients, strict=True):
                p.grad = g.contiguous(memory_format=torch.channels_last) if network is other and g.dim() == 4 else g
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@both
def test_engines_and_numbers_of_threads_agree(
    small_trial: Trial, tmp_path: Path, settings: FullMatrixAdam | SOAP
) -> None:
    trial = replace(small_trial, optimizer=settings)
    runs = {
        (engine, threads): run(
            trial,
            options=RunOptions(engine=engine, threads=threads),  # type: ignore[arg-type]
            out=tmp_path / f"{engine}{threads}",
            progress=Silent(),
        )
        for engine, threads in (("auto", 1), ("auto", 2), ("eager", 1))
    }
    first = [finished.history[0].train_loss for finished in runs.values()]
    assert first[2] == pytest.approx(first[0], rel=2e-3)
    assert runs["auto", 1].history[-1].train_loss < first[0]
    if runs["auto", 1].result.engine == "native":
        assert runs["auto", 1].result.weights_sha256 == runs["auto", 2].result.weights_sha256


@pytest.mark.parametrize(
    ("settings", "diagonal", "epochs"), [(MATRIX, Adam(lr=0.02), 20), (AXES, AdamW(lr=0.01), 20)],
    ids=["full-matrix-adam", "soap"],
)  # fmt: skip
def test_they_learn_faster_than_along_the_plain_axes(
    small_trial: Trial, tmp_path: Path, settings: FullMatrixAdam | SOAP, diagonal: Adam, epochs: int
) -> None:
    losses = []
    for optimizer in (settings, diagonal):
        trial = replace(small_trial, optimizer=optimizer, epochs=epochs, goal=replace(small_trial.goal, epochs=epochs))
        finished = run(trial, seed=1, out=tmp_path / str(optimizer.type_name), progress=Silent())
        losses.append(finished.history[-1].train_loss)
    assert losses[0] < 0.95 * losses[1]
