"""An integer network in C, row by row."""

from __future__ import annotations

from smidgen.lowering.c.convolutions import Needs, needs_of
from smidgen.lowering.c.rows import Rows
from smidgen.lowering.c.source import Code, Stream, c_float, check_sizes, comment_text, shape_text
from smidgen.lowering.c.stage_writer import StageWriter
from smidgen.lowering.c.template import render
from smidgen.lowering.fused import FusedGraph
from smidgen.lowering.integer import IntegerNetwork
from smidgen.lowering.memory import Bands, Plan, plan
from smidgen.lowering.value_types import SCORES


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
    """

    def __init__(self, network: IntegerNetwork, memory: Plan) -> None:
        self.plan = memory
        steps = {step.node.output: step for step in network.steps}
        before = memory.bands.cut if memory.bands else 0
        stages = len(memory.bands.pipeline.stages) if memory.bands else 0
        rows = [Rows(memory.pipeline, steps, before, stages, on_its_side=False)]
        if memory.bands:
            rows.insert(0, Rows(memory.bands.pipeline, steps, 0, 0, on_its_side=True))
        needs = needs_of(rows)
        self.code = code = Code(
            arithmetic=(
                f"Arithmetic in integers only: weights of {4 if needs.bits4 else 8} bits with a scale for each output "
                "channel, values of 8 bits (16 where there is but one pixel), sums and products of 32 bits, which "
                "cannot overflow."
            ),
            score=SCORES,
            score_unit=c_float(network.score_unit),
            score_format='" %ld", (long)scores[c]',
            order=(
                "A value is a ring of rows, each channel after channel. A stage makes its next row as soon as the\n"
                "   rows that it needs are there, so the rings are as short as can be, and a convolution gathers its\n"
                "   input where another value's next row will be."
            ),
        )
        code.scratch.append((SCORES, "scores", memory.graph.classes))
        if memory.wide:
            code.scratch.append((SCORES, "sums", memory.wide))
        code.scratch.append(("uint16_t", "memory", max(memory.memory // 2, 1)))
        code.scratch.append((memory.counter_type, "made", memory.counters))
        parts = [_Part(code, one) for one in rows]
        for part in parts:
            part.prepare(needs)
        back = parts[-1]
        code.functions.append(
            "static void $start($scratch *scratch)\n{\n    int32_t i;\n"
            f"    for (i = 0; i < {memory.counters}; i++) scratch->made[i] = 0;\n}}"
        )
        code.functions.append(back.advance("$advance"))
        if memory.bands:
            code.functions.append(parts[0].advance("$advance_band"))
            self._in_bands(memory.bands, *parts)
        else:
            self._whole()
        code.functions.append(back.finish(memory.graph.classes))

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
    """Writes the functions of a pipeline.

    Attributes:
        rows: of the pipeline.
    """

    def __init__(self, code: Code, rows: Rows) -> None:
        self.code, self.rows, self.pipeline = code, rows, rows.pipeline
        self.runs: dict[int, list[str]] = {}

    def prepare(self, needs: Needs) -> None:
        """Kernels and tables of all stages."""
        writer = StageWriter(self.code, self.rows, needs)
        for stage in self.pipeline.stages:
            self.runs[stage.output] = writer.run(stage)

    def advance(self, name: str) -> str:
        """The function that makes what rows can be made."""
        what = "columns" if self.rows.on_its_side else "rows"
        parameters = "const uint8_t *image, int32_t ring, " if self.rows.takes_image else ""
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
            counter = f"scratch->made[{self.rows.counters[stage.output]}]"
            ready = " && ".join([f"row < {stage.rows}", *(self.rows.there(stage, value) for value in stage.inputs)])
            before = " and ".join(shape_text(self.rows.shape(value)) for value in stage.inputs)
            about = f"{stage.names}: {before} to {shape_text(self.rows.shape(stage.output))}"
            lines += [
                "",
                f"        row = {counter}; /* {comment_text(about)} */",
                f"        if ({ready}) {{",
                *(f"            {line}" for line in self.runs[stage.output]),
                f"            {counter}++;",
                "            busy = 1;",
                "        }",
            ]
        return "\n".join([*lines, "    } while (busy);", "}"])

    def finish(self, classes: int) -> str:
        """The function that gives the scores."""
        value, pipeline = self.pipeline.graph.output, self.pipeline
        lines = ["static const int32_t *$finish($scratch *scratch)", "{"]
        if pipeline.types[value] != SCORES:
            kind, count = pipeline.types[value], classes
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
        counter = f"scratch->made[{self.rows.counters[value]}]"
        if self.rows.stages[value].rows_each > 1:
            counter += f" / {self.rows.stages[value].rows_each}"
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
