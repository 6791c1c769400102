"""Runs a program as on a system without POSIX: `python bare_system.py PROGRAM ARGUMENT...`.

Modules and functions that Windows lacks are hidden before smidgen is imported. `os.name` and `sys.platform` stay,
since other libraries choose by them; so PyTorch is imported before the functions go. `msvcrt`, Windows's own, is played by a module whose lock is `flock`.
"""

from __future__ import annotations

import errno
import fcntl as flock
import importlib
import os
import runpy
import shlex
import signal
import subprocess  # noqa: F401 - looks for msvcrt to decide how to start processes, so it comes first
import sys
import types

MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "readline")
OF_OS = shlex.split("""
    O_NOFOLLOW O_DIRECTORY O_CLOEXEC O_NONBLOCK O_NOCTTY O_SYNC O_DSYNC
    chown chroot confstr ctermid fchdir fchmod fchown fdatasync fork forkpty fstatvfs getegid geteuid getgid getgrouplist
    getgroups getloadavg getpgid getpgrp getpriority getresgid getresuid getsid getuid initgroups killpg lchown lockf
    mkfifo mknod nice openpty pathconf posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite
    pwritev readv register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile setegid seteuid setgid setpgid
    setpriority setsid setuid statvfs sync sysconf tcgetpgrp ttyname uname wait3 wait4 writev
""")
OF_SIGNAL = shlex.split("""
    SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGXFSZ
    alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo
""")


def hide() -> None:
    """Take away what Windows does not have."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    importlib.import_module("torch")
    for name in OF_OS:
        if hasattr(os, name):
            delattr(os, name)
    for name in OF_SIGNAL:
        if hasattr(signal, name):
            delattr(signal, name)
    sys.modules["msvcrt"] = windows_locks()


def windows_locks() -> types.ModuleType:
    """The part of `msvcrt` that locks files."""
    msvcrt = types.ModuleType("msvcrt")
    vars(msvcrt).update(LK_NBLCK=2, locking=_locking)
    return msvcrt


def _locking(handle: int, mode: int, count: int) -> None:
    """Lock bytes from the position in the file on; nobody else could read them, so they must be behind its content."""
    assert mode == 2
    assert count == 1
    assert os.lseek(handle, 0, os.SEEK_CUR) > os.fstat(handle).st_size
    try:
        flock.flock(handle, flock.LOCK_EX | flock.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


if __name__ == "__main__":
    hide()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
