"""Running a trial with one seed, from its name to a finished run directory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.anatomy.layers import examine_trial
from smidgen.data.dataset import Dataset, load_dataset
from smidgen.engines.choose import choose_for
from smidgen.engines.engine import Engine
from smidgen.engines.full_matrix import GATHERED
from smidgen.errors import RunError, SmidgenError, SmidgenInterruptedError, TrialError
from smidgen.lowering.c.budget import check_bytes
from smidgen.machine import exclusive, note_threads
from smidgen.nets.own import check_own_network, check_step, own_network
from smidgen.randomness import MOST_SEED
from smidgen.runs.callback import Callback, Callbacks, RunStart, checked
from smidgen.runs.directory import RunDirectory, RunFiles
from smidgen.runs.environment import RunOrigin, choose_again
from smidgen.runs.interruption import deferred
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import best_progress
from smidgen.runs.record import Run, load_run
from smidgen.runs.runner import Runner
from smidgen.runs.tensorboard import TensorBoard
from smidgen.runs.trackio import Trackio
from smidgen.settings import differences, with_settings
from smidgen.training.loop import new_network
from smidgen.training.rounding import Rounding
from smidgen.trial import FullMatrixAdam, Module, Trial
from smidgen.trials.builtin import FLAGSHIP
from smidgen.trials.find import find_trial, read_trial

_OTHER_SEED = 2**62 + 1
"""Of PyTorch's generator where a network is built that no run begins with."""


