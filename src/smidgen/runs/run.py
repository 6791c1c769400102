"""Running a trial with one seed, from its name to a finished run directory."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.anatomy.layers import Anatomy, examine
from smidgen.data.dataset import Dataset, load_dataset
from smidgen.engines.native.core import level
from smidgen.engines.prepare import DeviceName, EngineName, Placement, Precision, fit, place, without_engine
from smidgen.errors import SmidgenError
from smidgen.randomness import MOST_SEED
from smidgen.runs import directory as names
from smidgen.runs.directory import RunDirectory
from smidgen.runs.progress import Lines, Progress, best_progress
from smidgen.runs.record import Run
from smidgen.runs.weights import TrainedNetwork, to_bytes, weights_sha256
from smidgen.settings import with_settings
from smidgen.training import checkpoint
from smidgen.training.loop import EpochRecord, new_network, start, train
from smidgen.trial import Trial
from smidgen.trials.builtin import FLAGSHIP
from smidgen.trials.find import find_trial
from smidgen.verdict import Verdict, judge
from smidgen.version import VERSION


class RunInterruptedError(KeyboardInterrupt):
    """Ctrl-C or a termination signal during a run; what was finished is on disk.

    Attributes:
        directory: of the run.
        epochs: how many are finished.
    """

    def __init__(self, directory: Path, epochs: int) -> None:
        super().__init__(f"interrupted after {epochs} epochs; {directory} holds them")
        self.directory = directory
        self.epochs = epochs


def run(
    trial: Trial | str | Path = FLAGSHIP,
    *,
    seed: int = 0,
    data: str | Path | None = None,
    epochs: int | None = None,
    settings: Iterable[str] = (),
    engine: EngineName = "auto",
    precision: Precision = "fp32",
    device: DeviceName = "auto",
    threads: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a trial with one seed, judge it, and write its run directory.

    Everything that can be wrong is checked first: nothing is written, and no epoch spent, on a
    trial that cannot be found, is over its own budget or does not fit its data.

    Args:
        trial: a `Trial`, a built-in name, `FILE.py:NAME` or a `trial.json`.
        seed: 0 to 2**63 - 1; the same seed gives the same weights.
        data: a bundled data set or a folder of IDX files, instead of the trial's.
        epochs: instead of the trial's.
        settings: changes to the trial, `path=value` each, as in `optimizer.lr=0.05`.
        engine: `auto` takes the native engine where it is installed and has all the layers, else eager.
        precision: of the products; `bf16` where the CPU has them and the engine is native.
        device: `auto` takes the CPU.
        threads: of the CPU; None takes the usable cores, at most 8. Another number can give
            other last digits.
        out: a directory that does not exist yet or is empty; None makes one below `runs/`.
        progress: who is shown how it goes; None shows what suits a notebook, terminal or file.

    Raises:
        SmidgenError: the user's mistake, in one line.
        RunInterruptedError: Ctrl-C; finished epochs are on disk.
    """
    began = time.perf_counter()
    if not isinstance(trial, Trial):
        trial = find_trial(trial)
    trial = _changed(trial, data, epochs, settings)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise SmidgenError(f"the seed is {seed}; allowed: a whole number from 0 to {MOST_SEED}")
    placement = place(engine, device, threads, precision)
    dataset = load_trial_data(trial)
    with _torch_settings(placement):
        network = new_network(trial, dataset, seed)
        anatomy = examine(network, dataset.input_shape)
        trial.check_budgets(anatomy.parameters)
        placement = fit(placement, engine, network, dataset.input_shape)
        torch.set_num_threads(placement.torch_threads)
        directory = RunDirectory.create(Path(out) if out is not None else None, trial.name, seed)
        return _Runner(trial, seed, dataset, placement, anatomy, directory, progress or best_progress()).run(
            network, began
        )


def load_trial_data(trial: Trial) -> Dataset:
    """The data that a trial learns from and is judged on.

    Raises:
        DataError: it is missing or damaged.
    """
    tuning = trial.data.evaluate == "validation"
    return load_dataset(trial.data.source, validation=trial.data.validation if tuning else None)


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


