"""A network as stages that make a row at a time: what an export fuses, and which rows each stage needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from smidgen.graph.ops import Operation, Pool, Shape, count_readers
from smidgen.lowering.fused import Convolution, FusedGraph

Kind = Literal["linear", "separable", "convolution", "window", "running", "map", "planes"]
PIXELS = 4
"""That a convolution works out at a time."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Operations of a graph that are done together, a row at a time.

    Attributes:
        kind: `linear`: one whose kernel is its whole input. `separable`: a depthwise convolution and a 1 × 1.
            `convolution`: any other. `window`: a pooling that looks at all rows of its window at once. `running`:
            one whose windows do not overlap, so that it needs a row at a time. `map`: rows to rows. `planes`: the
            channels of an image's pixels apart.
        operations: one, or the two of a separable convolution.
        pool: a pooling like `running`, done with each row of the others as it is made; or the operation itself.
        inputs: values that are read.
        output: the value that is written.
        rows: that it makes, before the pooling.
        stride: rows of its input from one row to the next.
        padding: rows above the first and below the last of its input.
        extent: rows of its input that a row needs.
    """

    kind: Kind
    operations: tuple[Operation, ...]
    pool: Pool | None
    inputs: tuple[int, ...]
    output: int
    rows: int
    stride: int = 1
    padding: int = 0
    extent: int = 1

    @property
    def rows_each(self) -> int:
        """Rows that it makes for a row of its output."""
        return self.pool.kernel[0] if self.pool else 1

    @property
    def names(self) -> str:
        """Of its layers."""
        names = [operation.name for operation in self.operations]
        if self.pool and self.pool is not self.operations[-1]:
            names.append(self.pool.name)
        return ", ".join(names)

    def needs(self, row: int, height: int) -> tuple[int, int]:
        """The first row of its inputs that a row needs, and the one behind the last.

        Args:
            row: counted before the pooling.
            height: of the inputs.
        """
        first = row * self.stride - self.padding
        return max(first, 0), min(first + self.extent, height)


@dataclass(frozen=True, kw_only=True, eq=False)
class Planes(Operation):
    """The image, its channels apart."""


def with_planes(graph: FusedGraph) -> FusedGraph:
    """The graph with the channels of the image apart for all but convolutions, which alone find them side by side."""
    channels = graph.shapes[0][0]

    def apart(node: Operation) -> bool:
        return 0 in node.inputs and (not isinstance(node, Convolution) or sees_all(node, graph.shapes)) and channels > 1

    if not any(map(apart, graph.operations)):
        return graph
    value = len(graph.shapes)
    read = [
        replace(node, inputs=tuple(number or value for number in node.inputs)) if apart(node) else node
        for node in graph.operations
    ]
    planes = Planes(name="image", inputs=(0,), output=value)
    return replace(graph, operations=(planes, *read), shapes=(*graph.shapes, graph.shapes[0]))


def stages(graph: FusedGraph, *, image: bool = True) -> tuple[Stage, ...]:
    """The stages of a graph, in an order in which they can be run.

    Args:
        graph: the network.
        image: whether its input is one, with the channels of a pixel side by side, and not planes.
    """
    shapes, readers = graph.shapes, count_readers(graph.operations, graph.output)
    made: dict[int, Stage] = {}  # by the value that each writes
    for operation in graph.operations:
        value = operation.inputs[0]
        before = made.get(value) if readers[value] == 1 else None
        match operation:
            case Convolution() if before and _completes(before, operation) and not (image and before.inputs == (0,)):
                (depthwise,) = before.operations
                made[operation.output] = replace(
                    before, kind="separable", operations=(depthwise, operation), output=operation.output
                )
                del made[value]
            case Pool() if _is_running(operation):
                rows = shapes[operation.output][1] * operation.kernel[0]
                if before and before.kind in ("separable", "convolution") and before.pool is None:
                    made[operation.output] = replace(before, pool=operation, output=operation.output, rows=rows)
                    del made[value]
                else:
                    made[operation.output] = Stage(
                        "running", (operation,), operation, operation.inputs, operation.output, rows
                    )
            case _:
                made[operation.output] = _alone(operation, shapes)
    return tuple(made.values())


def sees_all(node: Convolution, shapes: Sequence[Shape]) -> bool:
    """Whether the kernel is the whole input, as of a linear layer."""
    return (
        node.weight.shape[2:] == shapes[node.inputs[0]][1:]
        and node.padding == (0, 0)
        and node.groups == 1
        and shapes[node.output][1:] == (1, 1)
    )


def is_depthwise(node: Convolution) -> bool:
    """Whether each channel is convolved by itself, and nothing is done to the sums that a table could not do."""
    return node.groups == len(node.weight) > 1 and node.weight.shape[1] == 1 and node.scale is None


def transposed(graph: FusedGraph) -> FusedGraph:
    """The same network for images on their side: rows are columns."""

    def turned(node: Operation) -> Operation:
        match node:
            case Convolution():
                return replace(
                    node,
                    weight=np.ascontiguousarray(node.weight.transpose(0, 1, 3, 2)),
                    stride=node.stride[::-1],
                    padding=node.padding[::-1],
                    dilation=node.dilation[::-1],
                )
            case Pool():
                return replace(node, kernel=node.kernel[::-1], stride=node.stride[::-1], padding=node.padding[::-1])
        return node

    return replace(
        graph,
        operations=tuple(map(turned, graph.operations)),
        shapes=tuple((channels, width, height) for channels, height, width in graph.shapes),
    )


def _completes(before: Stage, node: Convolution) -> bool:
    """Whether a convolution is the 1 × 1 of a separable one whose other half stands before it."""
    first = before.operations[0]
    plain = node.weight.shape[2:] == (1, 1) and node.stride == (1, 1) and node.padding == (0, 0) and node.groups == 1
    return (
        before.kind == "convolution"
        and before.pool is None
        and isinstance(first, Convolution)
        and is_depthwise(first)
        and plain
    )


def _is_running(node: Pool) -> bool:
    return node.kernel == node.stride and node.padding == (0, 0)


def _alone(node: Operation, shapes: Sequence[Shape]) -> Stage:
    height, rows = shapes[node.inputs[0]][1], shapes[node.output][1]
    match node:
        case Planes():
            return Stage("planes", (node,), None, node.inputs, node.output, rows)
        case Convolution() if sees_all(node, shapes):
            return Stage("linear", (node,), None, node.inputs, node.output, 1, extent=height)
        case Convolution():
            extent = (node.weight.shape[2] - 1) * node.dilation[0] + 1
            return Stage(
                "convolution", (node,), None, node.inputs, node.output, rows, node.stride[0], node.padding[0], extent
            )
        case Pool():
            return Stage(
                "window", (node,), None, node.inputs, node.output, rows, node.stride[0], node.padding[0], node.kernel[0]
            )
    return Stage("map", (node,), None, node.inputs, node.output, rows)
