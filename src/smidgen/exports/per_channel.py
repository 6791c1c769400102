"""Convolutions of an integer network in the form that ONNX and TFLite share.

There, a value is scale * (q - zero) with a whole zero, a weight is an int8 with a scale for each output channel, and
the bias is an int32 in steps of the input's scale times the weight's. The integer network has its own form: the bias
holds zero points and rounding, and the sums are requantized by a short multiplier (`smidgen.lowering.integer`). What
follows are the same integers: the scale of a channel's weights is the one by which other runtimes arrive at that
multiplier, so that they round the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smidgen.lowering.integer import Grid, IntegerNetwork, Integers, Rescale, Scaled, Sums

Floats = NDArray[np.float64]
_LIMIT = 2**31 - 1
_LEAST = 2.0**-31
"""Of a factor: less than any multiplier and shift can express."""


@dataclass(frozen=True, eq=False)
class PerChannel:
    """A convolution with a scale for each output channel.

    Where an affine map follows the ReLU, the weights have the size of its factors, so that only their signs are left.

    Attributes:
        weight: int8 [outputs, inputs / groups, kernel height, kernel width], symmetrical.
        scales: of the weights, positive, float32 [outputs].
        bias: int32 [outputs], in steps of `input_scale` times `scales`.
        input_scale: of the value that is convolved.
    """

    weight: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.int32]
    input_scale: float


def per_channel(network: IntegerNetwork, step: Sums | Scaled) -> PerChannel:
    """The integers of a convolution, or of an affine map as one of 1 × 1, for a runtime that rounds to nearest.

    Args:
        network: that it is part of.
        step: the operation.
    """
    given, made = network.grids[step.node.inputs[0]], network.grids[step.node.output]
    weight, units, bias = _affine(step, given, made) if isinstance(step, Scaled) else _sums(step, given, made)
    return PerChannel(
        weight.astype(np.int8),
        np.maximum(units / given.scale, np.finfo(np.float32).tiny).astype(np.float32),
        np.clip(np.rint(bias), -_LIMIT, _LIMIT).astype(np.int32),
        given.scale,
    )


def _sums(step: Sums, given: Grid, made: Grid) -> tuple[Integers, Floats, Floats]:
    """Weights, what 1 of a sum stands for, and biases in that."""
    rescale = step.rescale
    # The zero of pixels may lie between two integers; the bias holds what is lost by rounding it.
    bias = step.bias + given.nearest_zero * step.weight.sum(axis=(1, 2, 3)).astype(np.float64)
    if rescale is None:
        return step.weight, np.full(len(bias), made.scale), bias
    factors = np.maximum(np.abs(_factors(rescale)), _LEAST)
    if step.cut and step.node.scale is None:
        # Here alone the bias holds the output's zero and the half that makes a shift round.
        bias = bias - (made.zero + 0.5) / factors
    return step.weight, np.broadcast_to(factors * made.scale, bias.shape), bias


def _affine(step: Scaled, given: Grid, made: Grid) -> tuple[Integers, Floats, Floats]:
    """The same of an affine map: the largest weights that leave the bias within 32 bits."""
    factors = _factors(step.rescale)
    shifts = step.rescale.offsets / 2.0**step.rescale.shifts - 0.5 - made.zero + factors * given.nearest_zero
    units = np.maximum(np.maximum(np.abs(factors) / 127, np.abs(shifts) / 2**30), _LEAST)
    return np.rint(factors / units).astype(np.int64).reshape(-1, 1, 1, 1), units * made.scale, shifts / units


def offset(grid: Grid) -> float:
    """What is missing from a value if its zero is rounded to an integer, in its own unit; 0 but for pixels."""
    return grid.scale * (grid.nearest_zero - grid.zero)


def _factors(rescale: Rescale) -> NDArray[np.float64]:
    """Steps of the output for 1 of a sum."""
    return rescale.multipliers / 2.0 ** (rescale.shifts + rescale.before)
