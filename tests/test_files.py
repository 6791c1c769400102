"""Writing and reading files: whole or not at all, regular ones only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smidgen.errors import RunError
from smidgen.files import append_line, open_to_read, read_bounded, remove_temporaries, write_atomic


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


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "x", os.write
    append_line(path, "one")

    def half(handle: int, content: bytes) -> int:
        write(handle, bytes(content)[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smidgen.files.os.write", half)
    with pytest.raises(RunError, match="No space left"):
        append_line(path, "three")
    assert path.read_text() == "one\n"


def test_the_previous_content_is_kept_where_asked(tmp_path: Path) -> None:
    path, previous = tmp_path / "x", tmp_path / "y"
    for content in (b"1", b"2", b"3"):
        write_atomic(path, content, previous=previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")


def test_links_pipes_devices_and_folders_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("secret\n")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("link", "symbolic link"), ("pipe", "pipe|regular|No such device"), (".", "folder|directory")):
        with pytest.raises(OSError, match=words):
            read_bounded(tmp_path / name, 100, follow=False)
        with pytest.raises(RunError, match="cannot be written"):
            append_line(tmp_path / name, "x")
    assert target.read_text() == "secret\n"
    write_atomic(tmp_path / "link", b"new")
    assert target.read_text() == "secret\n"
    assert not (tmp_path / "link").is_symlink()
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(OSError, match="not a regular file"):
            open_to_read(path)


def test_only_so_much_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 101)
    assert len(read_bounded(path, 101)) == 101
    with pytest.raises(OSError, match="it has 101 bytes; at most 100 are read"):
        read_bounded(path, 100)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".a.0123abcd.tmp", ".mine.tmp", "kept.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", ".mine.tmp", "kept.tmp"]
