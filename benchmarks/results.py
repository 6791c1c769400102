"""Makes the runs behind docs/results.md, prints its tables and updates the measured results: `make results`.

Existing runs are kept, so an interrupted call resumes where it stopped. `--sets` chooses the runs:
`reference` (the reference trials), `float32`, `sprint` (one run at a time with two threads, because its seconds
count) and `bf16` (the flagship with bfloat16 products). Left out unless named: `fashion` (`fashion-small` with bfloat16
products, which needs Debian's package `dataset-fashion-mnist`, and an hour) and `eager` (the flagship by PyTorch, which
takes several times as long). With `--seeds` or `--epochs`, the measured results beside the built-in trials stay
as they are.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

import smidgen
from common import RESULTS, SPRINT, parser
from smidgen.sweeps.sweep import TrialResult
from smidgen.tables import render
from smidgen.trials.measured import Measured, write_measured

REFERENCE_BEST = {"mnist-1-skeleton": "99.27", "mnist-2-regularized": "99.38", "mnist-3-augmented": "99.42"}
"""Best epoch of the reference notebooks' one run each, percent."""
UPDATED = ("reference", "float32", "sprint", "fashion")
"""Sets whose results stand beside the built-in trials."""


def main() -> None:
    """Make what is missing, print the tables, update the measured results."""
    options = parser(__doc__)
    options.add_argument("--sets", nargs="+", choices=list(RESULTS), default=["reference", "float32", "sprint", "bf16"])
    arguments = options.parse_args()
    for name in arguments.sets:
        if not (results := RESULTS[name].runs(arguments)):
            continue
        print(f"\n{name}: {RESULTS[name].options}\n\n{table(results)}", flush=True)
        if name == "sprint":
            seconds = [run.result.seconds_training for run in results[0].runs]
            print(
                f"\nseconds of {len(seconds)} runs of {SPRINT}, training and evaluations: median "
                f"{statistics.median(seconds):.2f}, {min(seconds):.2f} to {max(seconds):.2f}"
            )
        if name in UPDATED and arguments.seeds is None and arguments.epochs is None:
            write_measured({result.trial.name: measured(result) for result in results})
            print("updated the measured results beside the built-in trials", file=sys.stderr)


def measured(result: TrialResult) -> Measured:
    """What is kept beside the built-in trials."""
    summary, first = _summary(result), result.runs[0].result
    assert summary.sd is not None
    seconds = statistics.median(run.result.seconds_training for run in result.runs)
    return Measured(
        n=summary.n,
        mean=summary.mean,
        sd=summary.sd,
        min=summary.least,
        max=summary.most,
        goal_share=summary.goal_share,
        best_epoch_mean=statistics.fmean(run.result.accuracy_best for run in result.runs),
        train_mean=statistics.fmean(run.result.train_accuracy_last for run in result.runs),
        seconds_median=seconds if result.trial.name == SPRINT else None,
        engine=first.engine,
        recipe_sha256=first.recipe_sha256,
    )


def table(results: Sequence[TrialResult]) -> str:
    """The trials with their statistics, as Markdown."""
    columns = [
        "trial", "parameters", "epochs", "n", "mean", "s.d.", "min", "max", "at 99.4", "at its goal",
        "train", "best epoch", "reference notebook's best epoch",
    ]  # fmt: skip
    rows = []
    for result in results:
        summary, first = _summary(result), result.runs[0].result
        rows.append([
            result.trial.name, first.parameters, first.epochs, summary.n, f"{summary.mean:.3f}",
            "-" if summary.sd is None else f"{summary.sd:.3f}", f"{summary.least:.2f}", f"{summary.most:.2f}",
            f"{sum(run.accuracy >= 99.4 for run in result.runs)}/{summary.n}", f"{summary.goal_share:.0%}",
            f"{statistics.fmean(run.result.train_accuracy_last for run in result.runs):.2f}",
            f"{statistics.fmean(run.result.accuracy_best for run in result.runs):.3f}",
            REFERENCE_BEST.get(result.trial.name, "-"),
        ])  # fmt: skip
    return render(columns, rows, "markdown")


def _summary(result: TrialResult) -> smidgen.Summary:
    assert result.summary is not None
    return result.summary


if __name__ == "__main__":
    main()
