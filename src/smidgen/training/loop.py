"""The training loop.

It has no state beyond the network, the optimizer and the average: the order of the images is
a function of (seed, epoch), augmentation and dropout of (seed, epoch, step), the learning rate of
the step.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smidgen.data.dataset import Dataset
from smidgen.engines.engine import Engine, Figures, Loader, Optimizer
from smidgen.errors import SmidgenError, TrainingError, TrialError
from smidgen.machine import is_out_of_memory
from smidgen.nets.build import build_network
from smidgen.nets.code import where
from smidgen.randomness import Purpose, Stream
from smidgen.training.averaging import WeightAverage
from smidgen.training.evaluation import Evaluation, HeldOut, evaluate
from smidgen.training.recalibration import norms, recalibrate
from smidgen.training.rounding import Rounding
from smidgen.training.sums import EpochSums, LossError
from smidgen.trial import Augmentation, Module, Trial

SECONDS_BETWEEN_READINGS = 0.5
"""How long figures stay on a GPU within an epoch, so that progress can be shown."""


@dataclass(frozen=True)
class EpochRecord:
    """Results of one epoch.

    Attributes:
        epoch: counted from 1.
        train_loss: mean of the training loss (with label smoothing) over the epoch's images, as
            they were seen: augmented, with dropout, by the weights at that time; nats.
        train_accuracy: percent of the same images, likewise.
        test_loss: cross-entropy averaged over the held-out images after the epoch; nats.
        test_correct: held-out images classified correctly.
        test_total: held-out images.
        learning_rate: of the epoch's last step.
        seconds_training: the steps.
        seconds_evaluation: evaluating the held-out images.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_correct: int
    test_total: int
    learning_rate: float
    seconds_training: float
    seconds_evaluation: float

    @property
    def test_accuracy(self) -> float:
        """Percent of the held-out images."""
        return 100 * self.test_correct / self.test_total

    def to_json(self) -> dict[str, float | int]:
        """The record with its accuracy, as written to epochs.jsonl."""
        return {**asdict(self), "test_accuracy": self.test_accuracy}

    @classmethod
    def from_json(cls, data: object) -> EpochRecord:
        """A record as `to_json` gave it.

        Raises:
            ValueError: a value is missing or cannot be.
        """
        if not isinstance(data, dict):
            raise ValueError("an epoch is not an object")
        values: dict[str, Any] = {}
        for column in fields(cls):
            value: Any = data.get(column.name)
            whole = column.type == "int"
            good = type(value) is int if whole else type(value) in (int, float)
            if not good or not 0 <= value < (2**53 if whole else math.inf):
                raise ValueError(f"an epoch's {column.name} is {str(value)[:40]!r}")
            values[column.name] = value if whole else float(value)
        record = cls(**values)
        if record.epoch < 1 or not 0 <= record.test_correct <= record.test_total or record.test_total == 0:
            raise ValueError("an epoch's counts are invalid")
        return record


class Watcher(Protocol):
    """Receives progress callbacks; it must not change anything."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """After a step: images seen in the epoch, and means of loss and accuracy (percent).

        The means are over the images whose figures have been read, which on a GPU happens every half second; nan
        before that.
        """


@dataclass
class Training:
    """All state that training changes. With the trial, the seed and the data, it determines everything that follows.

    Attributes:
        engine: that trains and evaluates.
        network: the network, on its engine.
        optimizer: over its parameters.
        average: of its weights, or None where the trial has no averaging.
        history: of the finished epochs.
        step: steps taken in the epoch after those.
        sums: of the same epoch.
        evaluation: of the network after the last finished epoch; None where this process has finished none.
    """

    engine: Engine
    network: nn.Module
    optimizer: Optimizer
    average: WeightAverage | None
    history: list[EpochRecord] = field(default_factory=list)
    step: int = 0
    sums: EpochSums = field(default_factory=EpochSums)
    evaluation: Evaluation | None = None

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated: the averaged one, if there is averaging."""
        return self.average.network if self.average else self.network


