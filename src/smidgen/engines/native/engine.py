"""The native engine: the project's kernels, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from smidgen.data.augment import changed_settings
from smidgen.data.dataset import Examples
from smidgen.engines.eager import laid_out, training_support
from smidgen.engines.engine import Batch, EngineKind, LayerTimes, Optimizer, Precision, Support
from smidgen.engines.flat import FlatAverage, FlatState
from smidgen.engines.native.core import find_core, level
from smidgen.engines.native.fuse import UnsupportedError
from smidgen.engines.native.images import KNOWN_SETTINGS, Blocks, NativeLoader, laid_out_images
from smidgen.engines.native.module import NativeNetwork
from smidgen.engines.native.vectors import FlatSGD, NativeSoap, move_towards
from smidgen.engines.optimizers import OPTIMIZERS, new_optimizer, trained_parameters
from smidgen.graph.ops import Shape
from smidgen.randomness import Stream
from smidgen.settings import Json
from smidgen.trial import SGD, SOAP, Augmentation, Trial
from smidgen.trial import Optimizer as OptimizerSettings

_PEAK_ROUNDS = 20_000_000


@dataclass(frozen=True)
class NativeEngine:
    """Runs networks by the project's kernels.

    Attributes:
        threads: of the engine's work; results do not depend on it.
        precision: of the products.
        note: as `Engine` says.
    """

    name: ClassVar[EngineKind] = "native"
    threads_change_results: ClassVar[bool] = False
    revision: ClassVar[int] = 2

    threads: int
    precision: Precision = "fp32"
    note: str = ""
    device: torch.device = field(default=torch.device("cpu"), init=False)

    @property
    def torch_threads(self) -> int:
        """As `Engine` says: beside the kernels there is nothing for more than one to do."""
        return 1

    @property
    def identity(self) -> dict[str, Json]:
        """As `Engine` says."""
        return {
            "engine": self.name,
            "revision": self.revision,
            "precision": self.precision,
            "device": str(self.device),
            "threads": self.threads,
            "instruction_level": level(),
        }

    def supports(self, trial: Trial, network: nn.Module, input_shape: Shape) -> Support:
        """As `Engine` says: the layers that the kernels have, and what the loader and the flat vectors allow."""
        if not (support := training_support(trial, network)):
            return support
        if unknown := changed_settings(trial.augmentation) - KNOWN_SETTINGS:
            return Support(f"the native engine cannot load images with augmentation.{min(unknown)}")
        kind = OPTIMIZERS.get(type(trial.optimizer))
        if kind and not kind.elementwise:
            return Support(f"the native engine lacks the optimizer {type(trial.optimizer).__name__}")
        return self.runs(network, input_shape)

    def runs(self, network: nn.Module, input_shape: Shape) -> Support:
        """As `Engine` says."""
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                return Support(f"the native engine computes in float32, and {name} is {tensor.dtype}")
        try:
            NativeNetwork(network, self.threads).check(input_shape)
        except UnsupportedError as error:
            return Support(str(error))
        return Support()

    def prepare(self, network: nn.Module) -> NativeNetwork:
        """As `Engine` says."""
        return NativeNetwork(network, self.threads, bfloat16=self.precision == "bf16")

    def plain(self, network: nn.Module) -> nn.Module:
        """As `Engine` says."""
        assert isinstance(network, NativeNetwork)
        return laid_out(network.original, torch.contiguous_format)

    def loader(
        self, examples: Examples, augmentation: Augmentation, seed: int, mean: float, std: float
    ) -> NativeLoader:
        """As `Engine` says."""
        return NativeLoader(examples.images, examples.labels, augmentation, seed, mean, std, self.threads)

    def batch(self, images: Tensor, mean: float, std: float) -> Blocks:
        """As `Engine` says."""
        return laid_out_images(images, mean, std, self.threads)

    def gradients(
        self, network: nn.Module, images: Batch, labels: Tensor, label_smoothing: float, stream: Stream
    ) -> tuple[float, int]:
        """As `Engine` says."""
        assert isinstance(network, NativeNetwork)
        assert isinstance(images, Blocks | Tensor)
        return network.loss_and_gradients(images, labels, label_smoothing, stream)

    def optimizer(
        self, settings: OptimizerSettings, network: nn.Module, *, averaged: bool
    ) -> tuple[Optimizer, FlatAverage | None]:
        """As `Engine` says."""
        flat = FlatState(network)
        average = FlatAverage(network, flat, move_towards) if averaged else None
        if isinstance(settings, SGD):
            return FlatSGD(settings, flat), average
        if isinstance(settings, SOAP):
            return NativeSoap(settings, trained_parameters(network), self.threads), average
        return new_optimizer(settings, network, flat), average

    def time_layers(self, network: nn.Module) -> LayerTimes | None:
        """As `Engine` says."""
        assert isinstance(network, NativeNetwork)
        network.time_layers()
        return network.timings

    def peak(self) -> float | None:
        """As `Engine` says: the best of three, in float32."""
        core = find_core()
        assert core is not None
        return float(max(core.peak(self.threads, False, _PEAK_ROUNDS, level()) for _ in range(3)))
