"""`smidgen search`: trials under a budget, chosen on the validation split; the test images are never opened."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from smidgen.errors import RunError, SmidgenError, SmidgenInterruptedError
from smidgen.files import cannot_read, cannot_write, read_bounded, write_atomic
from smidgen.runs.callback import Callback, Callbacks, checked
from smidgen.runs.live import Timer
from smidgen.runs.lock import Lock
from smidgen.runs.options import RunOptions
from smidgen.runs.run import load_trial_data
from smidgen.searches.ask import Asker, Limits
from smidgen.searches.candidate import Candidate, ranked, read_candidates, rungs, survivors, write_candidates
from smidgen.searches.found import Search, best_table, write_found
from smidgen.searches.space import Space
from smidgen.settings import with_settings
from smidgen.sweeps.executor import Executor, Running
from smidgen.sweeps.jobs import Job, on_fold
from smidgen.sweeps.ledger import Ledger
from smidgen.sweeps.progress import Standing, SweepProgress, best_sweep_progress
from smidgen.sweeps.workers import executor_for, settled
from smidgen.trial import Trial
from smidgen.trials.builtin import FLAGSHIP
from smidgen.trials.find import find_trial

DEFAULT_ROOT = Path("runs/search")
SETTINGS, CANDIDATES, RUNS = "search.json", "candidates.jsonl", "runs"
_MOST_JSON_BYTES = 2**20
_MOST = {"candidates": 100_000, "seeds": 1_000, "batch": 1_000, "folds": 1_000, "finalists": 1_000}


class SearchInterruptedError(SmidgenInterruptedError):
    """Ctrl-C during a search; what is finished is on disk.

    Attributes:
        out: the search's folder.
        evaluated: candidates of finished batches.
        wanted: candidates in all.
    """

    def __init__(self, out: Path, evaluated: int, wanted: int) -> None:
        super().__init__(
            f"interrupted with {evaluated} of {wanted} candidates evaluated; run the same command again to resume"
        )
        self.out, self.evaluated, self.wanted = out, evaluated, wanted

    def to_json(self) -> dict[str, Any]:
        """As `smidgen search --json` prints it."""
        return super().to_json() | {"out": str(self.out), "finished": self.evaluated, "wanted": self.wanted}


@dataclass(frozen=True)
class SearchPlan:
    """The plan of a search; with the limits, the space and the data it determines every candidate.

    Attributes:
        candidates: how many are trained, rounded up to whole batches; 1 to 100,000.
        batch: how many are chosen at once, 1 to 1,000.
        seeds: of those candidates that are not dropped, 1 to 1,000.
        folds: blocks of the training images; seed i is evaluated on block i modulo this. 1 to 1,000.
        finalists: how many of the best are trained with as many fresh seeds, 1 to 1,000.
        pareto: look for few parameters as well as for accuracy.
        seed: of the search's own choices, 0 to 2**32 - 1.
        name: what the candidates' names begin with.

    Raises:
        SmidgenError: a value is out of range; names the command-line option.
    """

    candidates: int = 32
    batch: int = 8
    seeds: int = 4
    folds: int = 1
    finalists: int = 4
    pareto: bool = False
    seed: int = 0
    name: str = "found"

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise SmidgenError(f"--{name} is {getattr(self, name)}; allowed: 1 to {most:,}")
        if not 0 <= self.seed < 2**32:
            raise SmidgenError(f"--seed is {self.seed}; allowed: 0 to {2**32 - 1}")

    @property
    def total(self) -> int:
        """Number of candidates, rounded up to whole batches."""
        return -(-self.candidates // self.batch) * self.batch

    @property
    def runs_per_batch(self) -> int:
        """Number of runs of a batch in which no candidate fails."""
        remaining, before, runs = self.batch, 0, 0
        for wanted in rungs(self.seeds):
            runs += remaining * (wanted - before)
            remaining, before = -(-remaining // 2), wanted
        return runs

    @property
    def runs(self) -> int:
        """Number of runs of the whole search, if no candidate fails."""
        return self.total // self.batch * self.runs_per_batch + self.finalists * self.seeds

    @property
    def identity(self) -> dict[str, Any]:
        """Settings that must be unchanged to resume a search; candidates and finalists may increase."""
        return {name: getattr(self, name) for name in ("batch", "seeds", "folds", "pareto", "seed")}


def search(
    base: Trial | str | Path = FLAGSHIP,
    *,
    plan: SearchPlan = SearchPlan(),
    limits: Limits = Limits(),
    space: Space | None = None,
    settings: Iterable[str] = (),
    options: RunOptions = RunOptions(),
    workers: int | Executor | None = None,
    cluster: str | None = None,
    out: str | Path = DEFAULT_ROOT,
    callbacks: Iterable[Callback] = (),
    progress: SweepProgress | None = None,
) -> Search:
    """Find trials within limits on parameters, epochs, MACs and bytes that do best on held-out training images.

    Candidates are chosen in batches, so the search is the same for any number of workers. Within a
    batch the poor ones are dropped by successive halving over seeds. The best of all are trained with
    fresh seeds, which played no part in choosing them, and written as trial files for `run` and `sweep`.
    The same call resumes a search; with more candidates, it continues a finished one.
    Workers import the caller's script afresh: in a script, call this below `if __name__ == "__main__":`.

    Args:
        base: a trial or its name: gives the data, the epochs and the goal's accuracy.
        plan: how many candidates, seeds and finalists.
        limits: what no candidate may exceed; epochs default to the base's, all but MACs to the base's goal.
        space: what is varied.
        settings: changes to the space, as in `width.high=12`.
        options: of each run; `auto` takes the native engine where it is installed, and threads default to 1.
        workers: how many processes, or an executor that does the jobs; None takes as many processes as there
            are cores for their threads.
        cluster: a Ray cluster's address, or `local`; None takes processes of this machine.
        out: the search's folder.
        callbacks: receive each run that this call makes, as in `sweep`.
        progress: shows the progress, as in `sweep`.

    Raises:
        SmidgenError: an argument is not valid, Optuna is not installed, or no candidate is within the limits.
        SearchInterruptedError: Ctrl-C; what is finished is on disk.
    """
    trial = base if isinstance(base, Trial) else find_trial(base)
    space = with_settings(space or Space(), settings)
    limits = limits.completed(trial)
    trial = _prepared(trial, plan.name, limits)
    options, told = settled(options), checked(callbacks)
    with executor_for(workers, cluster, options) as executor:
        dataset = load_trial_data(trial)
        asker = Asker(space, trial, limits, dataset.input_shape, dataset.classes, plan.seed, plan.pareto)
        if plan.folds > 1:
            load_trial_data(on_fold(trial, plan.folds - 1))  # fails if there are fewer
        root = Path(out)
        with _locked(root):
            _settle(root, plan, space, trial, limits, dataset.digest, options)
            progress = progress or best_sweep_progress()
            ledger = Ledger(root / RUNS, Callbacks(told))
            state = _SearchState(root, plan, asker, options, dataset.digest, executor, ledger, progress)
            try:
                return state.run()
            except KeyboardInterrupt:
                raise SearchInterruptedError(root, len(state.history), plan.total) from None
            except SmidgenError:
                if not state.history and not ledger.runs:  # nothing that other limits could not begin with
                    (root / SETTINGS).unlink(missing_ok=True)
                raise
            finally:
                progress.end()


def _prepared(trial: Trial, name: str, limits: Limits) -> Trial:
    """The base as all candidates share it: evaluated on held-out training images, with the limits as its goal."""
    epochs, parameters = limits.epochs or trial.epochs, limits.parameters or trial.goal.parameters
    goal = replace(trial.goal, parameters=parameters, epochs=epochs, flash=limits.flash, ram=limits.ram)
    return replace(
        trial,
        name=name,
        note="",
        epochs=epochs,
        data=replace(trial.data, evaluate="validation"),
        goal=goal,
    )


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(root, error) from None
    lock = Lock(root)
    try:
        yield
    finally:
        lock.release()


def _settle(
    root: Path, plan: SearchPlan, space: Space, trial: Trial, limits: Limits, data: str, options: RunOptions
) -> None:
    """Write `search.json`, or raise if the folder holds another search."""
    about: dict[str, Any] = {
        "format": 1,
        "plan": plan.identity,
        "space": space.to_json(),
        "base": trial.to_json(),
        "limits": {"parameters": limits.parameters, "macs": limits.macs},  # the others are in the base
        "data_sha256": data,
        **options.identity,
    }
    path = root / SETTINGS
    try:
        there = json.loads(read_bounded(path, _MOST_JSON_BYTES, follow=False))
    except FileNotFoundError:
        write_atomic(path, (json.dumps(about, indent=2) + "\n").encode())
        return
    except OSError as error:
        raise RunError(cannot_read(path, error)) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}; choose another place with --out") from None
    if there != about:
        raise RunError(f"{root} holds a search with {_different(there, about)}; choose another place with --out")


def _different(there: Any, here: Any, path: str = "") -> str:
    """The first difference, for people."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in {**there, **here}:
            if there.get(name) != here.get(name):
                return _different(there.get(name), here.get(name), f"{path}.{name}" if path else name)
    return f"another {path or 'content'} ({json.dumps(there)[:60]}, here {json.dumps(here)[:60]})"


