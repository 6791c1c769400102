"""Measures the tables of docs/export.md and prints them as Markdown: `make exports`.

Exports a run of the flagship and of the two smallest trials to every target, each checked over all test images, and
times one image at a time on one thread, the targets in turn in one process. Then prints what integers cost in accuracy
over seeds: with 8-bit weights, with 4-bit weights, and with 4-bit weights that the last epochs got used to. The runs
are those of `make results` and some with `quantization`; what is missing is trained first.
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
from common import FLAGSHIP, RESULTS, parser, swept
from smidgen import Quantization
from smidgen.exports.c.compiler import classify, compiled, require_compiler
from smidgen.exports.card import CARD
from smidgen.exports.export import Exported, export
from smidgen.sweeps.sweep import TrialResult
from smidgen.tables import render
from smidgen.training.evaluation import scores
from smidgen.trials.find import find_trial

TRIALS = (FLAGSHIP, "mnist-tiny", "mnist-tiny-99")
PLAIN = replace(RESULTS["float32"], trials=TRIALS, seeds="0-7")
FEW_BITS = Quantization(weights=4, epochs=5)
FLAGS = {"c-float32": ["-std=c99", "-O3", "-march=native"], "c-int8": ["-std=c99", "-O2"]}
WAYS = {"safetensors": "safetensors", "onnx": "onnx", "c-float32": "c", "c-int8": "c", "page": "page"}
IMAGES, ROUNDS = 500, 7


def main() -> None:
    """Train what is missing, export, measure, print."""
    arguments = parser(__doc__).parse_args()
    results = PLAIN.runs(arguments)
    names = [result.trial.name for result in results]
    few = tuple(replace(find_trial(name), name=f"{name}-4-bits", quantization=FEW_BITS) for name in names)
    trained_few = swept(few, arguments, PLAIN.seeds, PLAIN.options)
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
    print(f"\n{_losses(results, trained_few)}")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    compiler = subprocess.run([*require_compiler(), "--version"], capture_output=True, text=True, check=True)
    return (
        f"{datetime.datetime.now(tz=datetime.UTC).date()}, {names[0] if names else platform.machine()}, one thread, "
        f"Python {platform.python_version()}, smidgen {smidgen.VERSION}, PyTorch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, {compiler.stdout.splitlines()[0]}, "
        f"{' '.join(FLAGS['c-float32'][1:])} for float32 and {FLAGS['c-int8'][1]} for int8; "
        f"times are processor time, medians of {ROUNDS} rounds of {IMAGES} images, one at a time, the ways in turn; "
        "the page's is that of its check"
    )


def _export(run: smidgen.Run, way: str, folder: Path) -> Exported:
    kind = way.partition("-")[2] or None
    exported = export(run, WAYS[way], folder, **({"type": kind, "name": "net"} if kind else {}))
    print(f"{run.trial.name} {way}: {exported.passed}", file=sys.stderr)
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
    with (
        compiled(made["c-float32"].directory, "net", FLAGS["c-float32"]) as floats,
        compiled(made["c-int8"].directory, "net", FLAGS["c-int8"]) as integers,
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
    size = sum(size for name, size in exported.sizes.items() if name != CARD)
    return [
        trial, target, size, details.get("bytes_of_weights", "-"),
        details.get("bytes_of_code_cortex_m4", "-"), details.get("bytes_of_memory", "-"), len(check.mismatches),
        f"{check.largest_difference:.2g}", f"{check.accuracy:.2f}", f"{microseconds:.0f}",
    ]  # fmt: skip


def _losses(results: Sequence[TrialResult], few: Sequence[TrialResult]) -> str:
    """What integers cost: accuracy of the float32 network and of the exported code, by seed."""
    dataset = smidgen.load_dataset()
    images, labels = dataset.held_out.images, dataset.held_out.labels
    rows: list[list[object]] = []
    for result, rounded in zip(results, few, strict=True):
        floats = [_percent(_classes(run, images), labels) for run in result.runs]
        rows.append([result.trial.name, "float32", len(floats), *_spread(floats), "", ""])
        ways = {"8-bit weights": (result, 8), "4-bit weights": (result, 4), "4-bit weights, trained so": (rounded, 4)}
        for name, (source, bits) in ways.items():
            accuracies, moved = [], []
            for run in source.runs:
                found = _classes_in_c(run, bits, images)
                accuracies.append(_percent(found, labels))
                moved.append(int((found != _classes(run, images)).sum()))
            lost = smidgen.summarize([x - y for x, y in zip(floats, accuracies, strict=True)], 0)
            about = f"{lost.mean:.3f}" + ("" if lost.sd is None else f" ± {lost.sd:.3f}")
            rows.append(
                [result.trial.name, name, lost.n, *_spread(accuracies), about, f"{statistics.fmean(moved):.1f}"]
            )
            print(*rows[-1], file=sys.stderr, flush=True)
    columns = ["network", "arithmetic", "seeds", "accuracy, %", "least", "loss, points"]
    return render([*columns, "images unlike the run's own float32 network"], rows, "markdown", left=2)


def _classes(run: smidgen.Run, images: torch.Tensor) -> torch.Tensor:
    return scores(run.network, images, run.trained.mean, run.trained.std).argmax(1)


def _classes_in_c(run: smidgen.Run, bits: int, images: torch.Tensor) -> torch.Tensor:
    """Of the exported code; the tests and each export's own check hold it against the integers in Python."""
    with tempfile.TemporaryDirectory() as folder:
        made = export(run, "c", Path(folder) / "net", type="int8", bits=bits, name="net", check=False)
        with compiled(made.directory, "net") as program:
            return classify(program, images).labels


def _percent(found: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * float((found == labels).double().mean())


def _spread(accuracies: Sequence[float]) -> tuple[str, str]:
    found = smidgen.summarize(list(accuracies), 0)
    return f"{found.mean:.3f}" + ("" if found.sd is None else f" ± {found.sd:.3f}"), f"{found.least:.2f}"


if __name__ == "__main__":
    main()
