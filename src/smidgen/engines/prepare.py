"""Choosing an engine, a device and a number of threads, and bringing a network onto them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from smidgen.errors import SmidgenError

EngineName = Literal["auto", "native", "eager"]
Precision = Literal["fp32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda"]

MOST_THREADS = 256


@dataclass(frozen=True)
class Placement:
    """Where and how a network runs.

    Attributes:
        engine: `eager` (PyTorch).
        device: of the images and the parameters.
        threads: of PyTorch's operations on the CPU.
        precision: of the products.
    """

    engine: str
    device: torch.device
    threads: int
    precision: Precision


def place(
    engine: EngineName = "auto",
    device: DeviceName = "auto",
    threads: int | None = None,
    precision: Precision = "fp32",
) -> Placement:
    """Settle what `auto` means on this machine.

    `auto` takes the CPU: the networks are so small that a GPU's launches cost more than it saves
    in the eager engine. Threads default to the cores that this process may use, at most 8.

    Raises:
        SmidgenError: an engine, device, precision or number of threads that is not to be had here.
    """
    if engine == "native":
        raise SmidgenError("the native engine is not part of this version; use --engine eager or auto")
    if precision == "bf16":
        raise SmidgenError("--precision bf16 needs the native engine, which this version lacks; use fp32")
    if device == "cuda" and not torch.cuda.is_available():
        raise SmidgenError("PyTorch finds no CUDA device here; use --device cpu or auto")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise SmidgenError(f"--threads is {threads}; allowed: 1 to {MOST_THREADS}")
    return Placement(
        engine="eager",
        device=torch.device("cuda" if device == "cuda" else "cpu"),
        threads=threads or min(8, _usable_cores()),
        precision=precision,
    )


def prepare(network: nn.Module, placement: Placement) -> nn.Module:
    """The network on its engine: a module with the same parameters and buffers, ready to train."""
    return laid_out(network.to(placement.device), memory_format(placement))


def laid_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The network with its weights in a memory layout, in place."""
    return network.to(memory_format=layout)  # type: ignore[call-overload,no-any-return] # missing in torch's stubs


def memory_format(placement: Placement) -> torch.memory_format:
    """How images lie in memory. See the measurements in docs/log.md."""
    return torch.channels_last if placement.threads == 1 else torch.contiguous_format


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
