"""Quantization of a float32 network to integers, calibrated on training images."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.exports.fused import Affine, Convolution, FusedGraph
from smidgen.exports.integer import (
    SCORE_SHIFT,
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
from smidgen.graph.ops import Activation, Add, Concatenate, Operation, Pool

Floats = NDArray[np.float64]
IMAGES = 1024
"""How many training images the ranges of the values are taken from, spread evenly over all of them."""
BATCH = 64
BYTE, FINE = 255, 4095
"""The largest integer of an ordinary value, and of one that has a single pixel: those are few, and all that the
scores are made of, so they may have 12 bits (a sum of more than 4,000 of them times a weight fits in 32)."""
_MOST_SHIFT = 46
"""A zero point of 12 bits shifted by it stays below 2**62."""


def quantize(graph: FusedGraph, training_images: Tensor) -> IntegerNetwork:
    """A network in integers that comes as close to a graph as 8 bits allow.

    Args:
        graph: in float32.
        training_images: uint8 [count, channels, height, width]: never the test images.

    Raises:
        SmidgenError: a layer cannot be expressed in integers, or its sums might not fit in 32 bits; names it.
    """
    chosen = torch.linspace(0, len(training_images) - 1, min(IMAGES, len(training_images))).round().long()
    with one_thread():
        return _Quantizer(graph, training_images[chosen]).network


class _Quantizer:
    def __init__(self, graph: FusedGraph, images: Tensor) -> None:
        self.graph, self.images = graph, images
        self.writers = {node.output: node for node in graph.operations}
        self.readers: dict[int, list[Operation]] = {}
        for node in graph.operations:
            for value in node.inputs:
                self.readers.setdefault(value, []).append(node)
        last = self.writers[graph.output]
        direct = isinstance(last, Convolution) and last.scale is None and not last.relu
        self.scores_by = last if direct or (isinstance(last, Pool) and last.kind == "average") else None
        self.ranges = self._ranges()
        self.grids = self._grids()
        steps = tuple(self._step(node) for node in graph.operations)
        self.network = IntegerNetwork(
            steps, graph.shapes, tuple(self.grids[value] for value in range(len(graph.shapes))), graph.output
        )

    def _ranges(self) -> dict[int, tuple[float, float]]:
        """The least and the most that each value was seen to be, and 0.

        Cutting off the rarest was tried: limits of the least mean square error changed the accuracy by nothing
        that 20 seeds could show (docs/export.md), and what is not cut off is never far wrong.
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
        graph = self.graph
        grids = {0: Grid(1 / (255 * graph.std), 255 * graph.mean, BYTE)}
        for node in graph.operations:
            value = node.output
            if isinstance(node, Pool) and node.kind == "max":
                grids[value] = grids[node.inputs[0]]
                continue
            looked_up = any(isinstance(reader, Activation) for reader in self.readers.get(value, []))
            top = FINE if graph.shapes[value][1:] == (1, 1) and not looked_up else BYTE
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
                first, second = (
                    Rescale(both.multipliers[i : i + 1], both.offsets[i : i + 1], both.shift, both.top) for i in (0, 1)
                )
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
        # Padding stands for 0, so it must be subtracted; elsewhere the zero point goes into the bias.
        zero = given.nearest_zero if node.padding != (0, 0) else 0
        most = np.abs(weight).max(axis=(1, 2, 3))
        # A channel whose weights are all but nothing keeps its bias within 32 bits.
        scales = np.maximum(most / 127, np.abs(bias) / (given.scale * 2**29))
        scales = np.where(scales > 0, scales, 1.0)
        whole = np.clip(np.rint(weight / scales.reshape(-1, 1, 1, 1)), -127, 127)
        units = given.scale * scales
        whole_bias = np.rint(bias / units + (zero - given.zero) * whole.sum(axis=(1, 2, 3)))
        largest = max(zero, given.top - zero)
        bounds = np.abs(whole).sum(axis=(1, 2, 3)) * largest + np.abs(whole_bias)
        if bounds.max() >= 2**31:
            raise SmidgenError(
                f"{node.name} has sums that might not fit in 32 bits, so int8 cannot express it; --type float32 can"
            )
        bound = int(bounds.max())
        if node is self.scores_by:
            rescale, unit = _to_scores(units)
            self.grids[node.output] = Grid(unit, 0.0, 2**31 - 1)
        else:
            made = self.grids[node.output]
            factors, offsets = units / made.scale, np.full(len(units), made.zero)
            if node.scale is not None and node.shift is not None:
                factors = factors * node.scale.astype(np.float64)
                offsets = offsets + node.shift.astype(np.float64) / made.scale
            rescale = _rescale(node, factors, offsets, made.top, bound)
        return Sums(
            node=node, weight=whole.astype(np.int64), bias=whole_bias.astype(np.int64), zero=zero, rescale=rescale
        )

    def _averages(self, node: Pool) -> Averages:
        if not node.count_padding and node.padding != (0, 0):
            raise SmidgenError(
                f"{node.name} averages without its padding, which int8 cannot express; --type float32 can"
            )
        given = self.grids[node.inputs[0]]
        area = node.kernel[0] * node.kernel[1]
        if area * given.top >= 2**31:
            raise SmidgenError(f"{node.name} has sums that do not fit in 32 bits; --type float32 can express it")
        if node is self.scores_by:
            rescale, unit = _to_scores(np.array([given.scale / area]))
            offsets = np.rint(-given.zero * area * rescale.multipliers.astype(np.float64)).astype(np.int64)
            rescale = Rescale(rescale.multipliers, offsets, rescale.shift, None)
            self.grids[node.output] = Grid(unit, 0.0, 2**31 - 1)
        else:
            made = self.grids[node.output]
            line = _line(given.scale / (area * made.scale), given.zero * area, made)
            rescale = _rescale(node, *line, made.top, area * given.top)
        return Averages(node=node, zero=given.nearest_zero, rescale=rescale)

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


def _rescale(node: Operation, factors: Floats, offsets: Floats, top: int, bound: int) -> Rescale:
    """Real factors and offsets, in steps of the output, as whole numbers and a shift.

    Args:
        node: for messages.
        factors: one a channel, or one for all.
        offsets: likewise.
        top: the largest result.
        bound: of the size of what will be multiplied.
    """
    largest = float(np.abs(factors).max())
    shift = min(31 - max(math.frexp(largest)[1], -15), _MOST_SHIFT) if largest > 0 else 31
    # An offset that is far out of range comes to the same as one that is a little out of range with the same sums.
    if shift < 1 or float(np.abs(offsets).max()) * 2.0**shift >= 2.0**62:
        raise SmidgenError(f"{node.name} has steps too far apart for int8; --type float32 can express it")
    multipliers = np.clip(np.rint(factors * 2.0**shift), -(2**31) + 1, 2**31 - 1)
    whole = np.rint(offsets * 2.0**shift) + 2.0 ** (shift - 1)
    if bound * np.abs(multipliers).max() + np.abs(whole).max() >= 2.0**63:
        raise SmidgenError(f"{node.name} has sums that might not fit in 64 bits; --type float32 can express it")
    return Rescale(multipliers.astype(np.int64), whole.astype(np.int64), shift, top)


def _to_scores(units: Floats) -> tuple[Rescale, float]:
    """The conversion from sums of different units to scores of one unit, the largest, and that unit."""
    unit = float(units.max())
    multipliers = np.rint(units / unit * 2.0**SCORE_SHIFT).astype(np.int64)
    return Rescale(multipliers, np.zeros(len(units), dtype=np.int64), SCORE_SHIFT, None), unit
