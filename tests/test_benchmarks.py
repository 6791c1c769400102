"""The programs that make the figures of docs/: every one starts, and the results are those of its runs."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import common
import mcu
import results
from smidgen.data.dataset import Dataset
from smidgen.engines.native.core import find_core
from smidgen.exports.target import fused_graph
from smidgen.lowering.quantize import quantize
from smidgen.runs.options import RunOptions
from smidgen.runs.record import Run
from smidgen.runs.run import load_trial_data
from smidgen.trials.measured import read_measured

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_program_has_a_target_of_its_name_and_can_be_loaded(name: str) -> None:
    module = importlib.import_module(name)
    if name != "common":
        assert callable(module.main)
        assert f" {name} " in (BENCHMARKS.parent / "Makefile").read_text().replace(":", " ").replace("\n", " ")


@pytest.fixture
def root(small_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    trial = str(small_run.directory / "trial.json")
    runs = common.RunSet((trial,), "3-4", RunOptions(engine="eager", threads=1), workers=1)
    monkeypatch.setitem(common.RESULTS, "float32", runs)
    monkeypatch.setattr("smidgen.trials.measured.MEASURED", tmp_path / "measured.json")
    return tmp_path


def made(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "--sets", "float32", "--runs", str(root / "runs"), *arguments])
    results.main()


def test_the_results_are_those_of_the_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(root, monkeypatch, "--seeds", "3")
    assert read_measured() == {}
    assert "| small | 678 | 2 | 1 |" in capsys.readouterr().out
    made(root, monkeypatch)
    files = sorted((root / "runs").glob("*/*/result.json"))
    accuracies = [json.loads(file.read_text())["test_accuracy_last"] for file in files]
    found = read_measured()["small"]
    assert (found.n, len(files)) == (2, 2)
    assert found.mean == pytest.approx(sum(accuracies) / 2)
    assert (found.min, found.max) == (min(accuracies), max(accuracies))
    assert f"| 2 | {found.mean:.3f} | {found.sd:.3f} |" in capsys.readouterr().out


def test_other_frameworks_take_the_same_step(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are installed: the first losses must be equal, and what is missing is named."""
    peers = importlib.import_module("peers")
    ways = ["torch", *(["smidgen"] if find_core() else []), *(["jax"] if not find_spec("jax") else [])]
    arguments = ["--network", "flagship", "--rounds", "1", "--ways", *ways]
    monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
    assert peers.main() == 0
    shown = capfd.readouterr()
    rows = [line.split(" | ") for line in shown.out.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [f"| {peers.WAYS[way][1]}" for way in ways if way != "jax"]
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)
    assert ("JAX, jit: not measured: ModuleNotFoundError" in shown.err) == ("jax" in ways)


def test_another_step_than_pytorchs_is_an_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = importlib.import_module("peers")

    class Wrong:
        """A way whose losses are not PyTorch's."""

        def __init__(self, way: str, network: str, threads: int) -> None:
            self.way, self.rates, self.first, self.problem = way, [1.0], 0.0, ""
            self.losses = [2.3, 2.2, 2.1 if way == "torch" else 2.0]

        def measure(self) -> None:
            """Nothing."""

        def stop(self) -> None:
            """Nothing."""

    monkeypatch.setattr(peers, "Worker", Wrong)
    monkeypatch.setattr(
        sys, "argv", ["peers.py", "--network", "flagship", "--rounds", "1", "--ways", "torch", "compile"]
    )
    assert peers.main() == 1
    assert "torch.compile: losses [2.3, 2.2, 2.0], not [2.3, 2.2, 2.1]" in capfd.readouterr().err


MCU_TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm", "valgrind", "gcc")


@pytest.mark.skipif(any(shutil.which(tool) is None for tool in MCU_TOOLS), reason=f"needs {', '.join(MCU_TOOLS)}")
def test_code_for_microcontrollers_is_measured_as_it_is(small_run: Run, mnist: Dataset, tmp_path: Path) -> None:
    """The ways of smidgen itself: sizes as its export says, and the classes of its network."""
    images = mnist.held_out.images[:50]
    made = {
        way.name: way for way in mcu.ways(small_run, mnist.train.images, tmp_path, None) if "BakeNN" not in way.name
    }
    found: dict[str, mcu.Measured] = {}
    for name in ("smidgen", "smidgen, 4-bit weights, lean"):
        work = tmp_path / f"work {len(found)}"
        work.mkdir()
        found[name] = mcu.measure(made[name], work, images)
    whole, lean = found.values()
    header = (made["smidgen"].includes[0] / "net.h").read_text()
    scratch = re.search(r"NET_SCRATCH_BYTES (\d+)", header)
    weights = re.search(r"NET_WEIGHT_BYTES (\d+)", header)
    assert scratch
    assert weights
    assert int(scratch[1]) <= whole.ram <= int(scratch[1]) + 8
    assert int(weights[1]) < whole.flash < int(weights[1]) + 4_500
    assert lean.ram < whole.ram
    assert lean.flash < whole.flash
    for measured in found.values():
        assert measured.m0 is not None
        assert measured.pc is not None
        assert measured.classes is not None
        assert measured.m4 < measured.m0
        assert measured.m4 / 4 < measured.pc < 4 * measured.m4
        assert len(measured.classes) == 50
    expected = quantize(fused_graph(small_run.trained), load_trial_data(small_run.trial).train.images).scores(images)
    assert whole.classes is not None
    assert torch.equal(whole.classes, expected.argmax(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"^gpu.py: PyTorch finds no CUDA device here; use --device cpu or auto$"):
        importlib.import_module("gpu").main()
