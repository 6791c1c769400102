"""Execution options of runs, apart from the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from smidgen.engines.choose import ENGINES
from smidgen.engines.engine import MOST_THREADS, DeviceName, EngineName, Precision
from smidgen.errors import SmidgenError
from smidgen.settings import Json

CHECKPOINT_SECONDS = 30.0
MOST_CHECKPOINT_SECONDS = 86_400

LogName = Literal["tensorboard", "trackio"]


@dataclass(frozen=True)
class RunOptions:
    """Execution options of a run, apart from trial, seed and data.

    Attributes:
        engine: `native` (the project's CPU kernels), `eager` (PyTorch), `cuda` (PyTorch with recorded
            steps, on a GPU), or `auto`: on a GPU `cuda`, on the CPU the native engine where it is installed and can run
            the network, otherwise `eager`; in a resumed run, the engine that began it.
        precision: of the products: `fp32`, `bf16`, which needs the native engine and a CPU that has such
            products, or `tf32`, which needs a GPU. None takes `fp32`, or that of the resumed run.
        device: `cpu`, `cuda`, or `auto`, which takes the CPU, or that of the resumed run.
        threads: on the CPU, 1 to 256. None takes that of the resumed run, or else: in a single run as many as
            there are usable cores, at most 8; in a sweep or search 1 for each run.
        checkpoint_seconds: how much training may be lost when the process is killed, 0 to 86,400 seconds;
            a finished epoch never is.
        log: also write the run for another program: `tensorboard` or `trackio` (extras of the same names). In a sweep
            or search, each worker writes the runs that it does.
        log_dir: where to. For `tensorboard`, each run gets a folder there named after its directory; None takes a
            folder in the run directory. For `trackio`, all runs share a database there; None takes trackio's folder,
            `TRACKIO_DIR` or `~/.cache/huggingface/trackio`.

    Raises:
        SmidgenError: a value is not allowed; names the command-line option.
    """

    engine: EngineName = "auto"
    precision: Precision | None = None
    device: DeviceName = "auto"
    threads: int | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    log: LogName | None = None
    log_dir: str | Path | None = None

    def __post_init__(self) -> None:
        for name, values in (
            ("engine", get_args(EngineName)),
            ("precision", (*get_args(Precision), None)),
            ("device", get_args(DeviceName)),
            ("log", (*get_args(LogName), None)),
        ):
            if getattr(self, name) not in values:
                allowed = ", ".join(value for value in values if value)
                raise SmidgenError(f"--{name} is {getattr(self, name)!r}; allowed: {allowed}")
        if self.log_dir is not None and self.log is None:
            raise SmidgenError(f"--log-dir {self.log_dir} needs --log, as in --log {get_args(LogName)[0]}")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise SmidgenError(f"--threads is {self.threads}; allowed: 1 to {MOST_THREADS}")
        seconds = self.checkpoint_seconds
        if not math.isfinite(seconds) or not 0 <= seconds <= MOST_CHECKPOINT_SECONDS:
            raise SmidgenError(f"--checkpoint-seconds is {seconds:g}; allowed: 0 to {MOST_CHECKPOINT_SECONDS}")

    @property
    def identity(self) -> dict[str, Json]:
        """What can change a run's result: options, and the engine's revision. For some engines, threads cannot."""
        engine = ENGINES[self.engine]
        same: dict[str, Json] = {
            "engine": self.engine,
            "revision": engine.revision,
            "precision": self.precision,
            "device": self.device,
        }
        return {**same, **({"threads": self.threads} if engine.threads_change_results else {})}
