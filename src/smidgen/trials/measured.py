"""Measured results of the built-in trials: `measured.json`, which `make results` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from smidgen.files import write_atomic
from smidgen.trial import Trial

MEASURED = Path(__file__).parent / "measured.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Results of one trial over several seeds, after the last epoch unless stated otherwise.

    Attributes:
        n: runs, one a seed.
        mean: test accuracy, percent.
        sd: its standard deviation (n - 1), points.
        min: the lowest test accuracy, percent.
        max: the highest.
        goal_share: runs that met the goal, 0 to 1.
        best_epoch_mean: mean of the best epochs' test accuracies, chosen on the test images; percent.
        train_mean: accuracy on the training images as they were seen, percent.
        seconds_median: of a run's training and evaluations; None where several runs shared the machine.
        engine: `native` or `eager`.
        recipe_sha256: of the recipe that was measured.
    """

    n: int
    mean: float
    sd: float
    min: float
    max: float
    goal_share: float
    best_epoch_mean: float
    train_mean: float
    seconds_median: float | None = None
    engine: str
    recipe_sha256: str

    @property
    def at_goal(self) -> int:
        """Number of runs that met the goal."""
        return round(self.goal_share * self.n)


def read_measured() -> dict[str, Measured]:
    """Measured results by trial name; empty without `measured.json`."""
    found = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    return {name: Measured(**values) for name, values in found.items()}


def write_measured(results: Mapping[str, Measured]) -> None:
    """Write results; those of other trials stay."""
    everything = read_measured() | dict(results)
    data = {name: asdict(result) for name, result in everything.items()}
    write_atomic(MEASURED, (json.dumps(data, indent=2) + "\n").encode())


def measured(trial: Trial) -> Measured | None:
    """Results of a built-in trial; None if it was not measured or its recipe has changed since."""
    result = read_measured().get(trial.name)
    return result if result is not None and result.recipe_sha256 == trial.recipe_digest else None
