"""Writing files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from smidgen.errors import RunError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file through a temporary one in the same directory, synced to disk before it takes its name.

    Raises:
        RunError: it cannot be written; what was there before is still there.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def append_line(path: Path, line: str) -> None:
    """Add a line at the end of a file and sync it to disk.

    Raises:
        RunError: it cannot be written.
    """
    try:
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None


def sync_directory(path: Path) -> None:
    """Make the names in a directory last through a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError, flag: str = "--out") -> RunError:
    """The error for a path that cannot be written, with what to do about it."""
    return RunError(
        f"{path} cannot be written: {error.strerror or error}; free some space there, or choose another "
        f"place with {flag}"
    )
