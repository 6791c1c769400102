"""`smidgen compare`: two sets of runs, compared image by image on the same test images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from smidgen.errors import RunError
from smidgen.reports.collect import TrialRuns, collect
from smidgen.runs.record import Run
from smidgen.statistics import Comparison, compare_sets


def compare(runs: Iterable[str | Path | Run], others: Iterable[str | Path | Run]) -> Comparison:
    """Compare two sets of runs, each of one trial, paired over images and, where they are the same, seeds.

    Args:
        runs: runs, run directories, or folders that hold run directories.
        others: the other set, likewise.

    Raises:
        RunError: a set cannot be read, is of several trials, or the sets were not evaluated on the same images.
    """
    first, second = _set(runs, "the first set"), _set(others, "the second set")
    if first.dataset is None or second.dataset is None:
        raise RunError(f"the runs cannot be compared image by image: {first.dataset_problem or second.dataset_problem}")
    one, other = first.dataset.held_out, second.dataset.held_out
    same = one.images.shape == other.images.shape and bool((one.images == other.images).all())
    if not same or not bool((one.labels == other.labels).all()):
        raise RunError("the two sets were not evaluated on the same images, so they cannot be compared image by image")
    comparison = compare_sets(
        first.correct, second.correct, ([run.seed for run in first.runs], [run.seed for run in second.runs])
    )
    return replace(comparison, notes=(*first.notes, *second.notes))


def _set(runs: Iterable[str | Path | Run], what: str) -> TrialRuns:
    collection = collect(runs)
    if collection.problems:
        raise RunError(f"{what}: {collection.problems[0]}")
    if len(collection.trials) > 1:
        names = ", ".join(group.label for group in collection.trials)
        raise RunError(f"{what} is of several trials ({names}); name the runs of one")
    return collection.trials[0]
