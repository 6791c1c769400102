"""Files and disks that fail, for real: each ends in one line, and what was there before stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import start_smidgen
from smidgen.errors import RunError
from smidgen.files import append_line, write_atomic
from smidgen.trial import Trial

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


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smidgen.files.os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_atomic_write_is_synced_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "x", []
    monkeypatch.setattr("smidgen.files.os.fsync", lambda handle: events.append(("sync", path.exists())))
    write_atomic(path, b"new")
    assert events == [("sync", False), ("sync", True)]  # the file before the rename, the directory after
    assert path.read_bytes() == b"new"


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """While one process writes over and over, every read gives one whole version."""
    path = tmp_path / "x"
    write_atomic(path, b"a" * 100_000)
    code = f"""
from pathlib import Path
from smidgen.files import write_atomic
for i in range(150):
    write_atomic(Path({str(path)!r}), (b"a" if i % 2 else b"b") * 100_000)
"""
    writer = subprocess.Popen([sys.executable, "-c", code])
    seen = set()
    while writer.poll() is None:
        content = path.read_bytes()
        assert len(content) == 100_000
        assert len(set(content)) == 1
        seen.add(content[:1])
    assert writer.returncode == 0
    assert seen == {b"a", b"b"}


def test_lines_are_added_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x"
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    with pytest.raises(RunError, match="cannot be written"):
        append_line(tmp_path, "x")


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
        .endswith(f"the run is unfinished; smidgen run --resume {out} goes on with it\n")
    )
