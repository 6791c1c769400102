"""`smidgen bench`: images a second over whole training steps, each way measured in turn in one run.

Every way trains a built-in trial's network with the trial's settings on bundled MNIST. A step is
everything from picking the images to the optimizer and the average. Machines are noisy: what counts
is the ratio of two ways measured in turn, and of that the median over the rounds.
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from smidgen.anatomy.layers import examine
from smidgen.data.dataset import Dataset as Images
from smidgen.data.dataset import load_dataset
from smidgen.engines.choose import choose
from smidgen.engines.eager import EagerEngine
from smidgen.engines.engine import Engine, Precision
from smidgen.errors import SmidgenError
from smidgen.files import cannot_write, write_atomic
from smidgen.graph.layers import Dropout
from smidgen.nets.build import build_network
from smidgen.tables import render
from smidgen.training import checkpoint
from smidgen.training.checkpoint import Origin
from smidgen.training.loop import Training, start, take_step
from smidgen.trial import SGD, Augmentation, Trial
from smidgen.trials.mnist import augmented, strict
from smidgen.version import VERSION

STEPS = 25
"""Steps of one measurement."""
WARM_UP = 8
"""Steps before each measurement that do not count; they also empty what a loader has prefetched."""

ROUNDS = 5
"""Measurements of each way, unless more are asked for."""
EPOCH_IMAGES, CHECKPOINT_SECONDS = 60_000, 30

Step = Callable[[], object]
Report = Callable[[str, str, float], object]
"""Receives, before each measurement, the trial, what is measured, and the fraction of all work that is done."""


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
class LayerTime:
    """Time of one pass of one layer in the native engine.

    Attributes:
        layer: its name.
        run: which pass.
        milliseconds: a step, added over threads.
        gflops: billions of multiplications and additions a second and thread; 0 where there are next to none.
        share: of the peak of one thread.
    """

    layer: str
    run: str
    milliseconds: float
    gflops: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where the native engine's time goes in one network.

    Attributes:
        layers: each layer's passes.
        gflop_per_image: of a training step, by the textbook: two for each multiply-add of the
            convolutions and linear layers, forward and by both gradients.
        peak: what all threads together can do, measured, GFLOP/s.
    """

    layers: tuple[LayerTime, ...]
    gflop_per_image: float
    peak: float

    def share_of(self, images_per_second: float) -> float:
        """The share of the peak that whole steps at this rate come to."""
        return images_per_second * self.gflop_per_image / self.peak

    @property
    def convolution_share(self) -> float:
        """The share of the peak that the convolutions' and linear layers' passes come to by themselves."""
        passes = [layer for layer in self.layers if layer.gflops]
        busy = sum(layer.milliseconds for layer in passes)
        return sum(layer.share * layer.milliseconds for layer in passes) / busy

    def __str__(self) -> str:
        rows = [
            [
                t.layer,
                t.run,
                f"{t.milliseconds:.3f}",
                *([f"{t.gflops:.1f}", f"{t.share:.0%}"] if t.gflops else ["", ""]),
            ]
            for t in self.layers
        ]
        return render(["layer", "pass", "ms a step", "GFLOP/s a thread", "of peak"], rows)


