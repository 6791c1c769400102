"""Jobs on a Ray cluster: workers need the package and nothing shared; the runs come back to the driver.

Ray Core's tasks only. Where a worker or its node dies, Ray starts the task again elsewhere.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smidgen.errors import SmidgenError
from smidgen.runs import directory as names
from smidgen.runs.directory import RunDirectory
from smidgen.sweeps.executor import MOST_ATTEMPTS, Ended, Outcome, do
from smidgen.sweeps.jobs import Job

LOCAL = "local"
_FILES = (
    names.ENVIRONMENT,
    names.TRIAL,
    names.EPOCHS,
    names.CHECKPOINT,
    names.PREVIOUS_CHECKPOINT,
    names.LOG,
    names.WEIGHTS,
    names.RESULT,
)
"""What comes back, the one last that says that the run is finished."""


class RayWorkers:
    """Tasks of a Ray cluster.

    Args:
        address: `local` for a cluster of this machine alone, which ends with the sweep; or that of
            one which is there, as in `auto` or `ray://host:10001`.
        workers: at most so many jobs at a time; None as many as the cluster has cores (or GPUs) for.
        gpus: of each job, where it runs on `cuda`; a fraction lets several share one.

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

    def run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome]:
        """As `Executor` says."""
        if not jobs:
            return
        if not self._ray.is_initialized():
            self._connect()
        yield from self._run(jobs, root)

    def close(self) -> None:
        """As `Executor` says; a cluster that was joined before is not left."""
        if self._connected:
            self._ray.shutdown()
        self._connected = False

    def _connect(self) -> None:
        try:
            if self.address == LOCAL:
                # Loopback only, and no dashboard: nothing that listens beyond this machine.
                self._ray.init(
                    num_cpus=min(self.workers, os.cpu_count() or 1) if self.workers else None,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    log_to_driver=False,
                )
            else:
                self._ray.init(address=self.address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise SmidgenError(f"--cluster {self.address}: {error}") from None
        self._connected = True

    def _run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome]:
        ray = self._ray
        how = jobs[0].how
        task = ray.remote(_remote_job).options(
            num_cpus=how.threads,
            num_gpus=self.gpus if how.device == "cuda" else 0,
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
                ready, _ = ray.wait(list(running), num_returns=1)
                for reference in ready:
                    yield self._outcome(reference, running.pop(reference), root)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, job: Job, root: Path) -> Outcome:
        try:
            ended, files = self._ray.get(reference)
        except self._ray.exceptions.RayError as lost:
            return Outcome(job, f"{type(lost).__name__}: {str(lost).splitlines()[0]}")
        if ended.error:
            return Outcome(job, ended.error, recipe=ended.recipe)
        try:
            _keep(files, root / job.place, job)
        except SmidgenError as problem:
            return Outcome(job, str(problem))
        return Outcome(job)


def _remote_job(job: Job) -> tuple[Ended, dict[str, bytes]]:
    """In a worker: make the run in a temporary folder, and give its files."""
    with tempfile.TemporaryDirectory(prefix="smidgen-") as name:
        ended = do(job, Path(name))
        if ended.error:
            return ended, {}
        made = Path(name) / job.place
        return ended, {file: (made / file).read_bytes() for file in _FILES if (made / file).is_file()}


def _keep(files: dict[str, bytes], place: Path, job: Job) -> None:
    """Write a run's files, the result last; what another process has finished there meanwhile stays."""
    directory = RunDirectory.create(place, job.trial.name, job.seed)
    try:
        if directory.finished:
            return
        result = json.loads(files[names.RESULT])
        files[names.RESULT] = (json.dumps({**result, "run_dir": str(place)}, indent=2) + "\n").encode()
        for name in _FILES:
            if name in files:
                directory.write(name, files[name])
    finally:
        directory.release()
