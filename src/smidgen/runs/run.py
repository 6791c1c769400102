"""Running a trial with one seed, from its name to a finished run directory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from smidgen.anatomy.layers import Anatomy, examine_trial
from smidgen.data.dataset import Dataset, load_dataset
from smidgen.engines.prepare import DeviceName, EngineName, Placement, Precision, fit
from smidgen.errors import RunError, SmidgenError, TrialError
from smidgen.randomness import MOST_SEED
from smidgen.runs import directory as names
from smidgen.runs.directory import RunDirectory
from smidgen.runs.environment import Begun, place_again
from smidgen.runs.interruption import deferred
from smidgen.runs.progress import Progress, best_progress
from smidgen.runs.record import Run, load_run
from smidgen.runs.runner import Runner
from smidgen.settings import differences, with_settings
from smidgen.training.loop import new_network
from smidgen.trial import Trial
from smidgen.trials.builtin import FLAGSHIP
from smidgen.trials.find import find_trial, read_trial

CHECKPOINT_SECONDS = 30.0


class RunInterruptedError(KeyboardInterrupt):
    """Ctrl-C or a termination signal during a run; what was done is on disk.

    Attributes:
        directory: of the run.
        epochs: how many are finished.
        resume: the command that goes on.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory.path
        self.epochs = len(directory.read_epochs())
        self.resume = directory.resume_command
        super().__init__(f"interrupted after {self.epochs} finished epoch(s); to go on: {self.resume}")


def run(
    trial: Trial | str | Path | None = None,
    *,
    seed: int | None = None,
    data: str | Path | None = None,
    epochs: int | None = None,
    settings: Iterable[str] = (),
    engine: EngineName = "auto",
    precision: Precision | None = None,
    device: DeviceName = "auto",
    threads: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress | None = None,
) -> Run:
    """Train a trial with one seed, judge it, and write its run directory.

    Everything that can be wrong is checked first: nothing is written, and no epoch spent, on a
    trial that cannot be found, is over its own budget or does not fit its data.

    A run that was interrupted or killed is gone on with by `resume`, or by the same call with the
    same `out`, and ends with the same bytes as one left alone, on the same machine, versions and
    engine. One that is finished already is read and returned.

    In the main thread, the first Ctrl-C lets the step finish and writes a checkpoint.

    Args:
        trial: a `Trial`, a built-in name, `FILE.py:NAME` or a `trial.json`; None takes the flagship.
        seed: 0 to 2**63 - 1; None takes 0. The same seed gives the same weights.
        data: a bundled data set or a path, as `load_dataset` takes it, instead of the trial's.
        epochs: instead of the trial's.
        settings: changes to the trial, `path=value` each, as in `optimizer.lr=0.05`.
        engine: `auto` takes the native engine where it is installed and has all the layers, else
            eager; in a run that is gone on with, what it began with.
        precision: of the products; `bf16` where the CPU has them and the engine is native. None
            takes `fp32`, or what the run began with.
        device: `auto` takes the CPU, or what the run began with.
        threads: of the CPU; None takes the usable cores, at most 8, or as many as a run that is
            gone on with began with.
        out: a directory that does not exist yet, is empty, or holds this very run; None makes one
            below `runs/`.
        resume: the directory of a run to go on with, instead of `trial`, `seed`, `data`, `epochs`,
            `settings` and `out`.
        checkpoint_seconds: how much training may be lost when the process is killed; a finished
            epoch never is. 0 to 86,400.
        progress: who is shown how it goes; None shows what suits a notebook, terminal or file.

    Raises:
        SmidgenError: the user's mistake, in one line.
        RunInterruptedError: Ctrl-C; it names the command that goes on.
    """
    began = time.perf_counter()
    settings = tuple(settings)
    if not math.isfinite(checkpoint_seconds) or not 0 <= checkpoint_seconds <= 86_400:
        raise SmidgenError(f"--checkpoint-seconds is {checkpoint_seconds:g}; allowed: 0 to 86400")
    if resume is not None:
        if (
            trial is not None
            or seed is not None
            or data is not None
            or epochs is not None
            or settings
            or out is not None
        ):
            raise SmidgenError(
                f"--resume {resume} takes trial, seed and data from the run; leave out TRIAL, --seed, --data, "
                f"--epochs, --set and --out"
            )
        out = resume
        trial, seed = _of_run(RunDirectory(Path(resume)))
    else:
        if not isinstance(trial, Trial):
            trial = find_trial(FLAGSHIP if trial is None else trial)
        trial = _changed(trial, data, epochs, settings)
        seed = 0 if seed is None else seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise SmidgenError(f"the seed is {seed}; allowed: a whole number from 0 to {MOST_SEED}")
    plan = _Plan(
        trial, seed, Path(out) if out is not None else None, engine, precision, device, threads, checkpoint_seconds,
        progress or best_progress(),
    )  # fmt: skip
    while (finished := plan.attempt(began)) is None:
        pass
    return finished