@dataclass(frozen=True)
class NetworkResults:
    """What was measured with one trial's network.

    Attributes:
        trial: the trial's name.
        batch_size: images a step.
        ways: by key: `loader`, `eager`, `native`, `native_bf16`, `native_1_thread`, those that there are.
        profile: of the native engine in float32, if it is there.
        checkpoint_seconds: to write one checkpoint to the disk of the working directory, median.
        variants: other ways to run PyTorch eagerly, if asked for.
    """

    trial: str
    batch_size: int
    ways: dict[str, Way]
    profile: Profile | None
    checkpoint_seconds: float
    variants: tuple[Way, ...] = ()

    @property
    def checkpoint_share(self) -> float:
        """The share of training that goes into checkpoints: one an epoch of 60,000 images, and one in 30 seconds."""
        epoch = EPOCH_IMAGES / self.ways.get("native", self.ways["eager"]).rate
        return self.checkpoint_seconds * (1 / epoch + 1 / CHECKPOINT_SECONDS)

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data; None for what this machine or build lacks."""
        ways = self.ways

        def ratio(way: str, other: str) -> float | None:
            return ways[way].ratio_to(ways[other]) if way in ways and other in ways else None

        native = ways.get("native")
        return {
            "trial": self.trial,
            "batch_size": self.batch_size,
            "native_images_per_second": native.rate if native else None,
            "native_bf16_images_per_second": ways["native_bf16"].rate if "native_bf16" in ways else None,
            "eager_images_per_second": ways["eager"].rate,
            "loader_images_per_second": ways["loader"].rate,
            "ratio_to_eager": ratio("native", "eager"),
            "ratio_to_loader": ratio("native", "loader"),
            "ratio_to_eager_bf16": ratio("native_bf16", "eager"),
            "ratio_to_loader_bf16": ratio("native_bf16", "loader"),
            "ratio_to_one_thread": ratio("native", "native_1_thread"),
            "ratio_eager_to_loader": ratio("eager", "loader"),
            "checkpoint_milliseconds": 1e3 * self.checkpoint_seconds,
            "checkpoint_share": self.checkpoint_share,
            "peak_gflops": self.profile.peak if self.profile else None,
            "peak_share": self.profile.share_of(native.rate) if self.profile and native else None,
            "peak_share_convolutions": self.profile.convolution_share if self.profile else None,
            "variants": [
                {"name": w.name, "images_per_second": w.rate, "ratio_to_eager": w.ratio_to(ways["eager"])}
                for w in self.variants
            ],
        }

    def __str__(self) -> str:
        eager, loader = self.ways["eager"], self.ways["loader"]
        rows = [
            [way.name, f"{way.rate:,.0f}", f"{min(way.rates):,.0f}", f"{max(way.rates):,.0f}",
             f"{way.ratio_to(loader):.2f}", f"{way.ratio_to(eager):.2f}"]
            for way in (*self.ways.values(), *self.variants)
        ]  # fmt: skip
        columns = ["way", "images/s, median", "least", "most", "times loader", "times eager"]
        text = f"{self.trial}, batches of {self.batch_size}\n{render(columns, rows)}"
        native = self.ways.get("native")
        if self.profile and native:
            text += (
                f"\nnative: {self.profile.share_of(native.rate):.0%} of the measured peak of "
                f"{self.profile.peak:.0f} GFLOP/s over whole steps, {self.profile.convolution_share:.0%} in the "
                f"convolutions"
            )
        text += (
            f"\ncheckpoints: {1e3 * self.checkpoint_seconds:.1f} ms each, {self.checkpoint_share:.2%} of training "
            f"with one an epoch and one in {CHECKPOINT_SECONDS} s"
        )
        return text


@dataclass(frozen=True)
class Results:
    """What the bench measured.

    Attributes:
        networks: the seed's network with trial 3's settings first.
        threads: of every way but those that say otherwise.
        rounds: measurements of each way.
    """

    networks: tuple[NetworkResults, ...]
    threads: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """The results as JSON data: those of the seed's network at the top, the others' below `others`."""
        return {
            **self.networks[0].to_json(),
            "others": [network.to_json() for network in self.networks[1:]],
            "threads": self.threads,
            "rounds": self.rounds,
            **_versions(),
        }

    def profiles(self) -> str:
        """Tables of where the native engine's time goes."""
        found = [f"{n.trial}, float32, {self.threads} thread(s)\n{n.profile}" for n in self.networks if n.profile]
        return "\n\n".join(found)

    def __str__(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in _versions().items())
        tables = "\n\n".join(map(str, self.networks))
        return (
            f"{tables}\n\nwhole training steps, {STEPS} steps a measurement, {self.rounds} rounds in turn, "
            f"{self.threads} thread(s)\n{about}"
        )


def benchmark(
    threads: int | None = None, rounds: int = ROUNDS, variants: bool = False, report: Report = lambda *_: None
) -> Results:
    """Measure the seed's way and smidgen's engines in turn.

    Args:
        threads: None takes the usable cores, at most 8.
        rounds: measurements of each way.
        variants: also measure other memory layouts, dropouts and thread counts of the eager engine.
        report: receives progress.

    Raises:
        SmidgenError: no rounds, or a number of threads that is not allowed.
    """
    if rounds < 1:
        raise SmidgenError(f"--rounds is {rounds}; allowed: a whole number at least 1")
    threads, dataset = choose("eager", threads=threads).threads, load_dataset()
    before = torch.get_num_threads()
    try:
        networks = [
            _measure(augmented(), dataset, threads, rounds, variants, lambda *at: report(*_overall(0, *at))),
            _measure(strict(), dataset, threads, rounds, False, lambda *at: report(*_overall(1, *at))),
        ]
    finally:
        torch.set_num_threads(before)
    return Results(tuple(networks), threads, rounds)


def _overall(network: int, trial: str, what: str, fraction: float) -> tuple[str, str, float]:
    """Progress over both networks, from the progress within one of them."""
    return trial, what, (network + fraction) / 2


