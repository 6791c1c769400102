"""Results of a benchmark, as tables and as JSON."""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch

from smidgen.engines.engine import LayerPass
from smidgen.tables import render
from smidgen.version import VERSION

EPOCH_IMAGES, CHECKPOINT_SECONDS = 60_000, 30


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
        """Speed relative to another way: median of the ratios of the rounds."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


@dataclass(frozen=True)
class Profile:
    """The native engine's time by layer for one network.

    Attributes:
        passes: each layer's, with the seconds of one step.
        batch_size: images of a step.
        peak: what all threads together can do, measured, GFLOP/s.
        threads: of the engine.
    """

    passes: tuple[LayerPass, ...]
    batch_size: int
    peak: float
    threads: int

    def share_of(self, images_per_second: float) -> float:
        """Share of the peak that whole steps reach at this rate.

        Counted are two operations for each multiply-add of the convolutions and linear layers, forward and in both
        gradients, without the gradient by the images: what any engine has to do, by the textbook.
        """
        return images_per_second * 2e-9 * sum(each.multiply_adds for each in self.passes) / self.peak

    @property
    def product_share(self) -> float:
        """Share of the peak within the passes that multiply."""
        passes = [each for each in self.passes if each.multiply_adds]
        operations = 2e-9 * self.batch_size * sum(each.multiply_adds for each in passes)
        return operations / sum(each.seconds for each in passes) / (self.peak / self.threads)

    @property
    def moved(self) -> float:
        """Bytes of values and gradients that are read or written for one image."""
        return sum(each.moved for each in self.passes)

    @property
    def least(self) -> float:
        """Bytes that must be, if each layer reads and writes its own values only."""
        return sum(each.least for each in self.passes)

    def __str__(self) -> str:
        columns = ["layer", "pass", "ms a step", "GFLOP/s a thread", "of peak", "KiB an image", "least", "GB/s"]
        return render(columns, [*map(self._row, self.passes), self._total()], left=2)

    def _row(self, each: LayerPass) -> list[str]:
        gflops = 2e-9 * each.multiply_adds * self.batch_size / each.seconds
        share = gflops / (self.peak / self.threads)
        return [
            each.layer,
            each.run,
            f"{1e3 * each.seconds:.3f}",
            *([f"{gflops:.1f}", f"{share:.0%}"] if gflops else ["", ""]),
            f"{each.moved / 1024:.1f}",
            f"{each.least / 1024:.1f}",
            f"{1e-9 * each.moved * self.batch_size / each.seconds:.1f}",
        ]

    def _total(self) -> list[str]:
        total = LayerPass(
            "all",
            "",
            sum(each.seconds for each in self.passes),
            sum(each.multiply_adds for each in self.passes),
            self.moved,
            self.least,
        )
        return self._row(total)


@dataclass(frozen=True)
class NetworkResults:
    """Measurements of one trial's network.

    Attributes:
        role: `reference network` or `flagship`.
        trial: the trial's name.
        batch_size: images a step.
        ways: by key: `loader`, `eager`, `native`, `native_bf16`, `native_1_thread`, those that there are.
        evaluations: ways to classify the test images with 1 thread: `eager`, `native`, `onnxruntime`, those that there
            are.
        profile: of the native engine in float32, if it is there.
        checkpoint_seconds: to write one checkpoint to the disk of the working directory, median.
        variants: other ways to run PyTorch eagerly, if asked for.
    """

    role: str
    trial: str
    batch_size: int
    ways: dict[str, Way]
    evaluations: dict[str, Way]
    profile: Profile | None
    checkpoint_seconds: float
    variants: tuple[Way, ...] = ()

    @property
    def checkpoint_share(self) -> float:
        """The share of training time spent on checkpoints: one per epoch of 60,000 images, and one every 30 seconds."""
        epoch = EPOCH_IMAGES / self.ways.get("native", self.ways["eager"]).rate
        return self.checkpoint_seconds * (1 / epoch + 1 / CHECKPOINT_SECONDS)

    def evaluation_ratio(self, other: str) -> float | None:
        """How many times as fast as another way the native engine classifies; None if one of them is missing."""
        native, compared = self.evaluations.get("native"), self.evaluations.get(other)
        return native.ratio_to(compared) if native and compared else None

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data; None for what this machine or build lacks."""
        ways = self.ways

        def ratio(way: str, other: str) -> float | None:
            return ways[way].ratio_to(ways[other]) if way in ways and other in ways else None

        def rate(way: str, among: dict[str, Way]) -> float | None:
            return among[way].rate if way in among else None

        native, profile = ways.get("native"), self.profile
        return {
            "trial": self.trial,
            "batch_size": self.batch_size,
            "native_images_per_second": rate("native", ways),
            "native_bf16_images_per_second": rate("native_bf16", ways),
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
            "peak_gflops": profile.peak if profile else None,
            "peak_share": profile.share_of(native.rate) if profile and native else None,
            "peak_share_convolutions": profile.product_share if profile else None,
            "bytes_an_image": profile.moved if profile else None,
            "least_bytes_an_image": profile.least if profile else None,
            "evaluation_native_images_per_second": rate("native", self.evaluations),
            "evaluation_eager_images_per_second": rate("eager", self.evaluations),
            "evaluation_onnxruntime_images_per_second": rate("onnxruntime", self.evaluations),
            "evaluation_ratio_to_eager": self.evaluation_ratio("eager"),
            "evaluation_ratio_to_onnxruntime": self.evaluation_ratio("onnxruntime"),
            "layers": [vars(each) for each in profile.passes] if profile else None,
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
        columns = ["way", "images/s, median", "min", "max", "times loader", "times eager"]
        text = f"{self.role} ({self.trial}), batches of {self.batch_size}\n{render(columns, rows)}"
        native = self.ways.get("native")
        if self.profile and native:
            text += (
                f"\nnative: {self.profile.share_of(native.rate):.0%} of the measured peak of "
                f"{self.profile.peak:.0f} GFLOP/s over whole steps, {self.profile.product_share:.0%} in the "
                f"convolutions; {self.profile.moved / 1024:,.0f} KiB moved an image, at least "
                f"{self.profile.least / 1024:,.0f}"
            )
        if self.evaluations:
            rates = ", ".join(f"{way.name} {way.rate:,.0f}" for way in self.evaluations.values())
            text += f"\nevaluation with 1 thread, images/s: {rates}"
        if (ratio := self.evaluation_ratio("onnxruntime")) is not None:
            text += f"; native {ratio:.2f} times onnxruntime"
        text += (
            f"\ncheckpoints: {1e3 * self.checkpoint_seconds:.1f} ms each, {self.checkpoint_share:.2%} of training "
            f"with one an epoch and one in {CHECKPOINT_SECONDS} s"
        )
        return text


BUSY = 80.0
"""Involuntary context switches a second and thread from which on a machine counts as busy. With 2 cores they were 40
when idle, and 136 beside one other process that computed."""


@dataclass(frozen=True)
class Results:
    """All measurements of a benchmark.

    Attributes:
        reference: the reference network with trial 3's settings.
        flagship: the flagship's network and settings.
        threads: of every way but those that say otherwise.
        rounds: measurements of each way.
        steps: of a measurement.
        switches: how often the system interrupted a thread for another process, times a second and thread;
            None if unknown.
    """

    reference: NetworkResults
    flagship: NetworkResults
    threads: int
    rounds: int
    steps: int
    switches: float | None

    @property
    def networks(self) -> tuple[NetworkResults, NetworkResults]:
        """Both."""
        return self.reference, self.flagship

    @property
    def is_busy(self) -> bool | None:
        """Whether other work disturbed the measurements; None if unknown."""
        return None if self.switches is None else self.switches > BUSY

    def to_json(self) -> dict[str, Any]:
        """The results as JSON data: the reference network's, and the flagship's under keys that begin with its name."""
        return {
            **self.reference.to_json(),
            **{f"flagship_{key}": value for key, value in self.flagship.to_json().items()},
            "threads": self.threads,
            "rounds": self.rounds,
            "involuntary_switches_per_second": self.switches,
            "busy": self.is_busy,
            **_versions(),
        }

    def profiles(self) -> str:
        """Tables of the native engine's time by layer."""
        found = [
            f"{n.role} ({n.trial}), float32, {self.threads} thread(s)\n{n.profile}" for n in self.networks if n.profile
        ]
        return "\n\n".join(found)

    def __str__(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in _versions().items())
        tables = "\n\n".join(map(str, self.networks))
        text = (
            f"{tables}\n\nwhole training steps, {self.steps} steps a measurement, {self.rounds} rounds in turn, "
            f"{self.threads} thread(s)\n{about}"
        )
        if self.is_busy:
            text += (
                f"\nthis machine was busy: each thread was interrupted {self.switches:.0f} times a second; rates are "
                f"too low, and ratios less reliable"
            )
        return text


def _versions() -> dict[str, str]:
    return {
        "smidgen": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
