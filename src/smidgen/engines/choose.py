"""Choosing an engine, a device and a number of threads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from smidgen.engines.cuda import CudaEngine
from smidgen.engines.eager import EagerEngine
from smidgen.engines.engine import MOST_THREADS, DeviceName, Engine, EngineName, Precision
from smidgen.engines.native.core import has_bfloat16, level, why_missing
from smidgen.engines.native.engine import NativeEngine
from smidgen.errors import SmidgenError
from smidgen.graph.ops import Shape
from smidgen.machine import usable_cores
from smidgen.trial import Trial

ENGINES: Mapping[str, type[NativeEngine] | type[EagerEngine]] = {
    kind.name: kind for kind in (NativeEngine, EagerEngine, CudaEngine)
}


def choose(
    engine: EngineName = "auto",
    device: DeviceName = "auto",
    threads: int | None = None,
    precision: Precision = "fp32",
) -> Engine:
    """Settle what `auto` means on this machine.

    `auto` takes the native engine on the CPU where it is installed, otherwise the eager one, and on a GPU `cuda`.
    Threads default to the cores that this process may use, at most 8.

    Raises:
        SmidgenError: an engine, device, precision or number of threads that is not available.
    """
    if device == "mps":
        raise SmidgenError(
            "Apple's GPUs (mps) lack the float64 numbers that losses are added in, and smidgen has not been tried on "
            "them; use --device cpu or auto"
        )
    if engine == "cuda":
        if device == "cpu":
            raise SmidgenError("the cuda engine runs on a GPU; use --device cuda, or --engine eager or native")
        device = "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SmidgenError("PyTorch finds no CUDA device here; use --device cpu or auto")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise SmidgenError(f"--threads is {threads}; allowed: 1 to {MOST_THREADS}")
    missing = why_missing()
    if engine == "native" and device == "cuda":
        raise SmidgenError("the native engine runs on the CPU; use --device cpu, or --engine cuda or eager")
    if engine == "native" and missing:
        raise SmidgenError(f"{missing}; use --engine eager or auto")
    native = engine in ("auto", "native") and device != "cuda" and not missing
    if native:
        level()  # an impossible one is the user's mistake
    if precision == "tf32" and device != "cuda":
        raise SmidgenError("--precision tf32 needs a GPU (--device cuda); use fp32")
    if precision == "bf16":
        if not native:
            raise SmidgenError("--precision bf16 needs the native engine; use fp32")
        if not has_bfloat16():
            raise SmidgenError(
                "this CPU, or the instruction level asked for, has no bfloat16 products (avx512bf16); use fp32"
            )
    threads = threads or min(8, usable_cores())
    if native:
        return NativeEngine(threads, precision)
    if device == "cuda":
        kind = EagerEngine if engine == "eager" else CudaEngine
        return kind(torch.device("cuda"), threads, products=precision)
    return EagerEngine(torch.device("cpu"), threads, missing if engine == "auto" else "")


def choose_to_classify(network: nn.Module, input_shape: Shape) -> Engine:
    """The fastest engine that can evaluate a network: native where it is there and has the layers, otherwise eager.

    Args:
        network: on the CPU; its mode is left as it is.
        input_shape: channels, height, width of an image.
    """
    engine = choose(device="cpu")
    return engine if engine.runs(network, input_shape) else EagerEngine(engine.device, engine.threads)


def choose_for(chosen: Engine, wanted: EngineName, trial: Trial, network: nn.Module, input_shape: Shape) -> Engine:
    """The engine for this recipe: `auto` falls back to eager where the one chosen cannot run it.

    Args:
        chosen: as `choose` gave it.
        wanted: what was asked for.
        trial: the recipe.
        network: that is to run.
        input_shape: channels, height, width of an image.

    Raises:
        SmidgenError: the engine that was asked for, or every engine, lacks something; names it and the reason.
    """
    support = chosen.supports(trial, network, input_shape)
    if support:
        return chosen
    fallback = EagerEngine(chosen.device, chosen.threads, support.reason)
    if chosen.name == fallback.name or not fallback.supports(trial, network, input_shape):
        raise SmidgenError(support.reason)
    if wanted != "auto" or chosen.precision != fallback.precision:
        raise SmidgenError(f"{support.reason}; use --engine {fallback.name}")
    return fallback
