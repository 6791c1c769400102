"""Executors, which do jobs: the interface, and worker processes on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
import types
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from smidgen.errors import SmidgenError, TrainingError, TrialError
from smidgen.runs.lock import InUseError
from smidgen.runs.progress import Silent
from smidgen.runs.run import logs, run
from smidgen.sweeps.jobs import Job

MOST_ATTEMPTS = 3
"""How often a job is started whose worker dies; each attempt resumes from the last checkpoint."""
MOMENT = 0.5
"""Seconds without an outcome after which an executor yields what is running."""
_PATIENCE = 60.0
"""Seconds that a job waits for a run directory that another process has locked."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one attempt at a job.

    Attributes:
        job: that was attempted.
        error: one line; empty if the run is finished.
        again: whether there will be another attempt.
        recipe: whether the recipe causes the error, as when its loss diverges, so that it would recur.
    """

    job: Job
    error: str = ""
    again: bool = False
    recipe: bool = False


@dataclass(frozen=True)
class Running:
    """No attempt has ended for a moment.

    Attributes:
        jobs: that are running.
    """

    jobs: tuple[Job, ...]


class Executor(Protocol):
    """Does jobs, several at a time, and reports the outcome of each."""

    def run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome | Running]:
        """Do the jobs below a folder; closing the iterator stops those that are running.

        Yields:
            The outcome of each attempt, and from time to time what is running.
        """

    def close(self) -> None:
        """Stop the workers, which are kept from one call of `run` to the next."""


def run_job(job: Job, root: Path, parent: int | None = None) -> Outcome:
    """Do a job in this process: start its run, or resume it.

    Args:
        job: to be done.
        root: folder of the sweep.
        parent: id of the process whose end stops the job.

    Raises:
        KeyboardInterrupt: the parent has ended, or this process was asked to stop.
    """
    began, options = time.monotonic(), replace(job.options, log=None, log_dir=None)
    while True:
        try:
            run(
                job.trial, seed=job.seed, out=root / job.place, options=options,
                callbacks=logs(job.options, job.place.parent), progress=_StopWithParent(parent),
            )  # fmt: skip
        except InUseError as error:
            # By a worker of a sweep that was killed, which stops within a step.
            if time.monotonic() - began > _PATIENCE:
                return Outcome(job, str(error))
            time.sleep(0.2)
            continue
        except SmidgenError as error:
            return Outcome(job, str(error), recipe=isinstance(error, TrainingError | TrialError))
        except Exception as error:  # one bad job must not take the others with it
            print(f"smidgen: {job}:\n{traceback.format_exc()}", file=sys.stderr)
            return Outcome(job, f"{type(error).__name__}: {error}")
        return Outcome(job)


class _StopWithParent(Silent):
    """Shows nothing, and stops the run when the process that started it has ended."""

    def __init__(self, parent: int | None) -> None:
        self._parent = parent

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:  # noqa: ARG002 - the protocol's
        if self._parent is not None and os.getppid() != self._parent:
            raise KeyboardInterrupt


class LocalWorkers:
    """Processes of this machine, started by spawn, each with threads of its own.

    A worker that dies is replaced and its job retried; the others are not affected.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._workers: list[_Worker] = []

    def run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome | Running]:
        """As `Executor` says."""
        waiting = deque((job, 1) for job in jobs)
        workers = self._workers
        try:
            while waiting or self._busy:
                while len(workers) < min(self.workers, len(waiting) + len(self._busy)):
                    workers.append(_Worker())
                for worker in workers:
                    if waiting and worker.idle:
                        job, attempt = waiting.popleft()
                        worker.give(job, attempt, root)
                ready = _ready(self._busy)
                if not ready:
                    yield Running(tuple(worker.job for worker in self._busy if worker.job))
                for worker in ready:
                    doing, attempt = worker.job, worker.attempt
                    assert doing is not None
                    outcome = worker.outcome()
                    if outcome is not None:
                        yield outcome
                        continue
                    workers.remove(worker)  # it died
                    again = attempt < MOST_ATTEMPTS
                    if again:
                        waiting.appendleft((doing, attempt + 1))
                    yield Outcome(doing, worker.cause_of_death, again)
        finally:
            self._stop(self._busy)

    def close(self) -> None:
        """As `Executor` says."""
        self._stop(list(self._workers))

    @property
    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if not worker.idle]

    def _stop(self, workers: Sequence[_Worker]) -> None:
        for worker in workers:
            if not worker.idle:
                worker.interrupt()
        for worker in workers:
            worker.stop()
            self._workers.remove(worker)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program from processes that are started meanwhile.

    A new process runs the program again, as its own `__main__` without `if __name__ == "__main__":`, to find what was
    defined there. Jobs need nothing of it, and a script or notebook of a few lines should do without that guard.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


class _Worker:
    """A process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True)
        with _without_main():
            self._process.start()
        theirs.close()
        self.job: Job | None = None
        self.attempt = 0

    @property
    def idle(self) -> bool:
        return self.job is None

    @property
    def waitables(self) -> list[Connection | int]:
        """Handles that become ready when the job is done or the process has died."""
        return [self._pipe, self._process.sentinel]

    def give(self, job: Job, attempt: int, root: Path) -> None:
        self.job, self.attempt = job, attempt
        with contextlib.suppress(OSError):  # it has died, which `outcome` notices
            self._pipe.send((job, root))

    def outcome(self) -> Outcome | None:
        """The outcome of its job; None if the process has died."""
        try:
            if self._pipe.poll():
                outcome: Outcome = self._pipe.recv()
                self.job = None
                return outcome
        except (EOFError, OSError):
            pass
        self._process.join()
        return None

    @property
    def cause_of_death(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"its worker was killed by {signal.Signals(-code).name}"
        return f"its worker ended with status {code}"

    def interrupt(self) -> None:
        """Let it finish its step, write a checkpoint and exit; Windows ends it at once, so less is kept."""
        self._process.terminate()

    def stop(self) -> None:
        """Stop it once it is idle."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(timeout=60)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def _ready(busy: list[_Worker]) -> list[_Worker]:
    """Wait a moment for workers to be done or to have died; gives those."""
    handles = [handle for worker in busy for handle in worker.waitables]
    ready = set(multiprocessing.connection.wait(handles, timeout=MOMENT))
    return [worker for worker in busy if ready & set(worker.waitables)]


def _work(pipe: Connection, parent: int) -> None:
    """A worker's main loop: does jobs from the pipe until it receives None."""
    # Ctrl-C goes to the whole process group; the sweep stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupted)
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        while (given := pipe.recv()) is not None:
            job, root = given
            pipe.send(run_job(job, root, parent))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt
