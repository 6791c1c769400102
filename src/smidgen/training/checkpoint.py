"""A training's whole state as a sealed file of tensors, and back, after any step.

What has no state needs no saving: the order of the images, distortion, dropout and the learning
rate are functions of seed, epoch and step.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smidgen.errors import RunError, TrainingError
from smidgen.files import cannot_read
from smidgen.tensorfile import Header, TensorFileError, read_header, read_tensors, sealed_bytes
from smidgen.training.loop import EpochRecord, EpochSums, Training

_FORMAT = 2
_HISTORY = "history"
_COLUMNS = tuple(field.name for field in fields(EpochRecord))
_COUNTS = ("epoch", "test_correct", "test_total")


@dataclass(frozen=True)
class Origin:
    """Whose checkpoint it is: only the same training can go on from it.

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
        TrainingError: a value is no longer finite, so that this is nothing to go on from.
    """
    tensors = _tensors(training)
    for name, tensor in tensors.items():
        # A sum is finite where every value is, unless the values are absurd.
        if tensor.is_floating_point() and not math.isfinite(float(tensor.sum())):
            raise TrainingError(
                f"training diverged by epoch {len(training.history) + 1}, step {training.step}: {name} holds values "
                f"that are no longer finite; lower optimizer.lr"
            )
    about = {"format": _FORMAT, "step": training.step, "sums": asdict(training.sums), **asdict(origin)}
    return sealed_bytes({**tensors, _HISTORY: _from_history(training.history)}, about)


def restore(training: Training, path: Path, origin: Origin, epochs: int, steps: int) -> None:
    """Bring a new training of the same trial and seed to where the checkpoint was written.

    Args:
        training: as `start` gives it; changed in place, unless an error is raised.
        path: of the checkpoint.
        origin: of the training that goes on.
        epochs: of the whole training.
        steps: of an epoch.

    Raises:
        FileNotFoundError: there is none.
        RunError: the checkpoint is damaged, or of another trial, seed or data.
    """
    try:
        header = read_header(path, follow=False)
        about = header.about
        if about.get("format") != _FORMAT or not header.sealed:
            raise RunError(f"{path} was written by another version of smidgen")
        if {name: about.get(name) for name in asdict(origin)} != asdict(origin):
            raise RunError(f"{path} is of another trial, seed or data")
        _make_room(training, header)
        if not _fits(_live(training), header):
            raise RunError(f"{path} does not fit the trial's network and optimizer")
        tensors = read_tensors(path, header, follow=False)
        history = _to_history(tensors.pop(_HISTORY))
        step, sums = _count(about["step"], steps), _sums(about["sums"])
        if [record.epoch for record in history] != list(range(1, len(history) + 1)) or len(history) > epochs:
            raise ValueError("its epochs are not in order")
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
            raise ValueError("it holds values that are not finite")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(cannot_read(path, error)) from None
    except (TensorFileError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    with torch.no_grad():
        for name, tensor in _live(training).items():
            tensor.copy_(tensors[name])
    training.history, training.step, training.sums = history, step, sums


def _tensors(training: Training) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in _live(training).items()}


def _live(training: Training) -> dict[str, Tensor]:
    """The tensors that hold the state, not copies, by name."""
    named = {f"network.{name}": t for name, t in training.network.state_dict().items()}
    if training.average:
        named |= {f"average.{name}": t for name, t in training.average.network.state_dict().items()}
    for index, parameter in enumerate(_parameters(training)):
        state = training.optimizer.state.get(parameter, {})
        named |= {f"optimizer.{index}.{n}": t for n, t in state.items() if isinstance(t, Tensor)}
    return named


def _fits(wanted: dict[str, Tensor], header: Header) -> bool:
    there = {name: value for name, value in header.tensors.items() if name != _HISTORY}
    return there == {name: (t.dtype, tuple(t.shape)) for name, t in wanted.items()}


def _parameters(training: Training) -> list[Tensor]:
    return [p for group in training.optimizer.param_groups for p in group["params"]]


def _make_room(training: Training, header: Header) -> None:
    """Make the optimizer's state, which PyTorch creates only in the first step, as far as the file has it.

    Whatever the file says, a state has the shape of its parameter, or is a single number.
    """
    for index, parameter in enumerate(_parameters(training)):
        for name in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
            if f"optimizer.{index}.{name}" in header.tensors:
                training.optimizer.state[parameter][name] = torch.zeros_like(parameter, requires_grad=False)
        if f"optimizer.{index}.step" in header.tensors:
            training.optimizer.state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)


def _from_history(history: list[EpochRecord]) -> Tensor:
    """One row an epoch, one column a field; float64 holds the counts exactly."""
    rows = [[float(getattr(record, name)) for name in _COLUMNS] for record in history]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(_COLUMNS))


def _to_history(table: Tensor) -> list[EpochRecord]:
    if table.dim() != 2 or table.shape[1] != len(_COLUMNS) or table.dtype != torch.float64:
        raise ValueError("its history has another form")
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in table.tolist()]
    return [EpochRecord.from_json({n: int(v) if n in _COUNTS else v for n, v in row.items()}) for row in rows]


def _sums(data: Any) -> EpochSums:
    sums = EpochSums(float(data["loss"]), int(data["correct"]), int(data["seen"]), float(data["seconds"]))
    if not math.isfinite(sums.loss) or sums.correct < 0 or sums.seen < 0:
        raise ValueError("its running sums cannot be")
    return sums


def _count(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"its step is {value!r}")
    return value
