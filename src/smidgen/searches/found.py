"""Results of a search: tables, the Pareto chart, and the best candidates as trial files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smidgen.files import cannot_write, write_atomic
from smidgen.reports import charts
from smidgen.searches.candidate import Candidate, front, ranked
from smidgen.tables import TableFormat, paragraph, render
from smidgen.trial import Trial

BEST, CHART = "best", "pareto.svg"
_SHOWN = 10
_FRONT = "accuracy against parameters: what no other candidate beats in both"


@dataclass(frozen=True)
class Finalist:
    """One of the best candidates, trained with seeds that no choice was made with.

    Attributes:
        candidate: with its accuracies and the fresh ones.
        file: its trial, to be evaluated on the test images by `run` or `sweep`.
    """

    candidate: Candidate
    file: Path

    @property
    def wanted(self) -> int:
        """Number of fresh seeds: as many as the candidate was selected with."""
        return len(self.candidate.accuracies)

    @property
    def mean(self) -> float | None:
        """Mean accuracy of the fresh seeds, percent of the validation images; None without any."""
        return statistics.fmean(self.candidate.fresh) if self.candidate.fresh else None

    @property
    def sd(self) -> float | None:
        """Standard deviation of the same; None for fewer than two."""
        return statistics.stdev(self.candidate.fresh) if len(self.candidate.fresh) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """As `smidgen search --json` prints it."""
        found = self.candidate
        return {
            "name": found.trial.name,
            "file": str(self.file),
            "parameters": found.parameters,
            "macs": found.macs,
            "network": str(found.trial.network),
            "mean": self.mean,
            "sd": self.sd,
            "n": len(found.fresh),
            "wanted": self.wanted,
            "mean_of_search": found.mean,
            "n_of_search": len(found.accuracies),
        }


@dataclass(frozen=True)
class Search:
    """A finished search; all accuracies are of the validation split.

    Attributes:
        candidates: all, in order.
        finalists: the best of them, the best first by their fresh seeds.
        rejected: in this call, over a limit or seen before, before any training.
        chart: of accuracy against parameters.
    """

    candidates: tuple[Candidate, ...]
    finalists: tuple[Finalist, ...]
    rejected: int
    chart: Path

    @property
    def best(self) -> Finalist:
        """The finalist with the highest mean over the fresh seeds."""
        return self.finalists[0]

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other beats in both accuracy and parameters, by parameters."""
        return front(self.candidates)

    def to_json(self) -> dict[str, Any]:
        """The search as `smidgen search --json` prints it."""
        return {
            "best": self.best.to_json(),
            "finalists": [finalist.to_json() for finalist in self.finalists],
            "evaluated": sum(c.evaluated for c in self.candidates),
            "failed": sum(bool(c.error) for c in self.candidates),
            "rejected": self.rejected,
            "runs": sum(len(c.accuracies) + len(c.fresh) for c in self.candidates),
            "front": [
                {"name": c.trial.name, "parameters": c.parameters, "mean": c.mean, "n": len(c.accuracies)}
                for c in self.front
            ],
            "chart": str(self.chart),
        }

    def __str__(self) -> str:
        lines = [
            self._finalists_table("table"),
            "",
            _FRONT,
            _candidates_table("candidate", self.front, "table"),
            "",
            f"chart {self.chart}",
            self._advice,
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        front = _candidates_table("candidate", self.front, "html")
        return f"{self._finalists_table('html')}{paragraph(_FRONT)}{front}{paragraph(self._advice)}"

    def _finalists_table(self, format: TableFormat) -> str:
        rows = [
            [
                f.candidate.trial.name,
                str(f.candidate.trial.network),
                f.candidate.parameters,
                "" if f.mean is None else f"{f.mean:.3f}",
                "" if f.sd is None else f"{f.sd:.3f}",
                f"{len(f.candidate.fresh)} of {f.wanted}",
                f"{f.candidate.mean:.3f}",
            ]
            for f in self.finalists
        ]
        columns = ["finalist", "network", "parameters", "fresh mean", "s.d.", "seeds", "mean when chosen"]
        return render(columns, rows, format, left=2)

    @property
    def _advice(self) -> str:
        return (
            f"all of this is of validation images; to evaluate the best on the test images, once: "
            f"smidgen sweep {self.best.file} --seeds 0-7"
        )


def best_table(candidates: Sequence[Candidate], pareto: bool, format: TableFormat = "table") -> str:
    """The best so far."""
    return _candidates_table("best so far", ranked(candidates, pareto=pareto)[:_SHOWN], format)


def _candidates_table(what: str, found: Sequence[Candidate], format: TableFormat) -> str:
    rows = [[c.trial.name, str(c.trial.network), c.parameters, f"{c.mean:.3f}", len(c.accuracies)] for c in found]
    return render([what, "network", "parameters", "mean", "seeds"], rows, format, left=2)


def write_found(root: Path, candidates: Sequence[Candidate], best: Sequence[Candidate], rejected: int) -> Search:
    """Write the chart and a trial file for each of the best.

    Args:
        root: of the search.
        candidates: all.
        best: those with fresh seeds.
        rejected: how many were over a limit.

    Raises:
        RunError: something cannot be written.
    """
    finalists = [Finalist(c, root / BEST / f"{c.trial.name}.json") for c in best]
    # A candidate that diverges for some seeds ranks last.
    finalists.sort(key=lambda f: (f.wanted - len(f.candidate.fresh), -(f.mean or 0.0), f.candidate.number))
    found = Search(tuple(candidates), tuple(finalists), rejected, root / CHART)
    try:
        (root / BEST).mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(root / BEST, error) from None
    for finalist in finalists:
        trial = json.dumps(_for_test(finalist).to_json(), indent=2)
        write_atomic(finalist.file, f"{trial}\n".encode())
    write_atomic(found.chart, charts.for_file(_chart(found)).encode())
    return found


def _for_test(finalist: Finalist) -> Trial:
    """The finalist as a trial that is trained on all training images and evaluated on the test images."""
    trial, n = finalist.candidate.trial, len(finalist.candidate.fresh)
    reached = f"{finalist.mean:.3f} % of validation images over {n} fresh seeds" if n else "no fresh seeds"
    return replace(trial, note=f"found by search: {reached}", data=replace(trial.data, evaluate="test", fold=0))


def _chart(found: Search) -> str:
    best = {f.candidate.number for f in found.finalists}
    on_front = found.front
    points = [
        charts.Point(c.parameters, c.mean, c.trial.name.rpartition("-")[2] if c in on_front else "", c.number in best)
        for c in found.candidates
        if c.evaluated
    ]
    return charts.front(points, "validation accuracy after the last epoch (%)", "search")
