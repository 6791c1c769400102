"""A network in integers only: what int8 exports do, in Python, to the last bit.

Every value is an unsigned integer q that stands for the real number scale * (q - zero); weights are signed
integers with a scale for each output channel. So a convolution's sums stand for real numbers too, with another
scale, and are brought to the steps of its output by a multiplication and a shift (Jacob et al., Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, arXiv 1712.05877). Here no product
needs more than 32 bits: a sum's bound is known, so its multiplier has as many bits as are left. Of most layers

    q = min((max(sum + bias, 0) * multiplier) >> shift, top)

where the bias holds the zero points and the half that makes the shift round. Nothing below 0 is ever shifted, so
the same is defined in C. Scores are the sums themselves: all classes have one scale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from smidgen.graph.ops import Activation, Add, Concatenate, Pool, Shape
from smidgen.lowering.fused import Affine, Convolution

Integers = NDArray[np.int64]
BATCH = 50
"""Images at a time: their values stay in the cache."""


@dataclass(frozen=True)
class Grid:
    """The real numbers that a value's integers represent: scale * (q - zero).

    Attributes:
        scale: of a step.
        zero: the integer that stands for 0; of pixels, which are as they come, it may lie between two.
        top: the largest integer; the smallest is 0.
    """

    scale: float
    zero: float
    top: int

    @property
    def nearest_zero(self) -> int:
        """The integer that comes closest to 0: what padding is."""
        return round(self.zero)


@dataclass(frozen=True, eq=False)
class Rescale:
    """The conversion from sums to the steps of a value, by channel; nothing in it needs more than 32 bits.

    Attributes:
        multipliers: one a channel, or one for all.
        shifts: likewise; 0 to 31.
        offsets: likewise; added to the products.
        before: bits that a sum loses before it is multiplied.
        top: the largest result, the smallest being 0.
    """

    multipliers: Integers
    shifts: Integers
    offsets: Integers
    before: int
    top: int

    def __call__(self, sums: Tensor) -> Tensor:
        """Int64 [count, channels, height, width] of the same."""
        return self.finish((sums >> self.before) * _by_channel(self.multipliers) + _by_channel(self.offsets))

    def finish(self, scaled: Tensor) -> Tensor:
        """The last part: cut to what the value can hold, and shifted."""
        return (scaled.clamp(min=0) >> _by_channel(self.shifts)).clamp(max=self.top)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """A convolution: sums of weights times inputs plus a bias, those below 0 cut where it says so, then rescaled.

    Attributes:
        node: says where it looks.
        bits: of a weight, 8 or 4.
        weight: of so many bits with a sign, [outputs, inputs / groups, kernel height, kernel width].
        bias: a multiple of 2**bias_shift that leaves 16 bits, [outputs].
        bias_shift: see `bias`.
        padding: the input that stands for 0, where the window leaves the image.
        cut: whether sums below 0 become 0 before they are rescaled.
        rescale: of the sums; None where they are the scores.
    """

    node: Convolution
    bits: int
    weight: Integers
    bias: Integers
    bias_shift: int
    padding: int
    cut: bool
    rescale: Rescale | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled:
    """An affine map of each channel; a ReLU is in the clamp at 0."""

    node: Affine
    rescale: Rescale


@dataclass(frozen=True, kw_only=True, eq=False)
class Largest:
    """The largest of a window; the same steps as its input."""

    node: Pool


@dataclass(frozen=True, kw_only=True, eq=False)
class Averages:
    """The sum of a window, rescaled.

    Attributes:
        node: says where it looks.
        padding: what counts where the window leaves the image.
        bias: what is added to a score.
        rescale: of the sums; None where they are the scores.
    """

    node: Pool
    padding: int
    bias: int
    rescale: Rescale | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Lookup:
    """A function of each value, as a table with the result for each integer."""

    node: Activation
    table: Integers


@dataclass(frozen=True, kw_only=True, eq=False)
class Together:
    """The sum of two values, each with its multiplier; the offset and the rest are the first's."""

    node: Add
    rescales: tuple[Rescale, Rescale]


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """Values one after another, by channels, each rescaled to common steps."""

    node: Concatenate
    rescales: tuple[Rescale, ...]


