"""Modules as people write them, for several tests: imported from a file, trained on the small data."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from smidgen.nets import code
from smidgen.nets.code import from_module
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.tensorfile import STORABLE
from smidgen.trial import Trial

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
