"""Batches of images as the kernels read them, made from uint8 images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.engines.native.core import find_core, level
from smidgen.randomness import Purpose
from smidgen.trial import Augmentation

LANES = 16
"""Images of a block."""

_STRENGTHS = ("rotation", "translation", "scale", "shear", "elastic", "elastic_smoothness", "flip")
KNOWN_SETTINGS = frozenset({*_STRENGTHS, "interpolation"})
"""The settings of an `Augmentation` that the loader follows; it must not be given others."""


@dataclass(frozen=True)
class Blocks:
    """A batch of images as the kernels read it: in blocks of 16, the image innermost in memory.

    Attributes:
        values: float32 [blocks, channels, height, width, 16], contiguous, on the CPU, finite; zeros in the unused
            lanes of the last block.
        count: images.

    Raises:
        TypeError: the values are of another type or layout.
        ValueError: the values are not as many blocks as the images need.
    """

    values: Tensor
    count: int

    def __post_init__(self) -> None:
        values = self.values
        if values.dtype != torch.float32 or values.device.type != "cpu" or not values.is_contiguous():
            raise TypeError("blocks: they must be contiguous float32 on the CPU")
        if values.dim() != 5 or values.shape[-1] != LANES or len(values) != math.ceil(self.count / LANES):
            raise ValueError(
                f"blocks: {self.count} images take [{math.ceil(self.count / LANES)}, channels, height, width, {LANES}],"
                f" not {list(values.shape)}"
            )

    @classmethod
    def empty(cls, count: int, shape: tuple[int, ...]) -> Blocks:
        """Blocks for images of a shape [channels, height, width], not yet filled."""
        return cls(torch.empty((math.ceil(count / LANES), *shape, LANES)), count)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Count, channels, height, width."""
        _, channels, height, width, _ = self.values.shape
        return self.count, channels, height, width

    def to_tensor(self) -> Tensor:
        """The images as a tensor of its own, float32 [count, channels, height, width]."""
        return self.values.permute(0, 4, 1, 2, 3).flatten(0, 1)[: self.count].clone()


class NativeLoader:
    """Loads batches: what `smidgen.data.augment` and normalization give, up to rounding.

    Args:
        images: uint8 [any, channels, height, width], contiguous.
        labels: int64 [any]; None: batches have no labels.
        settings: strengths of the augmentation.
        seed: its random numbers are those of `Stream(seed, purpose, epoch, step)` for the purposes `AUGMENTATION`
            and `ELASTIC`.
        mean: subtracted from pixels of 0 to 1.
        std: that they are then divided by.
        threads: that take part; the result does not depend on it.

    Raises:
        TypeError: images or labels of another type or layout.
        ValueError: mean or std do not give finite numbers.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        settings: Augmentation,
        seed: int,
        mean: float,
        std: float,
        threads: int,
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
            raise TypeError("images must be contiguous uint8 [count, channels, height, width]")
        if labels is not None and (
            labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not labels.is_contiguous()
        ):
            raise TypeError("labels must be contiguous int64, one for each image")
        core = find_core()
        assert core is not None
        self._kept = images, labels  # the loader holds only their addresses
        self._shape = tuple(images.shape[1:])
        self._threads = threads
        self._loader = core.Loader(
            images=images.data_ptr(),
            labels=None if labels is None else labels.data_ptr(),
            count=len(images),
            shape=self._shape,
            augmentation=core.Augmentation(
                **{name: getattr(settings, name) for name in _STRENGTHS}, nearest=settings.interpolation == "nearest"
            ),
            seed=seed,
            affine_purpose=int(Purpose.AUGMENTATION),
            elastic_purpose=int(Purpose.ELASTIC),
            scale=1 / (255 * std),
            shift=-mean / std,
            level=level(),
        )
        self._blocks, self._labels = Blocks.empty(0, self._shape), torch.empty(0, dtype=torch.int64)

    def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Blocks, Tensor]:
        """The picked images and their labels, valid until the next call.

        Args:
            picks: int64 [count].
            epoch: of the random numbers.
            step: of the random numbers.

        Returns:
            The images, and int64 [count]: their labels, or nothing meaningful where the loader has none.

        Raises:
            IndexError: a pick that does not exist.
            TypeError: picks of another type.
        """
        if picks.dtype != torch.int64 or picks.dim() != 1 or picks.device.type != "cpu":
            raise TypeError("picks must be int64 [count] on the CPU")
        picks, count = picks.contiguous(), len(picks)
        if self._blocks.count != count:
            self._blocks = Blocks.empty(count, self._shape)
            self._labels = torch.empty(count, dtype=torch.int64)
        self._loader.load(
            picks=picks.data_ptr(),
            count=count,
            epoch=epoch,
            step=step,
            blocks=self._blocks.values.data_ptr(),
            labels=None if self._kept[1] is None else self._labels.data_ptr(),
            threads=self._threads,
        )
        return self._blocks, self._labels


def laid_out_images(images: Tensor, mean: float, std: float, threads: int) -> Blocks:
    """Images as they are, normalized and laid out for the kernels.

    Args:
        images: uint8 [count, channels, height, width].
        mean: subtracted from pixels of 0 to 1.
        std: that they are then divided by.
        threads: that take part; the result does not depend on it.

    Raises:
        TypeError: images of another type.
        ValueError: mean or std do not give finite numbers.
    """
    loader = NativeLoader(images.contiguous(), None, Augmentation(), 0, mean, std, threads)
    return loader.load(torch.arange(len(images)), 0, 0)[0]
