"""Random numbers without state: every draw is a function of the seed and of what it is for.

The numbers come from Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011), a counter-based generator, in numpy's implementation, whose raw output numpy keeps stable
between versions. Key: (seed, purpose). Counter: (position, step, epoch, 0). So the numbers of a
step can be made again at any time, in any order, by any engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from numpy.random import Philox

MOST_SEED = 2**63 - 1
_WORD = 2**64 - 1


class Purpose(IntEnum):
    """The purpose of random numbers; each has its own stream."""

    ORDER = 1
    AUGMENTATION = 2
    TORCH = 3
    ELASTIC = 4


@dataclass(frozen=True)
class Stream:
    """The random numbers for one purpose in one step of one epoch of one run.

    Attributes:
        seed: the run's seed, 0 to 2**63 - 1.
        purpose: what the numbers are for.
        epoch: counted from 1; 0 for what comes before training.
        step: counted from 0 within the epoch.
    """

    seed: int
    purpose: Purpose
    epoch: int = 0
    step: int = 0

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The first `count` words of 64 random bits."""
        generator = Philox(key=[self.seed, int(self.purpose)], counter=[0, self.step, self.epoch, 0])
        words: npt.NDArray[np.uint64] = generator.random_raw(count)
        return words

    def uniforms(self, *shape: int) -> npt.NDArray[np.float64]:
        """Numbers uniform in [0, 1), of the given shape, from the top 53 bits of each word."""
        words = self.words(int(np.prod(shape)))
        return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """An order of `range(count)`, by sorting random words; equal words keep their order."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)

    def torch_seed(self) -> int:
        """A seed for `torch.manual_seed`, 0 to 2**63 - 1: PyTorch's own layers have no state either."""
        return self._first_word() >> 1

    def _first_word(self) -> int:
        """`words(1)[0]` without numpy's generator, which takes ten times as long to set up."""
        a, b, c, d = 1, self.step, self.epoch, 0  # numpy counts up before it draws
        key0, key1 = self.seed, int(self.purpose)
        for _ in range(10):
            low, high = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
            a, b, c, d = (high >> 64) ^ b ^ key0, high & _WORD, (low >> 64) ^ d ^ key1, low & _WORD
            key0, key1 = (key0 + 0x9E3779B97F4A7C15) & _WORD, (key1 + 0xBB67AE8584CAA73B) & _WORD
        return a
