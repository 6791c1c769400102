"""Results of a benchmark, as tables and as JSON."""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch

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
    """The native engine's time by layer for one network.

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
        """Share of the peak reached by whole steps at this rate."""
        return images_per_second * self.gflop_per_image / self.peak

    @property
    def convolution_share(self) -> float:
        """Share of the peak reached within the convolutions and linear layers."""
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
    """Measurements of one trial's network.

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
        """The share of training time spent on checkpoints: one per epoch of 60,000 images, and one every 30 seconds."""
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
        columns = ["way", "images/s, median", "min", "max", "times loader", "times eager"]
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
    """All measurements of a benchmark.

    Attributes:
        networks: the reference network with trial 3's settings first.
        threads: of every way but those that say otherwise.
        rounds: measurements of each way.
        steps: of a measurement.
    """

    networks: tuple[NetworkResults, ...]
    threads: int
    rounds: int
    steps: int

    def to_json(self) -> dict[str, Any]:
        """The results as JSON data: those of the reference network at the top, the others' below `others`."""
        return {
            **self.networks[0].to_json(),
            "others": [network.to_json() for network in self.networks[1:]],
            "threads": self.threads,
            "rounds": self.rounds,
            **_versions(),
        }

    def profiles(self) -> str:
        """Tables of the native engine's time by layer."""
        found = [f"{n.trial}, float32, {self.threads} thread(s)\n{n.profile}" for n in self.networks if n.profile]
        return "\n\n".join(found)

    def __str__(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in _versions().items())
        tables = "\n\n".join(map(str, self.networks))
        return (
            f"{tables}\n\nwhole training steps, {self.steps} steps a measurement, {self.rounds} rounds in turn, "
            f"{self.threads} thread(s)\n{about}"
        )


def _versions() -> dict[str, str]:
    return {
        "smidgen": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
