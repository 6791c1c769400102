"""`smidgen bench`: images a second over whole training steps, each way measured in turn in one run.

Every way trains the seed's network with trial 3's settings on bundled MNIST: batches of 128,
rotation, translation, scaling, dropout, SGD with momentum. A step is everything from picking the
images to the optimizer. Machines are noisy: what counts is the ratio of two ways measured in
turn, and of that the median over the rounds.
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from smidgen.data.augment import augment
from smidgen.data.dataset import Dataset as Images
from smidgen.data.dataset import load_dataset
from smidgen.engines.prepare import Placement, laid_out, memory_format, place
from smidgen.errors import SmidgenError
from smidgen.nets.build import build_network
from smidgen.nets.layers import Dropout
from smidgen.randomness import Purpose, Stream
from smidgen.tables import render
from smidgen.training.evaluation import normalize, to_float
from smidgen.training.optimizer import make_optimizer
from smidgen.trial import SGD, Augmentation, Trial
from smidgen.trials.mnist import augmented
from smidgen.version import VERSION

STEPS = 25
"""Steps of one measurement."""
WARM_UP = 8
"""Steps before each measurement that do not count; they also empty what a loader has prefetched."""

Step = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """One way to train, measured.

    Attributes:
        name: of the way.
        rates: images a second, one a round.
    """

    name: str
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median, images a second."""
        return statistics.median(self.rates)

    def ratio_to(self, other: Way) -> float:
        """How many times as fast as another way: median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


@dataclass(frozen=True)
class Results:
    """What the bench measured.

    Attributes:
        loader: the seed's way.
        eager: smidgen's eager engine.
        variants: other ways to run PyTorch eagerly, if asked for.
        threads: of PyTorch's operations.
    """

    loader: Way
    eager: Way
    variants: tuple[Way, ...]
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The results as JSON data. The native engine's figures are None: this version has none."""
        return {
            "native_images_per_second": None,
            "eager_images_per_second": self.eager.rate,
            "loader_images_per_second": self.loader.rate,
            "ratio_to_eager": None,
            "ratio_to_loader": None,
            "ratio_to_eager_bf16": None,
            "peak_share": None,
            "ratio_eager_to_loader": self.eager.ratio_to(self.loader),
            "variants": [
                {"name": w.name, "images_per_second": w.rate, "ratio_to_eager": w.ratio_to(self.eager)}
                for w in self.variants
            ],
            "threads": self.threads,
            "rounds": len(self.eager.rates),
            "batch_size": augmented().batch_size,
            **_versions(),
        }

    def __str__(self) -> str:
        rows = [
            [way.name, f"{way.rate:,.0f}", f"{min(way.rates):,.0f}", f"{max(way.rates):,.0f}",
             f"{way.ratio_to(self.loader):.2f}", f"{way.ratio_to(self.eager):.2f}"]
            for way in (self.loader, self.eager, *self.variants)
        ]  # fmt: skip
        columns = ["way", "images/s, median", "least", "most", "times loader", "times eager"]
        about = ", ".join(f"{name} {value}" for name, value in _versions().items())
        return (
            f"{render(columns, rows)}\n"
            f"whole training steps of the seed's network with trial 3's settings, {STEPS} steps a "
            f"measurement, {len(self.eager.rates)} rounds in turn, {self.threads} thread(s)\n{about}"
        )


def benchmark(threads: int | None = None, rounds: int = 7, variants: bool = False) -> Results:
    """Measure the seed's way and smidgen's eager engine in turn.

    Args:
        threads: of PyTorch's operations; None takes the usable cores, at most 8.
        rounds: measurements of each way.
        variants: also measure other memory layouts, optimizer steps, dropouts and thread counts.

    Raises:
        SmidgenError: no rounds, or a number of threads that is not allowed.
    """
    if rounds < 1:
        raise SmidgenError(f"--rounds is {rounds}; allowed: a whole number at least 1")
    placement, trial, dataset = place("eager", threads=threads), augmented(), load_dataset()
    before = torch.get_num_threads()
    loader, eager = Way("loader (the seed's way)"), Way("eager (smidgen)")
    others = [Way(name) for name, _ in _VARIANTS] if variants else []
    try:
        with _loader_step(trial, dataset) as loader_step:
            steps: list[tuple[Way, Step, int]] = [
                (loader, loader_step, placement.threads),
                (eager, _eager_step(trial, dataset, placement), placement.threads),
            ]
            for way, (_, change) in zip(others, _VARIANTS, strict=False):
                options = change(placement.threads)
                steps.append(
                    (
                        way,
                        _eager_step(trial, dataset, placement, **options),
                        options.get("threads", placement.threads),
                    )
                )
            for _ in range(rounds):
                for way, step, count in steps:
                    torch.set_num_threads(count)
                    way.rates.append(_rate(step, trial.batch_size))
    finally:
        torch.set_num_threads(before)
    return Results(loader, eager, tuple(others), placement.threads)


