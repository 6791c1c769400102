"""What a run depends on besides its trial and data, and choosing the same again to go on with it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

from smidgen.data.dataset import Dataset
from smidgen.engines.native.core import level
from smidgen.engines.native.module import MOST_THREADS
from smidgen.engines.prepare import DeviceName, EngineName, Placement, Precision, place
from smidgen.errors import RunError
from smidgen.randomness import MOST_SEED
from smidgen.settings import canonical_json
from smidgen.version import VERSION

_SHAPES_BYTES = ("smidgen", "torch", "numpy", "machine", "cpu", "engine", "precision", "device", "instruction_level")
"""What can change a result's last digits. The threads of the eager engine can, too."""
MOST_RESUMPTIONS = 1_000
"""Only so many are kept, the last ones."""
MOST_BYTES = 2**19
"""Of what the file holds; with line breaks and indentation it must still be small enough to be read."""


def environment(placement: Placement, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Seed, versions, machine, engine and data, as written to `environment.json`."""
    import numpy

    return {
        "seed": seed,
        "smidgen": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "engine": placement.engine,
        "precision": placement.precision,
        "device": str(placement.device),
        "threads": placement.threads,
        "engine_note": placement.note,
        "instruction_level": level() if placement.engine == "native" else None,
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "resumed": [],
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What may keep a resumed run from ending with the bytes of one left alone: old and new, by name."""
    names = [*_SHAPES_BYTES, *["threads"] * (now["engine"] == "eager")]
    return {name: (before.get(name), now[name]) for name in names if before.get(name) != now[name]}


def changes_text(changed: dict[str, tuple[Any, Any]]) -> str:
    """The changes in one line, as a warning."""
    listed = ", ".join(f"{name} {_shown(new)} (was {_shown(old)})" for name, (old, new) in changed.items())
    return f"goes on with {listed}: it may not end with the same bytes as a run left alone"


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)[:60]
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True)
class Begun:
    """What a run began with, from its `environment.json`, checked.

    Attributes:
        seed: the run's.
        engine: that it ran on.
        precision: of the products.
        device: `cpu` or `cuda`.
        threads: of the CPU.
    """

    seed: int
    engine: str
    precision: Precision
    device: str
    threads: int

    @classmethod
    def from_json(cls, data: dict[str, Any], path: object) -> Begun:
        """Read it from what `environment` gave.

        Raises:
            RunError: a value is missing or cannot be; names `path`.
        """
        seed, threads = data.get("seed"), data.get("threads")
        ok = (
            type(seed) is int
            and 0 <= seed <= MOST_SEED
            and type(threads) is int
            and 1 <= threads <= MOST_THREADS
            and data.get("engine") in ("native", "eager")
            and data.get("precision") in ("fp32", "bf16")
            and data.get("device") in ("cpu", "cuda")
            and isinstance(data.get("resumed"), list)
            and len(data["resumed"]) <= MOST_RESUMPTIONS
            and len(canonical_json(data)) <= MOST_BYTES
        )
        if not ok:
            raise RunError(f"{path} does not say how the run began; it is damaged, or of another version of smidgen")
        assert isinstance(seed, int)
        assert isinstance(threads, int)
        return cls(seed, data["engine"], data["precision"], data["device"], threads)


def place_again(
    begun: Begun | None, engine: EngineName, device: DeviceName, threads: int | None, precision: Precision | None
) -> tuple[Placement, EngineName]:
    """Settle engine, device, threads and precision; what is left open is as it was when the run began.

    Returns:
        The placement, and the engine that was wanted: `auto` can still give way to eager.

    Raises:
        SmidgenError: what is not to be had here.
    """
    if begun is not None:
        if engine == "auto" and begun.engine == "eager":
            engine = "eager"
        if device == "auto" and begun.device == "cuda" and torch.cuda.is_available():
            device = "cuda"
        threads = threads or begun.threads
        precision = precision or begun.precision
    return place(engine, device, threads, precision or "fp32"), engine
