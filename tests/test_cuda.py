"""Training on a GPU: for real where there is one, and elsewhere as far as it goes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import smidgen as package
from conftest import Command
from smidgen.data.dataset import Dataset
from smidgen.engines.cuda import CudaEngine
from smidgen.engines.eager import EagerEngine
from smidgen.engines.engine import Batch, Figures
from smidgen.errors import TrainingError
from smidgen.randomness import Stream
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import load_trial_data
from smidgen.runs.weights import weights_sha256
from smidgen.training import checkpoint, loop
from smidgen.training.checkpoint import Origin
from smidgen.training.loop import EpochRecord, new_network, start, train
from smidgen.training.sums import EpochSums, LossError
from smidgen.trial import SOAP, Adam, Augmentation, FullMatrixAdam, Network, Quantization, Trial
from smidgen.trials.mnist import augmented, strict, tiny

HAS_GPU = torch.cuda.is_available()
ORIGIN = Origin("recipe", "data", 0)
CPU = EagerEngine(torch.device("cpu"), 1)
GPU = torch.device("cuda")
on_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU here")


@pytest.fixture(scope="module")
def data(small_trial: Trial) -> Dataset:
    return load_trial_data(small_trial)


def small(trial: Trial, small_trial: Trial, **changes: Any) -> Trial:
    """A trial on few images, with a last batch that is not full."""
    return replace(trial, data=small_trial.data, batch_size=64, epochs=2, **changes)


TRIALS: dict[str, Callable[[Trial], Trial]] = {
    "strict": lambda base: small(strict(), base, recalibration=0.3),
    "augmented": lambda base: small(augmented(), base),
    "full matrix": lambda base: small(tiny(), base, optimizer=FullMatrixAdam(lr=0.02, every=10)),
    "soap": lambda base: small(tiny(), base, optimizer=SOAP(lr=0.01, every=10)),
    "everything": lambda base: small(
        strict(),
        base,
        network=replace(cast("Network", strict().network), scale=False),
        dropout=0.1,
        label_smoothing=0.1,
        recalibration=0.3,
        augmentation=Augmentation(rotation=10, elastic=0.5),
        optimizer=Adam(lr=0.01),
        quantization=Quantization(weights=4, epochs=1),
    ),
}


# Without a GPU.


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU, which does it for real")
@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
def test_all_that_a_gpu_would_do_but_the_arithmetic(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    here, root, library = Path(__file__).parent, Path(torch.__file__).parent, tmp_path / "guard.so"
    flags = ["-std=c++20", "-w", "-fPIC", "-shared", f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    libraries = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    subprocess.run([compiler, str(here / "cuda_guard.cpp"), "-o", str(library), *flags, *libraries], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / "fake_cuda.py")],
        env={**os.environ, "LD_PRELOAD": str(library)}, cwd=here.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"^12 passed", done.stdout, re.MULTILINE), done.stdout[-500:]


# Figures that come late, on the CPU.


class LateEngine(EagerEngine):
    """Gives figures as a GPU does."""

    def gradients(
        self, network: nn.Module, images: Batch, labels: Tensor, label_smoothing: float, stream: Stream
    ) -> Figures:
        loss, hits = super().gradients(network, images, labels, label_smoothing, stream)
        return torch.tensor([loss, hits], dtype=torch.float64)


def history_of(trial: Trial, data: Dataset, engine: EagerEngine) -> tuple[str, list[tuple[float, ...]]]:
    training = start(trial, new_network(trial, data, 0), engine)
    list(train(training, trial, data, 0, Silent()))
    return weights_sha256(engine.plain(training.judged)), [_figures(r) for r in training.history]


def _figures(record: EpochRecord) -> tuple[float, ...]:
    return record.train_loss, record.train_accuracy, record.test_loss, record.test_correct


def test_late_figures_are_the_same(small_trial: Trial, data: Dataset) -> None:
    late = LateEngine(torch.device("cpu"), 1)
    assert history_of(small_trial, data, late) == history_of(small_trial, data, CPU)


def test_a_late_loss_that_is_not_finite_names_its_step(small_trial: Trial, data: Dataset) -> None:
    class Diverging(LateEngine):
        def gradients(self, *arguments: Any) -> Figures:
            taken.append(0)
            figures = super().gradients(*arguments)
            assert isinstance(figures, Tensor)
            return figures * math.nan if len(taken) == 5 else figures

    taken: list[int] = []

    with pytest.raises(TrainingError, match=r"epoch 1, step 5 of 12: the loss is nan; lower optimizer.lr"):
        history_of(small_trial, data, Diverging(torch.device("cpu"), 1))
    taken.clear()
    training = start(small_trial, new_network(small_trial, data, 0), Diverging(torch.device("cpu"), 1))

    class Save(Silent):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if images >= 350:
                checkpoint.to_bytes(training, ORIGIN)

    with pytest.raises(TrainingError, match=r"epoch 1, step 5: the loss is nan; lower optimizer.lr"):
        list(train(training, small_trial, data, 0, Save()))


@pytest.mark.parametrize(("seconds", "readings"), [(0.0, 12), (math.inf, 0)])
def test_progress_shows_what_has_been_read(
    small_trial: Trial, data: Dataset, monkeypatch: pytest.MonkeyPatch, seconds: float, readings: int
) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_READINGS", seconds)
    shown: list[float] = []

    class Keep(Silent):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            shown.append(loss)

    trial, engine = replace(small_trial, epochs=1), LateEngine(torch.device("cpu"), 1)
    training = start(trial, new_network(trial, data, 0), engine)
    [record] = train(training, trial, data, 0, Keep())
    assert len(shown) == 12
    assert sum(not math.isnan(loss) for loss in shown) == readings
    assert readings == 0 or shown[-1] == record.train_loss


def test_sums_count_what_is_read() -> None:
    sums = EpochSums()
    sums.add(torch.tensor([2.0, 3.0], dtype=torch.float64), 4)
    assert (sums.seen, sums.all_read) == (4, False)
    assert math.isnan(sums.mean_loss)
    sums.read()
    sums.add(torch.tensor([1.0, 1.0], dtype=torch.float64), 4)
    assert (sums.mean_loss, sums.accuracy, sums.seen) == (2.0, 75.0, 8)
    sums.read()
    assert (sums.mean_loss, sums.accuracy, sums.all_read) == (1.5, 50.0, True)
    with pytest.raises(LossError) as caught:
        sums.add((math.inf, 0), 4)
    assert caught.value.steps_ago == 0


# What can be chosen, and what becomes of a GPU's runs elsewhere.


def test_what_a_gpu_cannot_do_is_one_line(smidgen: Command) -> None:
    smidgen("run", "--device", "mps").is_mistake("mps", "float64", "--device cpu")
    smidgen("run", "--engine", "cuda", "--device", "cpu").is_mistake("--device cuda", "--engine eager or native")
    smidgen("run", "--precision", "tf32").is_mistake("tf32 needs a GPU", "use fp32")
    if not HAS_GPU:
        smidgen("run", "--engine", "cuda").is_mistake("no CUDA device", "--device cpu or auto")


def test_too_little_memory_on_a_gpu_is_one_line(
    small_trial: Trial, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Figures:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(EagerEngine, "figures", full)
    with pytest.raises(
        TrainingError, match=r"^there is not enough memory for a step over 50 images; lower batch_size$"
    ):
        history_of(small_trial, data, CPU)


def test_a_run_that_a_gpu_made_is_read_everywhere(small_run: Any, tmp_path: Path, smidgen: Command) -> None:
    made = tmp_path / "runs" / "made"
    shutil.copytree(small_run.directory, made)
    for name, field in (("result.json", "run_dir"), ("environment.json", "")):
        there = json.loads((made / name).read_text())
        there |= {"engine": "cuda", "device": "cuda", "precision": "fp32"} | ({field: str(made)} if field else {})
        (made / name).write_text(json.dumps(there))
    assert package.load_run(made).result.device == "cuda"
    assert smidgen("report", tmp_path / "runs", "--out", tmp_path / "report.html").status == 0
    for target in ("c", "safetensors"):
        done = smidgen("export", made, "--to", target, "--out", tmp_path / target)
        assert done.status == 0, done.err
    assert smidgen("run", "--resume", made, "--engine", "cuda").status in (0, 1)  # finished, so shown


# With a GPU.


def gpu_history(trial: Trial, data: Dataset, *, records: bool = True) -> tuple[str, list[tuple[float, ...]]]:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    try:
        return history_of(trial, data, CudaEngine(GPU, 1, records=records))
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before


@on_gpu
@pytest.mark.parametrize("name", list(TRIALS))
def test_recorded_steps_are_the_steps_themselves(small_trial: Trial, data: Dataset, name: str) -> None:
    trial = TRIALS[name](small_trial)
    recorded = gpu_history(trial, data)
    assert recorded == gpu_history(trial, data)
    assert recorded == gpu_history(trial, data, records=False)
    assert recorded[0] != gpu_history(replace(trial, batch_size=60), data)[0]


@on_gpu
def test_a_gpu_learns_what_the_cpu_learns(small_trial: Trial, data: Dataset) -> None:
    trial = small(strict(), small_trial, averaging=0.0, recalibration=0.0, schedule=small_trial.schedule)
    ours, theirs = gpu_history(replace(trial, epochs=1), data), history_of(replace(trial, epochs=1), data, CPU)
    assert ours[1][0][0] == pytest.approx(theirs[1][0][0], rel=2e-3)


@on_gpu
def test_a_gpus_run_is_resumed_to_the_same_bytes(small_trial: Trial, tmp_path: Path) -> None:
    trial, options = TRIALS["everything"](small_trial), RunOptions(device="cuda", checkpoint_seconds=0)
    whole = package.run(trial, out=tmp_path / "whole", options=options, progress=Silent())

    class Stop(Silent):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if images == 5 * 64:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.run(trial, out=tmp_path / "cut", options=options, progress=Stop())
    again = package.run(resume=tmp_path / "cut", progress=Silent())
    assert again.result.weights_sha256 == whole.result.weights_sha256
    assert (again.result.engine, again.result.device) == ("cuda", "cuda")


@on_gpu
def test_too_little_memory_is_one_line_for_real(small_trial: Trial) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(TrainingError, match="there is not enough memory"):
            package.run(
                replace(strict(), data=small_trial.data, batch_size=600),
                options=RunOptions(device="cuda"),
                progress=Silent(),
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
