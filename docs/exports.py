"""Measures the table of docs/export.md and prints it as Markdown: `make export-table`.

Exports a run of the flagship, one of the smallest trial at 99.4 % and one of the seed's best to every target, each
checked over all test images, and times an image at a time on one thread, the ways in turn in one process. The runs are
those of `make results`; what is missing of the three is trained first. Then, over all runs of `make results` that are
there, what int8 costs in accuracy.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import smidgen
from smidgen.data.dataset import load_dataset
from smidgen.exports.c.compiler import STRICT, classify, compiled, require_compiler
from smidgen.exports.export import Exported, export
from smidgen.exports.fused import fused_graph
from smidgen.exports.quantize import quantize
from smidgen.tables import render
from smidgen.training.evaluation import scores

TRIALS = ["mnist-4-strict", "mnist-tiny", "mnist-3-augmented"]
WAYS = {"safetensors": "safetensors", "onnx": "onnx", "c-float32": "c", "c-int8": "c", "page": "page"}
IMAGES, ROUNDS = 500, 7


def main() -> None:
    """Train what is missing, export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/results"), help="where the runs of make results are")
    parser.add_argument(
        "--seeds", type=int, default=20, help="most seeds a trial for the cost of int8; 0: leave it out"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{_machine()}\n")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for trial in TRIALS:
            run = _run(options.root / f"{trial}-seed0", trial)
            made = {way: _export(run, way, Path(folder) / f"{trial}-{way}") for way in WAYS}
            times = _times(run, made)
            rows += [_row(trial, way, exported, times[way]) for way, exported in made.items()]
    columns = ["network", "target", "files, bytes", "weights, bytes", "code on a Cortex-M4, bytes", "RAM, bytes"]
    columns += ["mismatches", "largest difference", "accuracy, %", "µs per image"]
    print(render(columns, rows, "markdown", left=2))
    print(f"\n{_losses(options.root, options.seeds)}")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    compiler = subprocess.run([*require_compiler(), "--version"], capture_output=True, text=True, check=True)
    return (
        f"{datetime.datetime.now(tz=datetime.UTC).date()}, {names[0] if names else platform.machine()}, one thread, "
        f"Python {platform.python_version()}, smidgen {smidgen.VERSION}, PyTorch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, {compiler.stdout.splitlines()[0]} with -O2; "
        f"times are processor time, medians of {ROUNDS} rounds of {IMAGES} images, one at a time, the ways in turn; "
        "the page's is that of its check"
    )


def _run(directory: Path, trial: str) -> smidgen.Run:
    if not (directory / "result.json").exists():
        print(f"training {trial}", file=sys.stderr)
        return smidgen.run(trial, seed=0, options=smidgen.RunOptions(threads=1), out=directory)
    return smidgen.load_run(directory)


def _export(run: smidgen.Run, way: str, folder: Path) -> Exported:
    kind = way.partition("-")[2] or None
    exported = export(run, WAYS[way], folder, **({"type": kind, "name": "net"} if kind else {}))
    print(f"{run.trial.name} {way}: {exported.equal}", file=sys.stderr)
    return exported


def _times(run: smidgen.Run, made: dict[str, Exported]) -> dict[str, float]:
    """Microseconds an image, by target; safetensors stands for PyTorch's eager engine."""
    images, mean, std = load_dataset().held_out.images[:IMAGES], run.trained.mean, run.trained.std
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = 1
    file = next(made["onnx"].directory.glob("*.onnx"))
    session = onnxruntime.InferenceSession(file, session_options, providers=["CPUExecutionProvider"])

    def eager() -> float:
        with torch.inference_mode():
            return _clocked(lambda: [run.network((x / 255 - mean) / std).argmax() for x in images.split(1)])

    def onnx() -> float:
        return _clocked(lambda: [session.run(None, {"images": x}) for x in np.split(images.numpy(), IMAGES)])

    found: dict[str, list[float]] = {way: [] for way in made}
    flags = [flag for flag in STRICT if flag != "-Werror"]
    with (
        compiled(made["c-float32"].directory, "net", flags) as floats,
        compiled(made["c-int8"].directory, "net", flags) as integers,
    ):
        ways: dict[str, Callable[[], float]] = {
            "safetensors": eager,
            "onnx": onnx,
            "c-float32": lambda: classify(floats, images).microseconds,
            "c-int8": lambda: classify(integers, images).microseconds,
        }
        for _ in range(ROUNDS):
            for way, measure in ways.items():
                found[way].append(measure())
    page = made["page"].check
    assert page is not None
    found["page"] = [1e6 * page.seconds / page.images]
    return {way: statistics.median(values) for way, values in found.items()}


def _clocked(work: Callable[[], object]) -> float:
    """Microseconds of processor time an image, which is what the programs in C measure too."""
    began = time.process_time()
    work()
    return 1e6 * (time.process_time() - began) / IMAGES


def _row(trial: str, way: str, exported: Exported, microseconds: float) -> list[object]:
    check = exported.check
    assert check is not None
    details = check.details
    target = {"safetensors": "safetensors, PyTorch eager", "onnx": "onnx, onnxruntime", "page": "page, node"}.get(
        way, way.replace("-", ", ")
    )
    return [
        trial, target, sum(exported.sizes.values()), details.get("bytes_of_weights", "-"),
        details.get("bytes_of_code_cortex_m4", "-"), details.get("bytes_of_memory", "-"), len(check.mismatches),
        f"{check.largest_difference:.2g}", f"{check.accuracy:.2f}", f"{microseconds:.0f}",
    ]  # fmt: skip


def _losses(root: Path, seeds: int) -> str:
    """What int8 costs: accuracy of the float32 network and of the integer network, paired by seed."""
    dataset = load_dataset()
    rows: list[list[object]] = []
    for trial in TRIALS:
        pairs: list[tuple[float, float, int]] = []
        for seed in range(seeds):
            directory = root / f"{trial}-seed{seed}"
            if not (directory / "result.json").exists():
                continue
            run = smidgen.load_run(directory)
            images, labels = dataset.held_out.images, dataset.held_out.labels
            floats = scores(run.network, images, run.trained.mean, run.trained.std).argmax(1)
            integers = quantize(fused_graph(run.trained), dataset.train.images).scores(images).argmax(1)
            right = [100 * int((found == labels).sum()) / len(labels) for found in (floats, integers)]
            pairs.append((right[0], right[1], int((floats != integers).sum())))
            print(f"{trial} seed {seed}: {pairs[-1]}", file=sys.stderr)
        lost = [before - after for before, after, _ in pairs]
        if len(lost) < 2:
            continue
        rows.append([
            trial, len(lost), f"{statistics.mean(p[0] for p in pairs):.3f}",
            f"{statistics.mean(p[1] for p in pairs):.3f}",
            f"{statistics.mean(lost):+.4f} ± {statistics.stdev(lost):.4f}", f"{min(lost):+.2f} to {max(lost):+.2f}",
            f"{statistics.mean(p[2] for p in pairs):.1f}",
        ])  # fmt: skip
    columns = ["network", "seeds", "float32, %", "int8, %", "loss, points", "min to max"]
    return render([*columns, "images classified differently, of 10,000"], rows, "markdown")


if __name__ == "__main__":
    main()
