"""A network, or a part of one, that works through an image row by row: which rows are kept, where, and for how long.

A stage makes its next row as soon as it has the rows that it needs, so of a value that a 3 × 3 convolution reads, three
rows are enough. What that takes is found by going through the rows of an image once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from smidgen.lowering.fused import Convolution, FusedGraph
from smidgen.lowering.placing import Buffer, place
from smidgen.lowering.stages import PIXELS, Stage, stages
from smidgen.lowering.value_types import BYTES, SCORES, sum_type, value_types


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
        types: in C, of each value; scores alone are int32_t, and are kept elsewhere.
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


def pipeline(
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
    walk = _Pass(graph, made, types, arrivals, passes_on=passes_on or types[graph.output] == SCORES)
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
            if sum_type(pool) == SCORES:
                sums[value] = wide_before + wide
                wide += channels * width
            else:
                sums[value] = f"sums {value}"
                run = walk.runs[number]
                if types[value] == "uint16_t" and graph.shapes[value][1] == 1:  # the means take the place of the sums
                    places[value] = f"sums {value}"
                    run = (run[0], span[1])
                reserve(f"sums {value}", channels * width * BYTES["uint16_t"], run)
        if types[value] != SCORES and value not in places:
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
    return channels * width * BYTES[types[value]]


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
