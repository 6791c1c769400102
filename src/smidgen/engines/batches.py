"""Batches of images on an engine: from uint8 to what a network takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smidgen.data.augment import augment, normalize, to_float
from smidgen.engines.native.images import load_images
from smidgen.engines.native.module import NativeNetwork
from smidgen.engines.prepare import Placement, memory_format
from smidgen.randomness import Purpose, Stream
from smidgen.trial import Augmentation


def training_batch(
    images: Tensor,
    picks: Tensor,
    settings: Augmentation,
    stream: Stream,
    mean: float,
    std: float,
    placement: Placement,
) -> Tensor:
    """Some training images, distorted and normalized.

    Args:
        images: uint8 [any, channels, height, width].
        picks: int64 [count], which images.
        settings: strengths of the distortion.
        stream: where its random numbers come from.
        mean: the training set's, 0 to 1.
        std: the training set's.
        placement: engine, device, threads.

    Returns:
        float32 [count, channels, height, width].
    """
    if placement.engine == "native":
        return load_images(images, picks, settings, stream, mean, std, placement.threads)
    distorted = augment(to_float(images[picks]), settings, stream)
    return normalize(distorted, mean, std).contiguous(memory_format=memory_format(placement))


def evaluation_batch(network: nn.Module, images: Tensor, mean: float, std: float) -> Tensor:
    """uint8 images as they are, normalized, for the engine that a network runs on."""
    if isinstance(network, NativeNetwork):
        everything = torch.arange(len(images))
        return load_images(images, everything, Augmentation(), _UNUSED, mean, std, network.threads)
    return normalize(to_float(images), mean, std)


_UNUSED = Stream(0, Purpose.AUGMENTATION)