Step = Sums | Scaled | Largest | Averages | Lookup | Together | Joined


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A network in integers.

    Attributes:
        steps: in an order in which they can be run.
        shapes: channels, height, width of each value; the first is the image's.
        grids: what the integers of each value stand for; of the scores, which have none, a zero of 0.
        output: the value that holds the scores.
    """

    steps: tuple[Step, ...]
    shapes: tuple[Shape, ...]
    grids: tuple[Grid, ...]
    output: int

    @property
    def score_unit(self) -> float:
        """One step of a score in the unit of the network's scores; 1 if all scores are zero."""
        return self.grids[self.output].scale

    def scores(self, images: Tensor) -> Tensor:
        """Scores, int64 [count, classes], of uint8 images [count, channels, height, width]."""
        with one_thread():
            return torch.cat([self.values(part)[self.output].flatten(1) for part in images.split(BATCH)])

    def values(self, images: Tensor) -> dict[int, Tensor]:
        """Every value, int64, of uint8 images [count, channels, height, width]."""
        values = {0: images.to(torch.int64)}
        for step in self.steps:
            values[step.node.output] = _apply(step, [values[value] for value in step.node.inputs])
        return values


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, for pieces so small that dividing them costs more than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _apply(step: Step, inputs: Sequence[Tensor]) -> Tensor:
    x = inputs[0]
    match step:
        case Sums():
            sums = whole_sums(step, x) + _by_channel(step.bias)
            return step.rescale(sums.clamp(min=0) if step.cut else sums) if step.rescale else sums
        case Scaled():
            return step.rescale(x)
        case Largest():
            # Exact: the values are whole numbers far below 2**53.
            return F.max_pool2d(x.double(), step.node.kernel, step.node.stride, step.node.padding).to(torch.int64)
        case Averages():
            (rows, columns), (height, width) = step.node.padding, step.node.kernel
            padded = F.pad(x, (columns, columns, rows, rows), value=step.padding).double()
            means = F.avg_pool2d(padded, step.node.kernel, step.node.stride, divisor_override=1)
            assert height * width * 2**16 < 2**53
            sums = means.to(torch.int64)
            return step.rescale(sums) if step.rescale else sums + step.bias
        case Lookup():
            return torch.from_numpy(step.table)[x]
        case Together():
            first, second = step.rescales
            return first.finish(
                x * int(first.multipliers[0]) + inputs[1] * int(second.multipliers[0]) + int(first.offsets[0])
            )
        case Joined():
            return torch.cat([rescale(x) for rescale, x in zip(step.rescales, inputs, strict=True)], 1)
    raise AssertionError(step)


def whole_sums(step: Sums, x: Tensor) -> Tensor:
    """The sums of a convolution without its bias, int64.

    In floating point, where sums of whole numbers are exact in any order as long as none needs more bits than the
    mantissa has: PyTorch multiplies whole numbers without the help of its fast kernels, twenty times as slowly.
    """
    node = step.node
    largest = int(np.abs(step.weight).sum(axis=(1, 2, 3)).max()) * max(int(x.max()), step.padding, 1)
    dtype = torch.float32 if largest < 2**24 else torch.float64
    assert largest < 2**53
    rows, columns = node.padding
    padded = F.pad(x.to(dtype), (columns, columns, rows, rows), value=step.padding)
    weight = torch.from_numpy(step.weight).to(dtype)
    return F.conv2d(padded, weight, None, node.stride, 0, node.dilation, node.groups).to(torch.int64)


def _by_channel(values: Integers) -> Tensor:
    return torch.from_numpy(values).reshape(1, -1, 1, 1)
