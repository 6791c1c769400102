"""Modules as people write them: what PyTorch trains is trained, kept and read back; what would go wrong is refused."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import ENGINES, Command, native_only
from smidgen.data.dataset import load_dataset
from smidgen.errors import SmidgenError, TrialError
from smidgen.exports.export import export
from smidgen.inspection import inspect
from smidgen.nets import code
from smidgen.nets.code import from_module
from smidgen.runs.options import RunOptions
from smidgen.runs.predict import predict
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import run
from smidgen.tensorfile import STORABLE
from smidgen.training.evaluation import scores
from smidgen.trial import Conv, Goal, Linear, Network, Trial
from smidgen.trials.find import find_trial

NETS = '''
import sys
import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, stride=2)
        self.b = nn.Linear(4, 10)

    def features(self, x):
        return self.a(x).relu().mean((2, 3))

    def forward(self, x):
        return self.b(self.features(x))


class Tied(Plain):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 4)
        self.up.weight = self.down.weight

    def features(self, x):
        return self.up(self.down(super().features(x)))


class TwoNames(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.again = self.norm
        self.same = self.a

    def features(self, x):
        return self.again(self.norm(self.same(x)).relu()).mean((2, 3))


class TiedBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.register_buffer("two", self.one)

    def features(self, x):
        return super().features(x) * self.one + self.two


class Chunks(Plain):
    """Parameters side by side in one memory."""

    def __init__(self):
        super().__init__()
        whole = torch.ones(8)
        self.first, self.second = nn.Parameter(whole[:4]), nn.Parameter(whole[4:])

    def features(self, x):
        return super().features(x) * self.first + self.second


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(10)

    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu().mean((2, 3)))


class Frozen(Plain):
    def __init__(self):
        super().__init__()
        self.a.requires_grad_(False)


class Typed(Plain):
    """A first parameter that is no float32."""

    def __init__(self):
        super().__init__()
        whole = nn.ParameterList([nn.Parameter(torch.arange(4), requires_grad=False)])
        self._modules = {"whole": whole, **self._modules}

    def features(self, x):
        return super().features(x) * self.whole[0]


class Weighted(Plain):
    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(self.a)


class Keyed(Plain):
    """Takes what it wants by name only."""

    def __init__(self, *, classes, width=4):
        super().__init__()
        self.b = nn.Linear(width, classes)


def buffer(dtype):
    class Buffered(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.tensor([1, 0, 1, 1]).to(dtype))

        def features(self, x):
            kept = self.kept.real if self.kept.is_complex() else self.kept
            return super().features(x) * kept.to(torch.float32)

    return Buffered


for dtype in DTYPES:
    globals()["Buffer_" + str(dtype).partition(".")[2]] = buffer(dtype)


class Asserting(Plain):
    def forward(self, x):
        assert not self.training, "only for evaluation"
        return super().forward(x)


class Leaving(Plain):
    def forward(self, x):
        if self.training:
            sys.exit("I do not train")
        return super().forward(x)


class Late(Plain):
    """Fails in the tenth step."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        if self.training:
            self.count += 1
            if self.count == 10:
                raise LookupError("ten is enough")
        return super().forward(x)


class Branching(Plain):
    """Another network in each call."""

    def features(self, x):
        x = super().features(x)
        return x + x if self.training and CHANCE() < 0.5 else x


class Counting(Plain):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def features(self, x):
        self.calls += self.training
        x = super().features(x)
        return x + x if self.calls > 5 else x


class Missing(Plain):
    def forward(self, x):
        return self.c(x)


