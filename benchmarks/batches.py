"""What more threads give for batches of different sizes, with one thread and with several in turn: `make batches`.

Prints microseconds a training step of the native engine: loading, gradients, optimizer, average. A batch of 16 images
is one block, which threads share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import smidgen
from common import FLAGSHIP, Steps
from smidgen.engines.choose import choose
from smidgen.machine import usable_cores
from smidgen.runs.run import load_trial_data
from smidgen.tables import render


def microseconds(steps: Steps, count: int) -> float:
    """Of a step, the mean of so many."""
    began = time.perf_counter()
    steps.take(count)
    return 1e6 * (time.perf_counter() - began) / count


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", default=[FLAGSHIP, "mnist-3-augmented"], help="default: %(default)s")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 32, 48, 64, 80], help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=min(usable_cores(), 8), help="default: the cores, at most 8")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=7, help="of each way, in turn; default 7")
    parser.add_argument("--steps", type=int, default=60, help="of each round; default 60")
    options = parser.parse_args()
    rows: list[list[object]] = []
    for name in options.trials:
        trial = smidgen.find_trial(name)
        dataset = load_trial_data(trial)
        for size in options.sizes:
            sized = replace(trial, batch_size=size)
            ways = [
                Steps(sized, dataset, choose("native", "cpu", threads, options.precision))
                for threads in (1, options.threads)
            ]
            times = [[microseconds(way, options.steps) for way in ways] for _ in range(options.rounds + 1)][1:]
            one, several = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(first / second for first, second in times)
            rows.append([name, size, f"{one:,.0f}", f"{several:,.0f}", f"{ratio:.2f}"])
    columns = ["trial", "batch", "1 thread, µs", f"{options.threads} threads, µs", "times as fast"]
    print(render(columns, rows, "markdown"))


if __name__ == "__main__":
    main()
