"""Locks a run directory for one process at a time.

The lock is the operating system's, on an open file, so it ends with its process however that ends
and is never stale. The file exists only while the lock is held, or after a kill. POSIX has `fcntl.flock`;
on Windows, which was not tried, it is `msvcrt.locking`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from pathlib import Path

from smidgen.errors import RunError
from smidgen.files import cannot_write, open_regular

try:
    import fcntl
except ImportError:
    HAS_FLOCK = False
else:
    HAS_FLOCK = True

_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_LOCKED_BYTE = 2**30
"""Windows locks a part of a file, which nobody else can read meanwhile: one byte far behind the holder's number."""


class InUseError(RunError):
    """Another process is using the run directory."""


class Lock:
    """Held from construction until `release`.

    Args:
        directory: of the run; must exist.

    Raises:
        InUseError: another process holds it.
        RunError: its file cannot be made.
    """

    NAME = ".lock"

    def __init__(self, directory: Path) -> None:
        self._path = directory / self.NAME
        self._handle = -1
        while self._handle < 0:
            self._handle = self._try()

    def release(self) -> None:
        """Unlock the directory."""
        if self._handle < 0:
            return
        if HAS_FLOCK:
            with contextlib.suppress(OSError):
                self._path.unlink()  # while it is held: who opened it before finds out in `_try`
        with contextlib.suppress(OSError):
            os.close(self._handle)
        if not HAS_FLOCK:
            with contextlib.suppress(OSError):
                self._path.unlink()  # Windows refuses while anybody has it open
        self._handle = -1

    def _try(self) -> int:
        """The locked file's descriptor, or -1 if the file was another's and has gone meanwhile."""
        try:
            handle = open_regular(self._path, os.O_RDWR | os.O_CREAT, follow=False)
        except OSError as error:
            raise cannot_write(self._path, error) from None
        try:
            if not _locked(handle):
                os.lseek(handle, 0, os.SEEK_SET)
                number = os.read(handle, 20).decode(errors="replace").strip()
                holder = f"process {number}" if number.isdecimal() else "another process"
                raise InUseError(f"{self._path.parent} is in use by {holder}; wait for it, or choose another --out")
            if HAS_FLOCK and not _is_at(self._path, handle):
                os.close(handle)
                return -1
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, str(os.getpid()).encode())
        except RunError:
            os.close(handle)
            raise
        return handle


def _is_at(path: Path, handle: int) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _locked(handle: int) -> bool:
    """Take the lock on an open file without waiting; False if somebody has it."""
    if not HAS_FLOCK:
        return _locked_on_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some network file systems have no locks. Without any, one process is as good as before.
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


def _locked_on_windows(handle: int) -> bool:
    msvcrt = importlib.import_module("msvcrt")
    os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    return True
