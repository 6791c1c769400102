"""A network's file that is edited after it was imported, as in notebooks."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from conftest import Command
from odd import NETS
from smidgen.errors import TrialError
from smidgen.inspection import inspect
from smidgen.nets.code import from_module
from smidgen.trial import Trial


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
