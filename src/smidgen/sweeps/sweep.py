"""`smidgen sweep`: many seeds of one or several trials, each done once, and what they come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smidgen.engines.prepare import DeviceName, EngineName, Precision
from smidgen.errors import SmidgenError
from smidgen.runs.record import Run
from smidgen.statistics import Summary, summarize
from smidgen.sweeps.executor import Executor
from smidgen.sweeps.jobs import Job, make_jobs, parse_seeds, parse_shard
from smidgen.sweeps.ledger import Ledger
from smidgen.sweeps.workers import choose_executor, choose_how
from smidgen.tables import render
from smidgen.trial import Trial
from smidgen.trials.find import find_trial

DEFAULT_ROOT = Path("runs/sweep")
MOST_FOLDS = 1_000


@dataclass(frozen=True)
class TrialResult:
    """What a trial's runs came to.

    Attributes:
        trial: the recipe.
        runs: its finished runs, in order of seed.
        wanted: how many were asked for.
        summary: of the runs; None while there is none.
        on_test: whether the accuracies are of the test images; then a goal can be met.
    """

    trial: Trial
    runs: tuple[Run, ...]
    wanted: int

    @property
    def on_test(self) -> bool:
        """Whether the runs were judged on the test images."""
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
            "weights_sha256": [run.result["weights_sha256"] for run in self.runs],
            "run_dirs": [str(run.directory) for run in self.runs],
        }


@dataclass(frozen=True)
class Sweep:
    """A sweep, finished as far as it could be.

    Attributes:
        trials: what each trial came to.
        failures: jobs that could not be done, with the reason.
        done: runs made by this call.
        kept: runs that were there already.
        seconds: that this call took.
    """

    trials: tuple[TrialResult, ...]
    failures: tuple[tuple[Job, str], ...]
    done: int
    kept: int
    seconds: float

    @property
    def goals_met(self) -> bool | None:
        """Whether every run met its goal; None where none was judged on the test images."""
        judged = [run.goal_met for result in self.trials if result.on_test for run in result.runs]
        return all(judged) if judged else None

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


class SweepInterruptedError(KeyboardInterrupt):
    """Ctrl-C during a sweep; what is finished is on disk, and what was begun goes on from its checkpoint.

    Attributes:
        finished: runs that are done.
        wanted: runs that were asked for.
    """

    def __init__(self, finished: int, wanted: int) -> None:
        super().__init__(f"interrupted with {finished} of {wanted} runs done; the same command goes on")
        self.finished, self.wanted = finished, wanted


def sweep(
    trials: Iterable[Trial | str | Path],
    seeds: str | Iterable[int] = "0-7",
    *,
    workers: int | None = None,
    folds: int | None = None,
    shard: str | None = None,
    cluster: str | None = None,
    engine: EngineName = "auto",
    precision: Precision = "fp32",
    device: DeviceName = "auto",
    threads: int | None = None,
    out: str | Path = DEFAULT_ROOT,
    executor: Executor | None = None,
    show: Callable[[str], None] = lambda _text: None,
) -> Sweep:
    """Run trials with many seeds; what is done already is not done again.

    A run's place below `out` is determined by recipe, data, engine and version, so the same call
    goes on where a killed one stopped, and the folders of several machines can be copied together.
    Workers are processes that import the caller's script afresh: in a script, call this below
    `if __name__ == "__main__":`.

    Args:
        trials: trials, or what names them.
        seeds: as in `0-31` or `0-3,8`, or the seeds themselves.
        workers: processes; None takes as many as there are cores for their threads.
        folds: tune: judge seed i on block i modulo this of the training images, instead of what the trials say.
        shard: `I/N`: only the I-th of N parts of the runs, for N machines; the summary is of what is
            there of all parts.
        cluster: a Ray cluster's address, or `local`; None takes processes of this machine.
        engine: `auto` takes the native engine where it is installed.
        precision: of the products.
        device: `auto` takes the CPU.
        threads: of each run; None takes 1.
        out: where the run directories go.
        executor: who does the jobs, instead of what `cluster` and `workers` say.
        show: is given lines of text: a table whenever runs were finished, and failures.

    Raises:
        SmidgenError: a trial, seeds, a number of workers or data that cannot be.
        SweepInterruptedError: Ctrl-C; what is finished is on disk.
    """
    began = time.perf_counter()
    chosen = [trial if isinstance(trial, Trial) else find_trial(trial) for trial in trials]
    if not chosen:
        raise SmidgenError("a sweep needs at least one trial")
    numbers = parse_seeds(seeds) if isinstance(seeds, str) else list(dict.fromkeys(seeds))
    if not numbers:
        raise SmidgenError("a sweep needs at least one seed")
    how = choose_how(engine, precision, device, threads)
    mine_to_close = executor is None
    executor = executor or choose_executor(how, workers, cluster)
    if folds is not None and not 1 <= folds <= MOST_FOLDS:
        raise SmidgenError(f"--folds is {folds}; allowed: 1 to {MOST_FOLDS:,}")
    jobs = make_jobs(chosen, numbers, how, folds)
    # A trial's jobs come one after another, as often as there are seeds.
    apart = len(jobs) // len(numbers)
    own = [jobs[index::apart] for index in range(apart)]
    mine = jobs
    if shard is not None:
        number, parts = parse_shard(shard)
        mine = jobs[number - 1 :: parts]
    ledger = Ledger(Path(out))
    for job in jobs:
        ledger.load(job)
    missing = [job for job in mine if job not in ledger.runs]
    kept, done = len(ledger.runs), 0
    show(_beginning(len(mine), len(missing), ledger.root))
    outcomes = ledger.finish(missing, executor)
    try:
        for outcome in outcomes:
            if outcome.error:
                show(f"{outcome.job}: {outcome.error}" + ("; trying again" if outcome.again else ""))
                continue
            done += 1
            left = _time_left(time.perf_counter() - began, done, len(missing))
            show(f"{table(_results(own, ledger))}\n{done} of {len(missing)} runs done{left}")
    except KeyboardInterrupt:
        raise SweepInterruptedError(sum(job in ledger.runs for job in mine), len(mine)) from None
    finally:
        outcomes.close()
        if mine_to_close:
            executor.close()
    seconds = time.perf_counter() - began
    return Sweep(_results(own, ledger), tuple(ledger.failures.items()), done, kept, seconds)


def _results(own: Sequence[Sequence[Job]], ledger: Ledger) -> tuple[TrialResult, ...]:
    """What each trial came to, from its jobs."""
    return tuple(
        TrialResult(
            jobs[0].trial,
            tuple(ledger.runs[job] for job in sorted(jobs, key=lambda job: job.seed) if job in ledger.runs),
            len(jobs),
        )
        for jobs in own
    )


def table(results: Sequence[TrialResult]) -> str:
    """The trials with their statistics."""
    columns = ["trial", "runs", "mean", "s.d.", "95 % of the mean", "min", "max", "at goal", "95 % of the share"]
    return render(columns, [_row(result) for result in results])


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


def _time_left(seconds: float, done: int, wanted: int) -> str:
    if done == 0 or done == wanted:
        return ""
    left = seconds / done * (wanted - done)
    return f", about {left / 60:.0f} minutes left" if left > 90 else f", about {left:.0f} s left"
