"""Makes the runs behind docs/results.md, and prints their tables: `make results`.

Runs that are there already are kept, so an interrupted call goes on where it stopped. Two runs at
a time, one thread each; but `sprint`, where seconds count, one at a time with two threads. With
`--table` it makes nothing and prints the tables of what is there. `--engines` chooses what is made:
`native`, `bf16` (the native engine with bfloat16 products), `sprint`, `eager`; the last is left out
unless named, for it takes many times as long.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import smidgen
from smidgen.tables import render
from smidgen.trials.measured import MEASURED

FLAGSHIP, SPRINT = "mnist-4-strict", "mnist-sprint"
SEEDS = {
    "float32": {
        "mnist-1-skeleton": range(5),
        "mnist-2-regularized": range(5),
        "mnist-3-augmented": range(5),
        FLAGSHIP: range(32),
        "mnist-tiny": range(32),
        "mnist-tiny-99": range(32),
    },
    "sprint": {SPRINT: range(32)},
    "bf16": {FLAGSHIP: range(8)},
    "eager": {FLAGSHIP: range(4)},
}
OPTIONS = {
    "float32": ["--engine", "native", "--threads", "1"],
    "sprint": ["--engine", "native", "--precision", "bf16", "--threads", "2"],
    "bf16": ["--engine", "native", "--precision", "bf16", "--threads", "1"],
    "eager": ["--engine", "eager", "--threads", "1"],
}
ORIGINAL = {"mnist-1-skeleton": 99.27, "mnist-2-regularized": 99.38, "mnist-3-augmented": 99.42}
"""Best epoch of the seed's one run each."""


Job = tuple[str, str, int, Path]


def main() -> None:
    """Make what is missing, then print the tables and write the measured figures beside the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs"), help="its results, results-bf16, results-eager")
    parser.add_argument("--engines", nargs="+", choices=list(SEEDS), default=["float32", "sprint", "bf16"])
    parser.add_argument("--table", action="store_true", help="make no runs")
    options = parser.parse_args()
    jobs = {engine: _jobs(engine, options.root) for engine in SEEDS}
    if not options.table:
        wanted = [job for engine in options.engines for job in jobs[engine]]
        missing = [job for job in wanted if not (job[3] / "result.json").exists()]
        for together, chosen in (
            (2, [job for job in missing if job[0] != "sprint"]),
            (1, [job for job in missing if job[0] == "sprint"]),
        ):
            with ThreadPoolExecutor(together) as pool:
                list(pool.map(_make, chosen))
    for engine, of_engine in jobs.items():
        results: dict[str, list[smidgen.Result]] = {name: [] for name in SEEDS[engine]}
        for _, name, _, directory in of_engine:
            if (directory / "result.json").exists():
                results[name].append(smidgen.load_run(directory).result)
        print(f"\n{' '.join(OPTIONS[engine])}\n\n{_table(results)}")
        if engine == "sprint":
            seconds = [r.seconds_training for r in results[SPRINT]]
            if seconds:
                print(
                    f"\nseconds of the {len(seconds)} runs of {SPRINT}, training and evaluations: median "
                    f"{statistics.median(seconds):.2f}, {min(seconds):.2f} to {max(seconds):.2f}"
                )
        if engine in ("float32", "sprint"):
            # Trials on other data are measured elsewhere, and stay.
            measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
            measured |= {name: _measured(found) for name, found in results.items() if len(found) >= 3}
            MEASURED.write_text(json.dumps(measured, indent=2) + "\n")
            print(f"\nwrote {MEASURED.name} beside the built-in trials", file=sys.stderr)


def _jobs(engine: str, root: Path) -> list[Job]:
    folder = root / ("results" if engine == "float32" else f"results-{engine}")
    return [
        (engine, name, seed, folder / f"{name}-seed{seed}") for name, seeds in SEEDS[engine].items() for seed in seeds
    ]


def _make(job: Job) -> None:
    engine, name, seed, directory = job
    if directory.exists():
        shutil.rmtree(directory)  # an interrupted run of an earlier call; only a finished one counts
    command = [sys.executable, "-m", "smidgen", "run", name, "--seed", str(seed), *OPTIONS[engine]]
    done = subprocess.run([*command, "--out", str(directory), "--json"], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    print(f"{name} seed {seed}, {engine}: exit {done.returncode}: {last}", file=sys.stderr, flush=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)


def _measured(results: list[smidgen.Result]) -> dict[str, Any]:
    last = [r.accuracy_last for r in results]
    return {
        "n": len(last),
        "mean": statistics.mean(last),
        "sd": statistics.stdev(last),
        "min": min(last),
        "max": max(last),
        "goal_share": sum(r.goal_met is True for r in results) / len(last),
        "best_epoch_mean": statistics.mean(r.accuracy_best for r in results),
        "train_mean": statistics.mean(r.train_accuracy_last for r in results),
        "engine": results[0].engine,
        "recipe_sha256": results[0].recipe_sha256,
    }


def _table(results: dict[str, list[smidgen.Result]]) -> str:
    columns = [
        "trial", "parameters", "epochs", "n", "mean", "s.d.", "min", "max", "at 99.4", "at its goal",
        "train", "best epoch", "seed's best epoch",
    ]  # fmt: skip
    rows = []
    for name, found in results.items():
        if len(found) < 2:
            continue
        m = _measured(found)
        at_994 = sum(r.accuracy_last >= 99.4 for r in found)
        rows.append([
            name, found[0].parameters, found[0].epochs, m["n"], f"{m['mean']:.3f}", f"{m['sd']:.3f}",
            f"{m['min']:.2f}", f"{m['max']:.2f}", f"{at_994}/{m['n']}", f"{m['goal_share']:.0%}",
            f"{m['train_mean']:.2f}", f"{m['best_epoch_mean']:.3f}", ORIGINAL.get(name, "-"),
        ])  # fmt: skip
    return render(columns, rows, "markdown")


if __name__ == "__main__":
    main()
