"""On what jobs are done and by whom, from what a user asks for."""

from __future__ import annotations

import os

from smidgen.engines.prepare import DeviceName, EngineName, Precision, place
from smidgen.errors import SmidgenError
from smidgen.sweeps.cluster import RayWorkers
from smidgen.sweeps.executor import Executor, LocalWorkers
from smidgen.sweeps.jobs import How

MOST_WORKERS = 1024


def choose_how(engine: EngineName, precision: Precision, device: DeviceName, threads: int | None) -> How:
    """Engine, precision, device and threads of each job; without a number, one thread.

    Raises:
        SmidgenError: something that is not to be had here.
    """
    placement = place(engine, device, threads or 1, precision)
    return How(
        engine if engine != "auto" else placement.engine,
        precision,
        "cuda" if placement.device.type == "cuda" else "cpu",
        placement.threads,
    )


def choose_executor(how: How, workers: int | None, cluster: str | None) -> Executor:
    """Processes of this machine, or a Ray cluster.

    Args:
        how: the jobs are done.
        workers: how many; None takes as many as there are cores for their threads.
        cluster: a Ray cluster's address, or `local`.

    Raises:
        SmidgenError: a number of workers that cannot be, or Ray is not installed.
    """
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise SmidgenError(f"--workers is {workers}; allowed: 1 to {MOST_WORKERS}")
    if cluster is not None:
        return RayWorkers(cluster, workers)
    return LocalWorkers(workers or max(1, _cores() // how.threads))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
