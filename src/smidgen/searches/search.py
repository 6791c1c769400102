"""`smidgen search`: trials under a budget, chosen on the validation split; the test images are never opened."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smidgen.engines.prepare import DeviceName, EngineName, Precision
from smidgen.errors import RunError, SmidgenError
from smidgen.files import cannot_read, cannot_write, read_bounded, write_atomic
from smidgen.runs.lock import Lock
from smidgen.runs.run import load_trial_data
from smidgen.searches.ask import Asker, Limits
from smidgen.searches.candidate import Candidate, ranked, read_candidates, rungs, survivors, write_candidates
from smidgen.searches.found import Search, progress_table, write_found
from smidgen.searches.space import Space
from smidgen.settings import with_settings
from smidgen.sweeps.executor import Executor
from smidgen.sweeps.jobs import How, Job, on_fold
from smidgen.sweeps.ledger import Ledger
from smidgen.sweeps.workers import choose_executor, choose_how
from smidgen.trial import Trial
from smidgen.trials.builtin import FLAGSHIP
from smidgen.trials.find import find_trial

DEFAULT_ROOT = Path("runs/search")
SETTINGS, CANDIDATES, RUNS = "search.json", "candidates.jsonl", "runs"
_MOST_JSON_BYTES = 2**20
_MOST = {"candidates": 100_000, "seeds": 1_000, "batch": 1_000, "folds": 1_000, "finalists": 1_000}


class SearchInterruptedError(KeyboardInterrupt):
    """Ctrl-C during a search; what is finished is on disk.

    Attributes:
        judged: candidates of finished batches.
        wanted: candidates in all.
    """

    def __init__(self, judged: int, wanted: int) -> None:
        super().__init__(f"interrupted with {judged} of {wanted} candidates judged; the same command goes on")
        self.judged, self.wanted = judged, wanted


@dataclass(frozen=True)
class Plan:
    """How a search goes; together with the space and the data it determines every candidate.

    Attributes:
        candidates: how many are trained; a multiple of `batch`.
        batch: how many are asked for at once.
        seeds: that the candidates which survive halving are trained with.
        folds: of the training images; seed i is judged on fold i modulo this.
        finalists: how many of the best are trained with as many fresh seeds.
        pareto: whether few parameters count as well as a high accuracy.
        seed: of the search's own choices.
    """

    candidates: int
    batch: int
    seeds: int
    folds: int
    finalists: int
    pareto: bool
    seed: int


def search(
    base: Trial | str | Path = FLAGSHIP,
    *,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    max_epochs: int | None = None,
    candidates: int = 32,
    seeds: int = 4,
    batch: int = 8,
    folds: int = 1,
    finalists: int = 4,
    pareto: bool = False,
    name: str = "found",
    seed: int = 0,
    space: Space | None = None,
    settings: Iterable[str] = (),
    workers: int | None = None,
    cluster: str | None = None,
    engine: EngineName = "auto",
    precision: Precision = "fp32",
    device: DeviceName = "auto",
    threads: int | None = None,
    out: str | Path = DEFAULT_ROOT,
    executor: Executor | None = None,
    show: Callable[[str], None] = lambda _text: None,
) -> Search:
    """Find trials within limits on parameters, epochs and MACs that do best on held-out training images.

    Candidates are asked for in batches, so the search is the same for any number of workers. Within a
    batch the poor ones are dropped by successive halving over seeds. The best of all are trained with
    fresh seeds, which no choice was made with, and written down as trial files for `run` and `sweep`.
    The same call goes on where an earlier one stopped; with more candidates, it goes on from its end.
    Workers import the caller's script afresh: in a script, call this below `if __name__ == "__main__":`.

    Args:
        base: a trial, or what names it: gives the data, the epochs, the goal's accuracy.
        max_parameters: most trainable parameters; None takes the goal's.
        max_macs: most multiply-accumulates of one image.
        max_epochs: of every candidate; None takes the base's.
        candidates: how many are trained; rounded up to whole batches.
        seeds: of those that survive.
        batch: candidates at a time.
        folds: blocks of the training images that the seeds take turns to be judged on.
        finalists: how many of the best get fresh seeds.
        pareto: look for few parameters as well as for accuracy.
        name: what the candidates' names begin with.
        seed: of the search's choices.
        space: what is varied.
        settings: changes of the space, as in `width.high=12`.
        workers: processes; None takes as many as there are cores for their threads.
        cluster: a Ray cluster's address, or `local`.
        engine: `auto` takes the native engine where it is installed.
        precision: of the products.
        device: `auto` takes the CPU.
        threads: of each run; None takes 1.
        out: the search's folder.
        executor: who does the runs, instead of what `cluster` and `workers` say.
        show: is given lines of text, and tables as they grow.

    Raises:
        SmidgenError: something that cannot be, Optuna is not installed, or the space holds nothing.
        SearchInterruptedError: Ctrl-C; what is finished is on disk.
    """
    plan = _plan(candidates, batch, seeds, folds, finalists, pareto, seed)
    trial = base if isinstance(base, Trial) else find_trial(base)
    space = with_settings(space or Space(), settings)
    limits = Limits(max_parameters or trial.goal.parameters, max_macs)
    trial = _prepared(trial, name, limits, max_epochs)
    how = choose_how(engine, precision, device, threads)
    mine_to_close = executor is None
    executor = executor or choose_executor(how, workers, cluster)
    dataset = load_trial_data(trial)
    asker = Asker(space, trial, limits, dataset.input_shape, dataset.classes, seed, pareto)
    if folds > 1:
        load_trial_data(on_fold(trial, folds - 1))  # there are that many
    root = Path(out)
    with _locked(root):
        _settle(root, plan, space, trial, limits, dataset.digest, how)
        going = _Going(root, plan, asker, how, dataset.digest, executor, show)
        try:
            return going.run()
        except KeyboardInterrupt:
            raise SearchInterruptedError(len(going.history), plan.candidates) from None
        finally:
            if mine_to_close:
                executor.close()


def _plan(candidates: int, batch: int, seeds: int, folds: int, finalists: int, pareto: bool, seed: int) -> Plan:
    given = {"candidates": candidates, "batch": batch, "seeds": seeds, "folds": folds, "finalists": finalists}
    for name, value in given.items():
        if not 1 <= value <= _MOST[name]:
            raise SmidgenError(f"--{name} is {value}; allowed: 1 to {_MOST[name]:,}")
    if not 0 <= seed < 2**32:
        raise SmidgenError(f"--seed is {seed}; allowed: 0 to {2**32 - 1}")
    return Plan(-(-candidates // batch) * batch, batch, seeds, folds, finalists, pareto, seed)


def _prepared(trial: Trial, name: str, limits: Limits, max_epochs: int | None) -> Trial:
    """The base as all candidates share it: judged on held-out training images, with the limits as its goal."""
    if limits.parameters < 1 or (limits.macs is not None and limits.macs < 1):
        raise SmidgenError("--max-parameters and --max-macs must be at least 1")
    epochs = max_epochs or trial.epochs
    return replace(
        trial,
        name=name,
        note="",
        epochs=epochs,
        data=replace(trial.data, evaluate="validation"),
        goal=replace(trial.goal, parameters=limits.parameters, epochs=epochs),
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


def _settle(root: Path, plan: Plan, space: Space, trial: Trial, limits: Limits, data: str, how: How) -> None:
    """Write down what the search is, or see that it is the one which is there."""
    about: dict[str, Any] = {
        "format": 1,
        "plan": {name: value for name, value in vars(plan).items() if name not in ("candidates", "finalists")},
        "space": space.to_json(),
        "base": trial.to_json(),
        "limits": vars(limits),
        "data_sha256": data,
        **how.identity,
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
class _Going:
    """A search on its way."""

    root: Path
    plan: Plan
    asker: Asker
    how: How
    data_sha256: str
    executor: Executor
    show: Callable[[str], None]
    history: list[Candidate] = field(default_factory=list)
    rejected: int = 0
    _ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.root / RUNS)

    def run(self) -> Search:
        plan = self.plan
        self.history = read_candidates(self.root / CANDIDATES)
        if self.history:
            self.show(f"{len(self.history)} candidates are there already")
        while len(self.history) < plan.candidates:
            batch = len(self.history) // plan.batch
            asked, rejected = self.asker.ask(self.history, batch, plan.batch)
            self.rejected += rejected
            self.history += self._judged(asked)
            self._write()
            self.show(progress_table(self.history, plan.candidates, pareto=plan.pareto))
        finalists = self._finalists()
        self._with_fresh_seeds(finalists)
        self._write()
        best = [self.history[candidate.number] for candidate in finalists]
        return write_found(self.root, self.history, best, self.rejected)

    def _write(self) -> None:
        write_candidates(self.root / CANDIDATES, self.history)

    def _judged(self, asked: Sequence[Candidate]) -> list[Candidate]:
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
        errors = [self._ledger.failures[job] for job in jobs if job in self._ledger.recipes]
        if errors:
            return replace(candidate, accuracies=(), error=errors[0])
        return replace(candidate, accuracies=tuple(self._ledger.runs[job].accuracy for job in jobs))

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
            fresh = tuple(self._ledger.runs[job].accuracy for job in jobs if job in self._ledger.runs)
            self.history[candidate.number] = replace(candidate, fresh=fresh)

    def _train(self, wanted: Sequence[tuple[Candidate, int]]) -> None:
        jobs = [self._job(candidate, seed) for candidate, seed in wanted]
        missing = [job for job in jobs if job not in self._ledger.runs and not self._ledger.load(job)]
        outcomes = self._ledger.finish(missing, self.executor)
        done = len(jobs) - len(missing)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if outcome.error and not outcome.again and not outcome.recipe:
                    # Not the candidate's fault: it is not held against it, and the search can go on later.
                    raise RunError(f"{outcome.job}: {outcome.error}; then the same command goes on")
                if outcome.error:
                    self.show(f"{outcome.job}: {outcome.error}" + ("; trying again" if outcome.again else ""))
                    continue
                done += 1
                reached = self._ledger.runs[outcome.job].accuracy
                self.show(f"{outcome.job}: {reached:.2f} % of validation, {done} of {len(jobs)} runs of this round")

    def _job(self, candidate: Candidate, seed: int) -> Job:
        trial = on_fold(candidate.trial, seed % self.plan.folds)
        return Job(trial, seed, self.how, self.data_sha256)
