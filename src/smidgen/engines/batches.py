"""Batches of images on an engine: from uint8 to what a network takes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from smidgen.data.augment import augment, normalize, to_float
from smidgen.data.dataset import Examples
from smidgen.engines.native.images import Blocks, NativeLoader, laid_out_images
from smidgen.engines.native.module import NativeNetwork
from smidgen.engines.prepare import Placement, memory_format
from smidgen.randomness import Purpose, Stream
from smidgen.trial import Augmentation


class Loader(Protocol):
    """Gives distorted, normalized batches."""

    def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Tensor | Blocks, Tensor]:
        """The picked images, as the engine's networks take them, and their labels, int64 [count].

        They are valid until the next call.
        """


class EagerLoader:
    """Batches by PyTorch's operations, on any device."""

    def __init__(
        self, examples: Examples, settings: Augmentation, seed: int, mean: float, std: float, placement: Placement
    ) -> None:
        self.examples, self.settings, self.seed, self.mean, self.std = examples, settings, seed, mean, std
        self.layout = memory_format(placement)

    def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """As `Loader` says."""
        stream = Stream(self.seed, Purpose.AUGMENTATION, epoch, step)
        images = augment(to_float(self.examples.images[picks]), self.settings, stream)
        images = normalize(images, self.mean, self.std).contiguous(memory_format=self.layout)
        return images, self.examples.labels[picks]


def make_loader(
    examples: Examples, settings: Augmentation, seed: int, mean: float, std: float, placement: Placement
) -> Loader:
    """The loader of an engine.

    Args:
        examples: on the placement's device.
        settings: strengths of the distortion.
        seed: of the run.
        mean: of the training images, 0 to 1.
        std: of the same.
        placement: engine, device, threads.
    """
    if placement.engine == "native":
        return NativeLoader(examples.images, examples.labels, settings, seed, mean, std, placement.threads)
    return EagerLoader(examples, settings, seed, mean, std, placement)


def evaluation_batch(network: nn.Module, images: Tensor, mean: float, std: float) -> Tensor | Blocks:
    """uint8 images as they are, normalized, for the engine that a network runs on."""
    if isinstance(network, NativeNetwork):
        return laid_out_images(images, mean, std, network.threads)
    return normalize(to_float(images), mean, std)
