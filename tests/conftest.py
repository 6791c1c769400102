"""What the tests share: small data sets cut from MNIST, a finished run, the command line."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from images import CLASSES, write_images
from native import level  # noqa: F401 - a fixture for all
from odd import nets  # noqa: F401 - likewise
from smidgen.cli import main
from smidgen.data.dataset import FILES, Dataset, load_dataset
from smidgen.engines.native.core import why_missing
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.trial import SGD, AvgPool, Conv, Data, Goal, Linear, Network, Trial
from smidgen.trials.new import new_trial

torch.set_num_threads(2)

native_only = pytest.mark.skipif(bool(why_missing()), reason="the native engine is not installed")
ENGINES = ["eager", pytest.param("native", marks=native_only)]
# The same cases each time, so that a change is what makes a test fail; `--thorough` draws new ones.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("new", print_blob=True)


def idx_bytes(values: np.ndarray[Any, Any]) -> bytes:
    """An IDX file of uint8 values, uncompressed."""
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_folder(folder: Path, dataset: Dataset, train: int, test: int, *, zipped: bool = False, step: int = 1) -> Path:
    """A data folder of the first images of a data set; every `step`-th pixel in each direction."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": (dataset.train, train), "test": (dataset.held_out, test)}
    for name, file in FILES.items():
        part, _, kind = name.partition("_")
        examples, count = parts[part]
        values = examples.images[:count, 0, ::step, ::step] if kind == "images" else examples.labels[:count]
        content = idx_bytes(values.numpy())
        if zipped:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content, 1))
        else:
            (folder / file).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load_dataset()


@pytest.fixture(scope="session")
def small_folder(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 training and 200 test images of MNIST, full size."""
    return write_folder(tmp_path_factory.mktemp("data") / "small", mnist, 600, 200)


@pytest.fixture(scope="session")
def small_trial(small_folder: Path) -> Trial:
    """Two epochs of a network of 678 parameters on 600 images: under a second."""
    return Trial(
        name="small",
        goal=Goal(accuracy=10, parameters=1000, epochs=3),
        data=Data(source=str(small_folder), validation=100),
        network=Network(blocks=(Conv(4, stride=2), Conv(6, stride=2), Conv(6), AvgPool(), Linear())),
        optimizer=SGD(lr=0.05, nesterov=True, weight_decay=1e-4),
        batch_size=50,
        epochs=2,
        averaging=0.9,
    )


@pytest.fixture(scope="session")
def small_run(small_trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(small_trial, seed=3, out=tmp_path_factory.mktemp("runs") / "small", options=RunOptions(threads=1))


@pytest.fixture(scope="session")
def flagship_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One epoch of the flagship on the real data, about 99 %: a few seconds by the native engine."""
    return run("mnist-4-strict", epochs=1, out=tmp_path_factory.mktemp("runs") / "flagship", progress=Silent())


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One epoch of the reference notebooks' second trial on the real data."""
    return run("mnist-2-regularized", epochs=1, out=tmp_path_factory.mktemp("runs") / "reference", progress=Silent())


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 12 x 12 pixels in three classes, whose names have spaces, a newline and other letters."""
    return write_images(tmp_path_factory.mktemp("data") / "my pictures", 60, classes=CLASSES)


@pytest.fixture(scope="session")
def colour_file(colour_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial file for them, as `smidgen new` writes it."""
    path = tmp_path_factory.mktemp("trials") / "my_trial.py"
    new_trial(path, data=colour_folder, max_parameters=3_000)
    return path


@pytest.fixture(scope="session")
def colour_run(colour_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "colour"
    settings = ["augmentation.flip=0.5", "augmentation.translation=0", "augmentation.scale=0"]
    return run(f"{colour_file}:trial", out=out, settings=settings, progress=Silent())


def scalars_on_disk(directory: Path, held_out: str) -> list[dict[str, float]]:
    """What logs for other programs must hold of each epoch of a run, by tag, from epochs.jsonl."""
    tags = {
        "loss/train": "train_loss",
        f"loss/{held_out}": "test_loss",
        "accuracy/train": "train_accuracy",
        f"accuracy/{held_out}": "test_accuracy",
        "learning rate": "learning_rate",
        "seconds/training": "seconds_training",
        "seconds/evaluation": "seconds_evaluation",
    }
    epochs = [json.loads(line) for line in (directory / "epochs.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, len(epochs) + 1))
    return [{tag: epoch[key] for tag, key in tags.items()} for epoch in epochs]


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be exactly one JSON value."""
        return json.loads(self.out)

    def is_mistake(self, *words: str) -> bool:
        """Whether it ended as a user's mistake does: status 2, nothing printed, one line that has these words."""
        assert self.status == 2, self
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, (word, self.err)
        return True


Command = Callable[..., Outcome]


@pytest.fixture
def smidgen(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line, in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:  # --help and --version
            status = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


def _heed_interrupts() -> None:
    """A shell starts background jobs with Ctrl-C ignored; the commands under test must not inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_smidgen(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "smidgen", *map(str, arguments)],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=_heed_interrupts,
        **options,
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write the golden files anew")
    parser.addoption("--thorough", action="store_true", help="tests/faults in full: minutes of kills and hostile files")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["SMIDGEN_CACHE"] = ""  # the tests that are about it give it a folder of their own
    hypothesis.settings.load_profile("new" if config.getoption("--thorough") else "same")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Hold a printed text against its file in tests/golden, or write the file with --overwrite."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--overwrite"):
            path.write_text(text)
        assert text == path.read_text()

    return check
