"""Quantization of a float32 network to integers, calibrated on training images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.graph.ops import Activation, Add, Concatenate, Operation, Pool
from smidgen.lowering.fused import Affine, Convolution, FusedGraph
from smidgen.lowering.integer import (
    Averages,
    Grid,
    IntegerNetwork,
    Joined,
    Largest,
    Lookup,
    Rescale,
    Scaled,
    Step,
    Sums,
    Together,
    one_thread,
)
from smidgen.lowering.stages import is_depthwise
from smidgen.lowering.value_types import scores_are_sums, value_types
from smidgen.quantization import weight_steps

Floats = NDArray[np.float64]
IMAGES = 1024
"""How many training images the ranges of the values are taken from, spread evenly over all of them."""
BATCH = 64
BYTE, FINE = 255, 4095
"""The largest integer of an ordinary value, and of one that has a single pixel: those are few, and all that the
scores are made of, so they may have 12 bits (a sum of more than 4,000 of them times a weight fits in 32)."""
WORD = 2**31 - 1
"""What no sum and no product may exceed."""
MULTIPLIER_BITS, SHIFT_BITS = 12, 4
"""A channel's multiplier and what its shift is above the layer's least share 16 bits in the exports' tables."""
PRODUCT_BITS = 21
"""Sums of more bits lose the lowest before they are multiplied, so that at least ten are left for the multiplier."""
BIAS_BITS = 15
"""Without the sign."""


def quantize(graph: FusedGraph, training_images: Tensor, bits: int = 8) -> IntegerNetwork:
    """A network in integers that comes as close to a graph as values of 8 bits allow.

    Args:
        graph: in float32.
        training_images: uint8 [count, channels, height, width]: never the test images.
        bits: of a weight, 8 or 4.

    Raises:
        SmidgenError: a layer cannot be expressed in integers, or its sums might not fit in 32 bits; names it.
    """
    with one_thread():
        return _Quantizer(graph, calibration_images(training_images), bits).network


def calibration_images(training_images: Tensor) -> Tensor:
    """The training images that ranges are taken from, [count, channels, height, width]: at most `IMAGES`."""
    chosen = torch.linspace(0, len(training_images) - 1, min(IMAGES, len(training_images))).round().long()
    return training_images[chosen]


