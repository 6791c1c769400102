"""What the fault tests share: a zygote, runs to be killed, and how much is to be done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import write_folder
from smidgen.data.dataset import Dataset
from smidgen.schedules import Cosine, OneCycle, Step
from smidgen.trial import (
    SGD,
    SOAP,
    Adam,
    AdamW,
    Augmentation,
    AvgPool,
    Conv,
    Data,
    FullMatrixAdam,
    Goal,
    Linear,
    Network,
    Trial,
)


@dataclass
class Figures:
    """What the tests counted, for docs/reliability.md."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.lines.append(line)


_FIGURES = Figures()


@pytest.fixture(scope="session")
def figures() -> Figures:
    return _FIGURES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _FIGURES.lines:
        terminalreporter.section("counted by the fault tests")
        for line in _FIGURES.lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))


class Zygote:
    """Starts `smidgen` in children of a process that has imported it already."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._outputs = folder, dict[int, Path]()
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def start(self, *arguments: str | Path, **suffering: Any) -> int:
        """The process id of `smidgen ARGUMENTS`."""
        self._number += 1
        output = self._folder / f"{self._number}.txt"
        output.touch()
        output.chmod(0o666)
        request = {"do": "start", "arguments": list(map(str, arguments)), "output": str(output), **suffering}
        pid = int(self._ask(request)["pid"])
        self._outputs[pid] = output
        return pid

    def wait(self, pid: int) -> tuple[int, str]:
        """How it ended (negative: by that signal), and what it printed."""
        status = self._ask({"do": "wait", "pid": pid})["status"]
        return status, self._outputs.pop(pid).read_text()

    def call(self, *arguments: str | Path, **suffering: Any) -> tuple[int, str]:
        """Start and wait."""
        return self.wait(self.start(*arguments, **suffering))

    def close(self) -> None:
        with self._process:  # which closes the pipes, and waits
            pass

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    started = Zygote(tmp_path_factory.mktemp("zygote"))
    yield started
    started.close()


_DISTORTED = Augmentation(rotation=10, translation=0.1, scale=0.1, shear=0.1, elastic=0.5)


@pytest.fixture(scope="session")
def victims(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Runs that can be killed, by name: arguments of `smidgen`, without those for the directory.

    Between them they have every optimizer and every schedule, averaging or none, recalibration or none, distortion,
    dropout, label smoothing, a last batch that is smaller, and both engines.
    """
    folder = tmp_path_factory.mktemp("victims")
    data = write_folder(folder / "data", mnist, 650, 200, step=2)
    first = Trial(
        name="victim",
        goal=Goal(accuracy=10, parameters=2000, epochs=3),
        data=Data(source=str(data)),
        network=Network(blocks=(Conv(4), Conv(6, stride=2), Conv(6), AvgPool(), Linear())),
        augmentation=_DISTORTED,
        dropout=0.1,
        optimizer=SGD(lr=0.05, nesterov=True, weight_decay=1e-4),
        schedule=OneCycle(),
        batch_size=100,
        epochs=3,
        averaging=0.9,
        label_smoothing=0.05,
    )
    trials = {
        "sgd": (first, ["auto"]),
        "adam": (
            replace(first, optimizer=Adam(lr=0.01, weight_decay=0.01), schedule=Cosine(warmup=0.1), recalibration=0.2),
            ["auto", "eager"],
        ),
        "adamw": (replace(first, optimizer=AdamW(lr=0.01), schedule=Step(1), averaging=0.0), ["auto", "eager"]),
        "soap": (replace(first, optimizer=SOAP(lr=0.01, every=8, weight_decay=0.05)), ["auto", "eager"]),
        "full-matrix-adam": (replace(first, optimizer=FullMatrixAdam(lr=0.02, every=10)), ["auto"]),
        "eager sgd": (first, ["eager"]),
    }
    made = {}
    for name, (trial, engines) in trials.items():
        path = folder / f"{name.replace(' ', '-')}.json"
        path.write_text(json.dumps(trial.to_json()))
        for engine in engines:
            made[f"{name}, {engine}"] = ["run", str(path), "--engine", engine, "--threads", "1", "--seed", "7"]
    return made


_TIMES = {"seconds_training", "seconds_evaluation", "seconds_setup", "images_per_second", "run_dir", "resumptions"}


def outcome(directory: Path) -> dict[str, Any]:
    """Everything about a finished run that must not depend on how often it was killed."""
    epochs = [json.loads(line) for line in (directory / "epochs.jsonl").read_text().splitlines()]
    result = json.loads((directory / "result.json").read_text())
    return {
        "weights": (directory / "weights.safetensors").read_bytes(),
        "predictions": (directory / "predictions.safetensors").read_bytes(),
        "trial": (directory / "trial.json").read_bytes(),
        "epochs": [{k: v for k, v in epoch.items() if k not in _TIMES} for epoch in epochs],
        "result": {k: v for k, v in result.items() if k not in _TIMES},
        "left": sorted(p.name for p in directory.iterdir() if p.name.startswith(".")),
    }


@pytest.fixture(scope="session")
def left_alone(
    zygote: Zygote, victims: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """How each victim ends if nobody kills it."""
    folder = tmp_path_factory.mktemp("left-alone")
    outcomes = {}
    for name, arguments in victims.items():
        status, printed = zygote.call(*arguments, "--out", folder / name)
        assert status == 0, printed
        outcomes[name] = outcome(folder / name)
    return outcomes
