"""How a network is run on a microcontroller: as one pipeline of rows, or with less memory and more work.

Less is needed if rows are not kept but made again: of a network's beginning, up to some value, only what a band of that
value's rows depends on is worked out, along the columns of the image, for one band after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from smidgen.errors import SmidgenError
from smidgen.graph.ops import Add, Concatenate, Operation, Pool
from smidgen.lowering.fused import Convolution, FusedGraph
from smidgen.lowering.pipeline import Pipeline, pipeline
from smidgen.lowering.stages import transposed, with_planes
from smidgen.lowering.value_types import BYTES, SCORES, value_types

NEARLY = 1.05
"""How far above the least memory a lean network may be."""


@dataclass(frozen=True, eq=False)
class Bands:
    """The beginning of a network, worked out again for each band of rows of its last value.

    Attributes:
        pipeline: of the images on their side: its rows are the columns of a band.
        cut: the value of the whole network that it makes.
        rows: of that value, in a band.
        image_rows: that a band depends on.
        step: rows of the image from a row of the value to the next.
    """

    pipeline: Pipeline
    cut: int
    rows: int
    image_rows: int
    step: int


@dataclass(frozen=True, eq=False)
class Plan:
    """How a network is run.

    Attributes:
        graph: the network.
        bands: of its beginning; None where all of it is one pipeline.
        pipeline: the network, or what follows the bands; its places begin behind theirs.
    """

    graph: FusedGraph
    bands: Bands | None
    pipeline: Pipeline

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """In the order in which an image goes through them."""
        return (self.bands.pipeline, self.pipeline) if self.bands else (self.pipeline,)

    @property
    def memory(self) -> int:
        """Bytes of all values, sums of 16 bits and patches."""
        return sum(one.size for one in self.pipelines)

    @property
    def wide(self) -> int:
        """How many sums of 32 bits there are."""
        return sum(one.wide for one in self.pipelines)

    @property
    def counters(self) -> int:
        """Rows that stages have made, one number each."""
        return sum(len(one.stages) for one in self.pipelines)

    @property
    def counter_type(self) -> str:
        """In C."""
        most = max(stage.rows for one in self.pipelines for stage in one.stages)
        return "uint8_t" if max(most, *self.graph.shapes[0][1:]) < 2**8 else "uint16_t"

    @property
    def bytes(self) -> int:
        """All that a call needs beside the image: the scores, the memory, the counters."""
        used = BYTES[SCORES] * (self.graph.classes + self.wide) + self.memory
        used += self.counters * BYTES[self.counter_type]
        return -(-used // BYTES[SCORES]) * BYTES[SCORES]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for an image, those that are made again included."""
        if self.bands is None:
            return self.pipeline.macs
        bands = -(-self.graph.shapes[self.bands.cut][1] // self.bands.rows)
        return bands * self.bands.pipeline.macs + self.pipeline.macs

    @property
    def costliest(self) -> str:
        """The layer whose value takes most memory, for people."""
        size, name = max(
            (one.rings[stage.output] * one.row_bytes(stage.output), stage.names)
            for one in self.pipelines
            for stage in one.stages
        )
        return f"{name} ({size:,} bytes)"

    @property
    def image_rows(self) -> int:
        """Rows of the image that must be kept if it comes row by row."""
        return self.bands.image_rows if self.bands else self.pipeline.rings[0]


def plan(graph: FusedGraph, most: int | None = None, *, lean: bool = False) -> Plan:
    """How to run a network: with as little work as possible in so much memory.

    Args:
        graph: the network.
        most: bytes that a call may need beside the image; None: as many as it takes without making anything again.
        lean: about as few bytes as possible, instead: not the last few if they cost much work.

    Raises:
        SmidgenError: it needs more; says what the least is, and which value takes most of it.
    """
    found = nearest_plan(graph, most, lean=lean)
    if most is not None and found.bytes > most:
        raise SmidgenError(
            f"the network needs {found.bytes:,} bytes of memory beside the image, and {most:,} are allowed; "
            f"most is taken by {found.costliest}"
        )
    return found


def nearest_plan(graph: FusedGraph, most: int | None = None, *, lean: bool = False) -> Plan:
    """As `plan`, but the plan with the least memory where none is within the limit."""
    graph = with_planes(graph)
    plain = Plan(graph, None, pipeline(graph, [1] * graph.shapes[0][1], image=True))
    if not lean and (most is None or plain.bytes <= most):
        return plain
    possible = [plain, *_in_bands(graph)]
    least = min(possible, key=lambda p: (p.bytes, p.macs))
    limit = int(least.bytes * NEARLY) if lean or most is None else most
    return min((p for p in possible if p.bytes <= limit), key=lambda p: (p.macs, p.bytes), default=least)


def _in_bands(graph: FusedGraph) -> Iterator[Plan]:
    """All ways to work out a beginning in bands."""
    for length, node in enumerate(graph.operations[:-1], start=1):
        front = graph.operations[:length]
        if node.inputs != (node.output - 1,) or isinstance(node, Add | Concatenate) or _padding(node):
            return
        if any(value < node.output for later in graph.operations[length:] for value in later.inputs):
            continue
        height = graph.shapes[node.output][1]
        if node.inputs == (0,) and not isinstance(node, Convolution):
            return  # a pooling or activation expects rows
        if height == 1 or value_types(graph)[node.output] != "uint8_t":
            return
        for rows in range(1, height):
            yield _banded(graph, front, rows)


def _padding(node: Operation) -> int:
    return node.padding[0] if isinstance(node, Convolution | Pool) else 0


def _banded(graph: FusedGraph, front: Sequence[Operation], rows: int) -> Plan:
    cut = front[-1].output
    heights, step = [rows], 1
    for node in reversed(front):
        stride, extent = 1, 1
        if isinstance(node, Convolution):
            stride, extent = node.stride[0], (node.weight.shape[2] - 1) * node.dilation[0] + 1
        elif isinstance(node, Pool):
            stride, extent = node.stride[0], node.kernel[0]
        heights.insert(0, (heights[0] - 1) * stride + extent)
        step *= stride
    shapes = tuple(
        (channels, height, width) for (channels, _, width), height in zip(graph.shapes, heights, strict=False)
    )
    band = transposed(replace(graph, operations=tuple(front), shapes=shapes, output=cut))
    begin = pipeline(band, [1] * band.shapes[0][1], image=True, passes_on=True)
    rest = replace(
        graph,
        operations=tuple(
            replace(node, inputs=tuple(value - cut for value in node.inputs), output=node.output - cut)
            for node in graph.operations[len(front) :]
        ),
        shapes=graph.shapes[cut:],
        output=graph.output - cut,
    )
    height = graph.shapes[cut][1]
    arrivals = [rows] * (height // rows) + ([height % rows] if height % rows else [])
    end = pipeline(rest, arrivals, image=False, scrap=begin.size, wide_before=begin.wide)
    return Plan(graph, Bands(begin, cut, rows, heights[0], step), end)
