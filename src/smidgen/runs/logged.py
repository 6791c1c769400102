"""What logs for other programs record of a run."""

from __future__ import annotations

from collections.abc import Iterator

from smidgen.settings import Json
from smidgen.training.loop import EpochRecord
from smidgen.trial import Trial

IMAGES = 32
"""How many augmented images a log shows."""


def scalars(record: EpochRecord, held_out: str) -> dict[str, float]:
    """What is drawn against the epoch, by name."""
    return {
        "loss/train": record.train_loss,
        f"loss/{held_out}": record.test_loss,
        "accuracy/train": record.train_accuracy,
        f"accuracy/{held_out}": record.test_accuracy,
        "learning rate": record.learning_rate,
        "seconds/training": record.seconds_training,
        "seconds/evaluation": record.seconds_evaluation,
    }


def hyperparameters(trial: Trial, seed: int) -> dict[str, float | str]:
    """The seed and the settings of a trial by path, as in `optimizer.lr`; the network as one line."""
    data = {name: value for name, value in trial.to_json().items() if name not in ("note", "lineage")}
    return dict(_leaves({**data, "network": str(trial.network), "seed": seed}, ""))


def _leaves(data: Json, path: str) -> Iterator[tuple[str, float | str]]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield path, data
    elif data is not None:
        yield path, str(data)
