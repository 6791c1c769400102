"""Disks that fail, for real: each ends in one line, and what was there before stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from conftest import start_smidgen
from smidgen.runs.record import Run
from smidgen.trial import Trial

from .conftest import Zygote, outcome

can_mount = os.name == "posix" and os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system with room for 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(not can_mount, reason="needs root to mount a small disk")
@pytest.mark.parametrize("room", [0, 10_000, 25_000])
def test_a_full_disk_is_named_and_nothing_is_called_done(
    small_disk: Path, small_trial: Trial, tmp_path: Path, room: int
) -> None:
    trial = tmp_path / "trial.json"
    trial.write_text(json.dumps(small_trial.to_json()))
    (small_disk / "filler").write_bytes(b"x" * (256 * 1024 - room))
    process = start_smidgen("run", trial, "--out", small_disk / "r", "--threads", "1", "--json")
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "cannot be written: No space left on device" in errors.splitlines()[-1]
    assert "--out" in errors.splitlines()[-1]
    assert "error" in json.loads(printed)
    assert not (small_disk / "r" / "result.json").exists()
    assert not list(small_disk.glob("r/.*"))


@pytest.mark.skipif(not can_mount, reason="needs root to mount a small disk")
@pytest.mark.parametrize("room", [0, 5_000, 9_000])
def test_an_export_to_a_full_disk_leaves_nothing(small_disk: Path, small_run: Run, room: int) -> None:
    (small_disk / "filler").write_bytes(b"x" * (256 * 1024 - room))
    process = start_smidgen("export", small_run.directory, "--to", "c", "--no-check", "-o", small_disk / "out")
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert printed == ""
    assert errors.count("\n") == 1
    assert "No space left on device; free some space there, or choose another place with -o" in errors
    assert not (small_disk / "out").exists()


def test_a_limit_on_file_size_is_named(small_trial: Trial, tmp_path: Path) -> None:
    (tmp_path / "trial.json").write_text(json.dumps(small_trial.to_json()))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "from smidgen.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "run",
            tmp_path / "trial.json",
            "--out",
            tmp_path / "r",
            "--threads",
            "1",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done
    assert "checkpoint.safetensors cannot be written: File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r" / "result.json").exists()


def test_a_killed_run_is_told_from_a_finished_one(small_trial: Trial, tmp_path: Path) -> None:
    trial = tmp_path / "trial.json"
    trial.write_text(json.dumps(small_trial.to_json()))
    out = tmp_path / "r"
    options = ["--epochs", "100000", "--set", "goal.epochs=100000", "--threads", "1"]
    process = start_smidgen("run", trial, *options, "--out", out)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch") and " 3/" in line:
            process.kill()
            break
    process.communicate()
    lines = (out / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= 3
    assert (
        start_smidgen("predict", out, "x.png")
        .communicate()[1]
        .endswith(f"the run is unfinished; resume with: smidgen run --resume {out}\n")
    )


@pytest.mark.skipif(not can_mount, reason="needs root to mount a small disk")
def test_a_disk_that_fills_up_keeps_what_is_done_and_lets_it_go_on(
    small_disk: Path, zygote: Zygote, victims: dict[str, list[str]], left_alone: dict[str, dict[str, Any]]
) -> None:
    filler, stopped = small_disk / "filler", 0
    for room in range(70_000, 10_000, -6_000):
        out = small_disk / str(room)
        filler.write_bytes(b"x" * (256 * 1024 - room))
        status, printed = zygote.call(*victims["sgd, auto"], "--out", out, "--checkpoint-seconds", "0")
        if status != 0:
            assert status == 2, printed
            last = printed.splitlines()[-1]
            assert "cannot be written: No space left on device" in last
            assert "Traceback" not in printed
            assert "goal met" not in printed
            assert not list(out.glob(".*"))
            if (out / "checkpoint.safetensors").exists():
                assert f"resume with: smidgen run --resume {out}" in last
                stopped += 1
        filler.unlink()
        status, printed = zygote.call(*victims["sgd, auto"], "--out", out)
        assert status == 0, printed
        assert outcome(out) == left_alone["sgd, auto"]
        shutil.rmtree(out)
    assert stopped


@pytest.mark.skipif(not can_mount, reason="needs root to mount a disk")
def test_a_disk_that_becomes_read_only_is_named(
    small_disk: Path, zygote: Zygote, victims: dict[str, list[str]], left_alone: dict[str, dict[str, Any]]
) -> None:
    out = small_disk / "r"
    assert zygote.call(*victims["sgd, auto"], "--out", out, "--checkpoint-seconds", "0", fail_at=60)[0] < 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for arguments in (["run", "--resume", str(out)], [*victims["sgd, auto"], "--out", str(small_disk / "new")]):
        status, printed = zygote.call(*arguments)
        assert status == 2
        assert "cannot be written: Read-only file system" in printed
        assert printed.count("\n") == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert zygote.call("run", "--resume", out)[0] == 0
    assert outcome(out) == left_alone["sgd, auto"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_missing_permission_is_named(zygote: Zygote, victims: dict[str, list[str]]) -> None:
    nobody = 65534
    # Not below pytest's own folder, which only its owner can enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(Path(victims["sgd, auto"][1]).parent, folder / "victims")
        trial = json.loads((folder / "victims" / "sgd.json").read_text())
        trial["data"]["source"] = str(folder / "victims" / "data")
        (folder / "sgd.json").write_text(json.dumps(trial))
        (folder / "closed").mkdir(mode=0o555)
        for path in (folder, folder / "victims"):
            path.chmod(0o755)
        arguments = ["run", str(folder / "sgd.json"), "--threads", "1", "--out", str(folder / "closed" / "r")]
        status, printed = zygote.call(*arguments, user=nobody)
        assert status == 2, printed
        assert "cannot be written: Permission denied" in printed
        assert printed.count("\n") == 1
        (folder / "sgd.json").chmod(0)
        status, printed = zygote.call(*arguments, user=nobody)
        assert status == 2, printed
        assert "sgd.json cannot be read: Permission denied" in printed


def test_a_clock_that_jumps_changes_nothing(
    zygote: Zygote, victims: dict[str, list[str]], left_alone: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "r"
    assert zygote.call(*victims["adam, auto"], "--out", out, "--checkpoint-seconds", "0", fail_at=70, clock=True)[0] < 0
    status, printed = zygote.call("run", "--resume", out, clock=True)
    assert status == 0, printed
    assert outcome(out) == left_alone["adam, auto"]
    assert all(json.loads(line)["seconds_training"] > 0 for line in (out / "epochs.jsonl").read_text().splitlines())
