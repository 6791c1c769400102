"""What a report is about: runs read back, grouped by trial, and judged again image by image."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smidgen.data.dataset import Dataset
from smidgen.errors import DataError, RunError, SmidgenError
from smidgen.files import looked_up
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import load_trial_data
from smidgen.training.evaluation import scores
from smidgen.trial import Trial


@dataclass(frozen=True, eq=False)
class Judgement:
    """What one run's network says of every held-out image.

    Attributes:
        probabilities: float64 [images, classes].
        labels: the true classes, int64 [images].
    """

    probabilities: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """The class with the highest probability, int64 [images]."""
        predictions: npt.NDArray[np.int64] = self.probabilities.argmax(1)
        return predictions

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each image is classified right, [images]."""
        right: npt.NDArray[np.bool_] = self.predictions == self.labels
        return right


@dataclass(eq=False)
class TrialRuns:
    """The runs of one trial, one a seed.

    Attributes:
        trial: the recipe.
        runs: in order of seed.
        dataset: what they were judged on; None where it is not to be had here.
        dataset_problem: why it is not.
        label: the trial's name; made distinct where several recipes have the same one.
    """

    trial: Trial
    runs: list[Run]
    dataset: Dataset | None = None
    dataset_problem: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        self.label = self.label or self.trial.name

    @property
    def held_out(self) -> str:
        """What accuracy was measured on: test or validation."""
        return str(self.runs[0].result["held_out"])

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
    def judgements(self) -> list[Judgement]:
        """What each run's network says of every held-out image; empty without the data."""
        if self.dataset is None:
            return []
        labels = self.dataset.held_out.labels.numpy()
        judgements = []
        for run in self.runs:
            try:
                logits = scores(run.network, self.dataset.held_out.images, run.trained.mean, run.trained.std)
            except SmidgenError as error:
                raise RunError(f"{run.directory}: {error}") from None
            judgements.append(Judgement(logits.double().softmax(1).numpy(), labels))
        return judgements


@dataclass(eq=False)
class Collection:
    """What could be read of what was named.

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
            if any(run.result["weights_sha256"] == other.result["weights_sha256"] for other in group.runs):
                problems.append(f"{run.directory} is the same run as one named before; it counts once")
            else:
                group.runs.append(run)
    if not found:
        why = f": {problems[0]}" if problems else ""
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(f"there is no finished run to report on{why}{more}")
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
    if any(run.result["data_sha256"] != dataset.digest for run in group.runs):
        group.dataset_problem = f"the data at {dataset.name} has changed since the runs were made"
        return
    group.dataset = dataset


def binomial_sd(accuracy: float, images: int) -> float:
    """Standard error of an accuracy in percent, for independent images, in points."""
    share = accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / images)
