"""Measures the table of docs/export.md and prints it as Markdown: `make exports`.

Exports a run of the flagship, of the smallest trial at 99.4 % and of the best reference trial to every target, each
checked over all test images, and times one image at a time on one thread, the targets in turn in one process. Then
prints what int8 costs in accuracy over seeds. The runs are those of `make results`; what is missing is trained first.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import smidgen
from common import FLAGSHIP, RESULTS, parser
from smidgen.exports.c.compiler import STRICT, classify, compiled, require_compiler
from smidgen.exports.export import Exported, export
from smidgen.exports.fused import fused_graph
from smidgen.exports.quantize import quantize
from smidgen.sweeps.sweep import TrialResult
from smidgen.tables import render
from smidgen.training.evaluation import scores

SETS = (
    replace(RESULTS["float32"], trials=(FLAGSHIP, "mnist-tiny"), seeds="0-19"),
    replace(RESULTS["reference"], trials=("mnist-3-augmented",)),
)
WAYS = {"safetensors": "safetensors", "onnx": "onnx", "c-float32": "c", "c-int8": "c", "page": "page"}
IMAGES, ROUNDS = 500, 7


def main() -> None:
    """Train what is missing, export, measure, print."""
    arguments = parser(__doc__).parse_args()
    results = [result for one in SETS for result in one.runs(arguments)]
    torch.set_num_threads(1)
    print(f"{_machine()}\n")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for result in results:
            name, run = result.trial.name, result.runs[0]
            made = {way: _export(run, way, Path(folder) / f"{name}-{way}") for way in WAYS}
            times = _times(run, made)
            rows += [_row(name, way, exported, times[way]) for way, exported in made.items()]
    columns = ["network", "target", "files, bytes", "weights, bytes", "code on a Cortex-M4, bytes", "RAM, bytes"]
    columns += ["mismatches", "largest difference", "accuracy, %", "µs/image"]
    print(render(columns, rows, "markdown", left=2))
    print(f"\n{_losses(results)}")


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


def _export(run: smidgen.Run, way: str, folder: Path) -> Exported:
    kind = way.partition("-")[2] or None
    exported = export(run, WAYS[way], folder, **({"type": kind, "name": "net"} if kind else {}))
    print(f"{run.trial.name} {way}: {exported.equal}", file=sys.stderr)
    return exported


def _times(run: smidgen.Run, made: dict[str, Exported]) -> dict[str, float]:
    """Microseconds an image, by target; safetensors stands for PyTorch's eager engine."""
    images, mean, std = smidgen.load_dataset().held_out.images[:IMAGES], run.trained.mean, run.trained.std
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


def _losses(results: Sequence[TrialResult]) -> str:
    """What int8 costs: accuracy of the float32 network and of the integer network, paired by seed."""
    dataset = smidgen.load_dataset()
    images, labels = dataset.held_out.images, dataset.held_out.labels
    rows: list[list[object]] = []
    for result in results:
        floats, integers, moved = [], [], []
        for run in result.runs:
            before = scores(run.network, images, run.trained.mean, run.trained.std).argmax(1)
            after = quantize(fused_graph(run.trained), dataset.train.images).scores(images).argmax(1)
            floats.append(100 * float((before == labels).double().mean()))
            integers.append(100 * float((after == labels).double().mean()))
            moved.append(int((before != after).sum()))
        lost = smidgen.summarize([x - y for x, y in zip(floats, integers, strict=True)], 0)
        rows.append([
            result.trial.name, lost.n, f"{statistics.fmean(floats):.3f}", f"{statistics.fmean(integers):.3f}",
            f"{lost.mean:+.4f}" + ("" if lost.sd is None else f" ± {lost.sd:.4f}"),
            f"{lost.least:+.2f} to {lost.most:+.2f}", f"{statistics.fmean(moved):.1f}",
        ])  # fmt: skip
    columns = ["network", "seeds", "float32, %", "int8, %", "loss, points", "min to max"]
    return render([*columns, "images classified differently, of 10,000"], rows, "markdown")


if __name__ == "__main__":
    main()
