"""The places of a network's values in one block of memory.

Values share memory if they are not needed at the same time. An operation may also overwrite its own input behind
the place that it reads: an unpadded convolution that works row by row no longer needs the beginning of its input
when it writes, so its output may begin a few elements before its input. That halves the memory of a plain stack of
convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smidgen.exports.fused import Affine, Convolution, FusedGraph
from smidgen.graph.ops import Activation, Add, Operation, Pool, Shape


@dataclass(frozen=True)
class Buffer:
    """A value that needs a place.

    Attributes:
        value: its number in the graph.
        size: elements.
        first: the step that writes it.
        last: the last step that reads it; values that are read at the end outlive all steps.
    """

    value: int
    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether there is a step in which both are needed."""
        return self.first <= other.last and other.first <= self.last


def plan(buffers: Sequence[Buffer], leads: Mapping[tuple[int, int], int]) -> tuple[dict[int, int], int]:
    """Offsets for all buffers, and how many elements they take together.

    Greedy, in the order in which the values are written: each is placed where the total grows least.

    Args:
        buffers: what needs a place.
        leads: for (input, output) of a step that may write over its input: how many elements the output
            must begin before the input, at least. Only for inputs that are not read afterwards.
    """
    placed: list[tuple[Buffer, int]] = []

    def fits(buffer: Buffer, offset: int) -> bool:
        for other, at in placed:
            if not buffer.meets(other) or offset + buffer.size <= at or at + other.size <= offset:
                continue
            lead = leads.get((other.value, buffer.value))
            if lead is None or at - offset < lead:
                return False
        return True

    def extent(offset: int, size: int) -> int:
        return max([offset + size, *(at + b.size for b, at in placed)]) - min([offset, *(at for _, at in placed)])

    for buffer in sorted(buffers, key=lambda b: b.first):
        candidates = [0]
        for other, at in placed:
            candidates += [at, at + other.size, at - buffer.size, at - leads.get((other.value, buffer.value), 0)]
        possible = [offset for offset in candidates if fits(buffer, offset)]
        placed.append((buffer, min(possible, key=lambda offset: (extent(offset, buffer.size), abs(offset)))))
    if not placed:
        return {}, 0
    lowest = min(at for _, at in placed)
    return {b.value: at - lowest for b, at in placed}, max(at + b.size for b, at in placed) - lowest


def lifetimes(graph: FusedGraph) -> list[Buffer]:
    """When each value of a graph is needed: step 0 writes the input, step i + 1 runs node i."""
    first, last = {0: 0}, {0: 0}
    for step, node in enumerate(graph.operations, start=1):
        first[node.output] = last[node.output] = step
        for value in node.inputs:
            last[value] = step
    last[graph.output] = len(graph.operations) + 1
    return [Buffer(value, int(np.prod(graph.shapes[value])), first[value], last[value]) for value in first]


def leads(graph: FusedGraph) -> dict[tuple[int, int], int]:
    """By how many elements the output of a node must precede an input that it may overwrite.

    Values lie in memory row by row, the channels of a pixel side by side, and are worked through in that order.
    """
    ends = {buffer.value: buffer.last for buffer in lifetimes(graph)}
    found = {}
    for step, node in enumerate(graph.operations, start=1):
        lead = _lead(node, graph.shapes)
        for value in node.inputs:
            if lead is not None and ends[value] == step:
                found[value, node.output] = lead
    return found


def _lead(node: Operation, shapes: Sequence[Shape]) -> int | None:
    match node:
        case Convolution():
            # All channels of a pixel use the same window, so the last is written before the window is released.
            inputs, outputs = shapes[node.inputs[0]][0], shapes[node.output][0]
            starts = _starts(node, shapes) * inputs
            written = (np.arange(len(starts)) + 1) * outputs
            return int((written - _least_from_here(starts)).max())
        case Pool():
            # Channel by channel: each is written when it alone has been read.
            channels = shapes[node.output][0]
            starts = _starts(node, shapes) * channels
            own = np.arange(len(starts)) * channels - starts
            written = (np.arange(len(starts) - 1) + 1) * channels
            following = written - _least_from_here(starts)[1:]
            return int(max(own.max(), following.max(initial=0)))
        case Affine() | Activation() | Add():
            return 0
    return None


def _starts(node: Convolution | Pool, shapes: Sequence[Shape]) -> NDArray[np.int64]:
    """The first input pixel that each output pixel depends on, both counted row by row."""
    (_, _, width), (_, out_height, out_width) = shapes[node.inputs[0]], shapes[node.output]
    rows = np.maximum(np.arange(out_height) * node.stride[0] - node.padding[0], 0)
    columns = np.maximum(np.arange(out_width) * node.stride[1] - node.padding[1], 0)
    return (rows[:, None] * width + columns).ravel()


def _least_from_here(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.minimum.accumulate(values[::-1])[::-1]
