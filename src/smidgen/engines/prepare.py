"""Choosing an engine, a device and a number of threads, and bringing a network onto them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smidgen.engines.native.core import find_core, has_bfloat16, level
from smidgen.engines.native.images import Blocks
from smidgen.engines.native.lower import CannotLowerError
from smidgen.engines.native.module import MOST_THREADS, NativeNetwork
from smidgen.errors import SmidgenError
from smidgen.randomness import Stream

EngineName = Literal["auto", "native", "eager"]
Precision = Literal["fp32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda"]

NOT_INSTALLED = (
    "the native engine is not installed, as no C++ compiler was found when smidgen was; install g++ or clang and "
    "smidgen again"
)


@dataclass(frozen=True)
class Placement:
    """Where and how a network runs.

    Attributes:
        engine: `native` (the project's kernels, on the CPU) or `eager` (PyTorch).
        device: of the images and the parameters.
        threads: on the CPU; of the native engine's work, or of PyTorch's operations.
        precision: of the products.
        note: what stands in the way of a faster engine that `auto` would have taken, or nothing.
    """

    engine: Literal["native", "eager"]
    device: torch.device
    threads: int
    precision: Precision
    note: str = ""

    @property
    def torch_threads(self) -> int:
        """Threads for PyTorch's operations: beside the native engine there is nothing for more than one to do."""
        return 1 if self.engine == "native" else self.threads


def place(
    engine: EngineName = "auto",
    device: DeviceName = "auto",
    threads: int | None = None,
    precision: Precision = "fp32",
) -> Placement:
    """Settle what `auto` means on this machine.

    `auto` takes the native engine on the CPU where it is installed: the networks are so small that
    a GPU's launches cost more than it saves in the eager engine. Threads default to the cores that
    this process may use, at most 8.

    Raises:
        SmidgenError: an engine, device, precision or number of threads that is not to be had here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SmidgenError("PyTorch finds no CUDA device here; use --device cpu or auto")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise SmidgenError(f"--threads is {threads}; allowed: 1 to {MOST_THREADS}")
    missing = "" if find_core() else NOT_INSTALLED
    if engine == "native" and device == "cuda":
        raise SmidgenError("the native engine runs on the CPU; use --device cpu or --engine eager")
    if engine == "native" and missing:
        raise SmidgenError(f"{missing}; use --engine eager or auto")
    native = engine != "eager" and device != "cuda" and not missing
    if native:
        level()  # an impossible one is the user's mistake
    if precision == "bf16":
        if not native:
            raise SmidgenError("--precision bf16 needs the native engine; use fp32")
        if not has_bfloat16():
            raise SmidgenError(
                "this CPU, or the instruction level asked for, has no bfloat16 products (avx512bf16); use fp32"
            )
    return Placement(
        engine="native" if native else "eager",
        device=torch.device("cuda" if device == "cuda" else "cpu"),
        threads=threads or min(8, _usable_cores()),
        precision=precision,
        note=missing if engine == "auto" and device != "cuda" else "",
    )


def fit(placement: Placement, wanted: EngineName, network: nn.Module, input_shape: tuple[int, int, int]) -> Placement:
    """The placement for this network: `auto` falls back to eager where the native engine lacks a layer.

    Args:
        placement: as `place` gave it.
        wanted: what was asked for.
        network: that is to run.
        input_shape: channels, height, width of an image.

    Raises:
        SmidgenError: the native engine was asked for and lacks a layer; names it and the reason.
    """
    if placement.engine == "eager":
        return placement
    try:
        NativeNetwork(network, placement.threads).check(input_shape)
    except CannotLowerError as error:
        if wanted == "native" or placement.precision != "fp32":
            raise SmidgenError(f"{error}; use --engine eager") from None
        return replace(placement, engine="eager", note=str(error))
    return placement


def prepare(network: nn.Module, placement: Placement) -> nn.Module:
    """The network on its engine: a module with the same parameters and buffers, ready to train."""
    if placement.engine == "native":
        return NativeNetwork(network, placement.threads, bfloat16=placement.precision == "bf16")
    return laid_out(network.to(placement.device), memory_format(placement))


def without_engine(network: nn.Module) -> nn.Module:
    """The plain PyTorch module behind a prepared one, on the CPU, with the same weights."""
    plain = network.original if isinstance(network, NativeNetwork) else network
    return laid_out(plain.cpu(), torch.contiguous_format)


def loss_and_gradients(
    network: nn.Module, images: Tensor | Blocks, labels: Tensor, label_smoothing: float, stream: Stream
) -> tuple[float, int]:
    """Forward and backward over one batch; the gradients replace those that were there.

    Args:
        network: prepared, in training mode.
        images: as the loader of its engine gives them.
        labels: int64 [count].
        label_smoothing: 0 to 1.
        stream: what layers that drop values at random draw from, so that they have no state.

    Returns:
        The mean cross-entropy (nats), and how many images have their highest score at their label.
    """
    if isinstance(network, NativeNetwork):
        return network.loss_and_gradients(images, labels, label_smoothing, stream)
    assert isinstance(images, Tensor)
    # Not torch.manual_seed, which also sees to devices that are not used, and takes its time.
    torch.default_generator.manual_seed(stream.torch_seed())
    if images.is_cuda:
        torch.cuda.manual_seed_all(stream.torch_seed())
    logits = network(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    network.zero_grad(set_to_none=False)
    loss.backward()
    return loss.item(), int((logits.detach().argmax(1) == labels).sum())


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
