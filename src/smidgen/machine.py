"""What this machine has: cores that this process may use, and memory that has run out."""

from __future__ import annotations

import os

import torch


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
