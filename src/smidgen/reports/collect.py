"""The subject of a report: runs loaded, grouped by trial, with their answers for each image."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from smidgen.data.dataset import Dataset
from smidgen.engines.choose import choose, choose_for
from smidgen.engines.engine import DeviceName, EngineName, Precision
from smidgen.errors import DataError, RunError, SmidgenError
from smidgen.files import looked_up
from smidgen.runs.directory import RunFiles
from smidgen.runs.predictions import Predictions
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import load_trial_data
from smidgen.training.evaluation import HeldOut, evaluate
from smidgen.trial import Trial


@dataclass(eq=False)
class TrialRuns:
    """The runs of one trial, one a seed.

    Attributes:
        trial: the recipe.
        runs: in order of seed.
        dataset: what they were evaluated on; None where it is not available.
        dataset_problem: why it is not.
        notes: one line for each run whose images were classified again, in a way that may change its answers.
        label: the trial's name; made distinct where several recipes have the same one.
    """

    trial: Trial
    runs: list[Run]
    dataset: Dataset | None = None
    dataset_problem: str = ""
    label: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.label = self.label or self.trial.name

    @property
    def held_out(self) -> str:
        """The split that accuracy was measured on: test or validation."""
        return self.runs[0].result.held_out

    @property
    def last(self) -> list[float]:
        """Last-epoch accuracy of each run, percent."""
        return [run.accuracy for run in self.runs]

    @property
    def best(self) -> list[float]:
        """Best-epoch accuracy of each run, percent: chosen on the held-out images."""
        return [max(r.test_accuracy for r in run.history) for run in self.runs]

    @property
    def typical(self) -> Run:
        """The run whose last-epoch accuracy is nearest to the mean; the first of equals."""
        mean = statistics.mean(self.last)
        return min(self.runs, key=lambda run: (abs(run.accuracy - mean), run.seed))

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """The true class of each held-out image, int64 [images]; none without the data."""
        labels: npt.NDArray[np.int64] = self.dataset.held_out.labels.numpy() if self.dataset else np.zeros(0, np.int64)
        return labels

    @cached_property
    def predictions(self) -> list[Predictions]:
        """Each run's predictions for all held-out images; empty without the data.

        Raises:
            RunError: kept predictions disagree with the run's figures, or images cannot be classified.
        """
        return [self._predictions(run, self.dataset) for run in self.runs] if self.dataset else []

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each run classifies each image correctly, bool [runs, images]."""
        return np.stack([predictions.classes == self.labels for predictions in self.predictions])

    def _predictions(self, run: Run, dataset: Dataset) -> Predictions:
        """The stored predictions of a run or, for a run of an older version, newly computed ones."""
        predictions = run.predictions or self._classified(run, dataset)
        correct, recorded = int((predictions.classes == self.labels).sum()), run.history[-1].test_correct
        if correct != recorded:
            if run.predictions:
                raise RunError(
                    f"{run.directory / RunFiles.PREDICTIONS} has {correct:,} correct answers, but the run has "
                    f"{recorded:,}; remove it, and reports will classify the images again"
                )
            self.notes.append(f"seed {run.seed}: {correct:,} images are correct here, {recorded:,} when it was trained")
        return predictions

    def _classified(self, run: Run, dataset: Dataset) -> Predictions:
        """The answers of a run's network, on the engine that trained it where that is available."""
        result, network = run.result, copy.deepcopy(run.network)
        wanted = cast("EngineName", result.engine)
        try:
            engine = choose(wanted, cast("DeviceName", result.device), None, cast("Precision", result.precision))
            engine = choose_for(engine, wanted, run.trial, network, dataset.input_shape)
        except SmidgenError as error:
            engine = choose("eager")
            self.notes.append(f"seed {run.seed}: images were classified by PyTorch on the CPU: {error}")
        held_out = HeldOut(engine, dataset.held_out, run.trained.mean, run.trained.std)
        try:
            evaluation = evaluate(engine.prepare(network).eval(), held_out)
        except SmidgenError as error:
            raise RunError(f"{run.directory}: {error}") from None
        return Predictions.from_logits(evaluation.logits)


@dataclass(eq=False)
class Collection:
    """The readable runs among those that were named.

    Attributes:
        trials: in the order in which they were first named.
        problems: one line for each run that could not be read.
    """

    trials: list[TrialRuns]
    problems: list[str] = field(default_factory=list)


def collect(paths: Iterable[str | Path | Run]) -> Collection:
    """Read runs and group them by recipe; what cannot be read is left out and named.

    Args:
        paths: runs, run directories, or folders that hold run directories, at most two levels down.

    Raises:
        RunError: none of them can be read.
    """
    found: dict[str, TrialRuns] = {}
    problems: list[str] = []
    for path in paths:
        try:
            runs = [path] if isinstance(path, Run) else _runs(Path(path), problems)
        except SmidgenError as error:
            problems.append(str(error))
            continue
        for run in runs:
            group = found.setdefault(run.trial.recipe_digest, TrialRuns(run.trial, []))
            if any(run.result.weights_sha256 == other.result.weights_sha256 for other in group.runs):
                problems.append(f"{run.directory} is the same run as one named before; it counts once")
            else:
                group.runs.append(run)
    if not found:
        why = f": {problems[0]}" if problems else ""
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(f"no finished runs{why}{more}")
    for group in found.values():
        group.runs.sort(key=lambda run: run.seed)
        _attach_data(group)
    names = [group.trial.name for group in found.values()]
    for digest, group in found.items():
        if names.count(group.trial.name) > 1:
            group.label = f"{group.trial.name}-{digest[:6]}"
    return Collection(list(found.values()), problems)


def _runs(path: Path, problems: list[str]) -> list[Run]:
    """The run at the path, or those that can be read right below it or, as in a sweep's folder, one further down."""
    with looked_up(path):
        if (path / "trial.json").exists() or not path.is_dir():
            return [load_run(path)]
        below = sorted(p.parent for depth in ("*", "*/*") for p in path.glob(f"{depth}/trial.json"))
    if not below:
        raise RunError(f"{path} is not a run directory and holds none")
    runs = []
    for directory in below:
        try:
            runs.append(load_run(directory))
        except SmidgenError as error:
            problems.append(str(error))
    return runs


def _attach_data(group: TrialRuns) -> None:
    try:
        dataset = load_trial_data(group.trial)
    except DataError as error:
        group.dataset_problem = str(error)
        return
    for run in group.runs:
        trained = run.trained
        if (trained.input_shape, trained.classes) != (dataset.input_shape, dataset.classes):
            group.dataset_problem = f"{run.directory} is for other images or classes than those of {dataset.name}"
            return
    if any(run.result.data_sha256 != dataset.digest for run in group.runs):
        group.dataset_problem = f"the data at {dataset.name} has changed since the runs were made"
        return
    group.dataset = dataset


def binomial_sd(accuracy: float, images: int) -> float:
    """Standard error of an accuracy in percent, for independent images, in points."""
    share = accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / images)
