"""Settling engine and workers of a sweep or search from what the user asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from smidgen.engines.choose import choose
from smidgen.errors import SmidgenError
from smidgen.machine import usable_cores
from smidgen.runs.options import RunOptions
from smidgen.runs.run import logs
from smidgen.sweeps.cluster import LOCAL, RayWorkers
from smidgen.sweeps.executor import Executor, LocalWorkers

MOST_WORKERS = 1024


def settled(options: RunOptions) -> RunOptions:
    """The options with nothing left open, so that they identify a job; threads default to 1.

    Raises:
        SmidgenError: the engine, device, precision or log is not available here.
    """
    logs(options)
    threads, precision = options.threads or 1, options.precision or "fp32"
    engine = choose(options.engine, options.device, threads, precision)
    return replace(
        options,
        engine=options.engine if options.engine != "auto" else engine.name,
        precision=precision,
        device="cuda" if engine.device.type == "cuda" else "cpu",
        threads=threads,
    )


@contextlib.contextmanager
def executor_for(workers: int | Executor | None, cluster: str | None, options: RunOptions) -> Iterator[Executor]:
    """The executor of a sweep or search, whose workers are stopped afterwards, unless the caller made it.

    Args:
        workers: an executor, or how many processes; None: as many as there are cores for their threads.
        cluster: a Ray cluster's address, or `local`; None: processes of this machine.
        options: of each job.

    Raises:
        SmidgenError: the number of workers is not allowed, Ray is not installed, or logs would be lost.
    """
    if not isinstance(workers, int | None):
        yield workers
        return
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise SmidgenError(f"--workers is {workers}; allowed: 1 to {MOST_WORKERS}")
    if cluster is not None:
        if options.log == "trackio" and cluster != LOCAL:
            raise SmidgenError(
                f"--log trackio writes a SQLite database, which the machines of --cluster {cluster} cannot share; use "
                f"--log tensorboard"
            )
        if options.log is not None and options.log_dir is None:
            raise SmidgenError("--log with --cluster needs --log-dir, in a folder that all machines share")
        executor: Executor = RayWorkers(cluster, workers)
    else:
        executor = LocalWorkers(workers or max(1, usable_cores() // (options.threads or 1)))
    with contextlib.closing(executor):
        yield executor
