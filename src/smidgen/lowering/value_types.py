"""The types of an integer network's values in C."""

from __future__ import annotations

from smidgen.graph.ops import Add, Concatenate, Operation, Pool
from smidgen.lowering.fused import Affine, Convolution, FusedGraph
from smidgen.lowering.stages import Planes, sees_all

SCORES = "int32_t"
"""The type of a score, and of no other value."""
BYTES = {"float": 4, "int32_t": 4, "int16_t": 2, "uint16_t": 2, "int8_t": 1, "uint8_t": 1}
"""Of an element of each type that exports have."""
_ELEMENTWISE = Affine | Add | Concatenate
_SUM16 = 2**16 - 1


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
        found[last.output] = SCORES
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


def sum_type(pool: Pool) -> str:
    """In C, of the running sums of an average of bytes."""
    return "uint16_t" if pool.kernel[0] * pool.kernel[1] * 255 <= _SUM16 else "int32_t"
