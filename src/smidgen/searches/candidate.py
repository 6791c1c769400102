"""A candidate of a search: a trial, how it was chosen and how it did on the validation split."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.errors import RunError, SmidgenError
from smidgen.files import cannot_read, read_bounded, write_atomic
from smidgen.trial import Trial

_MOST_BYTES = 2**28


@dataclass(frozen=True)
class Candidate:
    """A trial within the limits, with what it has reached.

    Attributes:
        number: counted from 0.
        batch: that it was asked for in, counted from 0.
        trial: evaluated on the validation split.
        choices: the value of each dimension, by name.
        dimensions: what each was chosen among, as Optuna writes it down.
        parameters: of the network.
        macs: multiply-accumulates of one image.
        accuracies: after the last epoch, percent of the validation images, of seeds 0, 1, ...; fewer where
            halving has dropped it.
        fresh: the same of the seeds that no choice was made with; only finalists have any.
        error: why it could not be trained, or nothing.
    """

    number: int
    batch: int
    trial: Trial
    choices: Mapping[str, Any]
    dimensions: Mapping[str, str]
    parameters: int
    macs: int
    accuracies: tuple[float, ...] = ()
    fresh: tuple[float, ...] = ()
    error: str = ""

    @property
    def mean(self) -> float:
        """Mean of the accuracies, percent; it must have any."""
        return statistics.fmean(self.accuracies)

    @property
    def evaluated(self) -> bool:
        """Whether it has been trained with at least one seed."""
        return bool(self.accuracies) and not self.error

    def to_json(self) -> dict[str, Any]:
        """As a line of `candidates.jsonl`."""
        return {
            "number": self.number,
            "batch": self.batch,
            "name": self.trial.name,
            "parameters": self.parameters,
            "macs": self.macs,
            "accuracies": list(self.accuracies),
            "fresh": list(self.fresh),
            "error": self.error,
            "choices": dict(self.choices),
            "dimensions": dict(self.dimensions),
            "trial": self.trial.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """The candidate of a line.

        Raises:
            KeyError, TypeError, ValueError, SmidgenError: it is not one.
        """
        whole = {name: data[name] for name in ("number", "batch", "parameters", "macs")}
        if not all(type(value) is int and value >= 0 for value in whole.values()):
            raise ValueError("a count that is not a whole number")
        choices, dimensions, error = data["choices"], data["dimensions"], data["error"]
        if not isinstance(choices, dict) or not isinstance(dimensions, dict) or not isinstance(error, str):
            raise TypeError("choices, dimensions or error of the wrong kind")
        if set(choices) != set(dimensions) or not all(isinstance(text, str) for text in dimensions.values()):
            raise ValueError("choices and dimensions that do not match")
        return cls(
            **whole,
            trial=Trial.from_json(data["trial"]),
            choices=choices,
            dimensions=dimensions,
            accuracies=_percents(data["accuracies"]),
            fresh=_percents(data["fresh"]),
            error=error,
        )


def _percents(values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(type(v) in (int, float) and 0 <= v <= 100 for v in values):
        raise ValueError("accuracies outside 0 to 100 %")
    return tuple(float(value) for value in values)


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether one is at least as accurate with at most as many parameters, and better in one of the two."""
    no_worse = one.mean >= other.mean and one.parameters <= other.parameters
    return no_worse and (one.mean > other.mean or one.parameters < other.parameters)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The evaluated candidates that none dominates, by parameters."""
    evaluated = [c for c in candidates if c.evaluated]
    found = [c for c in evaluated if not any(dominates(other, c) for other in evaluated)]
    return sorted(found, key=lambda c: (c.parameters, c.number))


def ranked(candidates: Sequence[Candidate], *, pareto: bool) -> list[Candidate]:
    """The evaluated candidates, the best first.

    Args:
        candidates: to be ranked; those that could not be trained are left out.
        pareto: by how many others dominate them, and only then by accuracy.
    """
    evaluated = [c for c in candidates if c.evaluated]

    def order(candidate: Candidate) -> tuple[float, float, int]:
        above = sum(dominates(other, candidate) for other in evaluated) if pareto else 0
        return above, -candidate.mean, candidate.number

    return sorted(evaluated, key=order)


def rungs(seeds: int) -> list[int]:
    """Number of seeds of a candidate after each round of successive halving: 1, 2, 4, ..., all."""
    return [*(2**i for i in range(math.ceil(math.log2(seeds)))), seeds]


def survivors(candidates: Sequence[Candidate], *, pareto: bool) -> list[Candidate]:
    """The better half, rounded up, in order of their numbers."""
    best = ranked(candidates, pareto=pareto)
    return sorted(best[: math.ceil(len(best) / 2)], key=lambda c: c.number)


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Write them down, one a line; what was there before is replaced as a whole.

    Raises:
        RunError: the file cannot be written.
    """
    lines = [json.dumps(candidate.to_json(), allow_nan=False) for candidate in candidates]
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def read_candidates(path: Path) -> list[Candidate]:
    """Read the candidates back; an empty list if there is no file.

    Raises:
        RunError: it is damaged or cannot be read.
    """
    try:
        text = read_bounded(path, _MOST_BYTES, follow=False).decode()
        found = [Candidate.from_json(json.loads(line)) for line in text.splitlines()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(cannot_read(path, error)) from None
    except (KeyError, TypeError, ValueError, RecursionError, SmidgenError) as error:
        raise RunError(
            f"{path} is damaged: {error}; remove it, and the same command finds the runs that are finished"
        ) from None
    if [candidate.number for candidate in found] != list(range(len(found))):
        raise RunError(f"{path} is damaged: its candidates are not numbered one after another; remove it")
    return found
