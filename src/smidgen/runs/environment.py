"""The environment that a run's result depends on besides trial and data, and restoring it on resumption."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any, get_args

import torch

from smidgen.data.dataset import Dataset
from smidgen.engines.choose import ENGINES, choose
from smidgen.engines.engine import MOST_THREADS, DeviceName, Engine, EngineName, Precision
from smidgen.errors import RunError
from smidgen.randomness import MOST_SEED
from smidgen.settings import canonical_json
from smidgen.version import VERSION

_SHAPES_BYTES = (
    "smidgen",
    "torch",
    "numpy",
    "machine",
    "cpu",
    "engine",
    "revision",
    "precision",
    "device",
    "gpu",
    "instruction_level",
)
"""What can change the last digits of a result. So can the threads of some engines."""
MOST_RESUMPTIONS = 1_000
"""How many are kept, the newest ones."""
MOST_BYTES = 2**19
"""Of what the file holds; with line breaks and indentation it must still be small enough to be read."""


def environment(engine: Engine, dataset: Dataset, seed: int) -> dict[str, Any]:
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
        **engine.identity,
        "gpu": torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None,
        "engine_note": engine.note,
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "resumed": [],
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Changes that may make a resumed run differ from an uninterrupted one: old and new values by name."""
    names = [*_SHAPES_BYTES, *["threads"] * ENGINES[now["engine"]].threads_change_results]
    return {name: (before.get(name), now[name]) for name in names if before.get(name) != now[name]}


def changes_text(changed: dict[str, tuple[Any, Any]]) -> str:
    """The changes in one line, as a warning."""
    listed = ", ".join(f"{name} {_shown(new)} (was {_shown(old)})" for name, (old, new) in changed.items())
    return f"resumed with {listed}: the result may differ from that of an uninterrupted run"


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)[:60]
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True)
class RunOrigin:
    """Seed and engine that a run started with, from its `environment.json`, checked.

    Attributes:
        seed: the random seed.
        engine: `native`, `eager` or `cuda`.
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
    def from_json(cls, data: dict[str, Any], path: object) -> RunOrigin:
        """Read the data that `environment` returned.

        Raises:
            RunError: a value is missing or invalid; names `path`.
        """
        seed, threads = data.get("seed"), data.get("threads")
        ok = (
            type(seed) is int
            and 0 <= seed <= MOST_SEED
            and type(threads) is int
            and 1 <= threads <= MOST_THREADS
            and data.get("engine") in tuple(ENGINES)
            and data.get("precision") in get_args(Precision)
            and data.get("device") in ("cpu", "cuda")
            and isinstance(data.get("resumed"), list)
            and len(data["resumed"]) <= MOST_RESUMPTIONS
            and len(canonical_json(data)) <= MOST_BYTES
        )
        if not ok:
            raise RunError(f"{path} does not say how the run started: it is damaged, or of another version of smidgen")
        assert isinstance(seed, int)
        assert isinstance(threads, int)
        return cls(seed, data["engine"], data["precision"], data["device"], threads)


def choose_again(
    begun: RunOrigin | None, engine: EngineName, device: DeviceName, threads: int | None, precision: Precision | None
) -> tuple[Engine, EngineName]:
    """Settle engine, device, threads and precision; what is left open is as it was when the run began.

    Returns:
        The engine, and the name that was wanted: `auto` can still give way to eager.

    Raises:
        SmidgenError: something that is not available here.
    """
    if begun is not None:
        if engine == "auto" and begun.engine == "eager":
            engine = "eager"
        if device == "auto" and begun.device == "cuda" and torch.cuda.is_available():
            device = "cuda"
        threads = threads or begun.threads
        precision = precision or begun.precision
    return choose(engine, device, threads, precision or "fp32"), engine