class Whole(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


class AllFrozen(Plain):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Detached(Plain):
    def forward(self, x):
        return super().forward(x).detach()


class Noisy(Plain):
    def features(self, x):
        return F.dropout(super().features(x), 0.5)


class Unsaved(Plain):
    def __init__(self):
        super().__init__()
        self.directions = torch.randn(4, 4)

    def features(self, x):
        return super().features(x) @ self.directions


class NotPersistent(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("directions", torch.randn(4, 4), persistent=False)

    def features(self, x):
        return super().features(x) @ self.directions


class ExtraState(Plain):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class Untracked(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def features(self, x):
        return self.norm(self.a(x)).relu().mean((2, 3))


class AcrossTheBatch(Plain):
    def features(self, x):
        x = super().features(x)
        return x - x.mean(0)


class Complex(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("turn", torch.ones(4, dtype=torch.complex128))


class Sparse(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.eye(4).to_sparse())


class Views(Plain):
    def __init__(self):
        super().__init__()
        self.copy = nn.Parameter(self.b.weight.data)


class ViewBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("first", self.b.weight.data[0], persistent=False)


class Expanded(Plain):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1).expand(4))

    def features(self, x):
        return super().features(x) * self.scale


class Half(Plain):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def features(self, x):
        return super().features(x) * self.scale.float()


class Hooked(Plain):
    def __init__(self):
        super().__init__()
        self.b.register_parameter("bias", None)
        self.stop = lambda: None


class Norm1d(Plain):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def features(self, x):
        return self.inner(super().features(x))


class Squeezing(Plain):
    def features(self, x):
        return super().features(x).squeeze()
'''
TRAINED = [
    "Plain",
    "Tied",
    "TwoNames",
    "TiedBuffer",
    "Chunks",
    "Lazy",
    "Frozen",
    "Typed",
    "Weighted",
    "Keyed",
    "Hooked",
]
REFUSED = {
    "Asserting": r"fails in training: AssertionError: only for evaluation \(nets\.py, line \d+\)",
    "Leaving": r"fails in training: SystemExit: I do not train \(nets\.py, line \d+\)",
    "Late": r"Late failed in epoch 1, step \d+ of 12: LookupError: ten is enough \(nets\.py, line \d+\)",
    "Missing": r"does not take images of 1x28x28: AttributeError: .* \(nets\.py, line \d+\)",
    "Whole": "Whole has no parameters to train",
    "AllFrozen": "AllFrozen has no parameters to train",
    "Detached": "fails in training: RuntimeError: element 0 of tensors does not require grad",
    "Noisy": "different scores for the same images in evaluation mode",
    "Unsaved": "neither parameters nor buffers",
    "NotPersistent": "neither parameters nor buffers",
    "ExtraState": "_extra_state is a dict; only tensors can be saved",
    "Complex": "turn is of type complex128, which weight files cannot hold",
    "Sparse": "table is of type sparse_coo, which weight files cannot hold",
    "Views": r"b\.weight and copy share memory",
    "ViewBuffer": r"first and b\.weight share memory",
    "Expanded": r"values of scale share memory",
    "Half": "scale has the dtype torch.float64; only float32 parameters can be trained",
}


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The file above, imported as a user does."""
    text = NETS.replace("DTYPES", repr(sorted(STORABLE, key=str)))
    (tmp_path / "nets.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    yield importlib.import_module("nets")
    sys.modules.pop("nets", None)
    code._trusted.clear()


def trial_of(factory: Callable[..., nn.Module], small_trial: Trial, **changes: Any) -> Trial:
    network = from_module(factory)
    return replace(small_trial, network=network, epochs=1, initial_weights="pytorch", name="odd", **changes)


def trained(trial: Trial, out: Path, engine: str = "auto") -> Run:
    return run(trial, out=out, options=RunOptions(engine=engine, threads=1), progress=Silent())  # type: ignore[arg-type]


def check_read_back(finished: Run, network: ModuleType | None = None) -> None:
    """The run in its directory is the network in memory."""
    again = load_run(finished.directory)
    images = load_dataset(finished.trial.data.source).held_out.images
    mean, std = finished.trained.mean, finished.trained.std
    assert torch.equal(scores(again.network, images, mean, std), scores(finished.network, images, mean, std))
    assert again.result == finished.result


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("name", TRAINED)
def test_what_pytorch_trains_is_trained_kept_and_read_back(
    nets: ModuleType, name: str, engine: str, small_trial: Trial, tmp_path: Path
) -> None:
    finished = trained(trial_of(getattr(nets, name), small_trial), tmp_path / "run", engine)
    check_read_back(finished)
    stored = sum(p.numel() for p in finished.network.parameters())
    assert finished.result.parameters == stored
    assert inspect(finished.trial).anatomy.parameters == stored
    assert export(finished, "safetensors", tmp_path / "out").equal


@pytest.mark.parametrize("dtype", sorted(STORABLE, key=str), ids=lambda dtype: str(dtype).partition(".")[2])
def test_buffers_of_every_type_that_weight_files_hold(
    nets: ModuleType, dtype: torch.dtype, small_trial: Trial, tmp_path: Path
) -> None:
    factory = getattr(nets, "Buffer_" + str(dtype).partition(".")[2])
    factory.__qualname__ = factory.__name__ = "Buffer_" + str(dtype).partition(".")[2]
    finished = trained(trial_of(factory, small_trial), tmp_path / "run")
    kept = finished.network.state_dict()["kept"]
    assert kept.dtype == dtype
    assert (kept.real if kept.is_complex() else kept).to(torch.float32).tolist() == [1, 0, 1, 1]
    check_read_back(finished)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_later_is_one_line(nets: ModuleType, name: str, small_trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(SmidgenError, match=REFUSED[name]) as caught:
        trained(trial_of(getattr(nets, name), small_trial), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert name == "Late" or not (tmp_path / "run").exists()


@native_only
@pytest.mark.parametrize(
    ("name", "chance"),
    [
        ("Branching", lambda: random.random()),
        ("Branching", lambda: float(np.random.rand())),  # noqa: NPY002 - as users do
        ("Branching", lambda: float(torch.rand(1))),
        ("Counting", None),
    ],
)
def test_networks_that_differ_from_call_to_call_are_not_traced(
    nets: ModuleType, name: str, chance: Any, small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nets, "CHANCE", chance, raising=False)
    trial = trial_of(getattr(nets, name), small_trial)
    with pytest.raises(SmidgenError, match="differs from call to call"):
        trained(trial, tmp_path / "native", "native")
    assert trained(trial, tmp_path / "auto").result.engine == "eager"


@pytest.mark.parametrize("name", ["Untracked", "AcrossTheBatch"])
def test_scores_that_depend_on_the_batch_are_of_no_use_later(
    nets: ModuleType, name: str, small_trial: Trial, tmp_path: Path, smidgen: Command
) -> None:
    finished = trained(trial_of(getattr(nets, name), small_trial), tmp_path / "run")
    assert "depend on the others in its batch" in (tmp_path / "run" / "log.txt").read_text()
    Image.linear_gradient("L").save(tmp_path / "x.png")
    with pytest.raises(SmidgenError, match="depend on the others in its batch"):
        predict(finished, [tmp_path / "x.png"])
    for target in ("onnx", "c", "page"):
        with pytest.raises(SmidgenError, match="cannot be exported: (norm: it normalizes by the statistics|mean)"):
            export(finished, target, tmp_path / target)
        assert not (tmp_path / target).exists()


def test_frozen_parameters_count_towards_the_budget(nets: ModuleType, small_trial: Trial, tmp_path: Path) -> None:
    trial = trial_of(nets.Frozen, small_trial, goal=Goal(accuracy=10, parameters=60, epochs=1))
    with pytest.raises(TrialError, match="90"):
        trained(trial, tmp_path / "run")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_size", [599, 50])
def test_a_batch_of_one_image_that_cannot_be_normalized_is_found_first(
    nets: ModuleType, small_trial: Trial, engine: str, batch_size: int, tmp_path: Path
) -> None:
    """600 images: batches of 599 leave one image for the last, batches of 50 none."""
    blocks = Network(blocks=(Conv(4, stride=4), Conv(4, kernel=7), Linear()))
    for number, trial in enumerate(
        [
            trial_of(nets.Norm1d, small_trial, batch_size=batch_size),
            replace(small_trial, network=blocks, epochs=1, batch_size=batch_size),
        ]
    ):
        if batch_size == 50:
            assert trained(trial, tmp_path / str(number), engine).history
        else:
            with pytest.raises(TrialError, match=r"single image, which (inner\.1|norm2) cannot.*; change batch_size"):
                trained(trial, tmp_path / str(number), engine)
    if batch_size == 599:
        with pytest.raises(TrialError, match="single image, which the network cannot process"):
            trained(trial_of(nets.Squeezing, small_trial, batch_size=599), tmp_path / "s", "eager")


# The file that a network is imported from.


def test_a_file_that_was_edited_after_its_import_is_refused_until_it_is_reloaded(
    nets: ModuleType, small_trial: Trial
) -> None:
    path = Path(str(nets.__file__))
    before, later = from_module(nets.Plain), path.stat().st_mtime
    for edit in (
        (".relu()", ".tanh()"),
        ("count = 0", "count = 10"),
        ("import sys", "import sys\nWIDTH = 8"),
    ):
        text = path.read_text()
        path.write_text(text.replace(*edit))
        later += 10
        os.utime(path, (later, later))  # Python's cache knows whole seconds only
        with pytest.raises(TrialError, match=r"nets\.py .* reload it"):
            from_module(nets.Plain)
        nets = importlib.reload(nets)
        after = from_module(nets.Plain)
        assert after.sha256 != before.sha256
        before = after


@pytest.mark.parametrize(
    "edit",
    [
        ("self.a(x).relu()", "self.a(x).tanh()"),
        ("nn.Linear(4, 10)", "nn.Linear(4, 10, bias=False)"),
        ("RATE = 0.5", "RATE = 0.9"),
        ("KIND = nn.ReLU()", "KIND = nn.Sigmoid()"),
        (")\n", "\n"),
    ],
)
def test_an_edit_between_import_and_first_use_is_noticed(
    edit: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mynet.py"
    head = NETS[: NETS.index("class Tied")]
    path.write_text(f"RATE = 0.5\n{head}\nKIND = nn.ReLU()\n\n\nclass Two(Plain):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    module = importlib.import_module("mynet")
    path.write_text(path.read_text().replace(*edit))
    if "KIND" not in edit[0]:  # found by the code alone
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(TrialError, match=r"mynet\.py .* reload it"):
        from_module(module.Plain)


def test_names_that_a_module_changes_itself_are_not_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "busy.py"
    head = NETS[: NETS.index("class Tied")]
    path.write_text(
        f"COUNT = 0\nDEVICE = 'cpu'\nNAMES = []\nNAMES.append(1)\nif True:\n    DEVICE = 'other'\n{head}\n"
        "def counted():\n    global COUNT\n    COUNT += 1\n    return Plain()\n\n\n"
        "class Shown(Plain):\n    @property\n    def width(self):\n        return 4\n\n    @width.setter\n"
        "    def width(self, value):\n        pass\n\n    @torch.no_grad()\n    def look(self):\n        return 1\n\n"
        "    @staticmethod\n    def still():\n        return lambda: 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("busy")
    module.counted()
    assert from_module(module.counted).file == "busy.py"


def test_a_file_edited_within_a_second_runs_as_it_is(tmp_path: Path, small_folder: Path, smidgen: Command) -> None:
    """Python's cache goes by whole seconds and the size of the file."""
    path = tmp_path / "quick.py"
    for kernel in (3, 5):
        path.write_text(f"from torch import nn\ndef net():\n    return nn.Conv2d(1, 1, {kernel})\n")
        assert inspect(f"{path}:net").anatomy.parameters == kernel**2 + 1


# One process.


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_in_threads_of_one_process_give_the_same_weights(small_trial: Trial, tmp_path: Path, engine: str) -> None:
    trial = replace(small_trial, dropout=0.1, epochs=1)
    expected = trained(trial, tmp_path / "alone", engine).result.weights_sha256
    found: list[Any] = []

    def work(number: int) -> None:
        try:
            found.append(trained(trial, tmp_path / str(number), engine).result.weights_sha256)
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert inspect("mnist-tiny").anatomy.parameters
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_reading_a_run_leaves_random_numbers_alone(nets: ModuleType, small_trial: Trial, tmp_path: Path) -> None:
    finished = trained(trial_of(nets.Plain, small_trial), tmp_path / "run")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_run(finished.directory)
    assert torch.equal(torch.rand(3), expected)


FORK = """
import os, sys, smidgen
from smidgen.runs.progress import Silent
threads = int(sys.argv[2])
options = smidgen.RunOptions(engine=sys.argv[3], threads=threads)
smidgen.run("mnist-tiny", epochs=1, data=sys.argv[1], settings=["goal.accuracy=1"], out=sys.argv[4] + "/parent", options=options, progress=Silent())
child = os.fork()
if child == 0:
    try:
        smidgen.run("mnist-tiny", epochs=1, data=sys.argv[1], settings=["goal.accuracy=1"], out=sys.argv[4] + "/child", options=options, progress=Silent())
    except smidgen.SmidgenError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_does_not_hang(small_folder: Path, tmp_path: Path, engine: str) -> None:
    command = [sys.executable, "-c", FORK, str(small_folder), "2", engine, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "forked" in done.stdout
    assert "spawn" in done.stdout
    assert not (tmp_path / "child").exists()


# What is printed and shown.

PRINTS = """
import os, subprocess, sys
import torch
from torch import nn
import smidgen
print("imported")
os.write(1, b"written\\n")
subprocess.run([sys.executable, "-c", "print('from a process')"])


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        print("made")
        self.a = nn.Linear(784, classes)

    def forward(self, x):
        print("called")
        return self.a(x.flatten(1))


def trial():
    return smidgen.Trial(
        name="loud", goal=smidgen.Goal(accuracy=1, parameters=8000, epochs=1), data=smidgen.Data(source=SOURCE),
        network=smidgen.from_module(Net), optimizer=smidgen.SGD(lr=0.05), batch_size=300, epochs=1,
    )
"""


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "FILE:Net", "--json"],
        ["run", "FILE:trial", "--json"],
        ["inspect", "FILE:missing", "--json"],
        ["inspect", "FILE:Net", "--format", "csv"],
    ],
)
def test_what_a_users_file_prints_is_not_among_the_results(
    command: list[str], small_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "loud.py"
    path.write_text(PRINTS.replace("SOURCE", repr(str(small_folder))))
    arguments = [argument.replace("FILE", str(path)) for argument in command]
    done = subprocess.run(
        [sys.executable, "-m", "smidgen", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    if "--json" in command:
        assert json.loads(done.stdout)
    else:
        assert done.stdout.startswith("layer,")
    for text in ("imported", "written", "from a process"):
        assert text in done.stderr
    assert "imported" not in done.stdout


def test_inspect_calls_classes_with_what_they_take(nets: ModuleType, tmp_path: Path, smidgen: Command) -> None:
    assert inspect(nets.Keyed).anatomy.parameters == 90
    assert smidgen("inspect", f"{nets.__file__}:Keyed", "--json").json["parameters"] == 90
    assert smidgen("inspect", f"{nets.__file__}:Lazy", "--json").json["parameters"] == 98


def test_an_inspection_is_a_table_in_a_notebook(nets: ModuleType) -> None:
    shown = inspect(nets.Frozen)._repr_html_()
    assert "<table>" in shown
    assert "<td>40</td>" in shown
    assert "50 of them trainable" in shown
    trial = find_trial("mnist-tiny")
    assert "budget of at most" in inspect(trial)._repr_html_()
