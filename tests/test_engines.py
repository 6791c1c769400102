"""What every engine keeps to, choosing one, and that nobody outside `engines` knows the native one."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smidgen
from conftest import Command, native_only
from smidgen.data import augment as augment_module
from smidgen.data.dataset import Dataset
from smidgen.engines import eager, optimizers
from smidgen.engines.choose import ENGINES, choose, choose_for
from smidgen.engines.engine import EngineName
from smidgen.engines.flat import FlatState
from smidgen.engines.native import core
from smidgen.engines.optimizers import OptimizerKind
from smidgen.errors import SmidgenError
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import load_trial_data, run
from smidgen.training import checkpoint
from smidgen.training.checkpoint import Origin
from smidgen.training.loop import Training, new_network, start, train
from smidgen.trial import SGD, Augmentation, Trial

ROOT = Path(smidgen.__file__).parent


# Nobody else knows the native engine.

INNER = {"NativeNetwork", "FlatSGD", "NativeSoap", "find_core", "has_bfloat16", "NativeLoader", "Blocks"}


def knowledge_of_the_native_engine(source: str) -> list[str]:
    """What a module says that only `engines` may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] * node.module.startswith("smidgen.engines.native")
            found += [alias.name for alias in node.names if (node.module, alias.name) == ("smidgen.engines", "native")]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("smidgen.engines.native")]
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found += [name] * (name in INNER)
        elif isinstance(node, ast.Compare | ast.MatchValue):
            texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            found += ['a comparison with "native"'] * ("native" in texts)
    return found


def test_the_check_itself_sees_each_kind() -> None:
    for source in (
        "from smidgen.engines.native.module import x",
        "from smidgen.engines import native",
        "import smidgen.engines.native.core",
        "core = a.find_core()",
        "if engine.name == 'native': pass",
        "if 'native' in (a, b): pass",
        "match a:\n    case 'native': pass",
    ):
        assert knowledge_of_the_native_engine(source), source
    assert not knowledge_of_the_native_engine("choices = ['auto', 'native']; find(engine='native')")


@pytest.mark.parametrize("folder", ["src/smidgen", "benchmarks"])
def test_only_engines_refers_to_the_native_engine(folder: str) -> None:
    top = ROOT if folder.startswith("src") else ROOT.parents[1] / folder
    for path in top.rglob("*.py"):
        if (ROOT / "engines") not in path.parents:
            assert knowledge_of_the_native_engine(path.read_text()) == [], path


# What a recipe asks for and an engine lacks.


@dataclass(frozen=True, kw_only=True)
class More(Augmentation):
    """With a strength that no engine has."""

    blur: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rotated(SGD):
    """SGD along an orthogonal matrix: it needs to see matrices."""


class Orthogonal(torch.optim.Optimizer):
    """A step of fixed length along the nearest orthogonal matrix, as in Muon (Jordan 2024), by an exact SVD."""

    shapes: list[torch.Size]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("seen", torch.zeros_like(p))
                self.state[p]["seen"] += p.grad.abs()
                self.shapes.append(p.shape)
                if p.dim() > 1:
                    left, _, right = torch.linalg.svd(p.grad.flatten(1), full_matrices=False)
                    p -= group["lr"] * (left @ right).view_as(p)
                else:
                    p -= group["lr"] * p.grad