class RunInterruptedError(SmidgenInterruptedError):
    """Ctrl-C or a termination signal during a run; what was done is on disk.

    Attributes:
        directory: of the run.
        epochs: how many are finished.
        resume: the command that resumes it.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory.path
        self.epochs = len(directory.read_epochs())
        self.resume = directory.resume_command
        super().__init__(f"interrupted after {self.epochs} finished epoch(s); to resume: {self.resume}")

    def to_json(self) -> dict[str, Any]:
        """As `smidgen run --json` prints it."""
        return super().to_json() | {"run_dir": str(self.directory), "epochs": self.epochs, "resume": self.resume}


@exclusive()
def run(
    trial: Trial | str | Path | None = None,
    *,
    seed: int | None = None,
    data: str | Path | None = None,
    epochs: int | None = None,
    settings: Iterable[str] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    options: RunOptions = RunOptions(),
    callbacks: Iterable[Callback] = (),
    progress: Callback | None = None,
) -> Run:
    """Train a trial with one seed, evaluate it, and write its run directory.

    Everything that can be wrong is checked first: nothing is written, and no epoch spent, on a
    trial that cannot be found, is over its own budget or does not fit its data.

    A run that was interrupted or killed is resumed by `resume`, or by the same call with the same
    `out`, and ends with the same bytes as an uninterrupted one, on the same machine, versions and
    engine. A finished run is loaded and returned.

    One thread of a process trains at a time; others wait. In the main thread, the first Ctrl-C lets the step finish
    and writes a checkpoint.

    Args:
        trial: a `Trial`, a built-in name, `FILE.py:NAME` or a `trial.json`; None takes the flagship.
        seed: 0 to 2**63 - 1; None takes 0. The same seed gives the same weights.
        data: a bundled data set or a path, as `load_dataset` takes it, instead of the trial's.
        epochs: instead of the trial's.
        settings: changes to the trial, `path=value` each, as in `optimizer.lr=0.05`.
        out: a directory that does not exist yet, is empty, or holds this very run; None makes one
            below `runs/`.
        resume: the directory of a run to resume, instead of `trial`, `seed`, `data`, `epochs`,
            `settings` and `out`.
        options: engine, precision, device, threads, time between checkpoints.
        callbacks: receive the beginning, steps, epochs and end, without influence on the result.
        progress: shows the progress; None shows what suits a notebook, terminal or file, `Callback()` nothing.

    Raises:
        SmidgenError: a usage error, in one line.
        RunInterruptedError: Ctrl-C; it names the command that resumes the run.
    """
    began = time.perf_counter()
    settings = tuple(settings)
    if resume is not None:
        if settings or any(value is not None for value in (trial, seed, data, epochs, out)):
            raise SmidgenError(
                f"--resume {resume} takes trial, seed and data from the run; leave out TRIAL, --seed, --data, "
                f"--epochs, --set and --out"
            )
        out = resume
        trial, seed = _of_run(RunDirectory(Path(resume)))
    else:
        if not isinstance(trial, Trial):
            trial = find_trial(FLAGSHIP if trial is None else trial)
        trial = changed_trial(trial, data=data, epochs=epochs, settings=settings)
        seed = 0 if seed is None else seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise SmidgenError(f"the seed is {seed}; allowed: a whole number from 0 to {MOST_SEED}")
    told = (*checked(callbacks), *logs(options), progress or best_progress())
    request = _RunRequest(trial, seed, Path(out) if out is not None else None, options, told)
    while (finished := request.attempt(began)) is None:
        pass
    return finished


def changed_trial(
    trial: Trial, *, data: str | Path | None = None, epochs: int | None = None, settings: Iterable[str] = ()
) -> Trial:
    """The trial with other settings, data or epochs.

    Args:
        trial: the recipe.
        data: a bundled data set or a path; None keeps the trial's.
        epochs: None keeps the trial's.
        settings: `path=value` each.

    Raises:
        SettingError: a setting does not exist, or its value is not allowed.
    """
    trial = with_settings(trial, settings)
    if data is not None:
        trial = replace(trial, data=replace(trial.data, source=str(data)))
    if epochs is not None:
        trial = replace(trial, epochs=epochs)
    return trial


@dataclass(frozen=True)
class _RunRequest:
    """A requested run, checked as far as possible without reading the directory."""

    trial: Trial
    seed: int
    out: Path | None
    options: RunOptions
    callbacks: tuple[Callback, ...]

    def attempt(self, began: float) -> Run | None:
        """The finished run; None if another process changed the directory meanwhile, so that a retry is needed."""
        there = RunDirectory(self.out) if self.out is not None else None
        begun = self._same_run(there) if there and there.begun else None
        if there and begun and there.finished:
            return self._finished(there, begun)
        try:
            return self._train(begun, began)
        except RunInterruptedError:
            raise
        except KeyboardInterrupt:  # while setting up
            if there and begun:
                raise RunInterruptedError(there) from None
            raise

    def _train(self, begun: RunOrigin | None, began: float) -> Run | None:
        """Set up and train; as `attempt`, of a run that is not finished."""
        trial, seed, options = self.trial, self.seed, self.options
        engine, wanted = choose_again(begun, options.engine, options.device, options.threads, options.precision)
        dataset = load_trial_data(trial)
        anatomy = examine_trial(trial, dataset.input_shape, dataset.classes)
        trial.check_budgets(anatomy.parameters)
        with _torch_settings(engine):
            network = new_network(trial, dataset, seed)
            notes = _check_training(trial, dataset, network)
            needs = check_bytes(trial, network, dataset.input_shape)
            engine = choose_for(engine, wanted, trial, network, dataset.input_shape)
            torch.set_num_threads(engine.torch_threads)
            with deferred() as interruption, self._reserved() as directory:
                if directory.finished or directory.begun != (begun is not None):
                    if interruption.requested:
                        raise KeyboardInterrupt
                    return None
                try:
                    finished = Runner(
                        trial, seed, dataset, engine, anatomy, directory, self.callbacks, interruption,
                        options.checkpoint_seconds, notes, needs,
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

    def _same_run(self, there: RunDirectory) -> RunOrigin:
        """Seed and engine of the run in a directory, if it is of this trial and seed.

        Raises:
            RunError: it is another run.
        """
        other = read_trial(there.path / RunFiles.TRIAL, follow=False)
        begun = RunOrigin.from_json(there.read_json(RunFiles.ENVIRONMENT), there.path / RunFiles.ENVIRONMENT)
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

    def _finished(self, there: RunDirectory, begun: RunOrigin) -> Run:
        """Load a finished run, and show it.

        Raises:
            RunError: it cannot be read, or was made with another engine or precision than was asked for.
        """
        options = self.options
        wanted = [(options.engine, begun.engine), (options.precision or begun.precision, begun.precision)]
        if any(asked not in ("auto", had) for asked, had in wanted):
            raise RunError(
                f"{there.path} holds a finished run by the {begun.engine} engine with {begun.precision}; choose "
                f"another place with --out"
            )
        try:
            finished = load_run(there.path)
        except RunError as error:
            raise RunError(
                f"{error}; choose another --out, or remove {there.path / RunFiles.RESULT} and repeat the end of the "
                f"run from its checkpoint: "
                f"{there.resume_command}"
            ) from None
        there.tidy()
        Callbacks(self.callbacks).replay(lambda: finished_start(finished), finished)
        return finished


def logs(options: RunOptions, sweep_folder: Path | None = None) -> list[Callback]:
    """The callbacks that options ask for by name.

    Args:
        options: of the run.
        sweep_folder: of the run directory within its sweep, which distinguishes runs with the same seed.

    Raises:
        SmidgenError: the extra that one needs is not installed, or it cannot write to that place; or these are not
            options.
    """
    if not isinstance(options, RunOptions):
        raise SmidgenError(f"options is {options!r}; it must be a RunOptions, as in smidgen.RunOptions(threads=1)")
    if options.log == "tensorboard":
        root = options.log_dir
        return [TensorBoard(root if root is None or sweep_folder is None else Path(root) / sweep_folder)]
    if options.log == "trackio":
        return [Trackio(options.log_dir, sweep_folder)]
    return []


def finished_start(finished: Run) -> RunStart:
    """What callbacks receive at the beginning of a run that is finished already."""
    trained, trial = finished.trained, finished.trial
    return RunStart(
        trial, finished.seed, finished.directory, examine_trial(trial, trained.input_shape, trained.classes), 0,
        finished.result.held_out, f"{finished.directory} is finished already", lambda: load_trial_data(trial),
    )  # fmt: skip


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_training(trial: Trial, dataset: Dataset, network: nn.Module) -> list[str]:
    """Refuse what would fail in the middle of the run: a user's module, a last batch of a single image, a quantization.

    Returns:
        What is worth a note.

    Raises:
        TrialError: names the reason.
    """
    count, shape, own = len(dataset.train), dataset.input_shape, trial.network
    last = count % trial.batch_size or min(count, trial.batch_size)
    notes = []
    steps = math.ceil(count / trial.batch_size) * trial.epochs
    if isinstance(trial.optimizer, FullMatrixAdam) and steps < GATHERED:
        raise TrialError(
            f"{trial.optimizer.type_name} only gathers gradients in its first {GATHERED - 1} steps, and this training "
            f"has {steps}; lower batch_size, or set another optimizer"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_OTHER_SEED)
        if isinstance(own, Module):
            notes = check_own_network(own, network, shape, lambda: own_network(own, shape, dataset.classes))
        if isinstance(own, Module) or last == 1:
            check_step(network, shape, min(last, 2))
    if trial.quantization:
        Rounding(trial, network, shape)
    return notes


def _of_run(directory: RunDirectory) -> tuple[Trial, int]:
    """Trial and seed of a run to resume.

    Raises:
        RunError: it is not a run directory, or damaged.
    """
    if not directory.begun:
        raise RunError(f"{directory.path} is not a run directory, so there is nothing to resume")
    trial = read_trial(directory.path / RunFiles.TRIAL, follow=False)
    begun = RunOrigin.from_json(directory.read_json(RunFiles.ENVIRONMENT), directory.path / RunFiles.ENVIRONMENT)
    return trial, begun.seed


def load_trial_data(trial: Trial) -> Dataset:
    """The data that a trial is trained and evaluated on.

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


@contextlib.contextmanager
def _torch_settings(engine: Engine) -> Iterator[None]:
    """PyTorch set up for a run, and as it was afterwards: threads, generator, determinism on a GPU."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    products = torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.allow_tf32, products.allow_tf32
    torch.set_num_threads(engine.torch_threads)
    note_threads(engine.threads)
    cudnn.deterministic, cudnn.allow_tf32 = True, engine.precision == "tf32"
    products.allow_tf32 = cudnn.allow_tf32
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.allow_tf32, products.allow_tf32 = before
