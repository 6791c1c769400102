"""A user's own `nn.Module` as a trial's network: named, recorded by its hash, run only where it is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from conftest import Command, native_only
from smidgen.errors import RunError, SmidgenError, TrialError
from smidgen.nets import code
from smidgen.nets.build import build_network
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import load_run
from smidgen.runs.run import run
from smidgen.sweeps.sweep import sweep
from smidgen.trial import Module, Network, Trial
from smidgen.trials.find import find_trial

FILE = '''
import torch
from torch import nn
import smidgen


class Residual(nn.Module):
    """Two ways that are added: more than blocks can say, and all of it lowers."""

    def __init__(self, input_shape, classes, width=6):
        super().__init__()
        self.first = nn.Conv2d(input_shape[0], width, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.last = nn.Linear(width, classes)

    def forward(self, images):
        x = torch.relu(self.norm(self.first(images)))
        x = x + torch.relu(self.second(x))
        return self.last(x.mean((2, 3)))


class Strange(Residual):
    """With something that the native engine lacks."""

    def forward(self, images):
        x = torch.atan(self.norm(self.first(images)))
        return self.last(self.second(x).mean((2, 3)))


def wrong():
    return nn.Flatten()


def failing(classes):
    raise ValueError("not today")


def trial(network=None):
    return smidgen.Trial(
        name="own",
        goal=smidgen.Goal(accuracy=10, parameters=1000, epochs=1),
        data=smidgen.Data(source=SOURCE),
        network=smidgen.from_module(network or Residual),
        optimizer=smidgen.SGD(lr=0.05),
        batch_size=50,
        epochs=1,
    )


def strange():
    return trial(Strange)
'''


@pytest.fixture
def file(small_folder: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "nets.py"
    path.write_text(FILE.replace("SOURCE", repr(str(small_folder))))
    yield path
    forget()


def forget() -> None:
    """As in another process, where nobody has named the file."""
    code._trusted.clear()
    os.environ.pop(code.VARIABLE, None)


def test_the_json_of_networks_of_blocks_is_unchanged(small_trial: Trial) -> None:
    data = small_trial.to_json()
    assert isinstance(data["network"], dict)
    assert set(data["network"]) == {"blocks", "order", "scale"}
    assert Trial.from_json(json.loads(json.dumps(data))) == small_trial
    assert isinstance(Trial.from_json(data).network, Network)


@native_only
def test_a_module_trains_on_the_native_engine_and_is_read_back(file: Path, smidgen: Command, tmp_path: Path) -> None:
    done = smidgen("run", f"{file}:trial", "--out", tmp_path / "run", "--engine", "native", "--json")
    assert done.status == 0
    assert done.json["engine"] == "native"
    trial = find_trial(tmp_path / "run" / "trial.json")
    assert isinstance(trial.network, Module)
    assert (trial.network.file, trial.network.name) == ("nets.py", "Residual")
    assert load_run(tmp_path / "run").result.weights_sha256 == done.json["weights_sha256"]
    eager = run(trial, out=tmp_path / "eager", options=RunOptions(engine="eager"), progress=Silent())
    assert abs(eager.history[0].train_loss - load_run(tmp_path / "run").history[0].train_loss) < 1e-3


@native_only
def test_what_does_not_lower_runs_eagerly_and_says_why(file: Path, smidgen: Command, tmp_path: Path) -> None:
    done = smidgen("run", f"{file}:strange", "--out", tmp_path / "run")
    assert done.status == 0
    assert "note: the native engine cannot run" in done.out
    assert "atan" in done.out
    assert "engine eager" in done.out
    assert smidgen("run", f"{file}:strange", "--engine", "native", "--out", tmp_path / "n").is_mistake("atan")


def test_a_run_from_elsewhere_makes_nothing_run(file: Path, smidgen: Command, tmp_path: Path) -> None:
    run(f"{file}:trial", out=tmp_path / "run", progress=Silent())
    image = tmp_path / "x.png"
    from PIL import Image

    Image.linear_gradient("L").save(image)
    mark = tmp_path / "mark"
    shutil.copy(file, tmp_path / "run" / "nets.py")  # beside the run, where a hostile one would put it
    forget()
    with pytest.raises(RunError, match=r"run only if you name it: add --code nets.py"):
        load_run(tmp_path / "run")
    assert smidgen("predict", tmp_path / "run", image).is_mistake("--code nets.py")
    assert smidgen("predict", tmp_path / "run", image, "--code", file).status == 0
    edited = tmp_path / "edited" / file.name
    edited.parent.mkdir()
    edited.write_text(file.read_text() + "\n# a remark\n")
    forget()
    found = smidgen("predict", tmp_path / "run", image, "--code", edited)
    assert found.is_mistake("nets.py that was named has", "another file, or was edited since")
    assert "add --code" not in found.err
    forget()
    file.write_text(file.read_text() + f"\n__import__('pathlib').Path({str(mark)!r}).touch()\n")
    assert smidgen("predict", tmp_path / "run", image, "--code", file).is_mistake("edited since", "SHA-256")
    assert mark.exists()  # it was named, so it ran; but it is another file now
    forget()
    assert smidgen("run", "--resume", tmp_path / "run").is_mistake("--code nets.py")


def test_a_sweeps_workers_have_the_file_too(file: Path, tmp_path: Path) -> None:
    done = sweep([f"{file}:trial"], "0-1", workers=2, out=tmp_path / "sweep")
    assert not done.failures


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong", r"gives torch.float32 \[2, 784\] for two images of 10 classes; it must give \[2, 10\]"),
        ("failing", r"nets.py:failing failed: ValueError: not today \(line 3\d\)"),
        ("nothing", "nets.py defines no 'nothing'"),
    ],
)
def test_modules_that_cannot_be_are_named(file: Path, name: str, words: str) -> None:
    trial = find_trial(f"{file}:trial")
    assert isinstance(trial.network, Module)
    network = Module(file="nets.py", name=name, sha256=trial.network.sha256)
    with pytest.raises(TrialError, match=words):
        build_network(network, input_shape=(1, 28, 28), classes=10)
    with pytest.raises(TrialError, match="put dropout into it"):
        build_network(trial.network, input_shape=(1, 28, 28), classes=10, dropout=0.1)
    with pytest.raises(TrialError, match="does not take images of 7x28x28|does not take|gives"):
        build_network(trial.network, input_shape=(1, 2, 2), classes=10)


def test_a_class_without_a_file_is_refused() -> None:
    class Local(nn.Module):
        pass

    with pytest.raises(TrialError, match="at the top of a Python file"):
        code.from_module(Local)
    for wrong in ({"file": "../x.py"}, {"file": "x.txt"}, {"name": "a.b"}, {"sha256": "12"}):
        with pytest.raises(SmidgenError, match="allowed"):
            Module(**{"file": "x.py", "name": "Net", "sha256": "0" * 64, **wrong})
