"""How many jobs a sweep does with one worker and with two, in turn: `make throughput`.

One thread each. Prints the ratio of jobs an hour, and what a job takes beyond its training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import smidgen

JOBS = 6


def main() -> None:
    """Time sweeps of six jobs in turn, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="sweeps of each kind; default 3")
    parser.add_argument("--epochs", type=int, default=3, help="of each job; default 3")
    options = parser.parse_args()
    trial = replace(smidgen.find_trial("mnist-4-strict"), name="short", epochs=options.epochs)
    ratios, overheads = [], []
    for number in range(1, options.rounds + 1):
        seconds = {}
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                made = smidgen.sweep([trial], range(JOBS), workers=workers, out=Path(folder))
                seconds[workers] = time.perf_counter() - began
            training = sum(run.result.seconds_training for run in made.trials[0].runs)
            if workers == 1:
                overheads.append((seconds[1] - training) / JOBS)
        ratios.append(seconds[1] / seconds[2])
        print(
            f"round {number}: {JOBS} jobs of {options.epochs} epochs in {seconds[1]:.1f} s with 1 worker, "
            f"{seconds[2]:.1f} s with 2; ratio {ratios[-1]:.2f}, {overheads[-1]:.2f} s a job beyond training",
            flush=True,
        )
    print(
        f"median of {options.rounds}: {statistics.median(ratios):.2f} times as many jobs an hour with 2 workers, "
        f"{statistics.median(overheads):.2f} s a job beyond its training"
    )


if __name__ == "__main__":
    main()
