"""Keeps track of jobs: finished runs are found on disk, and an executor does the missing ones."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smidgen.errors import SmidgenError
from smidgen.runs.callback import Callbacks
from smidgen.runs.directory import RunDirectory, RunFiles
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import finished_start
from smidgen.sweeps.executor import Executor, Outcome, Running
from smidgen.sweeps.jobs import Job


@dataclass
class Ledger:
    """The runs of a folder.

    Attributes:
        root: where the run directories are.
        callbacks: receive each run that `finish` makes, when it is finished.
        runs: those that are finished.
        failures: jobs that failed, with the error.
        recipes: those whose recipe caused the error.
    """

    root: Path
    callbacks: Callbacks
    runs: dict[Job, Run] = field(default_factory=dict)
    failures: dict[Job, str] = field(default_factory=dict)
    recipes: set[Job] = field(default_factory=set)

    def load(self, job: Job) -> bool:
        """Load a job's run if it is finished; one that cannot be read is a failure of that job alone."""
        try:
            directory = RunDirectory(self.root / job.place)
            if not directory.finished:
                return False
            self.runs[job] = load_run(directory.path)
        except SmidgenError as error:
            self.failures[job] = str(error)
            return False
        self.failures.pop(job, None)
        return True

    def share(self, job: Job) -> float:
        """The part of a job's epochs that are finished and on this disk, 0 to 1."""
        if job in self.runs:
            return 1.0
        with contextlib.suppress(OSError):
            return (self.root / job.place / RunFiles.EPOCHS).read_bytes().count(b"\n") / job.trial.epochs
        return 0.0

    def finish(self, jobs: Sequence[Job], executor: Executor) -> Generator[Outcome | Running]:
        """Do jobs and load their runs; yields what the executor does. Closing the generator stops the workers."""
        outcomes = executor.run(jobs, self.root)
        try:
            for outcome in outcomes:
                yield outcome if isinstance(outcome, Running) else self._taken_in(outcome)
        finally:
            close = getattr(outcomes, "close", None)
            if close:
                close()

    def _taken_in(self, outcome: Outcome) -> Outcome:
        job = outcome.job
        if not outcome.error and not self.load(job):
            outcome = Outcome(job, self.failures.get(job, "its run directory is not there"))
        if outcome.error and not outcome.again:
            self.failures[job] = outcome.error
            if outcome.recipe:
                self.recipes.add(job)
        if not outcome.error:
            self.callbacks.replay(lambda: finished_start(self.runs[job]), self.runs[job])
        return outcome
