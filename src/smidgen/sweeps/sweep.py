"""`smidgen sweep`: one or several trials with many seeds, each run made once, and their statistics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from smidgen.errors import SmidgenError, SmidgenInterruptedError
from smidgen.runs.callback import Callback, Callbacks, checked
from smidgen.runs.live import Timer
from smidgen.runs.options import RunOptions
from smidgen.runs.record import Run
from smidgen.runs.run import changed_trial
from smidgen.statistics import Summary, summarize
from smidgen.sweeps.executor import Executor, Running
from smidgen.sweeps.jobs import Job, make_jobs, parse_seeds, parse_shard
from smidgen.sweeps.ledger import Ledger
from smidgen.sweeps.progress import Standing, SweepProgress, best_sweep_progress
from smidgen.sweeps.workers import executor_for, settled
from smidgen.tables import TableFormat, paragraph, render
from smidgen.trial import Trial
from smidgen.trials.find import find_trial

DEFAULT_ROOT = Path("runs/sweep")
MOST_FOLDS = 1_000


@dataclass(frozen=True)
class TrialResult:
    """The runs of a trial, with their statistics.

    Attributes:
        trial: the recipe.
        runs: its finished runs, in order of seed.
        wanted: how many were asked for.
    """

    trial: Trial
    runs: tuple[Run, ...]
    wanted: int

    @property
    def on_test(self) -> bool:
        """Whether the runs were evaluated on the test images, so that a goal can be met."""
        return self.trial.data.evaluate == "test"

    @property
    def summary(self) -> Summary | None:
        """Statistics of the runs; None if there is none."""
        if not self.runs:
            return None
        return summarize([run.accuracy for run in self.runs], sum(run.goal_met is True for run in self.runs))

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data; accuracies in percent."""
        summary = self.summary
        about = {"name": self.trial.name, "recipe_sha256": self.trial.recipe_digest, "wanted": self.wanted}
        if summary is None:
            return {**about, "n": 0}
        mean = asdict(summary.mean_interval) if summary.mean_interval else {"low": None, "high": None}
        return {
            **about,
            "n": summary.n,
            "held_out": "test" if self.on_test else "validation",
            "mean": summary.mean,
            "sd": summary.sd,
            "standard_error": summary.standard_error,
            "mean_low95": mean["low"],
            "mean_high95": mean["high"],
            "min": summary.least,
            "max": summary.most,
            "goal_share": summary.goal_share if self.on_test else None,
            "goal_share_low95": summary.goal_interval.low if self.on_test else None,
            "goal_share_high95": summary.goal_interval.high if self.on_test else None,
            "seeds": [run.seed for run in self.runs],
            "weights_sha256": [run.result.weights_sha256 for run in self.runs],
            "run_dirs": [str(run.directory) for run in self.runs],
        }