@dataclass
class _SearchState:
    """A search in progress."""

    root: Path
    plan: SearchPlan
    asker: Asker
    options: RunOptions
    data_sha256: str
    executor: Executor
    ledger: Ledger
    progress: SweepProgress
    history: list[Candidate] = field(default_factory=list)
    rejected: int = 0
    _timer: Timer | None = None
    _runs: int = 0

    def run(self) -> Search:
        plan = self.plan
        self.history = read_candidates(self.root / CANDIDATES)
        if self.history:
            self.progress.message(f"{len(self.history)} candidates are there already")
        while len(self.history) < plan.total:
            batch = len(self.history) // plan.batch
            self._runs = batch * plan.runs_per_batch  # fewer were made where candidates failed
            asked, rejected = self.asker.ask(self.history, batch, plan.batch)
            self.rejected += rejected
            self.history += self._evaluated(asked)
            self._write()
        self._runs = plan.runs - plan.finalists * plan.seeds
        finalists = self._finalists()
        self._with_fresh_seeds(finalists)
        self._write()
        best = [self.history[candidate.number] for candidate in finalists]
        return write_found(self.root, self.history, best, self.rejected)

    def _write(self) -> None:
        write_candidates(self.root / CANDIDATES, self.history)

    def _evaluated(self, asked: Sequence[Candidate]) -> list[Candidate]:
        """The batch trained by successive halving over seeds."""
        done = {candidate.number: candidate for candidate in asked}
        remaining = list(asked)
        before = 0
        for wanted in rungs(self.plan.seeds):
            self._train([(c, seed) for c in remaining for seed in range(before, wanted)])
            for candidate in remaining:
                done[candidate.number] = self._with_results(candidate, wanted)
            remaining = survivors([done[c.number] for c in remaining], pareto=self.plan.pareto)
            before = wanted
        return [done[candidate.number] for candidate in asked]

    def _with_results(self, candidate: Candidate, seeds: int) -> Candidate:
        jobs = [self._job(candidate, seed) for seed in range(seeds)]
        errors = [self.ledger.failures[job] for job in jobs if job in self.ledger.recipes]
        if errors:
            return replace(candidate, accuracies=(), error=errors[0])
        return replace(candidate, accuracies=tuple(self.ledger.runs[job].accuracy for job in jobs))

    def _finalists(self) -> list[Candidate]:
        """The best of those that were never dropped."""
        whole = [c for c in self.history if len(c.accuracies) == self.plan.seeds]
        best = ranked(whole, pareto=self.plan.pareto)[: self.plan.finalists]
        if not best:
            errors = [c.error for c in self.history if c.error]
            raise RunError(f"no candidate could be trained: {errors[0]}")
        return best

    def _with_fresh_seeds(self, finalists: Sequence[Candidate]) -> None:
        """Train them with seeds that played no part in choosing them."""
        seeds = range(self.plan.seeds, 2 * self.plan.seeds)
        self._train([(c, seed) for seed in seeds for c in finalists])
        for candidate in finalists:
            jobs = [self._job(candidate, seed) for seed in seeds]
            fresh = tuple(self.ledger.runs[job].accuracy for job in jobs if job in self.ledger.runs)
            self.history[candidate.number] = replace(candidate, fresh=fresh)

    def _train(self, wanted: Sequence[tuple[Candidate, int]]) -> None:
        jobs = [self._job(candidate, seed) for candidate, seed in wanted]
        missing = [job for job in jobs if job not in self.ledger.runs and not self.ledger.load(job)]
        outcomes = self.ledger.finish(missing, self.executor)
        done = len(jobs) - len(missing)
        self._runs += done
        self._update(done, len(jobs))
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Running):
                    self._update(done, len(jobs), outcome.jobs)
                    continue
                if outcome.error and not outcome.again and not outcome.recipe:
                    # Not the candidate's fault, so it is not recorded, and the search can be resumed.
                    raise RunError(f"{outcome.job}: {outcome.error}; then run the same command again to resume")
                if outcome.error:
                    again = "; trying again" if outcome.again else ""
                    self.progress.message(f"{outcome.job}: {outcome.error}{again}")
                    continue
                done += 1
                self._runs += 1
                self.progress.message(f"{outcome.job}: {self.ledger.runs[outcome.job].accuracy:.2f} % of validation")
                self._update(done, len(jobs))

    def _update(self, done: int, wanted: int, running: Sequence[Job] = ()) -> None:
        """Show how far the search has come: runs of this round, and of the whole."""
        fraction = min(1.0, (self._runs + sum(map(self.ledger.share, running))) / self.plan.runs)
        self._timer = self._timer or Timer(fraction)
        self.progress.update(
            Standing(
                partial(best_table, tuple(self.history), self.plan.pareto),
                f"{len(self.history)} of {self.plan.total} candidates evaluated on the validation split, {done} of "
                f"{wanted} runs of this round",
                fraction,
                self._timer.left(fraction),
            )
        )

    def _job(self, candidate: Candidate, seed: int) -> Job:
        trial = on_fold(candidate.trial, seed % self.plan.folds)
        return Job(trial, seed, self.options, self.data_sha256)
