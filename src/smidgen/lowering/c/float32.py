"""A graph in C with float32 arithmetic, for processors with vectors.

Each layer is a function of its own with all sizes as constants, and the channels of a pixel lie side by side, filled
up to a multiple of eight, so that the compiler makes vectors of the loops over channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smidgen.graph.ops import Activation, Add, Concatenate, Operation, Pool
from smidgen.lowering.c.source import Code, c_float, check_sizes, comment_text, shape_text
from smidgen.lowering.c.template import render
from smidgen.lowering.fused import Affine, Convolution, FusedGraph
from smidgen.lowering.placing import Buffer, place

VECTOR = 8
"""Channels are filled up to a multiple of this."""
_FEW = 4
"""So few are not filled up."""
_ACCUMULATORS = 96
"""Sums that are worked out at a time: 12 of 16 registers of 8 floats."""
_MOST_PIXELS = 4
_MOST_BLOCK = 48


def float32_code(graph: FusedGraph) -> Code:
    """The parts of the C files of a graph.

    Raises:
        SmidgenError: a layer is too large for C.
    """
    check_sizes(graph.shapes, graph.operations)
    return _Writer(graph).code


class _Writer:
    def __init__(self, graph: FusedGraph) -> None:
        self.graph = graph
        self.code = Code(
            arithmetic="Arithmetic in float32, the same network as was trained, BatchNorm folded into the weights.",
            score="float",
            score_unit="1.0f",
            score_format='" %a", (double)scores[c]',
            order="A place in memory is used again when its value is no longer needed.",
        )
        self.channels = self._filled_up()
        self.borders = self._borders()
        self.offsets, size = place(self._buffers())
        self.code.scratch.append(("float", "memory", size))
        self.code.steps += ["    float *const memory = scratch->memory;", ""]
        self.code.kernel("keep_loop.c", "keep_loop", {})
        channels, height, width = graph.shapes[0]
        values = {"scale": c_float(1 / (255 * graph.std)), "shift": c_float(-graph.mean / graph.std)}
        values |= {"height": str(height), "row": str(channels * width), "out_row": str(self.row(0))}
        self.code.kernel("normalize.c", "normalize", values)
        self.begin(0)
        self.code.call("normalize", ["image", self.at(0)])
        for number, node in enumerate(graph.operations, start=1):
            self.add(f"layer{number}", node)
        self.code.steps.append(f"    return {self.at(graph.output)};")

    def _filled_up(self) -> list[int]:
        """Channels of each value as they lie in memory."""
        shapes = self.graph.shapes
        found = [shapes[0][0]] * len(shapes)
        for node in self.graph.operations:
            channels, value = shapes[node.output][0], node.output
            found[value] = channels
            match node:
                case Convolution() if node.groups == 1 and channels > _FEW and value != self.graph.output:
                    found[value] = -(-channels // VECTOR) * VECTOR
                case Convolution() if node.groups != len(node.weight) or node.weight.shape[1] != 1:
                    pass
                case Convolution() | Pool() | Affine() | Activation() if value != self.graph.output:
                    found[value] = found[node.inputs[0]]
        return found

    def _borders(self) -> list[int]:
        """Zeros around each value."""
        found = [0] * len(self.graph.shapes)
        for node in self.graph.operations:
            if isinstance(node, Convolution):
                found[node.inputs[0]] = max(found[node.inputs[0]], *node.padding)
        return found

    def _buffers(self) -> list[Buffer]:
        first, last = {0: 0}, {0: 0}
        for step, node in enumerate(self.graph.operations, start=1):
            first[node.output] = last[node.output] = step
            for value in node.inputs:
                last[value] = step
        last[self.graph.output] = len(self.graph.operations) + 1
        return [Buffer(str(value), self.row(value) * self.rows(value), first[value], last[value]) for value in first]

    def column(self, value: int) -> int:
        """Floats from a pixel to the next; `row`, from a row to the next; `rows`, how many, borders included."""
        return self.channels[value]

    def row(self, value: int) -> int:
        return (self.graph.shapes[value][2] + 2 * self.borders[value]) * self.channels[value]

    def rows(self, value: int) -> int:
        return self.graph.shapes[value][1] + 2 * self.borders[value]

    def at(self, value: int, padding: tuple[int, int] = (0, 0), channel: int = 0) -> str:
        """Where a value begins, or so many rows and columns before that."""
        border = self.borders[value]
        offset = self.offsets[str(value)] + channel
        offset += (border - padding[0]) * self.row(value) + (border - padding[1]) * self.column(value)
        return f"memory + {offset}" if offset else "memory"

    def begin(self, value: int) -> None:
        """Zeros around a value that is about to be written."""
        border = self.borders[value]
        if border:
            self.code.kernel("border_float32.c", "border", {})
            corner = self.at(value, (border, border))
            self.code.call("border", [corner, self.rows(value), self.row(value), border, border * self.column(value)])

    def about(self, node: Operation) -> str:
        shapes = self.graph.shapes
        before = " and ".join(shape_text(shapes[value]) for value in node.inputs)
        return f"{node.name}: {before} to {shape_text(shapes[node.output])}"

    def add(self, name: str, node: Operation) -> None:
        """One operation."""
        self.begin(node.output)
        target = self.at(node.output)
        padding = node.padding if isinstance(node, Convolution) else (0, 0)
        arguments = [self.at(value, padding) for value in node.inputs]
        match node:
            case Convolution():
                self.convolution(name, node)
            case Pool():
                self.pool(name, node)
            case Affine():
                scale = self.code.array("float", f"{name}_scale", self.filled(node.scale, self.column(node.output)))
                shift = self.code.array("float", f"{name}_shift", self.filled(node.shift, self.column(node.output)))
                value = f"from0[c] * {scale}[c] + {shift}[c]"
                self.map(name, node, [f"to[c] = {_relu(value) if node.relu else value};"])
            case Activation():
                kind = node.kind
                expression = kind.c
                self.code.needs_math |= "expf" in kind.c or "tanhf" in kind.c
                limits = [
                    f"const float {parameter} = {c_float(value)};"
                    for parameter, value in zip(kind.parameters, node.parameters, strict=True)
                ]
                self.map(name, node, [*limits, "const float x = from0[c];", f"to[c] = {expression};"])
            case Add():
                self.map(name, node, ["to[c] = from0[c] + from1[c];"])
            case Concatenate():
                self.concatenate(name, node)
            case _:
                raise AssertionError(node)
        self.code.call(name, [*arguments, target])

    @staticmethod
    def filled(values: np.ndarray, count: int) -> np.ndarray:
        """Zeros at the end of the last axis."""
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, count - values.shape[-1])])

    def convolution(self, name: str, node: Convolution) -> None:
        """A function for a convolution, and its tables."""
        code, (value,), output = self.code, node.inputs, node.output
        shapes, columns = self.graph.shapes, self.column(output)
        _, out_height, out_width = shapes[output]
        depthwise = node.groups == len(node.weight) > 1 and node.weight.shape[1] == 1
        inputs, (height, width) = node.weight.shape[1], node.weight.shape[2:]
        if depthwise or node.groups == 1:
            blocks = [b for b in range(1, columns + 1) if columns % b == 0 and (b <= _MOST_BLOCK)]
            fit = [b for b in blocks if b % VECTOR == 0] or blocks
            block = max(fit)
        else:
            block = len(node.weight) // node.groups
        pixels = max(1, min(_MOST_PIXELS, _ACCUMULATORS // block, out_width))
        weights = self.filled(node.weight.transpose(2, 3, 1, 0), columns)
        table = code.array("float", f"{name}_weights", weights, node.name)
        bias = "0.0f"
        if node.bias.any():
            bias = code.array("float", f"{name}_bias", self.filled(node.bias, columns)) + "[b + o]"
        step = node.stride[1] * self.column(value)
        names = [f"s{pixel}" for pixel in range(pixels)]
        loops, indices = [], []
        for letter, count in (("j", height), ("i", width), ("c", 1 if depthwise else inputs)):
            if count > 1:
                loops.append(f"for ({letter} = 0; {letter} < {count}; {letter}++)")
                indices.append(letter)

        def index(**steps: int) -> str:
            parts = [
                f"{letter} * {size}" if size > 1 else letter for letter, size in steps.items() if letter in indices
            ]
            return " + ".join(parts) or "0"

        move = index(j=node.dilation[0] * self.row(value), i=node.dilation[1] * self.column(value), c=1)
        at = index(j=width * inputs * columns, i=inputs * columns, c=columns)
        group = " + b" if depthwise else f" + b / {block} * {inputs}" if node.groups > 1 else ""
        lines = [
            *loops,
            "{",
            f"    const float *const p = from + {move}{group};",
            f"    const float *const w = {table} + {at} + b;",
            "",
            "    SMIDGEN_KEEP_LOOP",
            f"    for (o = 0; o < {block}; o++) {{",
        ]
        for pixel, sums in enumerate(names):
            read = f"p[{pixel * step}{' + o' if depthwise else ''}]"
            lines.append(f"        {sums}[o] += {read} * w[o];")
        lines += ["    }", "}"]
        values: list[str] = []
        for pixel, sums in enumerate(names):
            result = f"{sums}[o]"
            result = _relu(result) if node.relu else result
            if node.scale is not None and node.shift is not None:
                if pixel == 0:
                    scale = code.array("float", f"{name}_scale", self.filled(node.scale, columns))
                    shift = code.array("float", f"{name}_shift", self.filled(node.shift, columns))
                result = f"({result}) * {scale}[b + o] + {shift}[b + o]"
            values.append(f"to[{pixel * columns} + b + o] = {result};")
        indent = " " * 16
        self.function(
            name,
            "convolution_float32.c",
            {
                "about": comment_text(self.about(node)),
                "indices": "".join(f", {letter}" for letter in indices),
                "out_height": out_height,
                "out_width": out_width,
                "pixels": pixels,
                "row": node.stride[0] * self.row(value),
                "column": step,
                "out_row": self.row(output),
                "out_column": columns,
                "outputs": columns if depthwise or node.groups == 1 else len(node.weight),
                "block": block,
                "sums": ", ".join(f"{sums}[{block}]" for sums in names),
                "start": " = ".join(f"{sums}[o]" for sums in names) + f" = {bias}",
                "products": "\n".join(indent + line for line in lines),
                "ends": "\n".join(indent + "    " + line for line in values),
            },
            {"back"} if out_width % pixels else set(),
        )

    def function(self, name: str, fragment: str, values: dict[str, object], features: set[str]) -> None:
        """A layer's function stands behind the tables, which it names."""
        self.code.functions.append(render(fragment, {"name": name, **values}, features))

    def pool(self, name: str, node: Pool) -> None:
        """A function for a pooling."""
        (value,), output = node.inputs, node.output
        _, height, width = self.graph.shapes[value]
        features = {node.kind} | ({"padding"} if node.padding != (0, 0) else set())
        area = f"{node.kernel[0]} * {node.kernel[1]}"
        if "padding" in features and not node.count_padding:
            area = "(row_end - row_begin) * (column_end - column_begin)"
        elif "padding" not in features:
            area = c_float(float(node.kernel[0] * node.kernel[1]))
        self.function(
            name,
            "pool_float32.c",
            {
                "about": comment_text(self.about(node)),
                "out_height": self.graph.shapes[output][1],
                "out_width": self.graph.shapes[output][2],
                "channels": self.column(output),
                "height": height,
                "width": width,
                "row": self.row(value),
                "column": self.column(value),
                "out_row": self.row(output),
                "out_column": self.column(output),
                "area": area,
                **dict(zip(("kernel_height", "kernel_width"), node.kernel, strict=True)),
                **dict(zip(("stride_y", "stride_x"), node.stride, strict=True)),
                **dict(zip(("padding_y", "padding_x"), node.padding, strict=True)),
            },
            features,
        )

    def map(self, name: str, node: Operation, body: Sequence[str]) -> None:
        """A function of each channel of each pixel."""
        output = node.output
        channels = min(self.column(value) for value in (*node.inputs, output))
        lines = [
            f"            const float *const from{n} = in{n} + j * {self.row(value)} + i * {self.column(value)};"
            for n, value in enumerate(node.inputs)
        ]
        lines += ["", f"            for (c = 0; c < {channels}; c++) {{", *(f"                {line}" for line in body)]
        self._map(name, node, [*lines, "            }"])

    def concatenate(self, name: str, node: Concatenate) -> None:
        """A function for values side by side."""
        lines: list[str] = []
        before = 0
        for n, value in enumerate(node.inputs):
            own = self.graph.shapes[value][0]
            place = f"in{n}[j * {self.row(value)} + i * {self.column(value)} + c]"
            lines.append(f"            for (c = 0; c < {own}; c++) to[{before} + c] = {place};")
            before += own
        self._map(name, node, lines)

    def _map(self, name: str, node: Operation, lines: Sequence[str]) -> None:
        output = node.output
        values: dict[str, object] = {
            "about": comment_text(self.about(node)),
            "inputs": ", ".join(f"const float *in{n}" for n in range(len(node.inputs))),
            "height": self.graph.shapes[output][1],
            "width": self.graph.shapes[output][2],
            "out_row": self.row(output),
            "out_column": self.column(output),
            "body": "\n".join(lines),
        }
        self.function(name, "map_float32.c", values, set())


def _relu(value: str) -> str:
    return f"{value} > 0.0f ? {value} : 0.0f"