@pytest.fixture
def seen_shapes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Makes the optimizer `Rotated` known; the shapes of what it is given."""
    shapes: list[torch.Size] = []

    def make(settings: Rotated, groups: list[dict[str, Any]]) -> Orthogonal:
        made = Orthogonal(groups, {"lr": settings.lr})
        made.shapes = shapes
        return made

    monkeypatch.setitem(optimizers.OPTIMIZERS, Rotated, OptimizerKind(make, lambda _: ("seen",), elementwise=False))
    return shapes


@pytest.fixture(scope="module")
def data(small_trial: Trial) -> Dataset:
    return load_trial_data(small_trial)


@native_only
def test_an_augmentation_that_the_native_engine_lacks_falls_back(
    small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = replace(small_trial, augmentation=More(rotation=5, blur=0.5), epochs=1)
    with pytest.raises(SmidgenError, match=r"^no engine has the augmentation blur$"):
        run(trial, out=tmp_path / "none", progress=Silent())
    monkeypatch.setattr(eager, "KNOWN_SETTINGS", augment_module.KNOWN_SETTINGS | {"blur"})
    reason = "the native engine cannot load images with augmentation.blur"
    with pytest.raises(SmidgenError, match=f"^{reason}; use --engine eager$"):
        run(trial, options=RunOptions(engine="native"), out=tmp_path / "native", progress=Silent())
    assert not (tmp_path / "native").exists()
    finished = run(trial, out=tmp_path / "auto", progress=Silent())
    assert finished.result.engine == "eager"
    assert f"note: {reason}" in (tmp_path / "auto" / "log.txt").read_text()
    unused = replace(small_trial, augmentation=More(rotation=5), epochs=1)
    assert run(unused, out=tmp_path / "unused", progress=Silent()).result.engine == "native"


def test_an_optimizer_that_sees_matrices(
    small_trial: Trial, data: Dataset, seen_shapes: list[torch.Size], tmp_path: Path
) -> None:
    trial = replace(small_trial, optimizer=Rotated(lr=0.05), epochs=4)
    chosen = choose(threads=1)
    engine = choose_for(chosen, "auto", trial, new_network(trial, data, 0), data.input_shape)
    assert engine.name == "eager"
    if chosen.name != "eager":
        assert engine.note == "the native engine lacks the optimizer Rotated"
        with pytest.raises(SmidgenError, match="lacks the optimizer Rotated; use --engine eager"):
            choose_for(chosen, "native", trial, new_network(trial, data, 0), data.input_shape)
    training = start(trial, new_network(trial, data, 0), engine)
    records = list(train(training, trial, data, 0, Silent()))
    assert records[-1].train_loss < 0.8 * records[0].train_loss
    shapes = [p.shape for p in new_network(trial, data, 0).parameters()]
    assert sorted(set(seen_shapes)) == sorted(set(shapes))
    names = {name.removesuffix(".seen") for name in training.optimizer.state()}
    assert names == {name for name, _ in training.network.named_parameters()}


def test_a_checkpoint_of_an_optimizer_with_other_state_resumes(
    small_trial: Trial, data: Dataset, seen_shapes: list[torch.Size], tmp_path: Path
) -> None:
    trial = replace(small_trial, optimizer=Rotated(lr=0.02), epochs=2)
    origin, path = Origin("recipe", "data", 0), tmp_path / "checkpoint"

    def begun() -> Training:
        return start(trial, new_network(trial, data, 0), choose("eager", threads=1))

    whole, first, second = begun(), begun(), begun()
    list(train(whole, trial, data, 0, Silent()))
    next(train(first, trial, data, 0, Silent()))
    path.write_bytes(checkpoint.to_bytes(first, origin))
    checkpoint.restore(second, path, origin, trial, len(data.train))
    list(train(second, trial, data, 0, Silent()))
    for (name, a), b in zip(whole.optimizer.state().items(), second.optimizer.state().values(), strict=True):
        assert torch.equal(a, b), name


def test_an_unknown_optimizer_is_refused(small_trial: Trial, tmp_path: Path) -> None:
    trial = replace(small_trial, optimizer=Rotated(lr=0.02))
    with pytest.raises(SmidgenError, match=r"^no engine has the optimizer Rotated$"):
        run(trial, out=tmp_path / "r", progress=Silent())
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_trained_parameters_of_another_type_are_refused(small_trial: Trial, data: Dataset, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10).to(dtype))
    with pytest.raises(SmidgenError, match=f"2.weight has the dtype {dtype}; only float32"):
        choose_for(choose(), "auto", small_trial, network, data.input_shape)


# The interface.


@pytest.mark.parametrize("name", list(ENGINES))
def test_engines_say_what_they_are(name: EngineName) -> None:
    if name == "native" and core.why_missing():
        pytest.skip("the native engine is not installed")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    engine = choose(name, threads=2)
    identity = engine.identity
    assert (identity["engine"], identity["threads"]) == (name, 2)
    assert identity["device"] == ("cuda" if name == "cuda" else "cpu")
    assert (identity["instruction_level"] is None) == (name != "native")
    assert engine.torch_threads == (1 if name == "native" else 2)
    assert (engine.peak() is None) == (name != "native")


class Masked(nn.Module):
    """With buffers of every type that a network may have, which change while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("small", torch.zeros(2, dtype=torch.float16))
        self.register_buffer("pixels", torch.zeros(3, dtype=torch.uint8))

    mask: Tensor
    steps: Tensor
    mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.mean += 1
        return self.linear(x.flatten(1)) * self.mask - 9 * (~self.mask)  # type: ignore[no-any-return]