_VARIANTS: list[tuple[str, Callable[[int], dict[str, Any]]]] = [
    ("eager, the other memory layout", lambda _: {"other_layout": True}),
    ("eager, unfused optimizer", lambda _: {"fused": False}),
    ("eager, PyTorch's dropout", lambda _: {"torch_dropout": True}),
    ("eager, no dropout", lambda _: {"no_dropout": True}),
    ("eager, 1 thread", lambda _: {"threads": 1}),
    ("eager, 1 thread, the other memory layout", lambda _: {"threads": 1, "other_layout": True}),
]


def _rate(step: Step, batch_size: int) -> float:
    for _ in range(WARM_UP):
        step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * batch_size / (time.perf_counter() - began)


def _eager_step(
    trial: Trial,
    dataset: Images,
    placement: Placement,
    *,
    threads: int | None = None,
    other_layout: bool = False,
    fused: bool = True,
    torch_dropout: bool = False,
    no_dropout: bool = False,
) -> Step:
    """A step as the training loop does it, or with one thing changed."""
    if threads is not None:
        placement = Placement(placement.engine, placement.device, threads, placement.precision)
    layout = memory_format(placement)
    if other_layout:
        layout = torch.contiguous_format if layout == torch.channels_last else torch.channels_last
    network = _network(trial, dataset, 0.0 if no_dropout else trial.dropout, torch_dropout)
    network = laid_out(network, layout)
    optimizer = make_optimizer(trial.optimizer, network, fused=fused)
    counter = itertools.count()
    examples = dataset.train

    def step() -> None:
        number = next(counter)
        picks = torch.arange(number * trial.batch_size, (number + 1) * trial.batch_size) * 7919 % len(examples)
        images = augment(
            to_float(examples.images[picks]), trial.augmentation, Stream(0, Purpose.AUGMENTATION, 1, number)
        )
        images = normalize(images, dataset.mean, dataset.std).contiguous(memory_format=layout)
        torch.manual_seed(Stream(0, Purpose.TORCH, 1, number).torch_seed())
        _train_step(network, optimizer, images, examples.labels[picks])

    return step


@contextmanager
def _loader_step(trial: Trial, dataset: Images) -> Iterator[Step]:
    """A step the seed's way: one worker turns PIL images into tensors one by one; plain eager training."""
    network = _network(trial, dataset, trial.dropout, torch_dropout=True)
    assert isinstance(trial.optimizer, SGD)
    optimizer = torch.optim.SGD(network.parameters(), lr=trial.optimizer.lr, momentum=trial.optimizer.momentum)
    loader = DataLoader(
        _PillowImages(dataset, trial.augmentation),
        batch_size=trial.batch_size,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        drop_last=True,
    )
    batches = iter(itertools.chain.from_iterable(itertools.repeat(loader)))

    def step() -> None:
        images, labels = next(batches)
        _train_step(network, optimizer, images, labels)

    yield step


def _train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Forward, backward and optimizer, with the loss and the count of hits that a training loop shows."""
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    loss.item()
    int((logits.detach().argmax(1) == labels).sum())


def _network(trial: Trial, dataset: Images, dropout: float, torch_dropout: bool) -> nn.Module:
    network = build_network(trial.network, input_shape=dataset.input_shape, classes=dataset.classes, dropout=dropout)
    if torch_dropout:
        for name, module in list(network.named_children()):
            if isinstance(module, Dropout):
                setattr(network, name, nn.Dropout(module.p))
    return network.train()


class _PillowImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's RandomAffine, ToTensor and Normalize would give them, one at a time."""

    def __init__(self, dataset: Images, settings: Augmentation) -> None:
        self.images = dataset.train.images.squeeze(1).numpy()
        self.labels = dataset.train.labels.numpy()
        self.mean, self.std, self.settings = dataset.mean, dataset.std, settings

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._affine(Image.fromarray(self.images[index]))
        values = torch.from_numpy(np.array(image)).unsqueeze(0).contiguous().to(torch.float32).div(255)
        return values.sub_(self.mean).div_(self.std), int(self.labels[index])

    def _affine(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        angle, shift_x, shift_y, scale = (
            float(torch.empty(1).uniform_(-strength, strength))
            for strength in (
                self.settings.rotation,
                self.settings.translation * width,
                self.settings.translation * height,
                self.settings.scale,
            )
        )
        cos, sin = math.cos(math.radians(angle)) / (1 + scale), math.sin(math.radians(angle)) / (1 + scale)
        centre_x, centre_y = width / 2, height / 2
        left, top = centre_x + round(shift_x), centre_y + round(shift_y)
        matrix = (
            cos, sin, centre_x - cos * left - sin * top,
            -sin, cos, centre_y + sin * left - cos * top,
        )  # fmt: skip
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0)


def _versions() -> dict[str, str]:
    return {
        "smidgen": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
