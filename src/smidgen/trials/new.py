"""`smidgen new`: a trial file for data of one's own, to be changed by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.data.dataset import Dataset, load_dataset
from smidgen.data.parts import NoTestImagesError
from smidgen.errors import TrialError
from smidgen.files import cannot_write
from smidgen.nets.build import measure
from smidgen.nets.sizing import sized_network
from smidgen.trial import Conv, Linear, MaxPool, Network

EPOCHS = 14
_TEMPLATE = '''"""A trial for {about}.

Written by `smidgen new`; change what you like. To run it: smidgen run {file}:trial

A variant is a function that returns `dataclasses.replace(trial(), name="variant", dropout=0.05)`. It records
what it was made from: `smidgen report` compares the runs of both.
"""

from smidgen import SGD, Augmentation, AvgPool, Conv, Data, Goal, Linear, MaxPool, Network, OneCycle, Trial

NETWORK = Network(
    blocks=(
{blocks}
    )
)  # {parameters:,} parameters, {macs:,} multiply-accumulates an image


def trial() -> Trial:
    return Trial(
        name={name!r},
        # The goal of a run: a placeholder of 90 % test accuracy in the last epoch; set your own.
        goal=Goal(accuracy=90.0, parameters={budget}, epochs={epochs}),
        # Where the images are, the shape they are brought to, and how many are held out for tuning, with
        # --set data.evaluate={tuned}.
        data=Data(source={source!r}, shape={shape}, validation={validation}{evaluate}),
        network=NETWORK,
        # For each training image: moved by up to 5 % of the side, scaled by up to 5 %. Where a
        # mirrored image means the same (clothes, not digits), flip=0.5 mirrors half of them.
        augmentation=Augmentation(translation=0.05, scale=0.05, flip=0.0),
        # The peak learning rate is what to try first: half and twice as much.
        optimizer=SGD(lr={lr}, momentum=0.9, nesterov=True, weight_decay=3e-4),
        schedule=OneCycle(rise=0.2),  # up over a fifth of the steps, then down to almost nothing
        batch_size={batch_size},
        epochs={epochs},
        averaging={averaging},  # the weights are averaged for evaluation; this is the decay per step
    )
'''


@dataclass(frozen=True)
class NewTrial:
    """A trial file that was written.

    Attributes:
        path: of the file.
        network: as large as the budget allows.
        parameters: of the network.
        macs: multiply-accumulates of one image.
        dataset: what it is for.
    """

    path: Path
    network: Network
    parameters: int
    macs: int
    dataset: Dataset

    def to_json(self) -> dict[str, Any]:
        """As `smidgen new --json` prints it."""
        return {
            "path": str(self.path),
            "trial": f"{self.path}:trial",
            "parameters": self.parameters,
            "macs": self.macs,
            "network": str(self.network),
            "input_shape": list(self.dataset.input_shape),
            "classes": self.dataset.classes,
        }

    def __str__(self) -> str:
        return (
            f"{self.dataset!r}\n{self.path}: {self.network}\n{self.parameters:,} parameters, {self.macs:,} MACs; "
            f"to run it: smidgen run {self.path}:trial"
        )


def new_trial(path: str | Path, *, data: str | Path, max_parameters: int = 20_000, epochs: int = EPOCHS) -> NewTrial:
    """Write a trial file with a network sized to a budget, ready to run.

    Args:
        path: of the file, which must not exist yet; its name ends in `.py`.
        data: as `load_dataset` takes it.
        max_parameters: the goal's budget; the network comes just under it.
        epochs: to train for, and the goal's budget.

    Raises:
        SmidgenError: the file exists or cannot be written, the data cannot be read, or nothing fits the budget.
    """
    target = Path(path)
    if target.suffix != ".py":
        raise TrialError(f"{path} must end in .py, as in my_trial.py")
    if target.exists():
        raise TrialError(f"{path} is there already and is not overwritten; choose another name")
    if not 1 <= epochs <= 100_000:
        raise TrialError(f"--epochs is {epochs}; allowed: 1 to 100000")
    try:
        dataset, evaluate = load_dataset(data), ""
    except NoTestImagesError:
        dataset, evaluate = load_dataset(data, validation=1), ', evaluate="validation"'
    network = sized_network(dataset.input_shape, dataset.classes, max_parameters)
    parameters, macs = measure(network, input_shape=dataset.input_shape, classes=dataset.classes)
    text = _TEMPLATE.format(
        about=ascii(str(data))[1:-1].replace('"""', "''"),
        file=target.name,
        blocks="\n".join(f"        {_source(block)}," for block in network.blocks),
        parameters=parameters,
        macs=macs,
        name=_name(target),
        budget=max_parameters,
        epochs=epochs,
        tuned="test" if evaluate else "validation",
        source=str(data),
        shape=dataset.input_shape,
        evaluate=evaluate,
        **_sizes(len(dataset.train), epochs),
    )
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise TrialError(f"{path} is there already and is not overwritten; choose another name") from None
    except OSError as error:
        raise cannot_write(target, error, "another FILE.py") from None
    return NewTrial(target, network, parameters, macs, dataset)


def _sizes(images: int, epochs: int) -> dict[str, Any]:
    """Settings that follow from the number of training images."""
    batch_size = 64 if images >= 10_000 else 32 if images >= 500 else 16
    steps = epochs * images / batch_size
    return {
        "validation": max(1, images // 10),
        "batch_size": batch_size,
        "lr": 0.1 if batch_size == 64 else 0.05,
        # The mean must reach back over a small part of the training only.
        "averaging": 0.999 if steps >= 5_000 else 0.99 if steps >= 500 else 0.9,
    }


def _name(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]
    return name or "mine"


def _source(block: object) -> str:
    """A block as Python writes it, without what is at its default."""
    match block:
        case Conv(channels=channels, stride=stride):
            return f"Conv({channels}, padding=1" + (f", stride={stride}" if stride != 1 else "") + ")"
        case MaxPool(size=size):
            return f"MaxPool({size})"
        case Linear():
            return "Linear()"
    return "AvgPool()"
