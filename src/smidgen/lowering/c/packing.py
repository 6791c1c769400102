"""Weights in the order in which the kernels use them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 4
"""Outputs whose weights are interleaved."""


def nibbles(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weights of 4 bits, 8 more than they stand for, two to a byte, the first in the lower half."""
    padded = np.pad(weights, (0, len(weights) % 2)) + 8
    return np.asarray(padded[::2] | padded[1::2] << 4, dtype=np.int64)


def interleaved(matrix: NDArray[np.int64], *, bits4: bool) -> NDArray[np.int64]:
    """Weights [outputs, inputs] in the order in which the dot products use them.

    By blocks of four outputs (the last may be of two), then by pairs of inputs: of 8 bits, for two outputs at a time,
    both outputs' weights of the first input and of the second; of 4 bits, all outputs' of the first input and of the
    second. What is missing for an even number is 0.
    """
    outputs, inputs = matrix.shape
    padded = np.pad(matrix, ((0, outputs % 2), (0, inputs % 2)))
    parts = []
    for begin in range(0, len(padded), BLOCK):
        block = padded[begin : begin + BLOCK]
        pairs = block.reshape(len(block), -1, 2).transpose(1, 2, 0)  # pair of inputs, input, output
        if bits4:
            parts.append(nibbles(pairs.ravel()))
        else:
            parts.append(pairs.reshape(len(pairs), 2, -1, 2).transpose(0, 2, 1, 3).ravel())
    return np.concatenate(parts)
