"""A training's whole state as a sealed file of tensors, and back, after any step.

Stateless parts are not saved: the order of the images, augmentation, dropout and the learning
rate are functions of seed, epoch and step.
"""

from __future__ import annotations

import errno
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smidgen.errors import RunError, TrainingError
from smidgen.files import cannot_read
from smidgen.tensorfile import TensorFileError, all_finite, plain_copies, read_header, read_tensors, sealed_bytes
from smidgen.training.loop import EpochRecord, Training, recalibration_steps
from smidgen.training.sums import EpochSums, LossError
from smidgen.trial import Trial

_FORMAT = 4
_OUR_TROUBLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors in reading that say nothing about the file."""
_HISTORY = "history"
_COLUMNS = tuple(field.name for field in fields(EpochRecord))
_SUMS = ("loss", "correct", "seen", "seconds")
_COUNTS = ("epoch", "test_correct", "test_total")


@dataclass(frozen=True)
class Origin:
    """Identity of the training that wrote a checkpoint; only the same training can resume from it.

    Attributes:
        recipe_sha256: of the trial.
        data_sha256: of the data.
        seed: of the run.
    """

    recipe_sha256: str
    data_sha256: str
    seed: int


def to_bytes(training: Training, origin: Origin) -> bytes:
    """The state as the bytes of a file.

    Raises:
        TrainingError: a value is no longer finite, so the state cannot be resumed.
    """
    try:
        training.sums.read()
    except LossError as error:
        raise TrainingError(
            f"training diverged in epoch {len(training.history) + 1}, step {training.step - error.steps_ago}: {error}; "
            f"lower optimizer.lr"
        ) from None
    tensors = _tensors(training)
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise TrainingError(
                f"training diverged by epoch {len(training.history) + 1}, step {training.step}: {name} holds values "
                f"that are no longer finite; lower optimizer.lr"
            )
    sums = {name: getattr(training.sums, name) for name in _SUMS}
    about = {"format": _FORMAT, "step": training.step, "sums": sums, **asdict(origin)}
    return sealed_bytes({**tensors, _HISTORY: _from_history(training.history)}, about)


class DamagedCheckpointError(RunError):
    """A checkpoint that is not what was written, so that the one before it is to be tried."""


def restore(training: Training, path: Path, origin: Origin, trial: Trial, images: int) -> None:
    """Restore a new training of the same trial and seed to the state of a checkpoint.

    Args:
        training: as `start` gives it; changed in place, unless an error is raised.
        path: of the checkpoint.
        origin: of the training that is resumed.
        trial: of the same.
        images: to train on.

    Raises:
        FileNotFoundError: there is none.
        DamagedCheckpointError: it is damaged, contradicts itself, or is of another trial, seed or data.
        RunError: it cannot be read at all.
    """
    try:
        header = read_header(path, follow=False)
        if header.about.get("format") != _FORMAT or not header.sealed:
            raise DamagedCheckpointError(f"{path} was not written by this version of smidgen")
        if {name: header.about.get(name) for name in asdict(origin)} != asdict(origin):
            raise DamagedCheckpointError(f"{path} is of another trial, seed or data")
        rows = header.tensors.pop(_HISTORY, None)
        if rows is None or rows[0] != torch.float64 or rows[1][1:] != (len(_COLUMNS),) or rows[1][0] > trial.epochs:
            raise ValueError("its history is malformed")
        step, sums = _position(header.about, trial, images, finished=rows[1][0])
        taken = _steps_taken(trial, images, finished=rows[1][0], step=step)
        state = training.optimizer.state_after(taken)
        named = _network_tensors(training) | _optimizer_tensors(state)
        if header.tensors != {name: (t.dtype, tuple(t.shape)) for name, t in named.items()}:
            raise DamagedCheckpointError(f"{path} does not fit the trial's network and optimizer")
        header.tensors[_HISTORY] = rows
        tensors = read_tensors(path, header, follow=False)
        history = _to_history(tensors.pop(_HISTORY))
        _check_values(tensors, taken)
    except FileNotFoundError:
        raise
    except OSError as error:
        kind = RunError if error.errno in _OUR_TROUBLE else DamagedCheckpointError
        raise kind(cannot_read(path, error)) from None
    except (TensorFileError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}") from None
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(tensors[name])
    training.optimizer.restore(state)
    training.history, training.step, training.sums = history, step, sums


def _tensors(training: Training) -> dict[str, Tensor]:
    return plain_copies(_live(training))


def _live(training: Training) -> dict[str, Tensor]:
    """The tensors that hold the state, not copies, by name."""
    return _network_tensors(training) | _optimizer_tensors(training.optimizer.state())


def _optimizer_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"optimizer.{name}": tensor for name, tensor in state.items()}


def _network_tensors(training: Training) -> dict[str, Tensor]:
    named = {f"network.{name}": t for name, t in training.network.state_dict().items()}
    if training.average:
        named |= {f"average.{name}": t for name, t in training.average.network.state_dict().items()}
    return named


def _check_values(tensors: dict[str, Tensor], taken: int) -> None:
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise ValueError(f"{name} holds values that are not finite")
        of_optimizer = name.startswith("optimizer.")
        squares = name.endswith("running_var") or (of_optimizer and name.endswith((".exp_avg_sq", ".square")))
        if squares and bool((tensor < 0).any()):
            raise ValueError(f"{name} holds negative values")
        if of_optimizer and name.endswith(".step") and float(tensor) != taken:
            raise ValueError(f"{name} is {float(tensor):g}, but {taken} steps were taken")


def _from_history(history: list[EpochRecord]) -> Tensor:
    """One row an epoch, one column a field; float64 holds the counts exactly."""
    rows = [[float(getattr(record, name)) for name in _COLUMNS] for record in history]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(_COLUMNS))


def _to_history(table: Tensor) -> list[EpochRecord]:
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in table.tolist()]
    history = [EpochRecord.from_json({n: int(v) if n in _COUNTS else v for n, v in row.items()}) for row in rows]
    if [record.epoch for record in history] != list(range(1, len(history) + 1)):
        raise ValueError("its epochs are not in order")
    return history


def _steps_taken(trial: Trial, images: int, finished: int, step: int) -> int:
    """Steps of the optimizer; the last of a finished training only recalibrate."""
    steps = math.ceil(images / trial.batch_size)
    return finished * steps + step - (recalibration_steps(trial, steps) if finished == trial.epochs else 0)


def _position(about: dict[str, Any], trial: Trial, images: int, finished: int) -> tuple[int, EpochSums]:
    """Steps taken in the epoch and its sums, which must agree with each other and with the finished epochs."""
    step, data = about["step"], about["sums"]
    steps = 0 if finished == trial.epochs else math.ceil(images / trial.batch_size)
    if type(step) is not int or not 0 <= step <= steps:
        raise ValueError(f"its step is {step!r}")
    sums = EpochSums(*(data[name] for name in _SUMS))
    good = all(type(value) is float and 0 <= value < math.inf for value in (sums.loss, sums.seconds))
    good = good and type(sums.correct) is int and sums.seen == min(step * trial.batch_size, images)
    if not good or not 0 <= sums.correct <= sums.seen:
        raise ValueError("its running sums are invalid")
    return step, sums
