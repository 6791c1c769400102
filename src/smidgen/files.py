"""Files on a disk that can fail and from people who can be hostile.

Written so that a reader sees the old content or the new, never a part; read only where they are
what they should be: regular files of a bounded size.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from smidgen.errors import RunError, SmidgenError

TEMPORARY = ".tmp"
"""How the names of files end that are being written; what a killed process leaves can be removed."""

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

_PORTABLE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0)
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follow: bool = True) -> int:
    """Open a file that must be a regular one: reading a pipe or a device might never end.

    Args:
        path: of the file.
        flags: of `os.open`.
        follow: whether the file may be a symbolic link.

    Returns:
        The file descriptor, which is the caller's to close.

    Raises:
        OSError: it cannot be opened, or is something else; `strerror` says what is wrong.
    """
    links = 0 if follow else _NO_LINKS
    try:
        if not follow and not _NO_LINKS and path.is_symlink():  # Windows has no flag for this
            raise OSError(errno.ELOOP, "")
        handle = os.open(path, flags | _PORTABLE | _NEVER_WAIT | links, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed here", str(path)) from None
        raise
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if flags & (os.O_WRONLY | os.O_RDWR) and os.fstat(handle).st_nlink > 1:
            raise OSError(errno.EMLINK, "it has further hard links, which would change too", str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle


def open_to_read(path: Path, *, follow: bool = True) -> io.BufferedReader:
    """`open_regular` as a file object for reading."""
    return os.fdopen(open_regular(path, follow=follow), "rb")


def read_bounded(path: Path, most_bytes: int, *, follow: bool = True) -> bytes:
    """A file's whole content, if it is a regular file of at most `most_bytes`.

    Raises:
        OSError: it is not, or cannot be read; `strerror` says what is wrong.
    """
    with open_to_read(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most_bytes + 1) if size <= most_bytes else b""
        if size > most_bytes or len(content) > most_bytes:
            raise OSError(
                errno.EFBIG, f"it has {max(size, len(content)):,} bytes; at most {most_bytes:,} are read", str(path)
            )
        return content


def write_atomic(path: Path, content: bytes, *, previous: Path | None = None, flag: str = "--out") -> None:
    """Write a file through a temporary one in the same directory, synced to disk before it takes its name.

    Args:
        path: of the file.
        content: all of it.
        previous: where the old content is kept; None drops it. At every moment one of the two is complete.
        flag: the option that names the place, for the error.

    Raises:
        RunError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        try:
            _write_new(temporary, content)
            if previous is not None:
                with contextlib.suppress(FileNotFoundError):
                    path.replace(previous)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise cannot_write(path, error, flag) from None


def write_together(directory: Path, files: Mapping[str, bytes], flag: str = "--out") -> None:
    """Write several files into a directory, made if need be: all are on disk before the first takes its name.

    Args:
        directory: where; what is there under other names stays.
        files: content by name, or by path below the directory; folders are made.
        flag: that chooses another place, for the message.

    Raises:
        RunError: something cannot be written; no file has changed, and a directory made here is gone again.
    """
    made, waiting = list[Path](), dict[Path, Path]()
    folders = {parent for name in files for parent in (directory / name).parents if parent.is_relative_to(directory)}
    try:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            for folder in sorted(folders | {directory}):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
            for name, content in files.items():
                path = directory / name
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
                waiting[temporary] = path
                _write_new(temporary, content)
            for temporary, path in waiting.items():
                temporary.replace(path)
        except BaseException:
            for temporary in waiting:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
        for folder in sorted(folders | {directory}):
            sync_directory(folder)
    except OSError as error:
        raise cannot_write(directory, error, flag) from None


def append_line(path: Path, line: str) -> None:
    """Add a line at the end of a file and sync it to disk; the file must not be a symbolic link.

    Raises:
        RunError: it cannot be written; what was there before is still there, without a part of the line.
    """
    try:
        handle = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, follow=False)
        try:
            before = os.fstat(handle).st_size
            try:
                _write_all(handle, line.encode(errors="backslashreplace") + b"\n")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from None


def remove_temporaries(directory: Path) -> None:
    """Remove leftovers of a process that was killed while writing. No process may be writing there."""
    for path in directory.glob(f".*{TEMPORARY}"):
        if _TEMPORARY_NAME.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


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
    space = "free some space there, or " if error.errno in _NO_SPACE else ""
    return RunError(f"{path} cannot be written: {error.strerror or error}; {space}choose another place with {flag}")


@contextlib.contextmanager
def looked_up(path: Path, kind: type[SmidgenError] = RunError) -> Iterator[None]:
    """Turn what looking for files at a path can raise, such as a missing permission, into an error of a kind."""
    try:
        yield
    except OSError as error:
        raise kind(cannot_read(Path(error.filename or path), error)) from None


def cannot_read(path: Path, error: OSError) -> str:
    """The message for an error while reading a file."""
    return f"{path} cannot be read: {error.strerror or error}"


def _write_new(path: Path, content: bytes) -> None:
    """A file that is not there yet, synced to disk."""
    handle = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False)
    try:
        _write_all(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
