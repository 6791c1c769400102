"""What the programs that make the figures of docs/ share: which runs, where they are, and what is asked of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import smidgen
from smidgen import RunOptions, Trial
from smidgen.data.dataset import Dataset, Examples
from smidgen.engines.choose import choose
from smidgen.engines.engine import Engine
from smidgen.sweeps.progress import best_sweep_progress
from smidgen.sweeps.sweep import TrialResult
from smidgen.training.evaluation import HeldOut, evaluate
from smidgen.training.loop import new_network, start, take_step
from smidgen.trials.builtin import BUILTIN

DOCS = Path(__file__).parents[1] / "docs"
FLAGSHIP, SPRINT = "mnist-4-strict", "mnist-sprint"
HELD_OUT, FOLDS = 20_000, 3
"""For comparisons that leave the test images alone: trained on two thirds, evaluated on a third in turn."""


@dataclass(frozen=True)
class RunSet:
    """Runs behind a table.

    Attributes:
        trials: their names.
        seeds: of each trial.
        options: of each run.
        workers: runs at a time; None: as many as there are cores for their threads.
    """

    trials: tuple[str, ...]
    seeds: str
    options: RunOptions
    workers: int | None = None

    def runs(self, arguments: argparse.Namespace) -> tuple[TrialResult, ...]:
        """The runs of each trial that is asked for; what is missing is trained first."""
        names = asked_for(self.trials, arguments)
        return swept(names, arguments, self.seeds, self.options, self.workers) if names else ()


_FP32 = RunOptions(engine="native", precision="fp32", threads=1)
RESULTS = {
    "reference": RunSet(("mnist-1-skeleton", "mnist-2-regularized", "mnist-3-augmented"), "0-4", _FP32),
    "float32": RunSet((FLAGSHIP, "mnist-tiny", "mnist-tiny-99"), "0-31", _FP32),
    "sprint": RunSet((SPRINT,), "0-31", replace(_FP32, precision="bf16", threads=2), workers=1),
    "fashion": RunSet(("fashion-small",), "0-31", replace(_FP32, precision="bf16")),
    "bf16": RunSet((FLAGSHIP,), "0-7", replace(_FP32, precision="bf16")),
    "eager": RunSet((FLAGSHIP,), "0-3", replace(_FP32, engine="eager")),
}
"""The runs of docs/results.md. Seconds count for the sprint, so its runs have the machine to themselves."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every program that needs runs."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--runs", type=Path, default=Path("runs/results"), help="folder of the runs; default: %(default)s"
    )
    made.add_argument("--trials", nargs="+", choices=list(BUILTIN), help="only these of the trials in its tables")
    made.add_argument("--seeds", help="instead of those of docs/, as in 0-1, for a quick try")
    made.add_argument("--epochs", type=int, help="instead of each trial's, for a quick try")
    return made


def asked_for(names: Iterable[str], arguments: argparse.Namespace) -> tuple[str, ...]:
    """Those of a program's trials that `--trials` names; without it, all."""
    return tuple(name for name in names if arguments.trials is None or name in arguments.trials)


def swept(
    trials: tuple[str | Trial, ...],
    arguments: argparse.Namespace,
    seeds: str,
    options: RunOptions,
    workers: int | None = None,
    folds: int | None = None,
) -> tuple[TrialResult, ...]:
    """The runs of each trial; those that are there already are kept, and what is missing is trained.

    Args:
        trials: recipes, or their names.
        arguments: as `parser` understands them.
        seeds: unless the arguments have others.
        options: of each run.
        workers: runs at a time; None: as many as there are cores for their threads.
        folds: as `smidgen.sweep` takes them.
    """
    made = smidgen.sweep(
        trials,
        arguments.seeds or seeds,
        epochs=arguments.epochs,
        folds=folds,
        options=options,
        workers=workers,
        out=arguments.runs,
        progress=best_sweep_progress(sys.stderr),
    )
    if made.failures:
        raise SystemExit(f"{len(made.failures)} runs failed, the first with: {made.failures[0][1]}")
    return made.trials


def on_held_out(trial: Trial) -> Trial:
    """The trial trained on two thirds of the training images and evaluated on the last third."""
    return replace(trial, data=replace(trial.data, evaluate="validation", validation=HELD_OUT))


class Steps:
    """Training steps of one engine, one after another.

    Args:
        trial: the recipe.
        dataset: its data.
        engine: on whose device the images are kept.
    """

    def __init__(self, trial: Trial, dataset: Dataset, engine: Engine) -> None:
        self._trial, self._taken = trial, 0
        self._training = start(trial, new_network(trial, dataset, 0), engine)
        examples = dataset.train.to(engine.device)
        self._loader = engine.loader(examples, trial.augmentation, 0, dataset.mean, dataset.std)
        self._batches = torch.arange(len(examples), device=examples.labels.device).split(trial.batch_size)[:-1]

    def take(self, count: int) -> None:
        """So many steps."""
        for _ in range(count):
            step = self._taken % len(self._batches)
            self._taken += 1
            batch = self._batches[step]
            take_step(self._training, self._loader, batch, 0.01, self._trial, 0, 1, step, self._taken)


def accuracy(run: smidgen.Run, examples: Examples) -> float:
    """Percent of other images that a run's network classifies correctly."""
    engine = choose()
    images = HeldOut(engine, examples, run.trained.mean, run.trained.std)
    return evaluate(engine.prepare(run.network), images).accuracy


def difference(values: list[float]) -> str:
    """Mean of paired differences with its standard error, points."""
    summary = smidgen.summarize(values, 0)
    error = summary.standard_error
    return f"{summary.mean:+.3f}" + ("" if error is None else f" ± {error:.3f}")