@dataclass
class _Plan:
    """What was asked for, checked as far as can be without looking at the directory."""

    trial: Trial
    seed: int
    out: Path | None
    engine: EngineName
    precision: Precision | None
    device: DeviceName
    threads: int | None
    checkpoint_seconds: float
    progress: Progress

    def attempt(self, began: float) -> Run | None:
        """The finished run; None if another process came in between, so that things are to be looked at again."""
        trial, seed = self.trial, self.seed
        there = RunDirectory(self.out) if self.out is not None else None
        begun = self._same_run(there) if there and there.begun else None
        if there and begun and there.finished:
            return self._finished(there, begun)
        placement, engine = place_again(begun, self.engine, self.device, self.threads, self.precision)
        dataset = load_trial_data(trial)
        anatomy = examine_trial(trial, dataset.input_shape, dataset.classes)
        trial.check_budgets(anatomy.parameters)
        _check_last_batch(trial, dataset, anatomy)
        with _torch_settings(placement):
            network = new_network(trial, dataset, seed)
            placement = fit(placement, engine, network, dataset.input_shape)
            torch.set_num_threads(placement.torch_threads)
            with deferred() as interruption, self._reserved() as directory:
                if directory.finished or directory.begun != (begun is not None):
                    if interruption.requested:
                        raise KeyboardInterrupt
                    return None
                try:
                    finished = Runner(
                        trial, seed, dataset, placement, anatomy, directory, self.progress, interruption,
                        self.checkpoint_seconds,
                    ).run(network, began)  # fmt: skip
                    if interruption.requested:  # too late for this run, but not for what the caller does next
                        raise KeyboardInterrupt
                    return finished
                except KeyboardInterrupt:
                    raise RunInterruptedError(directory) from None

    @contextlib.contextmanager
    def _reserved(self) -> Iterator[RunDirectory]:
        directory = RunDirectory.create(self.out, self.trial.name, self.seed)
        try:
            yield directory
        finally:
            directory.release()

    def _same_run(self, there: RunDirectory) -> Begun:
        """How the run in a directory began, if it is of this trial and seed.

        Raises:
            RunError: it is another run.
        """
        other = read_trial(there.path / names.TRIAL, follow=False)
        begun = Begun.from_json(there.read_json(names.ENVIRONMENT), there.path / names.ENVIRONMENT)
        differing = [
            f"{path} {_short(old)} instead of {_short(new)}" for path, old, new in differences(other, self.trial)
        ]
        if begun.seed != self.seed:
            differing.append(f"seed {begun.seed} instead of {self.seed}")
        if differing:
            raise RunError(
                f"{there.path} already holds another run ({', '.join(differing[:3])}); choose another place with "
                f"--out, or remove it"
            )
        return begun

    def _finished(self, there: RunDirectory, begun: Begun) -> Run:
        """Read a run that needs nothing more, and show it.

        Raises:
            RunError: it cannot be read, or it is not on the engine or with the precision that was asked for.
        """
        wanted = [(self.engine, begun.engine), (self.precision or begun.precision, begun.precision)]
        if any(asked not in ("auto", had) for asked, had in wanted):
            raise RunError(
                f"{there.path} holds a finished run by the {begun.engine} engine with {begun.precision}; choose "
                f"another place with --out"
            )
        try:
            finished = load_run(there.path)
        except RunError as error:
            raise RunError(
                f"{error}; if you remove {there.path / names.RESULT}, {there.resume_command} makes it again from the "
                f"checkpoint"
            ) from None
        there.tidy()
        held_out = finished.result["held_out"]
        self.progress.begin(f"{there.path} is finished already", len(finished.history), 0, held_out)
        for record in finished.history:
            self.progress.epoch(record)
        self.progress.end(finished.summary)
        return finished


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_last_batch(trial: Trial, dataset: Dataset, anatomy: Anatomy) -> None:
    """Refuse what would fail in the last step of the first epoch.

    Raises:
        TrialError: it is over a single image, and a normalization sees a single value a channel of that.
    """
    single = [x.name for x in anatomy.layers if x.type == "BatchNorm2d" and tuple(x.output_shape[1:]) == (1, 1)]
    if single and len(dataset.train) % trial.batch_size == 1:
        raise TrialError(
            f"the last batch of an epoch would be a single image, which {single[0]} cannot normalize; change batch_size"
        )


def _of_run(directory: RunDirectory) -> tuple[Trial, int]:
    """Trial and seed of a run to go on with.

    Raises:
        RunError: it is not a run directory, or damaged.
    """
    if not directory.begun:
        raise RunError(f"{directory.path} is not a run directory, so there is nothing to resume")
    trial = read_trial(directory.path / names.TRIAL, follow=False)
    begun = Begun.from_json(directory.read_json(names.ENVIRONMENT), directory.path / names.ENVIRONMENT)
    return trial, begun.seed


def load_trial_data(trial: Trial) -> Dataset:
    """The data that a trial learns from and is judged on.

    Raises:
        DataError: it is missing or damaged.
    """
    tuning = trial.data.evaluate == "validation"
    data = trial.data
    return load_dataset(
        data.source,
        validation=data.validation if tuning else None,
        fold=data.fold,
        shape=data.shape,
        form=data.form,
    )


def _changed(trial: Trial, data: str | Path | None, epochs: int | None, settings: Iterable[str]) -> Trial:
    trial = with_settings(trial, settings)
    if data is not None:
        trial = replace(trial, data=replace(trial.data, source=str(data)))
    if epochs is not None:
        trial = replace(trial, epochs=epochs)
    return trial


@contextlib.contextmanager
def _torch_settings(placement: Placement) -> Iterator[None]:
    """PyTorch set up for a run, and as it was afterwards: threads, generator, determinism on a GPU."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(placement.torch_threads)
    torch.backends.cudnn.deterministic = True
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = cudnn
