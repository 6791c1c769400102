"""The eager engine: PyTorch, operation by operation, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smidgen.data.augment import KNOWN_SETTINGS, augment, changed_settings, normalize, to_float
from smidgen.data.dataset import Examples
from smidgen.engines.engine import Batch, EngineKind, Figures, LayerTimes, Optimizer, Precision, Support
from smidgen.engines.flat import FlatAverage, FlatState
from smidgen.engines.optimizers import new_optimizer, optimizer_support
from smidgen.graph.ops import Shape
from smidgen.randomness import Purpose, Stream
from smidgen.settings import Json
from smidgen.trial import Augmentation, Trial
from smidgen.trial import Optimizer as OptimizerSettings


@dataclass(frozen=True)
class EagerEngine:
    """Runs networks by PyTorch.

    Attributes:
        device: of the images and the parameters.
        threads: of PyTorch's operations on the CPU.
        note: as `Engine` says.
        layout: how images and weights lie in memory; None: what is fastest with so many threads, by the
            measurements in docs/log.md.
        products: `fp32`, or on a GPU `tf32`: factors are rounded to 10 bits of mantissa. Whoever uses the engine has
            to tell PyTorch, whose setting it is (`smidgen.runs.run`).
    """

    name: ClassVar[EngineKind] = "eager"
    threads_change_results: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    device: torch.device
    threads: int
    note: str = ""
    layout: torch.memory_format | None = None
    products: Precision = "fp32"

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout of images and weights."""
        if self.layout is not None:
            return self.layout
        return torch.channels_last if self.threads == 1 or self.device.type == "cuda" else torch.contiguous_format

    @property
    def precision(self) -> Precision:
        """As `Engine` says."""
        return self.products

    @property
    def torch_threads(self) -> int:
        """As `Engine` says."""
        return self.threads

    @property
    def identity(self) -> dict[str, Json]:
        """As `Engine` says."""
        return {
            "engine": self.name,
            "revision": self.revision,
            "precision": self.precision,
            "device": str(self.device),
            "threads": self.threads,
            "instruction_level": None,
        }

    def supports(self, trial: Trial, network: nn.Module, input_shape: Shape) -> Support:  # noqa: ARG002 - any will do
        """As `Engine` says: whatever PyTorch runs."""
        return training_support(trial, network)

    def runs(self, network: nn.Module, input_shape: Shape) -> Support:  # noqa: ARG002 - PyTorch runs any
        """As `Engine` says."""
        return Support()

    def prepare(self, network: nn.Module) -> nn.Module:
        """As `Engine` says."""
        return laid_out(network.to(self.device), self.memory_format)

    def plain(self, network: nn.Module) -> nn.Module:
        """As `Engine` says."""
        return laid_out(network.cpu(), torch.contiguous_format)

    def loader(self, examples: Examples, augmentation: Augmentation, seed: int, mean: float, std: float) -> EagerLoader:
        """As `Engine` says."""
        return EagerLoader(examples, augmentation, seed, mean, std, self.memory_format)

    def batch(self, images: Tensor, mean: float, std: float) -> Tensor:
        """As `Engine` says."""
        return normalize(to_float(images), mean, std)

    def gradients(
        self, network: nn.Module, images: Batch, labels: Tensor, label_smoothing: float, stream: Stream
    ) -> Figures:
        """As `Engine` says."""
        assert isinstance(images, Tensor)
        self.seed(stream)
        figures = self.figures(network, images, labels, label_smoothing)
        if self.device.type == "cpu":
            loss, hits = figures.tolist()
            return loss, int(hits)
        return figures

    def figures(self, network: nn.Module, images: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """`gradients` without its random numbers; mean loss and hits as float64 [2], on the engine's device."""
        logits = network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        self.backward(network, loss)
        hits = (logits.detach().argmax(1) == labels).sum()
        return torch.stack((loss.detach().double(), hits.double()))

    def backward(self, network: nn.Module, loss: Tensor) -> None:
        """Leave the gradients of a loss where those before them were."""
        network.zero_grad(set_to_none=False)
        loss.backward()

    def seed(self, stream: Stream) -> None:
        """Seed the generator that layers on the engine's device draw from."""
        # Not torch.manual_seed, which also sees to devices that are not used, and takes its time.
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(stream.torch_seed())
        else:
            torch.cuda.manual_seed(stream.torch_seed())

    def optimizer(
        self, settings: OptimizerSettings, network: nn.Module, *, averaged: bool
    ) -> tuple[Optimizer, FlatAverage | None]:
        """As `Engine` says."""
        flat = FlatState(network)
        return new_optimizer(settings, network, flat), FlatAverage(network, flat, Tensor.lerp_) if averaged else None

    def time_layers(self, network: nn.Module) -> LayerTimes | None:  # noqa: ARG002 - the interface's
        """As `Engine` says: it has no times."""
        return None

    def peak(self) -> float | None:
        """As `Engine` says: it is not known."""
        return None


@dataclass
class EagerLoader:
    """Batches by PyTorch's operations, on any device; the attributes are as `Engine.loader` says.

    Attributes:
        layout: of the images in memory.
    """

    examples: Examples
    augmentation: Augmentation
    seed: int
    mean: float
    std: float
    layout: torch.memory_format

    def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """As `Loader` says."""
        stream = Stream(self.seed, Purpose.AUGMENTATION, epoch, step)
        images = augment(to_float(self.examples.images[picks]), self.augmentation, stream)
        images = normalize(images, self.mean, self.std).contiguous(memory_format=self.layout)
        return images, self.examples.labels[picks]


def training_support(trial: Trial, network: nn.Module) -> Support:
    """Whether there is everything that a training needs besides the network's operations."""
    if not (support := optimizer_support(trial.optimizer, network)):
        return support
    unknown = changed_settings(trial.augmentation) - KNOWN_SETTINGS
    if unknown:
        return Support(f"no engine has the augmentation {min(unknown)}")
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            return Support(f"{name} has the dtype {parameter.dtype}; only float32 parameters can be trained")
    return Support()


def laid_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The network with its weights in a memory layout, in place."""
    return network.to(memory_format=layout)  # type: ignore[call-overload,no-any-return] # missing in torch's stubs
