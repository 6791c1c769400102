"""Jobs, addressed by content: the same job has the same place on disk, and is done once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from smidgen.errors import SmidgenError
from smidgen.randomness import MOST_SEED
from smidgen.runs.options import RunOptions
from smidgen.runs.run import load_trial_data
from smidgen.settings import canonical_json
from smidgen.trial import Trial
from smidgen.version import VERSION

MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Job:
    """One trial with one seed.

    Attributes:
        trial: the recipe.
        seed: of the run.
        options: engine, precision, device and threads, none of them left open.
        data_sha256: of the trial's data.
    """

    trial: Trial
    seed: int
    options: RunOptions
    data_sha256: str

    @property
    def key(self) -> str:
        """SHA-256 (hex) over all that determines the result except the seed: recipe, data, engine, version."""
        about = {
            "recipe": self.trial.recipe_digest,
            "data": self.data_sha256,
            "version": VERSION,
            **self.options.identity,
        }
        return hashlib.sha256(canonical_json(about).encode()).hexdigest()

    @property
    def place(self) -> Path:
        """Its run directory, relative to the sweep's: `mnist-4-strict-1a2b3c4d/seed7`."""
        return Path(f"{self.trial.name}-{self.key[:8]}") / f"seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.trial.name}, seed {self.seed}"


def on_fold(trial: Trial, fold: int) -> Trial:
    """The trial evaluated on another block of held-out training images, so many before its own."""
    data = replace(trial.data, evaluate="validation", fold=trial.data.fold + fold)
    return replace(trial, data=data)


def make_jobs(
    trials: Iterable[Trial], seeds: Iterable[int], options: RunOptions, folds: int | None = None
) -> list[Job]:
    """All trials with all seeds, a seed of each trial before the next seed; the same recipe counts once.

    Args:
        trials: recipes.
        seeds: of each.
        options: of each run, none of them left open.
        folds: evaluate seed i on block i modulo this of the training images; None: as the trials say.

    Raises:
        SmidgenError: data is missing, damaged or has fewer blocks.
    """
    digests: dict[str, str] = {}
    distinct: dict[str, Trial] = {}
    for trial in trials:
        distinct.setdefault(trial.recipe_digest, trial)
        last = trial if folds is None else on_fold(trial, folds - 1)
        data = canonical_json(last.data.to_json())
        if data not in digests:
            digests[data] = load_trial_data(last).digest
        digests[trial.recipe_digest] = digests[data]
    return [
        Job(trial if folds is None else on_fold(trial, seed % folds), seed, options, digests[digest])
        for seed in seeds
        for digest, trial in distinct.items()
    ]


def parse_seeds(text: str) -> list[int]:
    """`0-31`, `7`, `0-3,8,12-15`: seeds, in order, each once.

    Raises:
        SmidgenError: the text is not of that form, or names more than 100,000 seeds.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MOST_SEED:
            raise SmidgenError(
                f"--seeds {text!r}: {part.strip()!r} is not a seed or a range of seeds, as in 0-31 or 0-3,8"
            )
        if last - first >= MOST_SEEDS or len(seeds) > MOST_SEEDS:
            raise SmidgenError(f"--seeds {text!r} has more than {MOST_SEEDS:,} seeds")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def parse_shard(text: str) -> tuple[int, int]:
    """`2/5`: the second of five parts.

    Raises:
        SmidgenError: the text is not of that form.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= parts:
        raise SmidgenError(f"--shard is {text!r}; allowed: I/N with I from 1 to N, as in 2/5")
    return number, parts
