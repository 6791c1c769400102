"""Hashes of images and labels in memory, as their IDX files would have them."""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from smidgen.data.parts import Examples

_UINT8, _INT32 = 0x08, 0x0C


def examples_sha256(part: str, examples: Examples) -> dict[str, str]:
    """SHA-256 (hex) of images and labels by name, so that the same pictures have the same hash from any files.

    Grey images count as [count, height, width], as in MNIST's files, others as [count, channels, height, width].

    Args:
        part: train, validation or test; the names begin with it.
        examples: uint8 images and their labels.
    """
    images = examples.images[:, 0] if examples.images.shape[1] == 1 else examples.images
    labels = examples.labels.numpy()
    small = int(labels.max(initial=0)) < 256
    return {
        f"{part}_images": _hash(_UINT8, images.contiguous().numpy()),
        f"{part}_labels": _hash(_UINT8, labels.astype(np.uint8)) if small else _hash(_INT32, labels.astype(">i4")),
    }


def _hash(kind: int, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    digest = hashlib.sha256(struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape))
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
