"""One run: trains, shows progress and writes the run directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from smidgen.anatomy.layers import Anatomy
from smidgen.data.dataset import Dataset
from smidgen.engines.engine import Engine
from smidgen.errors import RunError
from smidgen.lowering.c.sizes import Needs
from smidgen.runs.callback import Callback, Callbacks, RunStart
from smidgen.runs.directory import RunDirectory, RunFiles
from smidgen.runs.environment import MOST_RESUMPTIONS, changes, changes_text, environment
from smidgen.runs.interruption import Interruption
from smidgen.runs.predictions import Predictions
from smidgen.runs.progress import Lines
from smidgen.runs.record import Run
from smidgen.runs.result import Result
from smidgen.runs.weights import TrainedNetwork, to_bytes, weights_sha256
from smidgen.training import checkpoint
from smidgen.training.checkpoint import DamagedCheckpointError, Origin
from smidgen.training.evaluation import HeldOut, evaluate
from smidgen.training.loop import EpochRecord, Training, steps_per_epoch, train
from smidgen.training.loop import start as start_training
from smidgen.trial import BUDGETS, Trial
from smidgen.verdict import Verdict, judge
from smidgen.version import VERSION


@dataclass
class Runner:
    """One run, in a directory that is locked.

    Attributes:
        trial: the recipe.
        seed: 0 to 2**63 - 1.
        dataset: the trial's.
        engine: that trains.
        anatomy: of the network.
        directory: of the run; a run that was started there is resumed.
        callbacks: receive the progress.
        interruption: looked at after each step.
        checkpoint_seconds: between checkpoints within an epoch.
        notes: shown before training.
        needs: bytes of the network as C in integers; None where the goal has no budget in bytes.
    """

    trial: Trial
    seed: int
    dataset: Dataset
    engine: Engine
    anatomy: Anatomy
    directory: RunDirectory
    callbacks: Sequence[Callback]
    interruption: Interruption
    checkpoint_seconds: float
    notes: list[str] = field(default_factory=list)
    needs: Needs | None = None
    _resumptions: int = 0

    def run(self, network: nn.Module, began: float) -> Run:
        """Train to the end and write the run's files.

        Args:
            network: with its initial weights.
            began: when setting up began, by `time.perf_counter`.

        Raises:
            KeyboardInterrupt: it was asked to stop; its state is on disk.
            RunError: a file cannot be written or read.
            TrainingError: training diverged, or there is not enough memory.
        """
        trial, dataset, directory = self.trial, self.dataset, self.directory
        training = start_training(trial, network, self.engine)
        if directory.begun:
            self._resume(training)
        else:
            directory.write_json(RunFiles.ENVIRONMENT, environment(self.engine, dataset, self.seed))
            directory.write_json(RunFiles.TRIAL, trial.to_json())
        start = RunStart(
            trial, self.seed, directory.path, self.anatomy, len(dataset.train), dataset.held_out_name,
            self._header(training), lambda: dataset,
        )  # fmt: skip
        log = Lines(directory.log)
        log.begin(start)
        callbacks = Callbacks(self.callbacks, directory.log)
        watcher = _Watcher(self, training, callbacks)
        setup = time.perf_counter() - began
        finished: Run | None = None
        try:
            callbacks.begin(start)
            for record in training.history:
                callbacks.epoch(record)
            for record in train(training, trial, dataset, self.seed, watcher):
                watcher.save()
                directory.append_epoch(record.to_json())
                log.epoch(record)
                callbacks.epoch(record)  # shown only once it is safe on disk
                if self.interruption.requested and record.epoch < trial.epochs:
                    raise KeyboardInterrupt
            finished = self._finish(training, setup)
            log.end(finished)
            return finished
        except RunError as error:
            if (directory.path / RunFiles.CHECKPOINT).exists():
                raise RunError(f"{error}; finished epochs are kept; resume with: {directory.resume_command}") from None
            raise
        finally:
            callbacks.end(finished)

    def checkpoint(self, training: Training) -> None:
        """Write the training's state to disk."""
        self.directory.write_checkpoint(checkpoint.to_bytes(training, self._origin()))

    def _origin(self) -> Origin:
        return Origin(self.trial.recipe_digest, self.dataset.digest, self.seed)

    def _resume(self, training: Training) -> None:
        """Restore the newest undamaged checkpoint, and record what has changed since the run started."""
        directory = self.directory
        there = directory.read_json(RunFiles.ENVIRONMENT)
        if there.get("data_sha256") != self.dataset.sha256:
            raise RunError(
                f"{directory.path} cannot resume: the data at {self.dataset.name} has changed since the run started; "
                f"restore it, or start over with another --out"
            )
        self._restore(training)
        directory.write_epochs([record.to_json() for record in training.history])
        now = environment(self.engine, self.dataset, self.seed)
        changed = changes(there, now)
        if changed:
            self.notes.append(changes_text(changed))
        resumption = {
            "epochs": len(training.history),
            "step": training.step,
            "changed": {name: new for name, (_, new) in changed.items()},
        }
        kept = [*there["resumed"], resumption][-MOST_RESUMPTIONS:]
        self._resumptions = len(kept)
        directory.write_json(RunFiles.ENVIRONMENT, {**{k: there[k] for k in now if k in there}, "resumed": kept})

    def _restore(self, training: Training) -> None:
        problems = []
        for name in (RunFiles.CHECKPOINT, RunFiles.PREVIOUS_CHECKPOINT):
            try:
                path = self.directory.path / name
                checkpoint.restore(training, path, self._origin(), self.trial, len(self.dataset.train))
            except FileNotFoundError:
                continue
            except DamagedCheckpointError as error:
                problems.append(str(error))
                continue
            if problems:
                # Out of the way, so that the next checkpoint does not replace the undamaged one.
                self.directory.put_aside(RunFiles.CHECKPOINT)
                self.notes.append(f"{problems[0]}; resumed from the checkpoint before it")
            return
        if problems:
            raise RunError(
                f"{problems[0]}, and there is no undamaged one before it; remove {self.directory.path} to start over"
            )

    def _finish(self, training: Training, setup: float) -> Run:
        dataset, history = self.dataset, tuple(training.history)
        last = history[-1]
        predictions = self._predictions(training)  # on the engine, which is left next
        network = self.engine.plain(training.judged).eval().requires_grad_(False)
        trained = TrainedNetwork(
            network, self.trial, dataset.input_shape, dataset.classes, dataset.mean, dataset.std,
            dataset.class_names, dataset.form,
        )  # fmt: skip
        verdict = judge(
            self.trial.goal,
            self._used(),
            correct=last.test_correct,
            total=last.test_total,
            on_test=dataset.held_out_name == "test",
        )
        sha256 = weights_sha256(network)
        self.directory.write(RunFiles.WEIGHTS, to_bytes(trained))
        if predictions is None:
            self.directory.remove(RunFiles.PREDICTIONS)
        else:
            self.directory.write(RunFiles.PREDICTIONS, predictions.to_bytes(sha256, last.test_correct))
        result = self._result(history, verdict, sha256, setup)
        self.directory.write_json(RunFiles.RESULT, result.to_json())
        return Run(self.trial, self.seed, self.directory.path, history, verdict, result, trained, predictions)

    def _used(self) -> dict[str, int]:
        """How much of each budget is used, by their names."""
        used = {"parameters": self.anatomy.parameters, "epochs": self.trial.epochs}
        return used | ({"flash": self.needs.flash, "ram": self.needs.ram} if self.needs else {})

    def _predictions(self, training: Training) -> Predictions | None:
        """The answers of the last epoch's evaluation, repeated if another process made it before it was stopped.

        None where that gives another number of correct images, as can happen on another machine: kept
        predictions always agree with the run's figures.
        """
        evaluation, dataset = training.evaluation, self.dataset
        if evaluation is None:
            held_out = HeldOut(self.engine, dataset.held_out, dataset.mean, dataset.std)
            evaluation = evaluate(training.judged, held_out)
        if evaluation.correct != training.history[-1].test_correct:
            return None
        return Predictions.from_logits(evaluation.logits)

    def _result(self, history: tuple[EpochRecord, ...], verdict: Verdict, sha256: str, setup: float) -> Result:
        last, best = history[-1], max(history, key=lambda r: r.test_correct)
        steps = sum(r.seconds_training for r in history)
        return Result(
            trial=self.trial.name,
            seed=self.seed,
            engine=self.engine.name,
            precision=self.engine.precision,
            device=str(self.engine.device),
            threads=self.engine.threads,
            parameters=self.anatomy.parameters,
            macs=self.anatomy.macs,
            epochs=len(history),
            held_out=self.dataset.held_out_name,
            accuracy_last=last.test_accuracy,
            accuracy_best=best.test_accuracy,
            loss_last=last.test_loss,
            best_epoch=best.epoch,
            train_accuracy_last=last.train_accuracy,
            goal_met=verdict.goal_met,
            seconds_setup=setup,
            seconds_training=steps + sum(r.seconds_evaluation for r in history),
            images_per_second=len(self.dataset.train) * len(history) / max(steps, 1e-9),
            run_dir=str(self.directory.path),
            weights_sha256=sha256,
            recipe_sha256=self.trial.recipe_digest,
            data_sha256=self.dataset.digest,
            class_names=tuple(self.dataset.class_names),
            version=VERSION,
            resumptions=self._resumptions,
            flash=self.needs.flash if self.needs else None,
            ram=self.needs.ram if self.needs else None,
        )

    def _header(self, training: Training) -> str:
        trial, goal, used = self.trial, self.trial.goal, self._used()
        budgets = [f"{used[name]:,} of at most {limit:,} {BUDGETS[name]}" for name, limit in goal.budgets.items()]
        notes = [*([self.engine.note] if self.engine.note else []), *self.notes]
        return "\n".join(
            [
                f"{trial.name}, seed {self.seed}" + (f": {trial.note}" if trial.note else ""),
                f"{self.dataset!r}",
                *self.dataset.survey.lines,
                "",
                str(self.anatomy),
                "",
                f"budgets: {', '.join(budgets)}; target {goal.accuracy:g} % after the last",
                *[f"note: {note}" for note in notes],
                f"engine {self.engine.name}, {self.engine.device}, {self.engine.precision}, "
                f"{self.engine.threads} thread(s); run directory {self.directory.path}",
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

    def __init__(self, runner: Runner, training: Training, callbacks: Callbacks) -> None:
        self._runner, self._training, self._callbacks = runner, training, callbacks
        self._saved_at = time.monotonic()

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        runner = self._runner
        self._callbacks.step(epoch, images, loss, accuracy)
        if runner.interruption.requested:
            self.save()
            raise KeyboardInterrupt
        # A monotonic clock, which cannot be set.
        if time.monotonic() - self._saved_at >= runner.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        self._runner.checkpoint(self._training)
        self._saved_at = time.monotonic()
