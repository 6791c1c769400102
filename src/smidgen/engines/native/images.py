"""Batches of distorted, normalized images from uint8 images, in the kernels' layout."""

from __future__ import annotations

import torch
from torch import Tensor

from smidgen.engines.native.core import find_core, level
from smidgen.randomness import Purpose
from smidgen.trial import Augmentation


class NativeLoader:
    """Loads batches: what `smidgen.data.augment` and normalization give, up to rounding.

    Args:
        images: uint8 [any, channels, height, width], contiguous.
        labels: int64 [any].
        settings: strengths of the distortion.
        seed: its random numbers are those of `Stream(seed, AUGMENTATION, epoch, step)`.
        mean: subtracted from pixels of 0 to 1.
        std: that they are then divided by.
        threads: that take part; the result does not depend on it.

    Raises:
        TypeError: images or labels of another type or layout.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, settings: Augmentation, seed: int, mean: float, std: float, threads: int
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
            raise TypeError("images must be contiguous uint8 [count, channels, height, width]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not labels.is_contiguous():
            raise TypeError("labels must be contiguous int64, one for each image")
        core = find_core()
        assert core is not None
        self._kept = images, labels  # the loader holds only their addresses
        self._shape = tuple(images.shape[1:])
        self._threads = threads
        strengths = [
            settings.rotation, settings.translation, settings.scale, settings.shear, settings.elastic,
            settings.elastic_smoothness, settings.flip,
        ]  # fmt: skip
        self._loader = core.Loader(
            images.data_ptr(), labels.data_ptr(), len(images), list(self._shape), strengths,
            settings.interpolation == "nearest", seed, int(Purpose.AUGMENTATION), 1 / (255 * std), -mean / std, level(),
        )  # fmt: skip
        self._images, self._labels = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The picked images and their labels, valid until the next call.

        Args:
            picks: int64 [count].
            epoch: of the random numbers.
            step: of the random numbers.

        Returns:
            float32 [count, channels, height, width], the image innermost in memory; int64 [count].

        Raises:
            IndexError: a pick that is not there.
            TypeError: picks of another type.
        """
        if picks.dtype != torch.int64 or picks.dim() != 1 or picks.device.type != "cpu":
            raise TypeError("picks must be int64 [count] on the CPU")
        picks, count = picks.contiguous(), len(picks)
        if self._labels.shape[0] != count:
            self._images = torch.empty((*self._shape, count)).permute(3, 0, 1, 2)
            self._labels = torch.empty(count, dtype=torch.int64)
        self._loader.load(
            picks.data_ptr(), count, epoch, step, self._images.data_ptr(), count, self._labels.data_ptr(), self._threads
        )
        return self._images, self._labels
