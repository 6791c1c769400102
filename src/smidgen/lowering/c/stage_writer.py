"""The kernels, the tables and the calls of an integer network's stages, in C."""

from __future__ import annotations

from smidgen.graph.ops import Pool
from smidgen.lowering.c.convolutions import SUFFIX, Convolutions, Needs
from smidgen.lowering.c.rows import Rows, plus
from smidgen.lowering.c.source import Code
from smidgen.lowering.integer import Averages, Joined, Lookup, Rescale, Scaled, Together
from smidgen.lowering.stages import Stage
from smidgen.lowering.value_types import SCORES, sum_type


class StageWriter:
    """Writes stages.

    Args:
        code: what is written to.
        rows: of the pipeline.
        needs: of all pipelines.
    """

    def __init__(self, code: Code, rows: Rows, needs: Needs) -> None:
        self.code, self.rows = code, rows
        self.convolutions = Convolutions(code, rows, needs)
        self.pipeline, self.names, self.steps = rows.pipeline, rows.names, rows.steps

    def run(self, stage: Stage) -> list[str]:
        """Lines of C that make a row."""
        match stage.kind:
            case "convolution":
                return self._pooled(stage, self.convolutions.convolution(stage) + "{out});")
            case "separable":
                return self._pooled(stage, self.convolutions.separable(stage) + "{out});")
            case "running":
                return self._pooled(stage, self._running(stage))
            case "window":
                return [self._window(stage)]
            case "linear":
                return [self.convolutions.linear(stage)]
            case "planes":
                channels, _, width = self.pipeline.graph.shapes[0]
                self.code.kernel("planes.c", "planes", {}, set())
                return [
                    f"$planes({self.rows.row(0, 'row')}, {self.rows.row(stage.output, 'row')}, {channels}, {width});"
                ]
        return self._map(stage)

    def _pooled(self, stage: Stage, call: str) -> list[str]:
        """A call whose result goes to a row, or into a pooling's row or sums."""
        pool, value = stage.pool, stage.output
        if pool is None:
            return [call.format(out=self.rows.row(value, "row"))]
        channels, _, width = self.pipeline.graph.shapes[value]
        count, each = channels * width, stage.rows_each
        out_row = self.rows.row(value, f"(row / {each})" if each > 1 else "row")
        begins = f"if (row % {each} == 0) " if each > 1 else ""
        if pool.kind == "max":
            self.code.kernel("clear.c", "clear_8", {"type": "uint8_t"}, set())
            return [f"{begins}$clear_8({out_row}, {count});", call.format(out=out_row)]
        step = self.steps[value]
        assert isinstance(step, Averages)
        kind, at = sum_type(pool), self.pipeline.sums[value]
        sums = f"scratch->sums + {at}" if kind == "int32_t" else f"(uint16_t *)({plus('memory', at)})"
        bits = kind.removesuffix("_t").removeprefix("u").removeprefix("int")
        clear = f"clear_{bits}"
        self.code.kernel("clear.c", clear, {"type": kind}, set())
        ends = f"if (row % {each} == {each - 1}) " if each > 1 else ""
        made = self.pipeline.types[value]
        name = f"means_{bits}_{SUFFIX[made]}"
        if made == SCORES:
            self.code.kernel("means.c", name, {"in": kind, "what": " scores"}, {"scores"})
            arguments = [sums, out_row, count, step.bias]
        else:
            self._steps()
            self.code.kernel("means.c", name, {"in": kind, "out": made, "what": " means in steps of the output"}, set())
            arguments = [sums, out_row, count, *_line(step.rescale)]
        return [
            f"{begins}${clear}({sums}, {count});",
            call.format(out=sums),
            f"{ends}${name}({', '.join(map(str, arguments))});",
        ]

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
        self.code.kernel("running.c", name, values, {stage.pool.kind})
        return (
            f"${name}({self.rows.row(value, 'row')}, {{out}}, {channels}, {width}, {outputs}, {stage.pool.kernel[1]});"
        )

    def _window(self, stage: Stage) -> str:
        code, name, value = self.code, self.names[stage.output], stage.inputs[0]
        step, node = self.steps[stage.output], stage.operations[0]
        assert isinstance(node, Pool)
        made = self.pipeline.types[stage.output]
        average = isinstance(step, Averages)
        kernel = f"{node.kind}_window_{SUFFIX[made]}"
        features = ({"average"} if average else set()) | ({"scores"} if made == SCORES else set())
        if average and made != SCORES:
            self._steps()
        which = "mean" if average else "largest"
        self.code.kernel("window.c", kernel, {"out": made, "which": which}, features)
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
        kept = self.rows.kept(value)
        return f"${kernel}(&${name}, {self.rows.ring(value)}, {kept}, row, {self.rows.row(stage.output, 'row')});"

    def _map(self, stage: Stage) -> list[str]:
        """Rows to rows."""
        code, name, step = self.code, self.names[stage.output], self.steps[stage.output]
        types, output = self.pipeline.types, stage.output
        kinds = [types[value] for value in stage.inputs]
        channels, _, width = self.pipeline.graph.shapes[output]
        given, made = [self.rows.row(value, "row") for value in stage.inputs], self.rows.row(output, "row")
        values = {"in": kinds[0], "in2": kinds[-1], "out": types[output]}
        suffix = "_".join(SUFFIX[kind] for kind in (*kinds, types[output]))
        match step:
            case Lookup():
                kernel = f"lookup_{suffix}"
                self.code.kernel("lookup.c", kernel, values, set())
                table = code.array(types[output], f"{name}_table", step.table, step.node.name)
                return [f"${kernel}({given[0]}, {made}, {channels * width}, {table});"]
            case Scaled():
                self._steps()
                kernel = f"affine_{suffix}"
                self.code.kernel("affine_integer.c", kernel, values, set())
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
                self.code.kernel("add_integer.c", kernel, values, set())
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
                    kernel = f"concatenate_{SUFFIX[types[value]]}_{SUFFIX[types[output]]}"
                    self.code.kernel("concatenate_integer.c", kernel, {"in": types[value], "out": types[output]}, set())
                    count = self.pipeline.graph.shapes[value][0] * width
                    arguments = [place, f"{made} + {before}" if before else made, count, *_line(rescale)]
                    lines.append(f"${kernel}({', '.join(map(str, arguments))});")
                    before += count
                return lines
        raise AssertionError(step)

    def _steps(self) -> None:
        self.code.kernel("steps.c", "steps", {}, set())


def _line(rescale: Rescale | None) -> tuple[int, int, int, int]:
    """Multiplier, offset, shift and top of a conversion that all channels share."""
    assert rescale is not None
    return int(rescale.multipliers[0]), int(rescale.offsets[0]), int(rescale.shifts[0]), rescale.top
