"""One run: training between what is shown and what is written."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from smidgen.anatomy.layers import Anatomy
from smidgen.data.dataset import Dataset
from smidgen.engines.prepare import Placement, without_engine
from smidgen.errors import RunError
from smidgen.runs import directory as names
from smidgen.runs.directory import RunDirectory
from smidgen.runs.environment import MOST_RESUMPTIONS, changes, changes_text, environment
from smidgen.runs.interruption import Interruption
from smidgen.runs.progress import Lines, Progress
from smidgen.runs.record import Run
from smidgen.runs.weights import TrainedNetwork, to_bytes, weights_sha256
from smidgen.training import checkpoint
from smidgen.training.checkpoint import DamagedCheckpointError, Origin
from smidgen.training.loop import EpochRecord, Training, start, steps_per_epoch, train
from smidgen.trial import Trial
from smidgen.verdict import Verdict, judge
from smidgen.version import VERSION


@dataclass
class Runner:
    """One run, in a directory that is locked.

    Attributes:
        trial: the recipe.
        seed: 0 to 2**63 - 1.
        dataset: the trial's.
        placement: engine, device, threads.
        anatomy: of the network.
        directory: of the run; with a run that was begun there, this one goes on with it.
        progress: who is shown how it goes.
        interruption: looked at after each step.
        checkpoint_seconds: between checkpoints within an epoch.
    """

    trial: Trial
    seed: int
    dataset: Dataset
    placement: Placement
    anatomy: Anatomy
    directory: RunDirectory
    progress: Progress
    interruption: Interruption
    checkpoint_seconds: float
    _notes: list[str] = field(default_factory=list)
    _resumptions: int = 0

    def run(self, network: nn.Module, began: float) -> Run:
        """Train to the end, and write the record.

        Args:
            network: with its initial weights.
            began: when setting up began, by `time.perf_counter`.

        Raises:
            KeyboardInterrupt: it was asked to stop, and is on disk.
            RunError: something cannot be written or read.
            TrainingError: training cannot go on.
        """
        trial, dataset, directory = self.trial, self.dataset, self.directory
        training = start(trial, network, self.placement)
        if directory.begun:
            self._resume(training)
        else:
            directory.write_json(names.ENVIRONMENT, environment(self.placement, dataset, self.seed))
            directory.write_json(names.TRIAL, trial.to_json())
        header = self._header(training)
        log = Lines(directory.log)
        log.begin(header, trial.epochs, len(dataset.train), dataset.held_out_name)
        watcher = _Watcher(self, training)
        setup = time.perf_counter() - began
        finished: Run | None = None
        try:
            self.progress.begin(header, trial.epochs, len(dataset.train), dataset.held_out_name)
            for record in training.history:
                self.progress.epoch(record)
            for record in train(training, trial, dataset, self.seed, self.placement, watcher):
                watcher.save()
                directory.append_epoch(record.to_json())
                log.epoch(record)
                self.progress.epoch(record)  # shown only once it is safe on disk
                if self.interruption.requested and record.epoch < trial.epochs:
                    raise KeyboardInterrupt
            finished = self._finish(training, setup)
            log.end(finished.summary)
            return finished
        except RunError as error:
            if (directory.path / names.CHECKPOINT).exists():
                raise RunError(
                    f"{error}; what is finished is kept: {directory.resume_command} goes on with it"
                ) from None
            raise
        finally:
            self.progress.end(finished.summary if finished else None)

    def checkpoint(self, training: Training) -> None:
        """Write the training's state to disk."""
        self.directory.write_checkpoint(checkpoint.to_bytes(training, self._origin()))

    def _origin(self) -> Origin:
        return Origin(self.trial.recipe_digest, self.dataset.digest, self.seed)

    def _resume(self, training: Training) -> None:
        """Bring the training to the newest whole checkpoint, and note down what has changed since the run began."""
        directory = self.directory
        there = directory.read_json(names.ENVIRONMENT)
        if there.get("data_sha256") != self.dataset.sha256:
            raise RunError(
                f"{directory.path} cannot go on: the data at {self.dataset.name} are not those that it began with; "
                f"put those back, or start over with another --out"
            )
        self._restore(training)
        directory.write_epochs([record.to_json() for record in training.history])
        now = environment(self.placement, self.dataset, self.seed)
        changed = changes(there, now)
        if changed:
            self._notes.append(changes_text(changed))
        resumption = {
            "epochs": len(training.history),
            "step": training.step,
            "changed": {name: new for name, (_, new) in changed.items()},
        }
        kept = [*there["resumed"], resumption][-MOST_RESUMPTIONS:]
        self._resumptions = len(kept)
        directory.write_json(names.ENVIRONMENT, {**{k: there[k] for k in now if k in there}, "resumed": kept})

    def _restore(self, training: Training) -> None:
        problems = []
        for name in (names.CHECKPOINT, names.PREVIOUS_CHECKPOINT):
            try:
                path = self.directory.path / name
                checkpoint.restore(training, path, self._origin(), self.trial, len(self.dataset.train))
            except FileNotFoundError:
                continue
            except DamagedCheckpointError as error:
                problems.append(str(error))
                continue
            if problems:
                # Out of the way, so that the next checkpoint does not take the place of the whole one.
                self.directory.put_aside(names.CHECKPOINT)
                self._notes.append(f"{problems[0]}; goes on from the checkpoint before it")
            return
        if problems:
            raise RunError(
                f"{problems[0]}, and there is no whole one before it; remove {self.directory.path} to start over"
            )

    def _finish(self, training: Training, setup: float) -> Run:
        dataset, history = self.dataset, tuple(training.history)
        last = history[-1]
        network = without_engine(training.judged).eval().requires_grad_(False)
        trained = TrainedNetwork(
            network, self.trial, dataset.input_shape, dataset.classes, dataset.mean, dataset.std,
            dataset.class_names, dataset.form,
        )  # fmt: skip
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
            "images_per_second": len(self.dataset.train) * len(history) / max(steps, 1e-9),
            "run_dir": str(self.directory.path),
            "weights_sha256": sha256,
            "recipe_sha256": self.trial.recipe_digest,
            "data_sha256": self.dataset.digest,
            "class_names": list(self.dataset.class_names),
            "version": VERSION,
            "resumptions": self._resumptions,
        }

    def _header(self, training: Training) -> str:
        trial, goal = self.trial, self.trial.goal
        notes = [*([self.placement.note] if self.placement.note else []), *self._notes]
        return "\n".join(
            [
                f"{trial.name}, seed {self.seed}" + (f": {trial.note}" if trial.note else ""),
                f"{self.dataset!r}",
                *self.dataset.survey.lines,
                "",
                str(self.anatomy),
                "",
                f"budgets: {self.anatomy.parameters:,} of at most {goal.parameters:,} parameters, "
                f"{trial.epochs} of at most {goal.epochs} epochs; target {goal.accuracy:.2f} % by the last",
                *[f"note: {note}" for note in notes],
                f"engine {self.placement.engine}, {self.placement.device}, {self.placement.precision}, "
                f"{self.placement.threads} thread(s); run directory {self.directory.path}",
                *([self._resumed_text(training)] if self._resumptions else []),
                "",
            ]
        )

    def _resumed_text(self, training: Training) -> str:
        done = f"resumed after {len(training.history)} of {self.trial.epochs} epochs"
        if training.step:
            done += f" and {training.step} of {steps_per_epoch(self.trial, self.dataset)} steps of the next"
        return done


class _Watcher:
    """Passes on the steps, and writes a checkpoint when it is time or the process has to stop."""

    def __init__(self, runner: Runner, training: Training) -> None:
        self._runner, self._training = runner, training
        self._saved_at = time.monotonic()

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        runner = self._runner
        runner.progress.step(epoch, images, loss, accuracy)
        if runner.interruption.requested:
            self.save()
            raise KeyboardInterrupt
        # Of a clock that nobody sets.
        if time.monotonic() - self._saved_at >= runner.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        self._runner.checkpoint(self._training)
        self._saved_at = time.monotonic()