@dataclass(frozen=True)
class Sweep:
    """A sweep, finished as far as it could be.

    Attributes:
        trials: the runs of each trial.
        failures: jobs that failed, with the error.
        done: how many runs this call made.
        kept: how many runs were there already.
        seconds: how long this call took.
    """

    trials: tuple[TrialResult, ...]
    failures: tuple[tuple[Job, str], ...]
    done: int
    kept: int
    seconds: float

    @property
    def goals_met(self) -> bool | None:
        """Whether every run met its goal; None where none was evaluated on the test images."""
        evaluated = [run.goal_met for result in self.trials if result.on_test for run in result.runs]
        return all(evaluated) if evaluated else None

    def to_json(self) -> dict[str, Any]:
        """The sweep as `smidgen sweep --json` prints it."""
        return {
            "trials": [result.to_json() for result in self.trials],
            "failures": [{"trial": j.trial.name, "seed": j.seed, "error": error} for j, error in self.failures],
            "done": self.done,
            "kept": self.kept,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        return table(self.trials)

    def _repr_html_(self) -> str:
        failures = [f"{job}: {error}" for job, error in self.failures]
        return table(self.trials, "html") + (paragraph(*failures) if failures else "")


class SweepInterruptedError(SmidgenInterruptedError):
    """Ctrl-C during a sweep; finished runs are on disk, and unfinished ones resume from their checkpoints.

    Attributes:
        out: the sweep's folder.
        finished: how many runs are finished.
        wanted: how many were asked for.
    """

    def __init__(self, out: Path, finished: int, wanted: int) -> None:
        super().__init__(f"interrupted with {finished} of {wanted} runs done; run the same command again to resume")
        self.out, self.finished, self.wanted = out, finished, wanted

    def to_json(self) -> dict[str, Any]:
        """As `smidgen sweep --json` prints it."""
        return super().to_json() | {"out": str(self.out), "finished": self.finished, "wanted": self.wanted}


def sweep(
    trials: Iterable[Trial | str | Path] | Trial | str | Path,
    seeds: str | Iterable[int] = "0-7",
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    settings: Iterable[str] = (),
    folds: int | None = None,
    shard: str | None = None,
    options: RunOptions = RunOptions(),
    workers: int | Executor | None = None,
    cluster: str | None = None,
    out: str | Path = DEFAULT_ROOT,
    callbacks: Iterable[Callback] = (),
    progress: SweepProgress | None = None,
) -> Sweep:
    """Run trials with many seeds; finished runs are not repeated.

    A run's place below `out` is determined by recipe, data, engine and version, so the same call
    resumes a sweep that was killed, and the folders of several machines can be copied together.
    Workers are processes that import the caller's script afresh: in a script, call this below
    `if __name__ == "__main__":`.

    Args:
        trials: trials or their names, or one.
        seeds: as in `0-31` or `0-3,8`, or the seeds themselves.
        data: a bundled data set or a path, instead of each trial's.
        epochs: instead of each trial's.
        settings: changes to each trial, as in `optimizer.lr=0.05`.
        folds: for tuning: evaluate seed i on block i modulo this of the training images, instead of what the
            trials say.
        shard: `I/N`: only the I-th of N parts of the runs, for N machines; the summary is of all runs that
            are there.
        options: of each run; `auto` takes the native engine where it is installed, and threads default to 1.
        workers: how many processes, or an executor that does the jobs; None takes as many processes as there
            are cores for their threads.
        cluster: a Ray cluster's address, or `local`; None takes processes of this machine.
        out: where the run directories go.
        callbacks: stay in this process, while the runs are in others: when this call has finished a run, they receive
            its beginning, its epochs and its end, but no steps; `options.log` names a log that the workers write.
        progress: shows the progress; None shows what suits a notebook, terminal or file, `SweepProgress()` nothing.

    Raises:
        SmidgenError: a trial, setting, seed, number of workers or data is not valid.
        SweepInterruptedError: Ctrl-C; what is finished is on disk.
    """
    began = time.perf_counter()
    settings = tuple(settings)
    trials = [trials] if isinstance(trials, str | Path | Trial) else trials
    found = [trial if isinstance(trial, Trial) else find_trial(trial) for trial in trials]
    chosen = [changed_trial(trial, data=data, epochs=epochs, settings=settings) for trial in found]
    if not chosen:
        raise SmidgenError("a sweep needs at least one trial")
    numbers = parse_seeds(seeds) if isinstance(seeds, str) else list(dict.fromkeys(seeds))
    if not numbers:
        raise SmidgenError("a sweep needs at least one seed")
    if folds is not None and not 1 <= folds <= MOST_FOLDS:
        raise SmidgenError(f"--folds is {folds}; allowed: 1 to {MOST_FOLDS:,}")
    options, told = settled(options), checked(callbacks)
    with executor_for(workers, cluster, options) as executor:
        jobs = make_jobs(chosen, numbers, options, folds)
        # A trial's jobs come one after another, as often as there are seeds.
        apart = len(jobs) // len(numbers)
        own = [jobs[index::apart] for index in range(apart)]
        mine = jobs
        if shard is not None:
            number, parts = parse_shard(shard)
            mine = jobs[number - 1 :: parts]
        ledger = Ledger(Path(out), Callbacks(told))
        for job in jobs:
            ledger.load(job)
        missing = [job for job in mine if job not in ledger.runs]
        progress = progress or best_sweep_progress()
        kept, work = len(ledger.runs), _Work(own, mine, ledger)
        progress.message(_beginning(len(mine), len(missing), ledger.root))
        outcomes = ledger.finish(missing, executor)
        try:
            for outcome in outcomes:
                if isinstance(outcome, Running):
                    progress.update(work.standing(outcome.jobs))
                elif outcome.error:
                    progress.message(f"{outcome.job}: {outcome.error}" + ("; trying again" if outcome.again else ""))
                else:
                    progress.update(work.standing())
        except KeyboardInterrupt:
            raise SweepInterruptedError(ledger.root, work.finished, len(mine)) from None
        finally:
            outcomes.close()
            progress.end()
        seconds = time.perf_counter() - began
        return Sweep(_results(own, ledger), tuple(ledger.failures.items()), len(ledger.runs) - kept, kept, seconds)


def _results(own: Sequence[Sequence[Job]], ledger: Ledger) -> tuple[TrialResult, ...]:
    """The runs of each trial, from its jobs."""
    return tuple(
        TrialResult(
            jobs[0].trial,
            tuple(ledger.runs[job] for job in sorted(jobs, key=lambda job: job.seed) if job in ledger.runs),
            len(jobs),
        )
        for jobs in own
    )


class _Work:
    """How much of the work of a sweep is done, counted in epochs.

    Args:
        own: jobs of each trial.
        mine: jobs of this call.
        ledger: knows which are finished.
    """

    def __init__(self, own: Sequence[Sequence[Job]], mine: Sequence[Job], ledger: Ledger) -> None:
        self._own, self._mine, self._ledger = own, mine, ledger
        self._epochs = sum(job.trial.epochs for job in mine)
        self._timer = Timer(self._fraction(mine))

    @property
    def finished(self) -> int:
        """How many runs of this call are finished."""
        return sum(job in self._ledger.runs for job in self._mine)

    def standing(self, running: Sequence[Job] = ()) -> Standing:
        """How far the sweep has come, with the epochs of running jobs."""
        fraction = self._fraction([*(job for job in self._mine if job in self._ledger.runs), *running])
        return Standing(
            partial(table, _results(self._own, self._ledger)),
            f"{self.finished} of {len(self._mine)} runs done",
            fraction,
            self._timer.left(fraction),
        )

    def _fraction(self, jobs: Iterable[Job]) -> float:
        if not self._epochs:
            return 1.0  # a shard that has no runs is done
        return sum(self._ledger.share(job) * job.trial.epochs for job in jobs) / self._epochs


def table(results: Sequence[TrialResult], format: TableFormat = "table") -> str:
    """The trials with their statistics."""
    columns = ["trial", "runs", "mean", "s.d.", "95 % of the mean", "min", "max", "at goal", "95 % of the share"]
    return render(columns, [_row(result) for result in results], format)


def _row(result: TrialResult) -> list[object]:
    summary = result.summary
    about = [result.trial.name + ("" if result.on_test else ", validation"), f"{len(result.runs)}/{result.wanted}"]
    if summary is None:
        return [*about, *[""] * 7]
    interval, share = summary.mean_interval, summary.goal_interval
    return [
        *about,
        f"{summary.mean:.3f}",
        "" if summary.sd is None else f"{summary.sd:.3f}",
        f"{interval.low:.3f} to {interval.high:.3f}" if interval else "",
        f"{summary.least:.2f}",
        f"{summary.most:.2f}",
        f"{summary.at_goal}/{summary.n}" if result.on_test else "",
        f"{share.low:.0%} to {share.high:.0%}" if result.on_test else "",
    ]


def _beginning(wanted: int, missing: int, root: Path) -> str:
    there = wanted - missing
    return f"{wanted} runs in {root}" + (f", {there} of them there already" if there else "")
