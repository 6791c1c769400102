"""An integer network in C, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from smidgen.exports.c.source import Code, Stream, c_float, check_sizes, shape_text
from smidgen.exports.c.template import render
from smidgen.exports.fused import Convolution, FusedGraph
from smidgen.exports.integer import (
    Averages,
    IntegerNetwork,
    Joined,
    Lookup,
    Rescale,
    Scaled,
    Step,
    Sums,
    Together,
)
from smidgen.exports.memory import Bands, Pipeline, Plan, plan, sum_type
from smidgen.exports.quantize import MULTIPLIER_BITS
from smidgen.exports.stages import Stage
from smidgen.graph.ops import Pool

_SCORES = "int32_t"
_SUFFIX = {"uint8_t": "8", "uint16_t": "16", _SCORES: "scores"}
_BLOCK = 4
"""Outputs whose weights are interleaved."""
_SINKS = {
    "store": ("uint8_t", "out[p] = (uint8_t)value;"),
    "max": ("uint8_t", "if (value > out[columns[p]]) out[columns[p]] = (uint8_t)value;"),
    "uint16_t": ("uint16_t", "out[columns[p]] = (uint16_t)(out[columns[p]] + value);"),
    "int32_t": ("int32_t", "out[columns[p]] += value;"),
}
"""What becomes of a convolution's result, and the type in C of where: it is stored, or goes into a pooling."""


def int8_code(graph: FusedGraph, network: IntegerNetwork, memory: Plan | None = None) -> Code:
    """The parts of the C files of an integer network.

    Args:
        graph: that it was made from.
        network: the same layers in integers.
        memory: of a call; None: without making anything again.

    Raises:
        SmidgenError: a layer is too large for the tables.
    """
    check_sizes(graph.shapes, graph.operations)
    return _Writer(network, memory or plan(graph)).code


