"""Jobs on a Ray cluster. Workers need the package but no shared storage; the runs are sent back to the driver.

Ray Core's tasks only. Where a worker or its node dies, Ray starts the task again elsewhere.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smidgen.errors import SmidgenError, first_line
from smidgen.machine import usable_cores
from smidgen.runs.directory import RunDirectory, RunFiles
from smidgen.sweeps.executor import MOMENT, MOST_ATTEMPTS, Outcome, Running, run_job
from smidgen.sweeps.jobs import Job

LOCAL = "local"
_FILES = (
    RunFiles.ENVIRONMENT,
    RunFiles.TRIAL,
    RunFiles.EPOCHS,
    RunFiles.CHECKPOINT,
    RunFiles.PREVIOUS_CHECKPOINT,
    RunFiles.LOG,
    RunFiles.WEIGHTS,
    RunFiles.PREDICTIONS,
    RunFiles.RESULT,
)
"""What is sent back; the file that marks the run as finished comes last."""


class RayWorkers:
    """Tasks of a Ray cluster.

    Args:
        address: `local` starts a cluster on this machine alone, which ends with the sweep; `auto` or
            `ray://host:10001` joins a running one.
        workers: max. number of jobs at a time; None: as many as the cluster has cores (or GPUs) for.
        gpus: of each job that runs on `cuda`; a fraction lets several share one.

    Raises:
        SmidgenError: Ray is not installed.
    """

    def __init__(self, address: str = LOCAL, workers: int | None = None, gpus: float = 1.0) -> None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray asks for it before it is imported
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise SmidgenError("--cluster needs Ray; install it with: pip install 'smidgen[cluster]'") from None
        self._ray = ray
        self.address, self.workers, self.gpus = address, workers, gpus
        self._connected = False

    def run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome | Running]:
        """As `Executor` says."""
        if not jobs:
            return
        if not self._ray.is_initialized():
            self._connect()
        yield from self._run(jobs, root)

    def close(self) -> None:
        """As `Executor` says; a cluster that the caller had joined is not left."""
        if self._connected:
            self._ray.shutdown()
        self._connected = False

    def _connect(self) -> None:
        try:
            if self.address == LOCAL:
                # Loopback only, and no dashboard: nothing that listens beyond this machine.
                self._ray.init(
                    num_cpus=min(self.workers, usable_cores()) if self.workers else None,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    log_to_driver=False,
                )
            else:
                self._ray.init(address=self.address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SmidgenError(f"--cluster {self.address}: {error}") from None
        self._connected = True

    def _run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome | Running]:
        ray = self._ray
        options = jobs[0].options
        task = ray.remote(_remote_job).options(
            num_cpus=options.threads,
            num_gpus=self.gpus if options.device == "cuda" else 0,
            max_retries=MOST_ATTEMPTS - 1,
            name="smidgen",
        )
        waiting = list(reversed(jobs))
        running: dict[Any, Job] = {}
        most = self.workers or len(jobs)
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    job = waiting.pop()
                    running[task.remote(job)] = job
                ready, _ = ray.wait(list(running), num_returns=1, timeout=MOMENT)
                if not ready:
                    yield Running(tuple(running.values()))
                for reference in ready:
                    yield self._outcome(reference, running.pop(reference), root)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, job: Job, root: Path) -> Outcome:
        try:
            outcome, files = self._ray.get(reference)
        except self._ray.exceptions.RayError as lost:
            return Outcome(job, f"{type(lost).__name__}: {first_line(lost)}")
        if outcome.error:
            return outcome  # type: ignore[no-any-return] # Ray's results have no type
        try:
            _keep(files, root / job.place, job)
        except SmidgenError as problem:
            return Outcome(job, str(problem))
        return outcome  # type: ignore[no-any-return]


def _remote_job(job: Job) -> tuple[Outcome, dict[str, bytes]]:
    """Executed by a worker: do the job in a temporary folder, and return the files of its run."""
    with tempfile.TemporaryDirectory(prefix="smidgen-") as name:
        outcome = run_job(job, Path(name))
        if outcome.error:
            return outcome, {}
        made = Path(name) / job.place
        return outcome, {file: (made / file).read_bytes() for file in _FILES if (made / file).is_file()}


def _keep(files: dict[str, bytes], place: Path, job: Job) -> None:
    """Write a run's files, the result last; a run that another process has finished there is kept."""
    directory = RunDirectory.create(place, job.trial.name, job.seed)
    try:
        if directory.finished:
            return
        result = json.loads(files[RunFiles.RESULT])
        files[RunFiles.RESULT] = (json.dumps({**result, "run_dir": str(place)}, indent=2) + "\n").encode()
        for name in _FILES:
            if name in files:
                directory.write(name, files[name])
    finally:
        directory.release()
