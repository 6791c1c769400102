"""Batches of distorted, normalized images from uint8 images, in the kernels' layout."""

from __future__ import annotations

import torch
from torch import Tensor

from smidgen.engines.native.core import find_core, level
from smidgen.randomness import Stream
from smidgen.trial import Augmentation


def load_images(
    images: Tensor, picks: Tensor, settings: Augmentation, stream: Stream, mean: float, std: float, threads: int
) -> Tensor:
    """Some images, distorted and normalized: what `augment` and `normalize` give, up to rounding.

    Args:
        images: uint8 [any, channels, height, width], contiguous.
        picks: int64 [count], which images.
        settings: strengths of the distortion.
        stream: where the random numbers come from; the same ones as for `smidgen.data.augment`.
        mean: subtracted from pixels of 0 to 1.
        std: that they are then divided by.
        threads: that take part; the result does not depend on it.

    Returns:
        float32 [count, channels, height, width], the image innermost in memory.

    Raises:
        TypeError: images or picks of another type or layout.
        IndexError: a pick that is not there.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise TypeError("images must be contiguous uint8 [count, channels, height, width]")
    if picks.dtype != torch.int64 or picks.dim() != 1:
        raise TypeError("picks must be int64 [count]")
    picks = picks.contiguous()
    _, channels, height, width = images.shape
    count = len(picks)
    core = find_core()
    assert core is not None
    batch = torch.empty((channels, height, width, count)).permute(3, 0, 1, 2)
    strengths = [
        settings.rotation,
        settings.translation,
        settings.scale,
        settings.shear,
        settings.elastic,
        settings.elastic_smoothness,
    ]
    core.load_images(
        images.data_ptr(),
        len(images),
        [channels, height, width],
        picks.data_ptr(),
        count,
        strengths,
        settings.interpolation == "nearest",
        [stream.seed, int(stream.purpose), 0, stream.step, stream.epoch, 0],
        1 / (255 * std),
        -mean / std,
        batch.data_ptr(),
        count,
        threads,
        level(),
    )
    return batch
