"""The figures of a finished run: `result.json`, and what `smidgen run --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_args

from smidgen.engines.choose import ENGINES
from smidgen.engines.engine import Precision
from smidgen.errors import RunError
from smidgen.trial import BUDGETS

_MEASURED = ("accuracy_last", "accuracy_best", "loss_last")
"""Figures of the held-out images; their JSON keys begin with what was held out: `test_` or `validation_`."""
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool | None": (bool, type(None)),
    "int | None": (int, type(None)),
    "tuple[str, ...]": (list,),
}
"""Types in JSON, by a field's annotation."""
_ALLOWED = {
    "engine": tuple(ENGINES),
    "precision": get_args(Precision),
    "device": ("cpu", "cuda"),
    "held_out": ("test", "validation"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of a finished run.

    Attributes:
        trial: the trial's name.
        seed: the random seed.
        engine: `native`, `eager` or `cuda`.
        precision: of the products, `fp32`, `tf32` or `bf16`.
        device: `cpu` or `cuda`.
        threads: on the CPU.
        parameters: of the network.
        macs: multiply-accumulates of one image; a lower bound if the log says that some are not counted.
        epochs: how many were trained.
        flash: bytes of tables as C in integers; None where the goal has no budget in bytes.
        ram: bytes of memory of the same beside the image; likewise.
        held_out: what the network was evaluated on, `test` or `validation`.
        accuracy_last: percent of the held-out images, after the last epoch.
        accuracy_best: the same of the best epoch, which was chosen on those very images.
        loss_last: mean cross-entropy of the held-out images after the last epoch, nats.
        best_epoch: counted from 1.
        train_accuracy_last: percent of the last epoch's training images, as they were seen.
        goal_met: None where the test images were not looked at.
        seconds_setup: before the first step.
        seconds_training: of all steps and evaluations.
        images_per_second: training images, evaluations left out.
        run_dir: the run directory, as it was called when the run finished.
        weights_sha256: of the network's weights and buffers.
        recipe_sha256: of the trial.
        data_sha256: of the images and labels.
        class_names: none where classes are plain numbers.
        version: of smidgen.
        resumptions: how often the run was resumed.
    """

    trial: str
    seed: int
    engine: str
    precision: str = "fp32"
    device: str
    threads: int
    parameters: int
    macs: int
    epochs: int
    held_out: str
    accuracy_last: float
    accuracy_best: float
    loss_last: float
    best_epoch: int
    train_accuracy_last: float
    goal_met: bool | None
    seconds_setup: float
    seconds_training: float
    images_per_second: float
    run_dir: str
    weights_sha256: str
    recipe_sha256: str
    data_sha256: str
    class_names: tuple[str, ...] = ()
    version: str = ""
    resumptions: int = 0
    flash: int | None = None
    ram: int | None = None

    @property
    def used(self) -> dict[str, int]:
        """How much of each budget of a goal was used, as far as it is known, by their names."""
        return {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data. Only what was measured on the test images is called test accuracy."""
        data: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == _MEASURED[0]:
                data |= {f"test_{name}": None for name in _MEASURED}
            key = f"{self.held_out}_{field.name}" if field.name in _MEASURED else field.name
            data[key] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: object) -> Result:
        """A result as `to_json` gave it; older runs may lack fields that have a default.

        Args:
            data: JSON data.
            path: the run directory, which errors name.

        Raises:
            RunError: a key is missing, or a value has the wrong type or is out of range.
        """
        split = "validation" if data.get("held_out") == "validation" else "test"
        keys = {f.name: f"{split}_{f.name}" if f.name in _MEASURED else f.name for f in fields(cls)}
        missing = [keys[f.name] for f in fields(cls) if f.default is MISSING and keys[f.name] not in data]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            lacks = f"its result.json lacks {', '.join(missing[:3])}{more}"
            raise RunError(f"{path} is damaged or of another version of smidgen: {lacks}")
        values: dict[str, Any] = {}
        for field in fields(cls):
            key = keys[field.name]
            if key not in data:
                continue
            value, kinds = data[key], _JSON_TYPES[str(field.type)]
            good = type(value) in kinds and (not isinstance(value, float | int) or 0 <= value < 2**63)
            good = good and (not isinstance(value, list) or all(isinstance(item, str) for item in value))
            if not good or value not in _ALLOWED.get(field.name, (value,)):
                raise RunError(f"{path} is damaged: its result.json has {str(value)[:40]!r} for {key}")
            values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)