class _Quantizer:
    def __init__(self, graph: FusedGraph, images: Tensor, bits: int) -> None:
        self.graph, self.images, self.bits = graph, images, bits
        self.scores_by = graph.operations[-1] if scores_are_sums(graph) else None
        self.ranges = self._ranges()
        self.grids = self._grids()
        steps = tuple(self._step(node) for node in graph.operations)
        self.network = IntegerNetwork(
            steps, graph.shapes, tuple(self.grids[value] for value in range(len(graph.shapes))), graph.output
        )

    def _ranges(self) -> dict[int, tuple[float, float]]:
        """The least and the most that each value was seen to be, and 0.

        Cutting off the rarest was tried: limits of the least mean square error changed the accuracy by nothing
        that 20 seeds could show (docs/log.md), and what is not cut off is never far wrong.
        """
        found: dict[int, tuple[float, float]] = {}
        for part in self.images.split(BATCH):
            for value, values in self.graph.values(part).items():
                least, most = (float(limit) for limit in values.aminmax())
                if not (math.isfinite(least) and math.isfinite(most)):
                    raise SmidgenError("the network's values are not all finite numbers, so it cannot be exported")
                low, high = found.get(value, (0.0, 0.0))
                found[value] = min(low, least), max(high, most)
        return found

    def _grids(self) -> dict[int, Grid]:
        graph, types = self.graph, value_types(self.graph)
        grids = {0: Grid(1 / (255 * graph.std), 255 * graph.mean, BYTE)}
        for node in graph.operations:
            value = node.output
            if isinstance(node, Pool) and node.kind == "max":
                grids[value] = grids[node.inputs[0]]
                continue
            top = FINE if types[value] == "uint16_t" else BYTE
            low, high = self.ranges[value]
            scale = (high - low) / top or 1.0
            grids[value] = Grid(scale, float(min(max(round(-low / scale), 0), top)), top)
        return grids

    def _step(self, node: Operation) -> Step:
        match node:
            case Convolution():
                return self._sums(node)
            case Affine():
                given, made = self.grids[node.inputs[0]], self.grids[node.output]
                scale, shift = node.scale.astype(np.float64), node.shift.astype(np.float64)
                factors = given.scale * scale / made.scale
                offsets = made.zero + shift / made.scale - factors * given.zero
                return Scaled(node=node, rescale=_rescale(node, factors, offsets, made.top, given.top))
            case Pool(kind="max"):
                return Largest(node=node)
            case Pool():
                return self._averages(node)
            case Activation():
                return self._lookup(node)
            case Add():
                made = self.grids[node.output]
                grids = [self.grids[value] for value in node.inputs]
                factors = np.array([grid.scale / made.scale for grid in grids])
                offset = made.zero - sum(f * grid.zero for f, grid in zip(factors, grids, strict=True))
                both = _rescale(node, factors, np.array([offset, 0.0]), made.top, max(g.top for g in grids) * 2)
                first, second = (replace(both, multipliers=both.multipliers[i : i + 1]) for i in (0, 1))
                return Together(node=node, rescales=(first, second))
            case Concatenate():
                made = self.grids[node.output]
                grids = [self.grids[value] for value in node.inputs]
                rescales = tuple(
                    _rescale(node, *_line(grid.scale / made.scale, grid.zero, made), made.top, grid.top)
                    for grid in grids
                )
                return Joined(node=node, rescales=rescales)
        raise SmidgenError(f"{node.name} cannot be expressed in int8; --type float32 can")

    def _sums(self, node: Convolution) -> Sums:
        given = self.grids[node.inputs[0]]
        weight, bias = node.weight.astype(np.float64), node.bias.astype(np.float64)
        last = node is self.scores_by
        scales = weight_steps(torch.from_numpy(weight), self.bits, together=last).numpy()
        # A channel whose weights are all but nothing keeps its bias within 32 bits.
        scales = np.maximum(scales, (np.abs(bias).max() if last else np.abs(bias)) / (given.scale * 2**28))
        scales = np.where(scales > 0, scales, 1.0)
        most = 2 ** (self.bits - 1) - 1
        whole = np.clip(np.rint(weight / scales.reshape(-1, 1, 1, 1)), -most, most)
        units = given.scale * scales
        bias = bias / units - given.zero * whole.sum(axis=(1, 2, 3))
        # Weights of 4 bits are added up as if they began at 0.
        size = whole[0].size * given.top * (2**self.bits if self.bits < 8 else 1)
        highest, lowest = (given.top * (sign * whole).clip(min=0).sum(axis=(1, 2, 3)) for sign in (1, -1))
        if last:
            self.grids[node.output] = Grid(float(units[0]), 0.0, WORD)
            rescale, cut = None, False
        else:
            rescale, cut, bias = self._requantized(node, units, bias, highest, lowest)
        shift = max(math.frexp(float(np.abs(bias).max()))[1] - BIAS_BITS, 0)
        whole_bias = np.clip(np.rint(bias / 2**shift), -(2**BIAS_BITS) + 1, 2**BIAS_BITS - 1) * 2**shift
        if (np.maximum(np.maximum(highest, lowest), size) + np.abs(whole_bias)).max() > WORD:
            raise _too_large(node)
        return Sums(
            node=node,
            bits=self.bits,
            weight=whole.astype(np.int64),
            bias=whole_bias.astype(np.int64),
            bias_shift=shift,
            padding=given.nearest_zero,
            cut=cut,
            rescale=rescale,
        )

    def _requantized(
        self, node: Convolution, units: Floats, bias: Floats, highest: Floats, lowest: Floats
    ) -> tuple[Rescale, bool, Floats]:
        """The conversion of sums to steps of the output, whether they are cut at 0 before, and what their bias is.

        Args:
            node: whose sums they are.
            units: what 1 of a sum stands for, [outputs].
            bias: in those.
            highest: what the sums without it are at most.
            lowest: how far below 0 they are at most.
        """
        made = self.grids[node.output]
        factors = units / made.scale
        if node.scale is not None and node.shift is not None:
            factors = factors * node.scale.astype(np.float64)
            offsets = made.zero + node.shift.astype(np.float64) / made.scale
            bounds = np.maximum(highest, lowest) + np.abs(bias)
            return _rescale(node, factors, offsets, made.top, bounds.max()), node.relu, bias
        if is_depthwise(node) and not node.relu and not bias.any():
            # As between the two convolutions of a separable one: no table of biases is needed.
            line = np.full(1, made.zero)
            return _rescale(node, factors, line, made.top, max(highest.max(), lowest.max()), 16), False, bias
        bias = bias + (made.zero + 0.5) / factors
        bounds = np.maximum(highest + bias, 1) + np.abs(bias).max() / 2**BIAS_BITS  # as it will be rounded
        before = max(math.frexp(float(bounds.max()))[1] - PRODUCT_BITS, 0)
        factors = factors * 2.0**before
        most = np.minimum(np.floor(WORD / np.maximum(np.ceil(bounds / 2**before) + 1, 1)), 2**MULTIPLIER_BITS - 1)
        shifts = np.floor(np.log2(most / factors)).clip(max=31)
        shifts = shifts.clip(max=shifts.min() + 2**SHIFT_BITS - 1)
        if shifts.min() < 0:
            raise _too_far_apart(node)
        multipliers = np.minimum(np.rint(factors * 2.0**shifts), most)
        none = np.zeros(1, dtype=np.int64)
        return Rescale(multipliers.astype(np.int64), shifts.astype(np.int64), none, before, made.top), True, bias

    def _averages(self, node: Pool) -> Averages:
        if not node.count_padding and node.padding != (0, 0):
            raise SmidgenError(
                f"{node.name} averages without its padding, which int8 cannot express; --type float32 can"
            )
        given = self.grids[node.inputs[0]]
        area = node.kernel[0] * node.kernel[1]
        if area * given.top > WORD:
            raise SmidgenError(f"{node.name} has sums that do not fit in 32 bits; --type float32 can express it")
        if node is self.scores_by:
            self.grids[node.output] = Grid(given.scale / area, 0.0, WORD)
            return Averages(node=node, padding=given.nearest_zero, bias=round(-given.zero * area), rescale=None)
        made = self.grids[node.output]
        line = _line(given.scale / (area * made.scale), given.zero * area, made)
        rescale = _rescale(node, *line, made.top, area * given.top)
        return Averages(node=node, padding=given.nearest_zero, bias=0, rescale=rescale)

    def _lookup(self, node: Activation) -> Lookup:
        given, made = self.grids[node.inputs[0]], self.grids[node.output]
        if given.top > BYTE:
            raise SmidgenError(f"{node.name} would need a table of {given.top + 1:,}; --type float32 can express it")
        x = torch.from_numpy(given.scale * (np.arange(given.top + 1) - given.zero))
        y = node.kind.evaluate(x, *node.parameters).numpy() / made.scale + made.zero
        return Lookup(node=node, table=np.clip(np.rint(y), 0, made.top).astype(np.int64))


