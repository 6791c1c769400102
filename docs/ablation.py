"""What each ingredient of the flagship gives: `make ablation`.

Trains the flagship and copies of it that lack one thing each, with the same seeds, on two thirds of the training
images, and judges them on the last third that they did not see, a third in turn for each seed (never on the test
images). Prints a table with the paired differences. Runs that are there already are kept, so an interrupted call goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path

import smidgen
from smidgen import Augmentation, AvgPool, Conv, Linear, Network, Step, Trial
from smidgen.tables import render

HELD_OUT, FOLDS = 20_000, 3


def variants() -> dict[str, Trial]:
    """The flagship first, then what lacks something, by what it lacks or has instead."""
    whole = smidgen.find_trial("mnist-4-strict")
    whole = replace(whole, data=replace(whole.data, evaluate="validation", validation=HELD_OUT))
    full = (*(Conv(10),) * 3, AvgPool(2), Conv(14), Conv(14), Conv(16), AvgPool(), Linear())
    made = {
        "the flagship": whole,
        "full convolutions, 10-10-10, 14-14-16": replace(whole, network=Network(full)),
        "no distortion": replace(whole, augmentation=Augmentation()),
        "rate falls in steps, every 4 epochs to a third": replace(whole, schedule=Step(every=4, factor=1 / 3)),
        "no averaging of weights": replace(whole, averaging=0.0),
        "no recalibration": replace(whole, recalibration=0.0),
    }
    return {
        text: replace(trial, name=f"ablation-{number}" if number else trial.name)
        for number, (text, trial) in enumerate(made.items())
    }


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
    trials = variants()
    made = smidgen.sweep(
        trials.values(),
        options.seeds,
        folds=FOLDS,
        options=smidgen.RunOptions(precision=options.precision),
        out=options.out,
        show=print,
    )
    rows: list[list[object]] = []
    base: dict[int, float] = {}
    for text, swept in zip(trials, made.trials, strict=True):
        found = {run.seed: run.accuracy for run in swept.runs}
        base = base or found
        differences = [found[seed] - base[seed] for seed in found]
        rows.append([
            text, swept.runs[0].result.parameters, len(found), f"{statistics.mean(found.values()):.3f}",
            f"{statistics.stdev(found.values()):.3f}", f"{min(found.values()):.2f}",
            f"{statistics.mean(differences):+.3f}" if found is not base else "",
            f"{statistics.stdev(differences) / math.sqrt(len(differences)):.3f}" if found is not base else "",
            f"{statistics.mean(run.result.train_accuracy_last for run in swept.runs):.2f}",
        ])  # fmt: skip
    columns = ["", "parameters", "n", "mean", "s.d.", "min", "difference", "standard error", "train"]
    print(render(columns, rows, "markdown"))


if __name__ == "__main__":
    main()