class _Writer:
    """Writes the program of a plan.

    Attributes:
        code: what was written.
        plan: of the memory.
        bits4: whether weights have 4 bits, and not 8.
        features: what the kernels of convolutions must be able to do.
        sinks: what becomes of their results, in the order of the numbers in the tables.
    """

    def __init__(self, network: IntegerNetwork, memory: Plan) -> None:
        self.plan = memory
        self.bits4 = any(step.bits == 4 for step in network.steps if isinstance(step, Sums))
        self.code = code = Code(
            arithmetic=(
                f"Arithmetic in integers only: weights of {4 if self.bits4 else 8} bits with a scale for each output "
                "channel, values of 8 bits (16 where there is but one pixel), sums and products of 32 bits, which "
                "cannot overflow."
            ),
            score=_SCORES,
            score_unit=c_float(network.score_unit),
            score_format='" %ld", (long)scores[c]',
            order=(
                "A value is a ring of rows, each channel after channel. A stage makes its next row as soon as the\n"
                "   rows that it needs are there, so the rings are as short as can be, and a convolution gathers its\n"
                "   input where another value's next row will be."
            ),
        )
        code.scratch.append((_SCORES, "scores", memory.graph.classes))
        if memory.wide:
            code.scratch.append((_SCORES, "sums", memory.wide))
        code.scratch.append(("uint16_t", "memory", max(memory.memory // 2, 1)))
        code.scratch.append((memory.counter_type, "made", memory.counters))
        steps = {step.node.output: step for step in network.steps}
        before = memory.bands.cut if memory.bands else 0
        count = len(memory.bands.pipeline.stages) if memory.bands else 0
        front = _Part(self, memory.bands.pipeline, steps, 0, 0, on_its_side=True) if memory.bands else None
        back = _Part(self, memory.pipeline, steps, before, count, on_its_side=False)
        parts = [front, back] if front else [back]
        self.features, self.sinks = _needed(parts)
        for part in parts:
            part.prepare()
        code.functions.append(
            "static void $start($scratch *scratch)\n{\n    int32_t i;\n"
            f"    for (i = 0; i < {memory.counters}; i++) scratch->made[i] = 0;\n}}"
        )
        code.functions.append(back.advance("$advance"))
        if memory.bands and front:
            code.functions.append(front.advance("$advance_band"))
            self._in_bands(memory.bands, front, back)
        else:
            self._whole()
        code.functions.append(back.finish())

    def need(self, helper: str, name: str = "", **values: object) -> str:
        """A helper that kernels or steps call; gives its name."""
        name = name or helper
        if name not in self.code.kernels:
            self.code.kernels[name] = render(f"{helper}.c", {"name": name, **values})
        return name

    def _whole(self) -> None:
        channels, height, width = self.plan.graph.shapes[0]
        rows, step = self.plan.image_rows, channels * width
        self.code.steps += [
            "    int32_t row;",
            "",
            "    $start(scratch);",
            f"    for (row = 1; row <= {height}; row++) $advance(scratch, image, {height}, row);",
            "    return $finish(scratch);",
        ]
        push = render("row_of_image.c", {"height": height, "step": step, "rows": rows})
        self.code.stream = Stream(rows, push)

    def _in_bands(self, bands: Bands, front: _Part, back: _Part) -> None:
        channels, height, width = self.plan.graph.shapes[0]
        step, last = channels * width, self.plan.graph.shapes[bands.cut][1] - bands.rows
        self.code.order += (
            "\n\n   The first layers are worked out anew for each band of rows of the value that they make, along the\n"
            "   columns of the image: what their rings hold are columns."
        )
        self.code.functions.append(front.band(bands, back))
        move = bands.step * step
        self.code.steps += [
            "    int32_t top;",
            "",
            "    $start(scratch);",
            f"    for (top = 0; top < {last}; top += {bands.rows}) $band(scratch, image + top * {move}, top);",
            f"    $band(scratch, image + {last * move}, {last});",
            "    return $finish(scratch);",
        ]
        self.code.stream = Stream(
            bands.image_rows,
            render(
                "row_of_band.c",
                {
                    "height": height,
                    "step": step,
                    "last": last,
                    "rows": bands.rows,
                    "kept": bands.image_rows,
                    "move": bands.step,
                },
            ),
        )


class _Part:
    """Writes a pipeline.

    Attributes:
        pipeline: what is written.
    """

    def __init__(
        self,
        writer: _Writer,
        pipeline: Pipeline,
        steps: Mapping[int, Step],
        before: int,
        first: int,
        *,
        on_its_side: bool,
    ) -> None:
        self.writer, self.pipeline, self.code = writer, pipeline, writer.code
        self.on_its_side, self.takes_image = on_its_side, before == 0
        self.steps = {value - before: step for value, step in steps.items()}
        self.counters = {stage.output: first + number for number, stage in enumerate(pipeline.stages)}
        self.stages = {stage.output: stage for stage in pipeline.stages}
        self.names = {stage.output: f"layer{before + stage.output}" for stage in pipeline.stages}
        self.runs: dict[int, list[str]] = {}

    def prepare(self) -> None:
        """Kernels and tables of all stages."""
        for stage in self.pipeline.stages:
            self.runs[stage.output] = self._run(stage)

    def advance(self, name: str) -> str:
        """The function that makes what rows can be made."""
        what = "columns" if self.on_its_side else "rows"
        parameters = "const uint8_t *image, int32_t ring, " if self.takes_image else ""
        lines = [
            f"/* Makes what {what} can be made when `given` of its input are there. */",
            f"static void {name}($scratch *scratch, {parameters}int32_t given)",
            "{",
            "    uint8_t *const memory = (uint8_t *)scratch->memory;",
            "    int32_t busy, row;",
            "",
            "    do {",
            "        busy = 0;",
        ]
        for stage in self.pipeline.stages:
            counter = f"scratch->made[{self.counters[stage.output]}]"
            ready = " && ".join([f"row < {stage.rows}", *(self._there(stage, value) for value in stage.inputs)])
            before = " and ".join(shape_text(self._shape(value)) for value in stage.inputs)
            about = f"{stage.names}: {before} to {shape_text(self._shape(stage.output))}"
            lines += [
                "",
                f"        row = {counter}; /* {self.code.comment(about)} */",
                f"        if ({ready}) {{",
                *(f"            {line}" for line in self.runs[stage.output]),
                f"            {counter}++;",
                "            busy = 1;",
                "        }",
            ]
        return "\n".join([*lines, "    } while (busy);", "}"])

    def finish(self) -> str:
        """The function that gives the scores."""
        value, pipeline = self.pipeline.graph.output, self.pipeline
        lines = ["static const int32_t *$finish($scratch *scratch)", "{"]
        if pipeline.types[value] != _SCORES:
            kind, count = pipeline.types[value], self.writer.plan.graph.classes
            lines += [
                f"    const {kind} *const from = (const {kind} *)((const uint8_t *)scratch->memory + "
                f"{pipeline.places[value]});",
                "    int32_t i;",
                f"    for (i = 0; i < {count}; i++) scratch->scores[i] = from[i];",
            ]
        return "\n".join([*lines, "    return scratch->scores;", "}"])

    def band(self, bands: Bands, back: _Part) -> str:
        """The function that makes a band and has the rest of the network go on with it."""
        value, pipeline = bands.pipeline.graph.output, self.pipeline
        channels, columns, rows = pipeline.graph.shapes[value]
        counter = f"scratch->made[{self.counters[value]}]"
        if self.stages[value].rows_each > 1:
            counter += f" / {self.stages[value].rows_each}"
        ring, row_bytes = back.pipeline.rings[0], back.pipeline.row_bytes(0)
        return render(
            "band.c",
            {
                "stages": len(pipeline.stages),
                "columns": columns,
                "channels": channels,
                "rows": rows,
                "image_columns": pipeline.graph.shapes[0][1],
                "made": counter,
                "to": back.pipeline.places[0],
                "ring": ring,
                "row_bytes": row_bytes,
                "from": pipeline.places[value],
                "band_ring": pipeline.rings[value],
                "column_bytes": pipeline.row_bytes(value),
            },
        )

    def sums(self, value: int) -> Sums:
        """The convolution that writes a value."""
        found = self.steps[value]
        assert isinstance(found, Sums)
        return found

    def _shape(self, value: int) -> tuple[int, int, int]:
        channels, height, width = self.pipeline.graph.shapes[value]
        return (channels, width, height) if self.on_its_side else (channels, height, width)

    def _rows(self, value: int) -> str:
        """How many rows of a value there are, in C."""
        if value == 0:
            return "given"
        made, each = f"scratch->made[{self.counters[value]}]", self.stages[value].rows_each
        return f"{made} / {each}" if each > 1 else made

    def _there(self, stage: Stage, value: int) -> str:
        """Whether a value has the rows that the next one needs, in C."""
        height, rows = self.pipeline.graph.shapes[value][1], self._rows(value)
        if stage.extent == height and not stage.padding:
            return f"{rows} == {height}"
        wanted = f"row * {stage.stride}" if stage.stride > 1 else "row"
        more = stage.extent - stage.padding
        enough = f"{rows} >= {wanted} + {more}" if more >= 0 else f"{rows} + {-more} >= {wanted}"
        return f"({rows} == {height} || {enough})" if stage.padding else enough

    def _ring(self, value: int) -> str:
        """Where the rows of a value are, in C."""
        if value == 0 and self.takes_image:
            return "image"
        return _plus("memory", self.pipeline.places[value])

    def _row(self, value: int, row: str) -> str:
        """Where one of its rows is, typed."""
        kind = self.pipeline.types[value]
        if kind == _SCORES:
            return "scratch->scores"
        size = self.pipeline.row_bytes(value)
        if value == 0 and self.takes_image:
            return f"image + {row} % ring * {size}"
        ring = self.pipeline.rings[value]
        at = self._ring(value) + (f" + {row} % {ring} * {size}" if ring > 1 else "")
        return at if kind == "uint8_t" else f"({kind} *)({at})"

    def _patch(self, stage: Stage) -> str:
        patch = self.pipeline.patches[stage.output]
        if patch.lender is None:
            assert patch.place is not None
            return f"(uint16_t *)({_plus('memory', patch.place)})"
        rows = self._rows(patch.lender)
        return f"(uint16_t *)({self._row(patch.lender, f'({rows})' if ' ' in rows else rows)})"

    def _run(self, stage: Stage) -> list[str]:
        """Lines of C that make a row."""
        match stage.kind:
            case "convolution":
                value = stage.inputs[0]
                ring = "ring" if value == 0 and self.takes_image else str(self.pipeline.rings[value])
                self._convolution(stage)
                call = f"$convolution(&${self.names[stage.output]}, {self._ring(value)}, {ring}, row, "
                return self._pooled(stage, call + f"{self._patch(stage)}, {{out}});")
            case "separable":
                kernel = self._separable(stage)
                call = f"${kernel}(&${self.names[stage.output]}, {self._ring(stage.inputs[0])}, row, "
                return self._pooled(stage, call + f"{self._patch(stage)}, {{out}});")
            case "running":
                return self._pooled(stage, self._running(stage))
            case "window":
                return [self._window(stage)]
            case "linear":
                return [self._linear(stage)]
            case "planes":
                channels, _, width = self.pipeline.graph.shapes[0]
                self.writer.need("planes")
                return [f"$planes({self._row(0, 'row')}, {self._row(stage.output, 'row')}, {channels}, {width});"]
        return self._map(stage)

    def _pooled(self, stage: Stage, call: str) -> list[str]:
        """A call whose result goes to a row, or into a pooling's row or sums."""
        pool, value = stage.pool, stage.output
        if pool is None:
            return [call.format(out=self._row(value, "row"))]
        channels, _, width = self.pipeline.graph.shapes[value]
        count, each = channels * width, stage.rows_each
        out_row = self._row(value, f"(row / {each})" if each > 1 else "row")
        begins = f"if (row % {each} == 0) " if each > 1 else ""
        if pool.kind == "max":
            self.writer.need("clear", "clear_8", type="uint8_t")
            return [f"{begins}$clear_8({out_row}, {count});", call.format(out=out_row)]
        step = self.steps[value]
        assert isinstance(step, Averages)
        kind, at = sum_type(pool), self.pipeline.sums[value]
        sums = f"scratch->sums + {at}" if kind == "int32_t" else f"(uint16_t *)({_plus('memory', at)})"
        bits = kind.removesuffix("_t").removeprefix("u").removeprefix("int")
        clear = self.writer.need("clear", f"clear_{bits}", type=kind)
        ends = f"if (row % {each} == {each - 1}) " if each > 1 else ""
        made = self.pipeline.types[value]
        name = f"means_{bits}_{_SUFFIX[made]}"
        if made == _SCORES:
            self._kernel("means.c", name, {"in": kind, "what": " scores"}, {"scores"})
            arguments = [sums, out_row, count, step.bias]
        else:
            self._steps()
            self._kernel("means.c", name, {"in": kind, "out": made, "what": " means in steps of the output"}, set())
            arguments = [sums, out_row, count, *_line(step.rescale)]
        return [
            f"{begins}${clear}({sums}, {count});",
            call.format(out=sums),
            f"{ends}${name}({', '.join(map(str, arguments))});",
        ]

    def _kernel(self, fragment: str, name: str, values: Mapping[str, object], features: set[str]) -> None:
        if name not in self.code.kernels:
            self.code.kernels[name] = render(fragment, {"name": name, **values}, features)

    def _steps(self) -> None:
        self.writer.need("steps")

    def _weights(self) -> str:
        return "uint8_t" if self.writer.bits4 else "int8_t"

    def _outputs(self, stage: Stage) -> str:
        """The kernel and the table of what multiplies patches."""
        writer, code, name = self.writer, self.code, f"{self.names[stage.output]}_outputs"
        node = stage.operations[-1]
        assert isinstance(node, Convolution)
        step = self.sums(node.output)
        groups = node.groups
        sinks, features = writer.sinks, {*writer.features}
        pair_bytes = _BLOCK if writer.bits4 else 2 * _BLOCK
        if "outputs" not in code.kernels:
            values = {"weight": self._weights(), "pair_bytes": pair_bytes, "half_bytes": 1 if writer.bits4 else _BLOCK}
            code.kernels["dot"] = render("dot.c", values, features)
            features |= {"many"} if len(sinks) > 1 else set()
            finishes = [
                render(
                    "finish.c",
                    {
                        "sink": _SUFFIX_OF_SINK[sink],
                        "over": " const int32_t *over," if writer.bits4 else "",
                        "columns": "int32_t x" if sink == "store" else "const int32_t *columns",
                        "start": " + x" if sink == "store" else "",
                        "type": kind,
                        "store": store,
                    },
                    features,
                )
                for sink, (kind, store) in _SINKS.items()
                if sink in sinks
            ]
            code.kernels["outputs"] = render(
                "outputs.c",
                {
                    **values,
                    "finishes": "\n\n".join(finishes),
                    "calls": _calls(sinks, bits4=writer.bits4),
                    "sinks": ", or goes into a pooling" if set(sinks) - {"store"} else "",
                    "sink_names": ", ".join(f"{number}: {_SINK_NAMES[sink]}" for number, sink in enumerate(sinks)),
                },
                features,
            )
        weight = step.weight.transpose(0, 1, 3, 2) if self.on_its_side else step.weight
        # As patches are gathered: rows of the kernel, channels, columns.
        matrices = weight.transpose(0, 2, 1, 3).reshape(groups, len(weight) // groups, -1)
        packed = [_interleaved(matrix, bits4=writer.bits4) for matrix in matrices]
        layer = self.names[stage.output]
        width = self.pipeline.graph.shapes[stage.output][2]
        fields: dict[str, object] = {
            "weights": code.array(self._weights(), f"{layer}_weights", np.concatenate(packed), node.name),
            **self._rescaled(layer, step),
            "step": width,
            "group_weights": len(packed[0]),
            "pairs": -(-matrices.shape[2] // 2),
            "outputs": matrices.shape[1],
        }
        if "pooled" in features:
            fields["pool_width"] = stage.pool.kernel[1] if stage.pool else 1
        if len(sinks) > 1:
            fields["sink"] = sinks.index(sink_of(stage))
        code.struct("outputs", name, fields)
        return f"&${name}"

    def _rescaled(self, layer: str, step: Sums) -> dict[str, object]:
        """The fields of a table that say what becomes of sums."""
        code = self.code
        fields: dict[str, object] = {
            "bias": code.array("int16_t", f"{layer}_bias", step.bias >> step.bias_shift),
            "bias_shift": step.bias_shift,
        }
        rescale = step.rescale
        if rescale is None:
            return fields
        if has_factors(step):
            offsets = np.broadcast_to(rescale.offsets, rescale.multipliers.shape)
            both = np.stack([rescale.multipliers, offsets], axis=1)
            fields["factors"] = code.array("int32_t", f"{layer}_factors", both)
            fields |= {"shift": int(rescale.shifts[0]), "relu": int(step.cut)}
        else:
            least = int(rescale.shifts.min())
            packed = rescale.multipliers + ((rescale.shifts - least) << MULTIPLIER_BITS)
            fields["multipliers"] = code.array("uint16_t", f"{layer}_multipliers", packed)
            fields["shift"] = least
            if "before" in self.writer.features:
                fields["before"] = rescale.before
        return fields

    def _convolution(self, stage: Stage) -> None:
        code, node, value = self.code, stage.operations[0], stage.inputs[0]
        assert isinstance(node, Convolution)
        features = {f for f in self.writer.features if f == "padding"}
        outputs = self._outputs(stage)
        self._kernel("convolution_integer.c", "convolution", {}, features)
        channels, height, width = self.pipeline.graph.shapes[value]
        if value == 0 and self.takes_image:
            steps = (channels, 1, channels * height) if self.on_its_side else (channels * width, 1, channels)
        else:
            steps = (channels * width, width, 1)
        out_width = self._made_width(stage)
        fields: dict[str, object] = {
            "outputs": outputs,
            **dict(zip(("row_step", "channel_step", "column_step"), steps, strict=True)),
            "inputs": channels // node.groups,
            "groups": node.groups,
            "kernel_height": node.weight.shape[2],
            "kernel_width": node.weight.shape[3],
            "stride_y": node.stride[0],
            "stride_x": node.stride[1],
            "dilation_y": node.dilation[0],
            "dilation_x": node.dilation[1],
            "width": out_width,
        }
        if "padding" in features:
            fields |= {"in_height": height, "in_width": width, "zero": self.sums(node.output).padding}
            fields |= {"padding_y": node.padding[0], "padding_x": node.padding[1]}
        code.struct("convolution", self.names[stage.output], fields)

    def _made_width(self, stage: Stage) -> int:
        """Pixels of a row before the pooling, as far as that looks."""
        width = self.pipeline.graph.shapes[stage.output][2]
        return width * stage.pool.kernel[1] if stage.pool else width

    def _separable(self, stage: Stage) -> str:
        code, name = self.code, self.names[stage.output]
        first = stage.operations[0]
        assert isinstance(first, Convolution)
        step = self.sums(first.output)
        assert step.rescale is not None
        (height, width), (stride, gap) = first.weight.shape[2:], (first.stride[1], first.dilation[1])
        outputs = self._outputs(stage)
        plain = not step.bias.any() and not step.cut
        features = self.writer.features & {"bits4"}
        features |= set() if plain else {"bias", *(self.writer.features & {"before"})}
        features |= {"padding"} if first.padding != (0, 0) else set()
        kind = [f"separable_{height}x{width}", *(["by", *map(str, first.stride)] if first.stride != (1, 1) else [])]
        kind += ["dilated", *map(str, first.dilation)] if first.dilation != (1, 1) else []
        kernel = "_".join([*kind, *sorted(features - {"bits4", "before"})])
        weight = step.weight.transpose(0, 1, 3, 2) if self.on_its_side else step.weight
        flat = weight.reshape(len(weight), -1)
        self._kernel(
            "separable.c",
            kernel,
            {
                "height": height,
                "width": width,
                "weight": self._weights(),
                "shape": f"[{height}][{width}]" if not self.writer.bits4 else ", two in a byte",
                "columns": (width - 1) * gap + 1 + 3 * stride,
                "kernel_bytes": -(-height * width // 2) if self.writer.bits4 else height * width,
                "taps": _taps(height, width, stride, gap, bits4=self.writer.bits4, padding="padding" in features),
                "with_bias": _for_each(
                    "{0} += start;",
                    "{0} = {0} < 0 ? 0 : {0};",
                    *(["{0} >>= layer->before;"] if "before" in features else []),
                    "{0} *= multiplier;",
                    indent=12,
                ),
                "with_offset": _for_each("{0} = {0} * multiplier + layer->offset;", indent=8 if plain else 12),
                "ends": _for_each(
                    "{0} = {0} < 0 ? 0 : {0};",
                    f"{{0}} >>= {'layer->' if plain else ''}shift;",
                    "{1} = (uint16_t)({0} > 255 ? 255 : {0});",
                    indent=8,
                ),
                "stride_y": first.stride[0],
                "stride_x": stride,
                "dilation_y": first.dilation[0],
            },
            features,
        )
        value = stage.inputs[0]
        channels, in_height, in_width = self.pipeline.graph.shapes[value]
        table = np.stack([_nibbles(row) for row in flat]) if self.writer.bits4 else flat
        fields: dict[str, object] = {
            "outputs": outputs,
            "weights": code.array(self._weights(), f"{name}_depthwise", table, first.name),
        }
        if plain:
            multipliers = np.broadcast_to(step.rescale.multipliers, (channels,))
            fields["multipliers"] = code.array("uint16_t", f"{name}_depthwise_multipliers", multipliers)
            fields |= {"offset": int(step.rescale.offsets[0]), "shift": int(step.rescale.shifts[0])}
        else:
            fields |= self._rescaled(f"{name}_depthwise", step)
        fields |= {"ring": self.pipeline.rings[value], "in_width": in_width, "channels": channels}
        fields["width"] = self._made_width(stage)
        if "padding" in features:
            fields |= {"in_height": in_height, "zero": step.padding}
            fields |= {"padding_y": first.padding[0], "padding_x": first.padding[1]}
        code.struct(kernel, name, fields)
        return kernel

    def _linear(self, stage: Stage) -> str:
        code, name = self.code, self.names[stage.output]
        step, value, types = self.sums(stage.output), stage.inputs[0], self.pipeline.types
        made = types[stage.output]
        kernel = f"linear_{_SUFFIX[types[value]]}_{_SUFFIX[made]}"
        features = self.writer.features & {"bits4", "before"}
        features |= {"rescaled"} if step.rescale else set()
        features |= {"after"} if "linear after" in self.writer.features else set()
        # As the input lies in memory: rows, channels, columns.
        flat = step.weight.transpose(0, 2, 1, 3).reshape(len(step.weight), -1)
        values = {"in": types[value], "out": made, "weight": self._weights(), "inputs": "inputs"}
        self._kernel("linear.c", kernel, values, features)
        table = np.stack([_nibbles(row) for row in flat]) if self.writer.bits4 else flat
        fields: dict[str, object] = {
            "weights": code.array(self._weights(), f"{name}_weights", table, step.node.name),
            **self._rescaled(name, step),
            "inputs": flat.shape[1],
            "outputs": len(flat),
        }
        if step.rescale:
            fields["top"] = step.rescale.top
        code.struct(kernel, name, fields)
        given = self._row(value, "0")
        return f"${kernel}(&${name}, {given}, {self._row(stage.output, '0')});"

    def _running(self, stage: Stage) -> str:
        assert stage.pool is not None
        value = stage.inputs[0]
        channels, _, width = self.pipeline.graph.shapes[value]
        outputs = self.pipeline.graph.shapes[stage.output][2]
        if stage.pool.kind == "max":
            name, values = "running_max", {"out": "uint8_t", "what": ": the largest"}
        else:
            kind = sum_type(stage.pool)
            name, values = f"running_{kind.removesuffix('_t')}", {"out": kind, "what": ": sums"}
        self._kernel("running.c", name, values, {stage.pool.kind})
        return f"${name}({self._row(value, 'row')}, {{out}}, {channels}, {width}, {outputs}, {stage.pool.kernel[1]});"

    def _window(self, stage: Stage) -> str:
        code, name, value = self.code, self.names[stage.output], stage.inputs[0]
        step, node = self.steps[stage.output], stage.operations[0]
        assert isinstance(node, Pool)
        made = self.pipeline.types[stage.output]
        average = isinstance(step, Averages)
        kernel = f"{node.kind}_window_{_SUFFIX[made]}"
        features = ({"average"} if average else set()) | ({"scores"} if made == _SCORES else set())
        if average and made != _SCORES:
            self._steps()
        which = "mean" if average else "largest"
        self._kernel("window.c", kernel, {"out": made, "which": which}, features)
        channels, height, width = self.pipeline.graph.shapes[value]
        fields: dict[str, object] = {
            "channels": channels,
            "in_height": height,
            "in_width": width,
            "width": self.pipeline.graph.shapes[stage.output][2],
            "kernel_height": node.kernel[0],
            "kernel_width": node.kernel[1],
            "stride_y": node.stride[0],
            "stride_x": node.stride[1],
            "padding_y": node.padding[0],
            "padding_x": node.padding[1],
        }
        if isinstance(step, Averages):
            fields["zero"] = step.padding
            if step.rescale:
                names = ("multiplier", "offset", "shift", "top")
                fields |= dict(zip(names, _line(step.rescale), strict=True))
            else:
                fields["offset"] = step.bias
        code.struct(kernel, name, fields)
        ring = "ring" if value == 0 and self.takes_image else self.pipeline.rings[value]
        return f"${kernel}(&${name}, {self._ring(value)}, {ring}, row, {self._row(stage.output, 'row')});"

    def _map(self, stage: Stage) -> list[str]:
        """Rows to rows."""
        code, name, step = self.code, self.names[stage.output], self.steps[stage.output]
        types, output = self.pipeline.types, stage.output
        kinds = [types[value] for value in stage.inputs]
        channels, _, width = self.pipeline.graph.shapes[output]
        given, made = [self._row(value, "row") for value in stage.inputs], self._row(output, "row")
        values = {"in": kinds[0], "in2": kinds[-1], "out": types[output]}
        suffix = "_".join(_SUFFIX[kind] for kind in (*kinds, types[output]))
        match step:
            case Lookup():
                kernel = f"lookup_{suffix}"
                self._kernel("lookup.c", kernel, values, set())
                table = code.array(types[output], f"{name}_table", step.table, step.node.name)
                return [f"${kernel}({given[0]}, {made}, {channels * width}, {table});"]
            case Scaled():
                self._steps()
                kernel = f"affine_{suffix}"
                self._kernel("affine_integer.c", kernel, values, set())
                rescale = step.rescale
                code.struct(
                    kernel,
                    name,
                    {
                        "multipliers": code.array("int32_t", f"{name}_multipliers", rescale.multipliers),
                        "offsets": code.array("int32_t", f"{name}_offsets", rescale.offsets),
                        "channels": channels,
                        "width": width,
                        "shift": int(rescale.shifts[0]),
                        "top": rescale.top,
                    },
                )
                return [f"${kernel}(&${name}, {given[0]}, {made});"]
            case Together():
                self._steps()
                kernel = f"add_{suffix}"
                self._kernel("add_integer.c", kernel, values, set())
                first, second = step.rescales
                code.struct(
                    kernel,
                    name,
                    {
                        "first": int(first.multipliers[0]),
                        "second": int(second.multipliers[0]),
                        "offset": int(first.offsets[0]),
                        "count": channels * width,
                        "shift": int(first.shifts[0]),
                        "top": first.top,
                    },
                )
                return [f"${kernel}(&${name}, {given[0]}, {given[1]}, {made});"]
            case Joined():
                self._steps()
                lines, before = [], 0
                for value, place, rescale in zip(stage.inputs, given, step.rescales, strict=True):
                    kernel = f"concatenate_{_SUFFIX[types[value]]}_{_SUFFIX[types[output]]}"
                    self._kernel("concatenate_integer.c", kernel, {"in": types[value], "out": types[output]}, set())
                    count = self.pipeline.graph.shapes[value][0] * width
                    arguments = [place, f"{made} + {before}" if before else made, count, *_line(rescale)]
                    lines.append(f"${kernel}({', '.join(map(str, arguments))});")
                    before += count
                return lines
        raise AssertionError(step)


_SUFFIX_OF_SINK = {"store": "store", "max": "max", "uint16_t": "sum16", "int32_t": "sum32"}
_SINK_NAMES = {
    "store": "stored",
    "max": "the largest of a window",
    "uint16_t": "added to a window's sum",
    "int32_t": "added to a window's sum of 32 bits",
}


def has_factors(step: Sums) -> bool:
    """Whether sums have a multiplier and an offset with signs, and not a bias alone."""
    return step.rescale is not None and (step.node.scale is not None or bool(step.rescale.offsets.any()))


def sink_of(stage: Stage) -> str:
    """What becomes of a convolution's results."""
    if stage.pool is None:
        return "store"
    return "max" if stage.pool.kind == "max" else sum_type(stage.pool)


def _needed(parts: Sequence[_Part]) -> tuple[set[str], list[str]]:
    """What the kernels that convolutions share must be able to do, and what becomes of results."""
    features: set[str] = set()
    sinks: set[str] = set()
    for part in parts:
        features |= {"bits4"} if part.writer.bits4 else set()
        rescales = [step.rescale for step in part.steps.values() if isinstance(step, Sums)]
        features |= {"before"} if any(rescale and rescale.before for rescale in rescales) else set()
        for stage in part.pipeline.stages:
            node = stage.operations[-1]
            if not isinstance(node, Convolution):
                continue
            after = has_factors(part.sums(node.output))
            if stage.kind == "linear":
                features |= {"linear after"} if after else set()
                continue
            sinks.add(sink_of(stage))
            features |= {"pooled"} if stage.pool else set()
            features |= {"after"} if after else set()
            features |= {"padding"} if stage.kind == "convolution" and node.padding != (0, 0) else set()
    return features, [sink for sink in _SINKS if sink in sinks]


def _calls(sinks: Sequence[str], *, bits4: bool) -> str:
    """Statements of C that finish the sums as the layer says."""
    lines = []
    for number, sink in enumerate(sinks):
        test = "else " if number else ""
        test += f"if (layer->sink == {number}) " if number + 1 < len(sinks) else ""
        kind, _ = _SINKS[sink]
        begins = "x, " if sink == "store" else "columns, "
        over = "over, " if bits4 else ""
        lines.append(
            f"        {test}$finish_{_SUFFIX_OF_SINK[sink]}(layer, sums, channel, count, from, to, {over}{begins}"
            f"({kind} *)out);"
        )
    return "\n".join(lines)


def _line(rescale: Rescale | None) -> tuple[int, int, int, int]:
    """Multiplier, offset, shift and top of a conversion that all channels share."""
    assert rescale is not None
    return int(rescale.multipliers[0]), int(rescale.offsets[0]), int(rescale.shifts[0]), rescale.top


def _plus(base: str, offset: int) -> str:
    return f"{base} + {offset}" if offset else base


def _nibbles(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Weights of 4 bits, 8 more than they stand for, two to a byte, the first in the lower half."""
    padded = np.pad(weights, (0, len(weights) % 2)) + 8
    return np.asarray(padded[::2] | padded[1::2] << 4, dtype=np.int64)


def _interleaved(matrix: NDArray[np.int64], *, bits4: bool) -> NDArray[np.int64]:
    """Weights [outputs, inputs] in the order in which the dot products use them.

    By blocks of four outputs (the last may be of two), then by pairs of inputs: of 8 bits, for two outputs at a time,
    both outputs' weights of the first input and of the second; of 4 bits, all outputs' of the first input and of the
    second. What is missing for an even number is 0.
    """
    outputs, inputs = matrix.shape
    padded = np.pad(matrix, ((0, outputs % 2), (0, inputs % 2)))
    parts = []
    for begin in range(0, len(padded), _BLOCK):
        block = padded[begin : begin + _BLOCK]
        pairs = block.reshape(len(block), -1, 2).transpose(1, 2, 0)  # pair of inputs, input, output
        if bits4:
            parts.append(_nibbles(pairs.ravel()))
        else:
            parts.append(pairs.reshape(len(pairs), 2, -1, 2).transpose(0, 2, 1, 3).ravel())
    return np.concatenate(parts)


def _taps(height: int, width: int, stride: int, gap: int, *, bits4: bool, padding: bool) -> str:
    """The products of a depthwise kernel with four windows, row by row, in C."""
    lines = []
    for row in range(height):
        weights = []
        for column in range(width):
            at = row * width + column
            half = f"w[{at // 2}] >> 4" if at % 2 else f"w[{at // 2}] & 15"
            weights.append(f"w{column} = {f'({half}) - 8' if bits4 else f'w[{at}]'}")
        lines += [
            "        {",
            f"            const int32_t {', '.join(weights)};",
            "            int32_t x;",
            "",
            f"            from = inside ? lines[{row}] + at : window[{row}];"
            if padding
            else f"            from = lines[{row}] + at;",
        ]
        for column in range((width - 1) * gap + 3 * stride + 1):
            uses = [
                f"{sums} += x * w{(column - pixel * stride) // gap}"
                for pixel, sums in enumerate("stuv")
                if 0 <= column - pixel * stride <= (width - 1) * gap and (column - pixel * stride) % gap == 0
            ]
            if uses:
                lines.append(f"            x = from[{column}], {', '.join(uses)};")
        lines.append("        }")
    return "\n".join(lines)


def _for_each(*statements: str, indent: int) -> str:
    """Statements of C for each of four sums and the place where it goes."""
    places = ("to[0]", "to[2]", "to[other]", "to[other + 2]")
    return "\n".join(
        " " * indent + statement.format(sums, place)
        for sums, place in zip("stuv", places, strict=True)
        for statement in statements
    )