def _line(factor: float, zero: float, made: Grid) -> tuple[Floats, Floats]:
    """Factor and offset of a straight line from one grid to another."""
    return np.array([factor]), np.array([made.zero - factor * zero])


def _rescale(node: Operation, factors: Floats, offsets: Floats, top: int, bound: float, most_bits: int = 22) -> Rescale:
    """Real factors and offsets, in steps of the output, as whole numbers and a shift that all channels share.

    Args:
        node: for messages.
        factors: one a channel, or one for all.
        offsets: likewise.
        top: the largest result.
        bound: of the size of what will be multiplied.
        most_bits: of a multiplier.
    """
    largest = float(np.abs(factors).max()) or 1.0
    size = max(float(np.abs(offsets).max()) + 1, bound * largest)
    shift = min(most_bits - math.frexp(largest)[1], 31 - math.frexp(size)[1], 31)
    while shift >= 0:
        multipliers = np.clip(np.rint(factors * 2.0**shift), -(2**most_bits) + 1, 2**most_bits - 1)
        whole = np.rint(offsets * 2.0**shift) + 2.0**shift // 2
        if bound * np.abs(multipliers).max() + np.abs(whole).max() <= WORD:
            break
        shift -= 1
    else:
        raise _too_far_apart(node)
    return Rescale(multipliers.astype(np.int64), np.full(1, shift), whole.astype(np.int64), 0, top)


def _too_far_apart(node: Operation) -> SmidgenError:
    return SmidgenError(f"{node.name} has steps too far apart for int8; --type float32 can express it")


def _too_large(node: Operation) -> SmidgenError:
    return SmidgenError(
        f"{node.name} has sums that might not fit in 32 bits, so int8 cannot express it; --type float32 can"
    )