@dataclass
class _Runner:
    """One run: training between what is shown and what is written."""

    trial: Trial
    seed: int
    dataset: Dataset
    placement: Placement
    anatomy: Anatomy
    directory: RunDirectory
    progress: Progress

    def run(self, network: nn.Module, began: float) -> Run:
        trial, dataset, directory = self.trial, self.dataset, self.directory
        directory.write_json(names.TRIAL, trial.to_json())
        directory.write_json(names.ENVIRONMENT, environment(self.placement, dataset))
        header = self._header()
        log = Lines(directory.log)
        log.begin(header, trial.epochs, len(dataset.train), dataset.held_out_name)
        training = start(trial, network, self.placement)
        history: list[EpochRecord] = []
        setup = time.perf_counter() - began
        finished: Run | None = None
        try:
            self.progress.begin(header, trial.epochs, len(dataset.train), dataset.held_out_name)
            for record in train(training, trial, dataset, self.seed, self.placement, self.progress):
                state = checkpoint.to_bytes(training, trial.recipe_digest, self.seed)
                directory.write(names.CHECKPOINT, state)
                directory.append_epoch(record.to_json())
                log.epoch(record)
                history.append(record)
                self.progress.epoch(record)  # shown only once it is safe on disk
            finished = self._finish(training.judged, tuple(history), setup)
            log.end(finished.summary)
            return finished
        except KeyboardInterrupt:
            # What is on disk counts: the interruption may have come just after an epoch was written.
            raise RunInterruptedError(directory.path, len(directory.read_epochs())) from None
        finally:
            self.progress.end(finished.summary if finished else None)

    def _finish(self, network: nn.Module, history: tuple[EpochRecord, ...], setup: float) -> Run:
        dataset, last = self.dataset, history[-1]
        network = without_engine(network).eval().requires_grad_(False)
        trained = TrainedNetwork(network, self.trial, dataset.input_shape, dataset.classes, dataset.mean, dataset.std)
        verdict = judge(
            self.trial.goal,
            parameters=self.anatomy.parameters,
            epochs=len(history),
            correct=last.test_correct,
            total=last.test_total,
            on_test=dataset.held_out_name == "test",
        )
        self.directory.write(names.WEIGHTS, to_bytes(trained))
        result = self._result(history, verdict, weights_sha256(network), setup)
        self.directory.write_json(names.RESULT, result)
        return Run(self.trial, self.seed, self.directory.path, history, verdict, result, trained)

    def _result(self, history: tuple[EpochRecord, ...], verdict: Verdict, sha256: str, setup: float) -> dict[str, Any]:
        last, best = history[-1], max(history, key=lambda r: r.test_correct)
        steps = sum(r.seconds_training for r in history)
        # Only what was measured on the test images is called test accuracy.
        split = self.dataset.held_out_name
        measured = {
            f"{split}_accuracy_last": last.test_accuracy,
            f"{split}_accuracy_best": best.test_accuracy,
            f"{split}_loss_last": last.test_loss,
        }
        nothing = dict.fromkeys(("test_accuracy_last", "test_accuracy_best", "test_loss_last"))
        return {
            "trial": self.trial.name,
            "seed": self.seed,
            "engine": self.placement.engine,
            "precision": self.placement.precision,
            "device": str(self.placement.device),
            "threads": self.placement.threads,
            "parameters": self.anatomy.parameters,
            "macs": self.anatomy.macs,
            "epochs": len(history),
            "held_out": split,
            **nothing,
            **measured,
            "best_epoch": best.epoch,
            "train_accuracy_last": last.train_accuracy,
            "goal_met": verdict.goal_met,
            "seconds_setup": setup,
            "seconds_training": steps + sum(r.seconds_evaluation for r in history),
            "images_per_second": len(self.dataset.train) * len(history) / steps,
            "run_dir": str(self.directory.path),
            "weights_sha256": sha256,
            "recipe_sha256": self.trial.recipe_digest,
            "data_sha256": self.dataset.digest,
            "version": VERSION,
        }

    def _header(self) -> str:
        trial, goal = self.trial, self.trial.goal
        return "\n".join(
            [
                f"{trial.name}, seed {self.seed}" + (f": {trial.note}" if trial.note else ""),
                f"{self.dataset!r}",
                "",
                str(self.anatomy),
                "",
                f"budgets: {self.anatomy.parameters:,} of at most {goal.parameters:,} parameters, "
                f"{trial.epochs} of at most {goal.epochs} epochs; target {goal.accuracy:.2f} % by the last",
                *([f"note: {self.placement.note}"] if self.placement.note else []),
                f"engine {self.placement.engine}, {self.placement.device}, {self.placement.precision}, "
                f"{self.placement.threads} thread(s); run directory {self.directory.path}",
                "",
            ]
        )


def environment(placement: Placement, dataset: Dataset) -> dict[str, Any]:
    """What a run depends on besides its trial and seed: versions, machine, engine, data."""
    import numpy

    return {
        "smidgen": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "engine": placement.engine,
        "precision": placement.precision,
        "device": str(placement.device),
        "threads": placement.threads,
        "engine_note": placement.note,
        "instruction_level": level() if placement.engine == "native" else None,
        "data": dataset.name,
        "data_sha256": dataset.sha256,
    }
