"""What only POSIX has, such as `fcntl` and `resource`, is not needed: everything imports, and PyTorch trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bare_system
from conftest import Command
from smidgen import files
from smidgen.bench import measure
from smidgen.errors import RunError
from smidgen.runs import lock
from smidgen.runs.lock import Lock
from smidgen.trial import Trial

PROGRAM = """
import importlib, pkgutil, sys, smidgen
names = [module.name for module in pkgutil.walk_packages(smidgen.__path__, "smidgen.")]
for name in names:
    if not name.endswith(("__main__", "._core")):
        importlib.import_module(name)
assert len(names) > 100
assert sys.modules["fcntl"] is sys.modules["resource"] is None
sys.exit(smidgen.cli.main(sys.argv[1:]))
"""


def test_every_module_imports_and_a_run_gives_the_same_weights(
    smidgen: Command, small_trial: Trial, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "small.json").write_text(json.dumps(small_trial.to_json()))
    trial, bare, here = tmp_path / "small.json", tmp_path / "bare", tmp_path / "here"
    options = ("--epochs", "1", "--engine", "eager", "--threads", "1", "--json")
    program: list[str | Path] = [sys.executable, bare_system.__file__, tmp_path / "program.py"]
    command = [*program, "run", trial, *options, "--out", bare]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    weights = smidgen("run", trial, *options, "--out", here).json["weights_sha256"]
    assert json.loads(done.stdout)["weights_sha256"] == weights
    assert {path.name for path in bare.iterdir()} == {path.name for path in here.iterdir()}


def test_without_fcntl_two_do_not_share_a_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HAS_FLOCK", False)
    monkeypatch.setitem(sys.modules, "msvcrt", bare_system.windows_locks())
    held = Lock(tmp_path)
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path)
    held.release()
    assert not list(tmp_path.iterdir())
    Lock(tmp_path).release()


def test_links_are_refused_where_the_system_has_no_flag_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "log.txt").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(files, "_NO_LINKS", 0)
    with pytest.raises(RunError, match="symbolic link"):
        files.append_line(tmp_path / "log.txt", "line")
    assert not (tmp_path / "elsewhere").read_bytes()


def test_whether_the_machine_is_busy_is_unknown_without_rusage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "HAS_RUSAGE", False)
    switches = measure.Switches()
    with switches.counted(1):
        pass
    assert switches.rate is None