def _measure(
    trial: Trial, dataset: Images, threads: int, rounds: int, variants: bool, report: Report
) -> NetworkResults:
    ways: dict[str, Way] = {"loader": Way("loader (the seed's way)")}
    steps: list[tuple[Way, Step, int]] = []
    trainings: dict[str, Training] = {}

    def add(key: str, name: str, engine: Engine) -> None:
        ways[key] = Way(name)
        trainings[key] = _training(trial, dataset, engine)
        steps.append((ways[key], _engine_step(trainings[key], trial, dataset), engine.torch_threads))

    with _loader_step(trial, dataset) as loader_step:
        steps.append((ways["loader"], loader_step, threads))
        add("eager", "eager (smidgen)", choose("eager", threads=threads))
        if native := _native(threads):
            add("native", "native", native)
            if rough := _native(threads, "bf16"):
                add("native_bf16", "native, bfloat16 products", rough)
            if threads > 1 and (single := _native(1)):
                add("native_1_thread", "native, 1 thread", single)
        others = _variants(trial, dataset, threads) if variants else []
        steps += others
        measurements = [measured for _ in range(rounds) for measured in steps]
        for done, (way, step, count) in enumerate(measurements):
            report(trial.name, way.name, done / (len(measurements) + 2))
            torch.set_num_threads(count)
            way.rates.append(_rate(step, trial.batch_size))
    report(trial.name, "time by layer, checkpoints", 1 - 2 / (len(measurements) + 2))
    torch.set_num_threads(1)
    fastest = trainings.get("native", trainings["eager"])
    return NetworkResults(
        trial.name,
        trial.batch_size,
        ways,
        _profile(fastest, trial, dataset),
        _checkpoint_seconds(fastest, rounds),
        tuple(way for way, _, _ in others),
    )


def _native(threads: int, precision: Precision = "fp32") -> Engine | None:
    """The native engine, where it is to be had."""
    try:
        return choose("native", threads=threads, precision=precision)
    except SmidgenError:
        return None


def _checkpoint_seconds(training: Training, rounds: int) -> float:
    """Median of writing a checkpoint, the one before it kept, as a run does."""
    origin = Origin("0" * 64, "0" * 64, 0)
    seconds = []
    try:
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as name:
            path = Path(name) / "checkpoint"
            for _ in range(10 * rounds):
                began = time.perf_counter()
                write_atomic(path, checkpoint.to_bytes(training, origin), previous=path.with_name("previous"))
                seconds.append(time.perf_counter() - began)
    except OSError as error:
        raise cannot_write(Path.cwd(), error) from None
    return statistics.median(seconds)


def _training(trial: Trial, dataset: Images, engine: Engine, *, torch_dropout: bool = False) -> Training:
    torch.manual_seed(0)
    training = start(trial, _network(trial, dataset, trial.dropout, torch_dropout), engine)
    training.network.train()
    return training


def _engine_step(training: Training, trial: Trial, dataset: Images) -> Step:
    """A step as the training loop takes it."""
    loader = training.engine.loader(dataset.train, trial.augmentation, 0, dataset.mean, dataset.std)
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))
    batches = itertools.cycle(order.split(trial.batch_size)[:-1])
    counter = itertools.count()

    def step() -> None:
        number = next(counter)
        take_step(training, loader, next(batches), trial.optimizer.lr, trial, 0, 1, number, number + 1)

    return step


def _variants(trial: Trial, dataset: Images, threads: int) -> list[tuple[Way, Step, int]]:
    """Other ways to run PyTorch eagerly, each with one thing changed."""
    cpu = torch.device("cpu")
    usual, single = EagerEngine(cpu, threads), EagerEngine(cpu, 1)
    plain = replace(trial, dropout=0.0)

    def relaid(engine: EagerEngine) -> EagerEngine:
        other = {torch.channels_last: torch.contiguous_format, torch.contiguous_format: torch.channels_last}
        return replace(engine, layout=other[engine.memory_format])

    def way(name: str, trial: Trial, engine: EagerEngine, *, torch_dropout: bool = False) -> tuple[Way, Step, int]:
        training = _training(trial, dataset, engine, torch_dropout=torch_dropout)
        return Way(f"eager, {name}"), _engine_step(training, trial, dataset), engine.threads

    return [
        way("the other memory layout", trial, relaid(usual)),
        way("PyTorch's dropout", trial, usual, torch_dropout=True),
        way("no dropout", plain, usual),
        way("1 thread", trial, single),
        way("1 thread, the other memory layout", trial, relaid(single)),
    ]


PROFILED = 40
"""Steps over which the layers' times are taken."""


def _profile(training: Training, trial: Trial, dataset: Images) -> Profile | None:
    """Where a step's time goes, as far as the engine can tell."""
    engine, network = training.engine, training.network
    step = _engine_step(training, trial, dataset)
    for _ in range(WARM_UP):
        step()
    times, multiply_adds = engine.time_layers(network), engine.peak()
    if times is None or multiply_adds is None:
        return None
    peak = 2e-9 * multiply_adds
    for _ in range(PROFILED):
        step()
    macs = {layer.name: layer.macs for layer in examine(engine.plain(network), dataset.input_shape).layers}
    layers = []
    flop = 0.0
    for name, run, seconds in times():
        each = seconds / PROFILED
        products = 0 if run == "statistics" else macs.get(name, 0)
        gflops = 2e-9 * products * trial.batch_size / each
        flop += 2e-9 * products
        layers.append(LayerTime(name, run, 1e3 * each, gflops, gflops / (peak / engine.threads)))
    return Profile(tuple(layers), flop, peak)


def _rate(step: Step, batch_size: int) -> float:
    for _ in range(WARM_UP):
        step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * batch_size / (time.perf_counter() - began)


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
