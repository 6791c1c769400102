"""Files from anywhere end in a result or in one line, within bounded memory and time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Command
from smidgen.errors import RunError
from smidgen.runs.record import load_run

from .conftest import Figures, Zygote


@pytest.fixture(scope="module")
def runs(zygote: Zygote, victims: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and a killed one."""
    folder = tmp_path_factory.mktemp("hostile")
    assert zygote.call(*victims["sgd, auto"], "--out", folder / "run")[0] == 0
    options = ["--out", str(folder / "killed"), "--checkpoint-seconds", "0"]
    assert zygote.call(*victims["sgd, auto"], *options, fail_at=75)[0] == -signal.SIGKILL
    return folder


def test_generated_files_and_bombs_under_a_memory_limit(
    runs: Path, tmp_path: Path, thorough: bool, figures: Figures
) -> None:
    folder = Path(shutil.copytree(runs, tmp_path / "work"))
    count = 12_000 if thorough else 450
    command = [sys.executable, str(Path(__file__).with_name("hostile.py")), str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    inputs = sum(reader["inputs"] for reader in report["readers"].values())
    assert inputs >= count
    for name, reader in report["readers"].items():
        assert reader["refused"], name
    figures.add(
        f"{inputs} hostile files ({report['bombs']} bombs made by hand) under a limit of 1 GiB: none crashed; slowest "
        f"{max(reader['slowest'] for reader in report['readers'].values()):.2f} s, peak {report['peak_mib']} MiB"
    )
    for name, reader in report["readers"].items():
        figures.add(f"  {name}: {reader['inputs']} files, {reader['read']} read, {reader['refused']} refused")


@pytest.mark.parametrize(
    "name", ["trial.json", "environment.json", "epochs.jsonl", "result.json", "weights.safetensors"]
)
def test_pipes_and_links_in_a_run_directory_are_refused(
    runs: Path, tmp_path: Path, smidgen: Command, name: str
) -> None:
    for kind in ("pipe", "link"):
        directory = Path(shutil.copytree(runs / "run", tmp_path / kind))
        path = directory / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(runs / "run" / name)
        if name not in ("trial.json", "environment.json"):
            with pytest.raises(RunError, match="regular file|symbolic link"):
                load_run(directory)
        else:
            (directory / "result.json").unlink()
            assert smidgen("run", "--resume", directory).is_mistake(name)


def test_no_path_escapes_the_run_directory(runs: Path, tmp_path: Path, zygote: Zygote) -> None:
    """Links to files elsewhere under every name that a run writes: what is there is not touched."""
    directory = Path(shutil.copytree(runs / "killed", tmp_path / "r"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ["epochs.jsonl", "log.txt", "result.json", "weights.safetensors", ".lock", ".epochs.jsonl.0.tmp"]
    for name in names:
        (elsewhere / name).write_text("precious\n")
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(elsewhere / name)
    for _ in names:  # each time it gets further, once what was in the way is removed
        status, printed = zygote.call("run", "--resume", directory)
        assert "Traceback" not in printed
        if status == 0:
            break
        assert status == 2
        last = printed.splitlines()[-1]
        culprit = next(name for name in names if (directory / name).is_symlink() and str(directory / name) in last)
        (directory / culprit).unlink()
    assert status == 0, printed
    assert {p.name: p.read_text() for p in elsewhere.iterdir()} == dict.fromkeys(names, "precious\n")


def test_a_trial_over_all_bounds_is_refused_before_memory_is_taken(
    runs: Path, tmp_path: Path, smidgen: Command
) -> None:
    trial = json.loads((runs / "run" / "trial.json").read_text())
    trial["goal"]["parameters"] = 10**15
    trial["network"]["blocks"].insert(0, {"type": "conv", "channels": 4096, "kernel": 63, "padding": 31})
    trial["network"]["blocks"].insert(0, {"type": "conv", "channels": 4096, "kernel": 63, "padding": 31})
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(trial))
    assert smidgen("run", path, "--out", tmp_path / "r").is_mistake("too large to be called tiny")
    assert smidgen("inspect", path).is_mistake("too large to be called tiny")
    assert not (tmp_path / "r").exists()
