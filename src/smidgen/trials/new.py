"""`smidgen new`: a trial file for data of one's own, to be changed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smidgen.data.dataset import Dataset, load_dataset
from smidgen.data.parts import NoTestImagesError
from smidgen.errors import SmidgenError, TrialError
from smidgen.files import cannot_write
from smidgen.lowering.c.budget import excess
from smidgen.lowering.c.sizes import Needs, int8_needs
from smidgen.nets.build import build_network, measure
from smidgen.nets.sizing import sized_network
from smidgen.trial import AvgPool, Block, Conv, Goal, Network

EPOCHS = 14
_TEMPLATE = '''"""A trial for {about}.

Written by `smidgen new`; change what you like. To run it: smidgen run {file}:trial

A variant is a function that returns `dataclasses.replace(trial(), name="variant", dropout=0.05)`. It records
what it was made from: `smidgen report` compares the runs of both.
"""

from smidgen import SOAP, Augmentation, AvgPool, Conv, Data, Goal, Linear, Network, OneCycle, Trial{separable}

NETWORK = Network(
    blocks=(
{blocks}
    )
)  # {sizes}


def trial() -> Trial:
    return Trial(
        name={name!r},
        # The goal of a run: a placeholder of 90 % test accuracy in the last epoch; set your own.
        goal=Goal(accuracy=90.0, {budgets}),
        # Where the images are, the shape they are brought to, and how many are held out for tuning, with
        # --set data.evaluate={tuned}.
        data=Data(source={source!r}, shape={shape}, validation={validation}{evaluate}),
        network=NETWORK,
        # For each training image: moved by up to 5 % of the side, scaled by up to 5 %. Where a
        # mirrored image means the same (clothes, not digits), flip=0.5 mirrors half of them.
        augmentation=Augmentation(translation=0.05, scale=0.05, flip=0.0),
        # The peak learning rate is what to try first: half and twice as much.
        optimizer=SOAP(lr=0.006, weight_decay=0.05),
        schedule=OneCycle(rise=0.2),  # up over a fifth of the steps, then down to almost nothing
        batch_size={batch_size},
        epochs={epochs},
        averaging={averaging},  # the weights are averaged for evaluation; this is the decay per step
        label_smoothing=0.05,
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
        needs: bytes of it as C in integers; None without a budget in bytes.
    """

    path: Path
    network: Network
    parameters: int
    macs: int
    dataset: Dataset
    needs: Needs | None = None

    @property
    def sizes(self) -> str:
        """The network's parameters, MACs and bytes, for people."""
        text = f"{self.parameters:,} parameters, {self.macs:,} MACs"
        return text + (f", {self.needs.flash:,} bytes of flash, {self.needs.ram:,} of RAM" if self.needs else "")

    def to_json(self) -> dict[str, Any]:
        """As `smidgen new --json` prints it."""
        return {
            "path": str(self.path),
            "trial": f"{self.path}:trial",
            "parameters": self.parameters,
            "macs": self.macs,
            "flash": self.needs and self.needs.flash,
            "ram": self.needs and self.needs.ram,
            "network": str(self.network),
            "input_shape": list(self.dataset.input_shape),
            "classes": self.dataset.classes,
        }

    def __str__(self) -> str:
        return f"{self.dataset!r}\n{self.path}: {self.network}\n{self.sizes}; to run it: smidgen run {self.path}:trial"


def new_trial(
    path: str | Path,
    *,
    data: str | Path,
    max_parameters: int = 20_000,
    epochs: int = EPOCHS,
    max_flash: int | None = None,
    max_ram: int | None = None,
) -> NewTrial:
    """Write a trial file with a network sized to its budgets, ready to run.

    Args:
        path: of the file, which must not exist yet; its name ends in `.py`.
        data: as `load_dataset` takes it.
        max_parameters: the goal's budget; the network comes just under it.
        epochs: to train for, and the goal's budget.
        max_flash: the goal's budget of bytes of tables as C in integers; None: any number.
        max_ram: the same of memory beside the image.

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
    goal = Goal(parameters=max_parameters, epochs=epochs, flash=max_flash, ram=max_ram)
    shape, classes = dataset.input_shape, dataset.classes
    network = sized_network(shape, classes, max_parameters, lambda tried: _needs(tried, goal, dataset))
    parameters, macs = measure(network, input_shape=shape, classes=classes)
    written = NewTrial(target, network, parameters, macs, dataset, _needs(network, goal, dataset))
    text = _TEMPLATE.format(
        about=ascii(str(data))[1:-1].replace('"""', "''"),
        file=target.name,
        blocks="\n".join(f"        {text}," for text in _sources(network)),
        separable=", separable" if any(isinstance(b, Conv) and not b.norm for b in network.blocks) else "",
        sizes=written.sizes,
        name=_name(target),
        budgets=", ".join(f"{name}={limit}" for name, limit in goal.budgets.items()),
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
    return written


def _needs(network: Network, goal: Goal, dataset: Dataset) -> Needs | None:
    """Bytes of a network as C in integers; None without a budget in bytes.

    Raises:
        TrialError: it is over a budget in bytes.
    """
    if not goal.in_bytes:
        return None
    with torch.random.fork_rng(devices=[]):
        built = build_network(network, input_shape=dataset.input_shape, classes=dataset.classes)
    try:
        needs = int8_needs(built, dataset.input_shape, most_ram=goal.ram)
    except SmidgenError as error:
        raise TrialError(
            f"no network for these images can be C in integers: {error}; leave out --max-flash and --max-ram"
        ) from None
    over = excess(goal, needs)
    if over:
        name, reason = over
        raise TrialError(f"even a narrow network for these images needs {reason}; raise --max-{name}")
    return needs


def _sizes(images: int, epochs: int) -> dict[str, Any]:
    """Settings that follow from the number of training images."""
    batch_size = 64 if images >= 10_000 else 32 if images >= 500 else 16
    steps = epochs * images / batch_size
    return {
        "validation": max(1, images // 10),
        "batch_size": batch_size,
        # The mean must reach back over a small part of the training only.
        "averaging": 0.999 if steps >= 5_000 else 0.99 if steps >= 500 else 0.9,
    }


def _name(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]
    return name or "mine"


def _sources(network: Network) -> Iterator[str]:
    """A network's blocks as Python writes them, without what is at its default."""
    before: Block | None = None
    for block in network.blocks:
        match block:
            case Conv(norm=False):
                pass  # the depthwise part of a separable convolution, which the next block ends
            case Conv(channels=channels, kernel=1):
                assert isinstance(before, Conv)
                yield f"*separable({before.channels}, {channels}, padding=1)"
            case Conv(channels=channels, stride=stride):
                yield f"Conv({channels}, padding=1" + (f", stride={stride}" if stride != 1 else "") + ")"
            case AvgPool(size=size):
                yield f"AvgPool({size or ''})"
            case _:
                yield "Linear()"
        before = block
