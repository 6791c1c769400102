"""Training on a GPU, its operations launched one by one and recorded, in turn: `make gpu`.

Prints microseconds a training step, the seconds of a whole run with its evaluations, and whether two runs ended with
the same weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import smidgen
from common import FLAGSHIP, Steps
from smidgen import RunOptions, SmidgenError
from smidgen.engines.choose import choose
from smidgen.engines.engine import EngineName, Precision
from smidgen.runs.progress import Silent
from smidgen.runs.run import load_trial_data

WAYS: dict[str, tuple[EngineName, Precision]] = {
    "eager": ("eager", "fp32"),
    "cuda": ("cuda", "fp32"),
    "cuda, tf32": ("cuda", "tf32"),
}


def microseconds(steps: Steps, way: str, count: int) -> float:
    """Of a step, the mean of so many."""
    cudnn = torch.backends.cudnn
    cudnn.deterministic, cudnn.allow_tf32 = True, WAYS[way][1] == "tf32"  # as in a run
    torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32
    torch.cuda.synchronize()
    began = time.perf_counter()
    steps.take(count)
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - began) / count


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trial", default=FLAGSHIP, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="of steps, in turn; default 5")
    parser.add_argument("--steps", type=int, default=200, help="of each round; default 200")
    parser.add_argument("--whole", nargs="*", choices=list(WAYS), default=list(WAYS), help="whole runs; default all")
    options = parser.parse_args()
    try:
        choose("cuda")
        trial = smidgen.find_trial(options.trial)
    except SmidgenError as error:
        sys.exit(f"gpu.py: {error}")
    dataset = load_trial_data(trial)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {trial.name}\n")
    print("| way | µs a step | whole run, s | same weights twice |\n|---|---:|---:|---|")
    ways = {
        way: Steps(trial, dataset, choose(engine, "cuda", 1, precision)) for way, (engine, precision) in WAYS.items()
    }
    for name, steps in ways.items():
        microseconds(steps, name, 20)  # chooses kernels, and records
    times = [
        {name: microseconds(steps, name, options.steps) for name, steps in ways.items()} for _ in range(options.rounds)
    ]
    for name, (engine, precision) in WAYS.items():
        step = statistics.median(row[name] for row in times)
        if name not in options.whole:
            print(f"| {name} | {step:,.0f} | not run | not run |")
            continue
        chosen = RunOptions(engine, precision, "cuda")
        with tempfile.TemporaryDirectory() as folder:
            first, second = (
                smidgen.run(trial, out=Path(folder) / place, options=chosen, progress=Silent())
                for place in ("first", "second")
            )
        same = "yes" if first.result.weights_sha256 == second.result.weights_sha256 else "no"
        print(f"| {name} | {step:,.0f} | {second.result.seconds_training:.1f} | {same} |")


if __name__ == "__main__":
    main()
