"""The memory of an integer network: which rows of each value are kept, where, and for how long.

A network runs row by row: as soon as a stage has the rows that it needs, it makes its next one, so of a value that a
3 × 3 convolution reads, three rows are enough. Less is needed if rows are not kept but made again: of a network's
beginning, up to some value, only what a band of that value's rows depends on is worked out, along the columns of the
image, for one band after the other. What each takes is found by going through the rows of an image once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from smidgen.errors import SmidgenError
from smidgen.exports.fused import Affine, Convolution, FusedGraph
from smidgen.exports.stages import PIXELS, Planes, Stage, sees_all, stages, transposed, with_planes
from smidgen.graph.ops import Add, Concatenate, Operation, Pool

SCORE_BYTES = 4
NEARLY = 1.05
"""How far above the least memory a lean network may be."""
_SUM16 = 2**16 - 1


@dataclass(frozen=True)
class Buffer:
    """Something that needs a place.

    Attributes:
        name: of it.
        size: bytes.
        first: the event that writes it first.
        last: the last event that reads it.
    """

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether there is an event in which both are needed."""
        return self.first <= other.last and other.first <= self.last


def place(buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
    """Offsets for all buffers, and how many bytes they take together.

    Greedy, the longest-lived and largest first: each is placed as low as possible.
    """
    placed: list[tuple[Buffer, int]] = []
    for buffer in sorted(buffers, key=lambda b: (b.first - b.last, -b.size)):
        others = sorted((at, at + other.size) for other, at in placed if buffer.meets(other))
        offset = 0
        for begin, end in others:
            if offset + buffer.size <= begin:
                break
            offset = max(offset, end)
        placed.append((buffer, offset))
    return {buffer.name: at for buffer, at in placed}, max((at + b.size for b, at in placed), default=0)


@dataclass(frozen=True)
class Patch:
    """Where a convolution gathers what four pixels depend on.

    Attributes:
        place: offset; None where it is borrowed.
        lender: the value whose next row, not yet written, is the place; None where it has its own.
    """

    place: int | None
    lender: int | None


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Stages that work through an image row by row.

    Attributes:
        graph: that they make; its value 0 comes from outside.
        stages: in their order.
        types: in C, of each value; int32_t is that of the scores, which are kept elsewhere.
        rings: how many rows are kept of each value.
        places: offsets of those, bytes, by value.
        sums: offsets of the running sums of an average, by the value that they become: bytes of those of 16 bits,
            else elements of a stretch of 32 bits.
        patches: by the value that a stage writes.
        size: bytes of all but the sums of 32 bits.
        wide: how many of those there are.
    """

    graph: FusedGraph
    stages: tuple[Stage, ...]
    types: tuple[str, ...]
    rings: Mapping[int, int]
    places: Mapping[int, int]
    sums: Mapping[int, int]
    patches: Mapping[int, Patch]
    size: int
    wide: int

    def row_bytes(self, value: int) -> int:
        """Of a row of a value."""
        return _row_bytes(self.graph, self.types, value)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one pass."""
        return sum(
            node.weight.size * self.graph.shapes[node.output][1] * self.graph.shapes[node.output][2]
            for node in self.graph.operations
            if isinstance(node, Convolution)
        )


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
        used = SCORE_BYTES * (self.graph.classes + self.wide) + self.memory
        used += self.counters * _BYTES[self.counter_type]
        return -(-used // SCORE_BYTES) * SCORE_BYTES

    @property
    def macs(self) -> int:
        """Multiply-accumulates for an image, those that are made again included."""
        if self.bands is None:
            return self.pipeline.macs
        bands = -(-self.graph.shapes[self.bands.cut][1] // self.bands.rows)
        return bands * self.bands.pipeline.macs + self.pipeline.macs

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
    graph = with_planes(graph)
    plain = Plan(graph, None, _pipeline(graph, [1] * graph.shapes[0][1], image=True))
    if not lean and (most is None or plain.bytes <= most):
        return plain
    possible = [plain, *_in_bands(graph)]
    least = min(possible, key=lambda p: (p.bytes, p.macs))
    if lean:
        most = int(least.bytes * NEARLY)
    assert most is not None
    if least.bytes > most:
        raise SmidgenError(
            f"the network needs {least.bytes:,} bytes of memory beside the image, and {most:,} are allowed; "
            f"most is taken by {_costliest(least)}"
        )
    return min((p for p in possible if p.bytes <= most), key=lambda p: (p.macs, p.bytes))


def value_types(graph: FusedGraph) -> tuple[str, ...]:
    """The type in C of each value's integers.

    Bytes; 12 bits in 16 of values that have a single pixel and only go where those are welcome: they are few, and
    all that the scores are made of. Sums that are the scores have 32.
    """
    readers: dict[int, list[Operation]] = {}
    for node in graph.operations:
        for value in node.inputs:
            readers.setdefault(value, []).append(node)

    def is_fine(node: Operation) -> bool:
        if graph.shapes[node.output][1:] != (1, 1):
            return False
        if isinstance(node, Convolution) and not sees_all(node, graph.shapes):
            return False
        return all(
            sees_all(reader, graph.shapes) if isinstance(reader, Convolution) else isinstance(reader, _ELEMENTWISE)
            for reader in readers.get(node.output, [])
        )

    found = ["uint8_t"] * len(graph.shapes)
    for node in graph.operations:
        if isinstance(node, Pool) and node.kind == "max":
            found[node.output] = found[node.inputs[0]]
        elif not isinstance(node, Planes) and is_fine(node):
            found[node.output] = "uint16_t"
    last = graph.operations[-1]
    if scores_are_sums(graph):
        found[last.output] = "int32_t"
    return tuple(found)


def scores_are_sums(graph: FusedGraph) -> bool:
    """Whether the last operation's sums can be the scores as they are."""
    last = graph.operations[-1]
    if last.output != graph.output or any(graph.output in node.inputs for node in graph.operations):
        return False
    match last:
        case Convolution():
            return last.scale is None and not last.relu and sees_all(last, graph.shapes)
        case Pool():
            return last.kind == "average" and graph.shapes[last.output][1:] == (1, 1)
    return False


_ELEMENTWISE = Affine | Add | Concatenate
_BYTES = {"uint8_t": 1, "uint16_t": 2, "int32_t": 4}


def sum_type(pool: Pool) -> str:
    """In C, of the running sums of an average of bytes."""
    return "uint16_t" if pool.kernel[0] * pool.kernel[1] * 255 <= _SUM16 else "int32_t"


class _Pass:
    """One image going through stages: what is made in which order, and what is still needed at each moment."""

    def __init__(
        self,
        graph: FusedGraph,
        made: Sequence[Stage],
        types: Sequence[str],
        arrivals: Sequence[int],
        *,
        passes_on: bool,
    ) -> None:
        self.graph, self.stages, self.types, self.passes_on = graph, made, types, passes_on
        self.made = [0] * len(made)
        self.writers = {stage.output: number for number, stage in enumerate(made)}
        self.readers: dict[int, list[int]] = {}
        for number, stage in enumerate(made):
            for value in stage.inputs:
                self.readers.setdefault(value, []).append(number)
        self.arrived = 0
        self.rings = dict.fromkeys(range(len(graph.shapes)), 0)
        self.spans: dict[int, tuple[int, int]] = {}
        self.runs: dict[int, tuple[int, int]] = {}
        self.moments: list[tuple[int, dict[int, tuple[int, int]]]] = []
        for rows in arrivals:
            self.arrived += rows
            self._keeps(0, self.arrived - 1, rows)
            for number in self._events():
                self._note(number)

    def available(self, value: int) -> int:
        """Finished rows."""
        if value == 0:
            return self.arrived
        number = self.writers[value]
        return self.made[number] // self.stages[number].rows_each

    def alive(self, value: int) -> int:
        """The first row that is still needed."""
        height = self.graph.shapes[value][1]
        if value == self.graph.output and not self.passes_on:
            return 0
        needed = [
            self.stages[reader].needs(self.made[reader], height)[0]
            for reader in self.readers.get(value, [])
            if self.made[reader] < self.stages[reader].rows
        ]
        return min(needed, default=height)

    def _events(self) -> Iterator[int]:
        """Stages in the order in which the program runs them: each at most one row, as long as there is one."""
        busy = True
        while busy:
            busy = False
            for number, stage in enumerate(self.stages):
                row = self.made[number]
                if row < stage.rows and all(
                    self.available(value) >= stage.needs(row, self.graph.shapes[value][1])[1] for value in stage.inputs
                ):
                    yield number
                    self.made[number] += 1
                    busy = True

    def _note(self, number: int) -> None:
        stage, moment = self.stages[number], len(self.moments)
        self.runs[number] = (self.runs.get(number, (moment, 0))[0], moment)
        value, row = stage.output, self.made[number]
        if stage.pool is None or stage.pool.kind == "max" or (row + 1) % stage.rows_each == 0:
            self._keeps(value, row // stage.rows_each, 1)
            self.spans[value] = (self.spans.get(value, (moment, 0))[0], moment)
        for read in stage.inputs:
            if read:
                self.spans[read] = (self.spans.get(read, (moment, 0))[0], moment)
        self.moments.append((number, {v: (self.available(v), self.alive(v)) for v in self.writers}))

    def _keeps(self, value: int, row: int, rows: int) -> None:
        first = min(self.alive(value), row - rows + 1)
        self.rings[value] = max(self.rings[value], row - first + 1)


def _pipeline(
    graph: FusedGraph,
    arrivals: Sequence[int],
    *,
    image: bool,
    passes_on: bool = False,
    scrap: int = 0,
    wide_before: int = 0,
) -> Pipeline:
    """Stages, rings and places of a network whose input arrives so many rows at a time.

    Args:
        graph: the network.
        arrivals: rows.
        image: whether the input is one, with the channels of a pixel side by side, and not planes.
        passes_on: whether each row of the output is read as soon as it is made, and not only at the end.
        scrap: bytes at offset 0 that belong to others and are free while this runs; its own places begin behind.
        wide_before: sums of 32 bits that belong to others.
    """
    made = stages(graph, image=image)
    types = value_types(graph)
    walk = _Pass(graph, made, types, arrivals, passes_on=passes_on or types[graph.output] == "int32_t")
    last = len(walk.moments)
    walk.spans[graph.output] = (walk.spans[graph.output][0], last)
    if not image:
        walk.spans[0] = (0, last)
    lenders = _lenders(graph, made, types, walk)
    for value, lender in lenders.items():
        if lender is not None:
            span, run = walk.spans[lender], walk.runs[walk.writers[value]]
            walk.spans[lender] = (min(span[0], run[0]), max(span[1], run[1]))
    buffers: dict[str, Buffer] = {}

    def reserve(name: str, size: int, span: tuple[int, int]) -> None:
        buffers[name] = Buffer(name, size + size % 2, *span)

    places: dict[int, str] = {}
    sums: dict[int, str | int] = {}
    wide = 0
    for value, span in walk.spans.items():
        number = walk.writers.get(value)
        pool = made[number].pool if number is not None else None
        row = _row_bytes(graph, types, value)
        if number is not None and pool and pool.kind == "average":
            channels, _, width = graph.shapes[value]
            if sum_type(pool) == "int32_t":
                sums[value] = wide_before + wide
                wide += channels * width
            else:
                sums[value] = f"sums {value}"
                run = walk.runs[number]
                if types[value] == "uint16_t" and graph.shapes[value][1] == 1:  # the means take the place of the sums
                    places[value] = f"sums {value}"
                    run = (run[0], span[1])
                reserve(f"sums {value}", channels * width * _BYTES["uint16_t"], run)
        if types[value] != "int32_t" and value not in places:
            places[value] = f"value {value}"
            reserve(places[value], walk.rings[value] * row + _read_beyond(graph, made, value), span)
    patch = max((patch_bytes(made[walk.writers[v]]) for v, lender in lenders.items() if lender is None), default=0)
    if patch > scrap:
        reserve("patch", patch, (0, last))
    offsets, size = place(list(buffers.values()))
    offsets = {name: scrap + at for name, at in offsets.items()}
    return Pipeline(
        graph,
        made,
        types,
        {value: min(ring, graph.shapes[value][1]) for value, ring in walk.rings.items()},
        {value: offsets[name] for value, name in places.items()},
        {value: offsets[at] if isinstance(at, str) else at for value, at in sums.items()},
        {
            value: Patch(offsets.get("patch", 0) if lender is None else None, lender)
            for value, lender in lenders.items()
        },
        size,
        wide,
    )


def _read_beyond(graph: FusedGraph, made: Sequence[Stage], value: int) -> int:
    """Bytes behind a value that are read, and not used, by a stage whose rows are narrower than a block of pixels."""
    found = 0
    for stage in made:
        node = stage.operations[0]
        if stage.kind == "separable" and value in stage.inputs and isinstance(node, Convolution):
            found = max(found, (PIXELS - graph.shapes[node.output][2]) * node.stride[1])
    return found


def _row_bytes(graph: FusedGraph, types: Sequence[str], value: int) -> int:
    channels, _, width = graph.shapes[value]
    return channels * width * _BYTES[types[value]]


def patch_bytes(stage: Stage) -> int:
    """What four pixels of a stage's last convolution depend on, in 16 bits each."""
    node = stage.operations[-1]
    assert isinstance(node, Convolution)
    size: int = node.weight[0].size
    return (size + size % 2) * PIXELS * 2


def _lenders(graph: FusedGraph, made: Sequence[Stage], types: Sequence[str], walk: _Pass) -> dict[int, int | None]:
    """For each stage with a patch, by its output, a value whose next row is free whenever the stage runs.

    The ring of a value has room for the row that is made next; until then nobody needs that.
    """
    found: dict[int, int | None] = {}
    for number, stage in enumerate(made):
        if stage.kind not in ("convolution", "separable"):
            continue
        found[stage.output] = None
        size = patch_bytes(stage)
        for value, writer in walk.writers.items():
            channels, _, width = graph.shapes[value]
            pool = made[writer].pool
            suits = types[value] == "uint8_t" and channels * width >= size and channels * width % 2 == 0
            if not suits or value == stage.output or value == graph.output or (pool and pool.kind == "max"):
                continue
            moments = [state[value] for running, state in walk.moments if running == number]
            if all(rows - walk.rings[value] < alive for rows, alive in moments):
                found[stage.output] = value
                break
    return found


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
    begin = _pipeline(band, [1] * band.shapes[0][1], image=True, passes_on=True)
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
    end = _pipeline(rest, arrivals, image=False, scrap=begin.size, wide_before=begin.wide)
    return Plan(graph, Bands(begin, cut, rows, heights[0], step), end)


def _costliest(plan: Plan) -> str:
    """The value that takes most memory, for people."""
    size, name = max(
        (one.rings[stage.output] * one.row_bytes(stage.output), stage.names)
        for one in plan.pipelines
        for stage in one.stages
    )
    return f"{name} ({size:,} bytes)"
