"""Cores and memory, asked of the machine itself."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smidgen.machine import is_out_of_memory, usable_cores


def test_pytorch_running_out_of_memory_is_recognised() -> None:
    asks: list[Callable[[], Tensor]] = [lambda: torch.empty(2**50), lambda: torch.zeros(3).repeat(2**48)]
    for ask in asks:
        with pytest.raises(RuntimeError) as caught:
            ask()
        assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("my module's memory bank is empty"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_other_errors_are_told_from_it(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_only_cores_that_the_process_may_use_are_counted() -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_cores_when_pinned) == 1


def _cores_when_pinned() -> int:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return usable_cores()