def new_network(trial: Trial, dataset: Dataset, seed: int) -> nn.Module:
    """The trial's network with the initial weights of a seed, on the CPU.

    Raises:
        TrialError: the network does not fit the data's shape or classes, or has nothing to recalibrate.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Stream(seed, Purpose.TORCH).torch_seed())
        network = build_network(
            trial.network, input_shape=dataset.input_shape, classes=dataset.classes, dropout=trial.dropout
        )
        if trial.recalibration and not norms(network):
            raise TrialError(
                f"{trial.name}: recalibration is {trial.recalibration:g}, but the network has no BatchNorm; set it to 0"
            )
        if trial.initial_weights == "he":
            # He, Zhang, Ren, Sun, "Delving deep into rectifiers" (ICCV 2015), equation 10.
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return network


def start(trial: Trial, network: nn.Module, engine: Engine) -> Training:
    """A training before its first step.

    Args:
        trial: the recipe.
        network: plain; its parameters are trained where they are.
        engine: that trains and evaluates.
    """
    network = engine.prepare(network)
    optimizer, average = engine.optimizer(trial.optimizer, network, averaged=trial.averaging > 0)
    return Training(engine, network, optimizer, WeightAverage(average, trial.averaging) if average else None)


def train(training: Training, trial: Trial, dataset: Dataset, seed: int, watcher: Watcher) -> Iterator[EpochRecord]:
    """Train from where `training` stands to the trial's last epoch; yields after each epoch.

    Args:
        training: changed in place.
        trial: the recipe.
        dataset: images are drawn from its training examples, each once an epoch.
        seed: 0 to 2**63 - 1.
        watcher: called after each step.

    Raises:
        TrainingError: the loss is not finite; names epoch and step.
    """
    engine, mean, std = training.engine, dataset.mean, dataset.std
    try:
        examples = dataset.train.to(engine.device)
        held_out = HeldOut(engine, dataset.held_out, mean, std)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"there is not enough memory on {engine.device} for {dataset!r}") from None
    loader = engine.loader(examples, trial.augmentation, seed, mean, std)
    steps = steps_per_epoch(trial, dataset)
    rounding = None
    if trial.quantization:
        rounding = Rounding(trial, new_network(trial, dataset, seed), dataset.input_shape)
    read_at = time.perf_counter()
    for epoch in range(len(training.history) + 1, trial.epochs + 1):
        clock = time.perf_counter()
        training.network.train()
        order = torch.from_numpy(Stream(seed, Purpose.ORDER, epoch).permutation(len(examples)))
        batches = order.to(engine.device).split(trial.batch_size)
        sums = training.sums
        rounds = rounding if rounding and epoch >= rounding.first_epoch else None
        learning = steps - (recalibration_steps(trial, steps) if epoch == trial.epochs else 0)
        for step in range(training.step, learning):
            picks = batches[step]
            rate = _rate(trial, steps, epoch, step)
            with _divergence_named(trial, epoch, step, steps):
                taken = (epoch - 1) * steps + step + 1
                figures = take_step(training, loader, picks, rate, trial, seed, epoch, step, taken, rounds)
                training.step = step + 1
                sums.add(figures, len(picks))
                if not sums.all_read and time.perf_counter() - read_at >= SECONDS_BETWEEN_READINGS:
                    sums.read()
                    read_at = time.perf_counter()
            sums.seconds, clock = sums.seconds + time.perf_counter() - clock, time.perf_counter()
            watcher.step(epoch, sums.seen, sums.mean_loss, sums.accuracy)
        with _divergence_named(trial, epoch, learning - 1, steps):
            sums.read()
        if training.average:
            training.average.settle()
        ends = epoch == trial.epochs
        if rounds and ends:
            rounds.settle(training.judged)
        if learning < steps:
            plain = engine.loader(examples, Augmentation(), seed, mean, std)
            with _divergence_named(trial, epoch, steps - 1, steps):
                recalibrate(training.judged, (plain.load(picks, epoch, 0)[0] for picks in batches[learning:]))
        trained = time.perf_counter()
        with _divergence_named(trial, epoch, steps - 1, steps):
            with rounds.applied(training.judged) if rounds and not ends else contextlib.nullcontext():
                judged = evaluate(training.judged, held_out)
            if not math.isfinite(judged.loss):
                raise TrainingError(f"the {dataset.held_out_name} loss is {judged.loss}")
        record = EpochRecord(
            epoch=epoch,
            train_loss=sums.mean_loss,
            train_accuracy=sums.accuracy,
            test_loss=judged.loss,
            test_correct=judged.correct,
            test_total=judged.total,
            learning_rate=_rate(trial, steps, epoch, steps - 1),
            seconds_training=sums.seconds + trained - clock,
            seconds_evaluation=time.perf_counter() - trained,
        )
        training.history.append(record)
        training.step, training.sums, training.evaluation = 0, EpochSums(), judged
        yield record


def steps_per_epoch(trial: Trial, dataset: Dataset) -> int:
    """Number of optimizer steps in an epoch; the last may be over fewer images."""
    return math.ceil(len(dataset.train) / trial.batch_size)


def recalibration_steps(trial: Trial, steps: int) -> int:
    """Number of batches of the last epoch that re-estimate BatchNorm's statistics instead of updating the weights.

    Args:
        trial: the recipe.
        steps: of an epoch; at least one of them is left to learn from.
    """
    return min(steps - 1, math.ceil(trial.recalibration * steps))


def _rate(trial: Trial, steps: int, epoch: int, step: int) -> float:
    """The learning rate of a step, counted from 0 in its epoch."""
    return trial.optimizer.lr * trial.schedule.fraction((epoch - 1) * steps + step, steps, trial.epochs)


@contextlib.contextmanager
def _divergence_named(trial: Trial, epoch: int, step: int, steps: int) -> Iterator[None]:
    """Add epoch, step and a remedy to the error of a training that cannot continue."""
    try:
        yield
    except TrainingError as error:
        if isinstance(error, LossError):
            step -= error.steps_ago
        raise TrainingError(
            f"training diverged in epoch {epoch}, step {step + 1} of {steps}: {error}; "
            f"lower optimizer.lr (it is {trial.optimizer.lr:g})"
        ) from None
    except SmidgenError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise TrainingError(
                f"there is not enough memory for a step over {trial.batch_size:,} images; lower batch_size"
            ) from None
        if not isinstance(trial.network, Module):
            raise
        raise TrialError(
            f"{trial.network} failed in epoch {epoch}, step {step + 1} of {steps}: {where(error)}"
        ) from None


def take_step(
    training: Training,
    loader: Loader,
    picks: Tensor,
    rate: float,
    trial: Trial,
    seed: int,
    epoch: int,
    step: int,
    taken: int,
    rounding: Rounding | None = None,
) -> Figures:
    """One optimizer step over the picked images, and the average's.

    Args:
        training: changed in place.
        loader: gives the images.
        picks: int64 [count], which of them.
        rate: learning rate.
        trial: the recipe.
        seed: the run's.
        epoch: counted from 1.
        step: counted from 0 within the epoch.
        taken: steps of the whole training, this one included.
        rounding: of the weights that the gradients are of.

    Returns:
        The batch's mean loss, and how many images were classified correctly.
    """
    training.optimizer.set_rate(rate)
    images, labels = loader.load(picks, epoch, step)
    stream = Stream(seed, Purpose.TORCH, epoch, step + 1)
    with rounding.applied(training.network) if rounding else contextlib.nullcontext():
        figures = training.engine.gradients(training.network, images, labels, trial.label_smoothing, stream)
    training.optimizer.step()
    if training.average:
        training.average.update(taken)
    return figures
