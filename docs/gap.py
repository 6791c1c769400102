"""How much better trials do on held-out training images, which they were chosen by, than on test images: `make gap`.

Each trial is trained on two thirds of the training images and judged on the last third, a third in turn for each
seed, as it was when it was chosen; then the very same weights are judged on the test images. Runs that are there
already are kept, also those of `make ablation`.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path

from ablation import FOLDS, HELD_OUT

import smidgen
from smidgen.data.dataset import load_dataset
from smidgen.engines.choose import choose
from smidgen.tables import render
from smidgen.training.evaluation import HeldOut, evaluate

TRIALS = ["mnist-3-augmented", "mnist-4-strict", "mnist-tiny", "mnist-tiny-99"]


def main() -> None:
    """Make what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-7")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16 takes two thirds of the time, where the CPU has it",
    )
    options = parser.parse_args()
    found = [smidgen.find_trial(name) for name in TRIALS]
    tuned = [replace(t, data=replace(t.data, evaluate="validation", validation=HELD_OUT)) for t in found]
    run_options = smidgen.RunOptions(precision=options.precision)
    made = smidgen.sweep(tuned, options.seeds, folds=FOLDS, options=run_options, out=options.out, show=print)
    engine, test = choose(), load_dataset().held_out
    rows: list[list[object]] = []
    for trial, swept in zip(tuned, made.trials, strict=True):
        held_out = [run.accuracy for run in swept.runs]
        tested = [
            evaluate(engine.prepare(run.network), HeldOut(engine, test, run.trained.mean, run.trained.std)).accuracy
            for run in swept.runs
        ]
        differences = [b - a for a, b in zip(held_out, tested, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        rows.append([
            trial.name, len(tested), f"{statistics.mean(held_out):.3f}", f"{statistics.mean(tested):.3f}",
            f"{statistics.mean(differences):+.3f} ± {error:.3f}",
        ])  # fmt: skip
    columns = ["trial", "n", "held-out training images", "test images", "difference and its standard error"]
    print(render(columns, rows, "markdown"))


if __name__ == "__main__":
    main()