def test_every_tensor_keeps_its_type_where_state_is_flat() -> None:
    torch.manual_seed(0)
    network, x = Masked(), torch.randn(3, 8)
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    before = network.eval()(x)
    engine = choose("eager", threads=1)
    prepared = engine.prepare(network)
    optimizer, average = engine.optimizer(SGD(lr=0.1), prepared, averaged=True)
    assert average is not None
    assert torch.equal(prepared.eval()(x), before)
    prepared.train()(x).sum().backward()
    optimizer.step()
    average.move(0.25)
    average.settle()
    for module in (prepared, average.network):
        assert {name: tensor.dtype for name, tensor in module.state_dict().items()} == types
    averaged = average.network.state_dict()
    assert averaged["steps"] == 1
    assert averaged["mean"].tolist() == [0.25] * 4
    assert averaged["mask"].tolist() == [True, False, True, True]


def test_flat_state_shares_memory_with_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flat = FlatState(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    floats = [t for t in network.state_dict().values() if t.dtype == torch.float32]
    places = sorted((t.data_ptr(), t.numel()) for t in floats)
    assert all(place % 64 == flat.floats.data_ptr() % 64 for place, _ in places)  # as cuDNN needs them
    assert all(a + 4 * n <= b for (a, n), (b, _) in itertools.pairwise(places))
    assert all(t.untyped_storage().data_ptr() == flat.floats.untyped_storage().data_ptr() for t in floats)
    flat.weights.detach().fill_(3)
    flat.vectors.detach().fill_(4)
    assert network[0].weight.eq(3).all()
    assert network[1].running_var.eq(1).all()
    assert all(p.eq(4).all() for p in (network[0].bias, network[1].weight, network[1].bias))


# Not built, and built but broken.


@pytest.fixture
def fresh_search() -> Iterator[None]:
    """The compiled part is looked for anew, and again afterwards."""
    core.find_core.cache_clear()
    yield
    core.find_core.cache_clear()


def test_a_build_that_does_not_load_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_search: None, smidgen: Command
) -> None:
    broken = tmp_path / "_core.so"
    broken.write_bytes(b"\x7fELF and nothing more")
    monkeypatch.setenv(core.CORE_VARIABLE, str(broken))
    why = core.why_missing()
    assert "cannot be loaded" in why
    assert str(broken) in why
    assert "compiler" not in why
    assert choose().name == "eager"
    assert choose().note == why
    assert smidgen("run", "--engine", "native").is_mistake("cannot be loaded")
    assert not core.has_bfloat16()


def test_a_broken_installed_build_is_named(monkeypatch: pytest.MonkeyPatch, fresh_search: None) -> None:
    def broken(name: str) -> object:
        raise ImportError(f"{name}: undefined symbol: _ZN3gone\nand more")

    monkeypatch.delenv(core.CORE_VARIABLE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    assert "was built, but cannot be loaded" in core.why_missing()
    assert "undefined symbol: _ZN3gone);" in core.why_missing()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert core.why_missing() == core.NOT_BUILT
    with pytest.raises(SmidgenError, match=r"C\+\+ compiler.*; use --engine eager or auto"):
        choose("native")


def test_choosing_needs_no_compiled_part() -> None:
    """In a process of its own, in which the compiled part cannot be found."""
    code = (
        "import importlib.util, importlib; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name.endswith('_core') else find(name, *a)\n"
        "from smidgen.engines.choose import choose\n"
        "engine = choose(); print(engine.name, '|', engine.note)"
    )
    environment = {k: v for k, v in os.environ.items() if k != core.CORE_VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("eager | the native engine is not installed")
