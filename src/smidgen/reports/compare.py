"""Comparison of two sets of runs, image by image on the same test images: for `smidgen compare` and for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from smidgen.errors import RunError
from smidgen.reports.collect import TrialRuns, collect
from smidgen.runs.record import Run
from smidgen.statistics import Comparison, compare_sets
from smidgen.trial import Trial
from smidgen.trials.builtin import BUILTIN
from smidgen.trials.listing import changes


def compare(runs: Iterable[str | Path | Run], others: Iterable[str | Path | Run]) -> Comparison:
    """Compare two sets of runs, each of one trial, paired over images and, where they are the same, seeds.

    Args:
        runs: runs, run directories, or folders that hold run directories.
        others: the other set, likewise.

    Raises:
        RunError: a set cannot be read, is of several trials, or the sets were not evaluated on the same images.
    """
    return compare_trials(_set(runs, "the first set"), _set(others, "the second set"))


def compare_trials(first: TrialRuns, second: TrialRuns) -> Comparison:
    """Compare the runs of two trials, paired over images and, where they are the same, seeds.

    Raises:
        RunError: the data is not available, or the trials were not evaluated on the same images.
    """
    if not first.predictions or not second.predictions:
        raise RunError(f"the runs cannot be compared image by image: {first.dataset_problem or second.dataset_problem}")
    if not _same_images(first, second):
        raise RunError("the two sets were not evaluated on the same images, so they cannot be compared image by image")
    if len(first.labels) < 2:
        raise RunError("the runs were evaluated on a single image; a comparison needs at least two")
    comparison = compare_sets(
        first.correct, second.correct, ([run.seed for run in first.runs], [run.seed for run in second.runs])
    )
    notes, names = (*first.notes, *second.notes), (first.label, second.label)
    if names[0] == names[1]:
        notes += (_between(first, second),)
        names = (f"{names[0]} (first set)", f"{names[1]} (second set)")
    return replace(comparison, names=names, notes=notes)


def _between(first: TrialRuns, second: TrialRuns) -> str:
    """What there is between two sets of the same name."""
    if changed := changes(first.trial, second.trial):
        return f"both are called {first.label}; from the first set to the second: {'; '.join(changed)}"
    if {run.result.weights_sha256 for run in first.runs} == {run.result.weights_sha256 for run in second.runs}:
        return "the two sets are the same runs, so there is nothing between them"
    return f"both are runs of one recipe, {first.label}"


def bases(trial: Trial) -> list[str]:
    """The names of the trials that a trial was made from, nearest first."""
    names = list(reversed(trial.lineage[:-1]))
    if trial.name in BUILTIN:
        original = BUILTIN[trial.name].make()
        names = names or list(reversed(original.lineage[:-1]))  # older runs do not record it
        if original.recipe_digest != trial.recipe_digest:
            names.insert(0, trial.name)  # changed by --set and the like, which keep the name
    return names


def base_of(group: TrialRuns, groups: Sequence[TrialRuns]) -> TrialRuns | None:
    """The runs of the trial that a trial was made from; where there are none, of that one's base, and so on.

    Args:
        group: runs of the trial.
        groups: runs of all trials to choose from.
    """
    trial = group.trial
    for name in bases(trial):
        named = [other for other in groups if other.trial.name == name]
        if name == trial.name:
            original = BUILTIN[name].make().recipe_digest if name in BUILTIN else None
            named = [other for other in named if other.trial.recipe_digest == original]
        if named:
            return min(named, key=lambda other: len(changes(other.trial, trial)))
    return None


def _same_images(first: TrialRuns, second: TrialRuns) -> bool:
    if not np.array_equal(first.labels, second.labels):
        return False
    if first.dataset is None or second.dataset is None:
        return True
    one, other = first.dataset.held_out.images, second.dataset.held_out.images
    return one.shape == other.shape and bool((one == other).all())


def _set(runs: Iterable[str | Path | Run], what: str) -> TrialRuns:
    try:
        collection = collect(runs)
    except RunError as error:
        raise RunError(f"{what}: {error}") from None
    if collection.problems:
        raise RunError(f"{what}: {collection.problems[0]}")
    if len(collection.trials) > 1:
        names = ", ".join(group.label for group in collection.trials)
        raise RunError(f"{what} is of several trials ({names}); name the runs of one")
    return collection.trials[0]
