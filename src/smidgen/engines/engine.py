"""The interface of everything that trains and evaluates a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from smidgen.data.dataset import Examples
from smidgen.graph.ops import Shape
from smidgen.randomness import Stream
from smidgen.settings import Json
from smidgen.trial import Augmentation, Trial
from smidgen.trial import Optimizer as OptimizerSettings

EngineName = Literal["auto", "native", "eager", "cuda"]
EngineKind = Literal["native", "eager", "cuda"]
Precision = Literal["fp32", "tf32", "bf16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]

MOST_THREADS = 256


Figures = tuple[float, int] | Tensor
"""A step's mean loss and hits; or both in a float64 tensor [2] on the engine's device, perhaps not computed yet."""


@dataclass(frozen=True)
class LayerPass:
    """What one pass of one layer took and did.

    Attributes:
        layer: its name; names of layers that are done in one pass are joined by `+`.
        run: which pass.
        seconds: added over threads.
        multiply_adds: of one image, by the textbook; 0 for a pass that does next to none.
        moved: bytes of values and gradients that are read or written for one image.
        least: bytes that must be, for this layer's input, output and their gradients.
    """

    layer: str
    run: str
    seconds: float
    multiply_adds: float
    moved: float
    least: float


LayerTimes = Callable[[], list[LayerPass]]
"""Every pass since the timer was started."""


@dataclass(frozen=True)
class Support:
    """Whether an engine can run something: true where no reason is against it.

    Attributes:
        reason: what stands in the way, for a message in one line.
    """

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


class Batch(Protocol):
    """Images, normalized, as the networks of an engine take them."""

    @property
    def shape(self) -> Sequence[int]:
        """Count, channels, height, width."""


class Loader(Protocol):
    """Gives augmented, normalized batches."""

    def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Batch, Tensor]:
        """The picked images and their labels, int64 [count]; they are valid until the next call.

        Args:
            picks: int64 [count], on the engine's device.
            epoch: of the random numbers.
            step: of the random numbers.
        """


class Optimizer(Protocol):
    """Changes a network's trained parameters along their gradients."""

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps from now on."""

    def step(self) -> None:
        """One step along the gradients that `Engine.gradients` left."""

    def state(self) -> dict[str, Tensor]:
        """Its state by name: the tensors themselves, not copies."""

    def state_after(self, steps: int) -> dict[str, Tensor]:
        """Tensors of the names, shapes and types that `state` has after so many steps, with any values."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_after` made room for."""


class Average(Protocol):
    """An average of a network's weights and running statistics.

    Attributes:
        network: a copy of the network with the average, in evaluation mode.
    """

    network: nn.Module

    def move(self, weight: float) -> None:
        """Move every floating value towards the network's: average + weight * (value - average)."""

    def settle(self) -> None:
        """Take over the counters and whatever else is not averaged."""


class Engine(Protocol):
    """One way to run networks, on one device.

    Attributes:
        name: `native` (the project's kernels, on the CPU), `eager` (PyTorch) or `cuda` (PyTorch, its steps recorded on
            a GPU).
        threads_change_results: whether the number of threads can change the last digits of a result.
        revision: of the arithmetic, raised whenever the same recipe and seed give other weights than before: sweeps
            and searches do not mix runs of two revisions.
    """

    name: ClassVar[EngineKind]
    threads_change_results: ClassVar[bool]
    revision: ClassVar[int]

    @property
    def device(self) -> torch.device:
        """The device of the images and the parameters."""

    @property
    def threads(self) -> int:
        """On the CPU; of the native engine's work, or of PyTorch's operations."""

    @property
    def precision(self) -> Precision:
        """The precision of the multiplications."""

    @property
    def note(self) -> str:
        """Why `auto` did not choose a faster engine; empty if it did."""

    @property
    def torch_threads(self) -> int:
        """Threads for PyTorch's operations during a run."""

    @property
    def identity(self) -> dict[str, Json]:
        """Engine, its revision, precision, device, threads and instruction level, as `environment.json` has them."""

    def supports(self, trial: Trial, network: nn.Module, input_shape: Shape) -> Support:
        """Whether it can train this network by this recipe, all of it: layers, augmentation, optimizer.

        Args:
            trial: the recipe.
            network: that is to be trained; its mode is left as it is.
            input_shape: of an image.
        """

    def runs(self, network: nn.Module, input_shape: Shape) -> Support:
        """Whether it has this network's operations, for training and for evaluation.

        Args:
            network: its mode is left as it is.
            input_shape: of an image.
        """

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network on this engine: a module with the same parameters and buffers, under the same names."""

    def plain(self, network: nn.Module) -> nn.Module:
        """The PyTorch module behind a prepared one, on the CPU, with the same weights."""

    def loader(self, examples: Examples, augmentation: Augmentation, seed: int, mean: float, std: float) -> Loader:
        """Batches for training.

        Args:
            examples: on this engine's device.
            augmentation: strengths.
            seed: of the run.
            mean: of the training images, 0 to 1.
            std: of the same.
        """

    def batch(self, images: Tensor, mean: float, std: float) -> Batch:
        """Images as they are, normalized.

        Args:
            images: uint8 [count, channels, height, width], on this engine's device.
            mean: subtracted from pixels of 0 to 1.
            std: that they are then divided by.
        """

    def gradients(
        self, network: nn.Module, images: Batch, labels: Tensor, label_smoothing: float, stream: Stream
    ) -> Figures:
        """Forward and backward over one batch; the gradients replace those that were there.

        Args:
            network: prepared, in training mode.
            images: as the loader gives them.
            labels: int64 [count].
            label_smoothing: 0 to 1.
            stream: what layers that drop values at random draw from, so that they have no state.

        Returns:
            The mean cross-entropy (nats), and how many images have their highest score at their label.

        Raises:
            TrainingError: a value is not finite; names the layer.
        """

    def optimizer(
        self, settings: OptimizerSettings, network: nn.Module, *, averaged: bool
    ) -> tuple[Optimizer, Average | None]:
        """The optimizer of a prepared network's trained parameters, and an average that starts at their values.

        Args:
            settings: the trial's. Weight decay does not act on biases and BatchNorm's scale and shift.
            network: prepared; its parameters may be moved in memory.
            averaged: whether an average is wanted.
        """

    def time_layers(self, network: nn.Module) -> LayerTimes | None:
        """Start timing every layer's passes in a prepared network; None if the engine cannot."""

    def peak(self) -> float | None:
        """Measured peak of all threads together, multiply-adds per second; None if unknown."""
