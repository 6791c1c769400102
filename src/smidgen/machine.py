"""This machine and process: cores, memory that has run out, and state of PyTorch that all threads share."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import torch

from smidgen.errors import SmidgenError


def usable_cores() -> int:
    """CPU cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated.

    PyTorch's allocator for the CPU raises a bare RuntimeError, which only its own name in the text tells from
    others; a test asks it for too much, to notice when that changes.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


class _Process:
    """State shared by the threads of this process.

    Attributes:
        lock: held by the thread that works with PyTorch's global state.
        has_threads: whether PyTorch or an engine may have started threads of their own.
        forked: whether this process was forked from one that had.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.has_threads = self.forked = False

    def after_fork(self) -> None:
        """Called in a forked child, which has none of the parent's threads."""
        self.forked, self.lock = self.forked or self.has_threads, threading.RLock()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Work with PyTorch that no other thread may disturb; a second thread waits.

    PyTorch's random generator, its number of threads, and tracing by torch.fx are shared by a process's threads.

    Raises:
        SmidgenError: this process was forked from one with threads for PyTorch, where its operations would hang.
    """
    if _process.forked:
        raise SmidgenError(
            "this process was forked after its parent had used PyTorch, so training would hang; start processes with "
            'multiprocessing.get_context("spawn")'
        )
    with _process.lock:
        try:
            yield
        finally:
            note_threads(torch.get_num_threads())


def note_threads(count: int) -> None:
    """Remember that so many threads may have been started."""
    _process.has_threads = _process.has_threads or count > 1
