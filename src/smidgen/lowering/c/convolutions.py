"""The kernels and tables of an integer network's convolutions and linear layers, in C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smidgen.lowering.c.depthwise import for_each, taps
from smidgen.lowering.c.packing import BLOCK, interleaved, nibbles
from smidgen.lowering.c.rows import Rows
from smidgen.lowering.c.source import Code
from smidgen.lowering.c.template import render
from smidgen.lowering.fused import Convolution
from smidgen.lowering.integer import Sums
from smidgen.lowering.quantize import MULTIPLIER_BITS
from smidgen.lowering.stages import Stage
from smidgen.lowering.value_types import sum_type

SUFFIX = {"uint8_t": "8", "uint16_t": "16", "int32_t": "scores"}
"""Of kernels, by the types that they read and write."""
_SINKS = {
    "store": ("uint8_t", "out[p] = (uint8_t)value;"),
    "max": ("uint8_t", "if (value > out[columns[p]]) out[columns[p]] = (uint8_t)value;"),
    "uint16_t": ("uint16_t", "out[columns[p]] = (uint16_t)(out[columns[p]] + value);"),
    "int32_t": ("int32_t", "out[columns[p]] += value;"),
}
"""What becomes of a convolution's result, and the type in C of where: it is stored, or goes into a pooling."""
_SUFFIX_OF_SINK = {"store": "store", "max": "max", "uint16_t": "sum16", "int32_t": "sum32"}
_SINK_NAMES = {
    "store": "stored",
    "max": "the largest of a window",
    "uint16_t": "added to a window's sum",
    "int32_t": "added to a window's sum of 32 bits",
}


@dataclass(frozen=True)
class Needs:
    """What the kernels that all stages share must be able to do.

    Attributes:
        bits4: whether weights have 4 bits, and not 8.
        features: by their names in the fragments.
        sinks: what becomes of a convolution's results, in the order of the numbers in the tables.
    """

    bits4: bool
    features: frozenset[str]
    sinks: tuple[str, ...]


class Convolutions:
    """Writes the tables of convolutions, and the kernels that they need.

    Args:
        code: what is written to.
        rows: of the pipeline.
        needs: of all pipelines.
    """

    def __init__(self, code: Code, rows: Rows, needs: Needs) -> None:
        self.code, self.rows, self.needs = code, rows, needs
        self.pipeline, self.names = rows.pipeline, rows.names

    def convolution(self, stage: Stage) -> str:
        """The call that makes a row, up to where that goes."""
        code, node, value = self.code, stage.operations[0], stage.inputs[0]
        assert isinstance(node, Convolution)
        features = {f for f in self.needs.features if f == "padding"}
        outputs = self._outputs(stage)
        self.code.kernel("convolution_integer.c", "convolution", {}, features)
        channels, height, width = self.pipeline.graph.shapes[value]
        if value == 0 and self.rows.takes_image:
            steps = (channels, 1, channels * height) if self.rows.on_its_side else (channels * width, 1, channels)
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
            fields |= {"in_height": height, "in_width": width, "zero": self.rows.sums(node.output).padding}
            fields |= {"padding_y": node.padding[0], "padding_x": node.padding[1]}
        code.struct("convolution", self.names[stage.output], fields)
        name, rows = self.names[stage.output], self.rows
        return f"$convolution(&${name}, {rows.ring(value)}, {rows.kept(value)}, row, {rows.patch(stage)}, "

    def separable(self, stage: Stage) -> str:
        """The same of the two convolutions of a separable one."""
        code, name = self.code, self.names[stage.output]
        first = stage.operations[0]
        assert isinstance(first, Convolution)
        step = self.rows.sums(first.output)
        assert step.rescale is not None
        (height, width), (stride, gap) = first.weight.shape[2:], (first.stride[1], first.dilation[1])
        outputs = self._outputs(stage)
        plain = not step.bias.any() and not step.cut
        features = self.needs.features & {"bits4"}
        features |= set() if plain else {"bias", *(self.needs.features & {"before"})}
        features |= {"padding"} if first.padding != (0, 0) else set()
        kind = [f"separable_{height}x{width}", *(["by", *map(str, first.stride)] if first.stride != (1, 1) else [])]
        kind += ["dilated", *map(str, first.dilation)] if first.dilation != (1, 1) else []
        kernel = "_".join([*kind, *sorted(features - {"bits4", "before"})])
        flat = step.weight.reshape(len(step.weight), -1)
        self.code.kernel(
            "separable.c",
            kernel,
            {
                "height": height,
                "width": width,
                "weight": self._weights(),
                "shape": f"[{height}][{width}]" if not self.needs.bits4 else ", two in a byte",
                "columns": (width - 1) * gap + 1 + 3 * stride,
                "kernel_bytes": -(-height * width // 2) if self.needs.bits4 else height * width,
                "taps": taps(height, width, stride, gap, bits4=self.needs.bits4, padding="padding" in features),
                "with_bias": for_each(
                    "{0} += start;",
                    "{0} = {0} < 0 ? 0 : {0};",
                    *(["{0} >>= layer->before;"] if "before" in features else []),
                    "{0} *= multiplier;",
                    indent=12,
                ),
                "with_offset": for_each("{0} = {0} * multiplier + layer->offset;", indent=8 if plain else 12),
                "ends": for_each(
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
        table = np.stack([nibbles(row) for row in flat]) if self.needs.bits4 else flat
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
        return f"${kernel}(&${name}, {self.rows.ring(value)}, row, {self.rows.patch(stage)}, "

    def linear(self, stage: Stage) -> str:
        """The call that makes all outputs."""
        code, name = self.code, self.names[stage.output]
        step, value, types = self.rows.sums(stage.output), stage.inputs[0], self.pipeline.types
        made = types[stage.output]
        kernel = f"linear_{SUFFIX[types[value]]}_{SUFFIX[made]}"
        features = self.needs.features & {"bits4", "before"}
        features |= {"rescaled"} if step.rescale else set()
        features |= {"after"} if "linear after" in self.needs.features else set()
        # As the input lies in memory: rows, channels, columns.
        flat = step.weight.transpose(0, 2, 1, 3).reshape(len(step.weight), -1)
        values = {"in": types[value], "out": made, "weight": self._weights()}
        self.code.kernel("linear.c", kernel, values, features)
        table = np.stack([nibbles(row) for row in flat]) if self.needs.bits4 else flat
        fields: dict[str, object] = {
            "weights": code.array(self._weights(), f"{name}_weights", table, step.node.name),
            **self._rescaled(name, step),
            "inputs": flat.shape[1],
            "outputs": len(flat),
        }
        if step.rescale:
            fields["top"] = step.rescale.top
        code.struct(kernel, name, fields)
        given = self.rows.row(value, "0")
        return f"${kernel}(&${name}, {given}, {self.rows.row(stage.output, '0')});"

    def _outputs(self, stage: Stage) -> str:
        """The kernel and the table of what multiplies patches."""
        needs, code, name = self.needs, self.code, f"{self.names[stage.output]}_outputs"
        node = stage.operations[-1]
        assert isinstance(node, Convolution)
        step = self.rows.sums(node.output)
        groups = node.groups
        sinks, features = needs.sinks, {*needs.features}
        pair_bytes = BLOCK if needs.bits4 else 2 * BLOCK
        if "outputs" not in code.kernels:
            values = {"weight": self._weights(), "pair_bytes": pair_bytes, "half_bytes": 1 if needs.bits4 else BLOCK}
            code.kernel("dot.c", "dot", values, features)
            features |= {"many"} if len(sinks) > 1 else set()
            finishes = [
                render(
                    "finish.c",
                    {
                        "sink": _SUFFIX_OF_SINK[sink],
                        "over": " const int32_t *over," if needs.bits4 else "",
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
            code.kernel(
                "outputs.c",
                "outputs",
                {
                    **values,
                    "finishes": "\n\n".join(finishes),
                    "calls": _calls(sinks, bits4=needs.bits4),
                    "sinks": ", or goes into a pooling" if set(sinks) - {"store"} else "",
                    "sink_names": ", ".join(f"{number}: {_SINK_NAMES[sink]}" for number, sink in enumerate(sinks)),
                },
                features,
            )
        # As patches are gathered: rows of the kernel, channels, columns.
        matrices = step.weight.transpose(0, 2, 1, 3).reshape(groups, len(step.weight) // groups, -1)
        packed = [interleaved(matrix, bits4=needs.bits4) for matrix in matrices]
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
            if "before" in self.needs.features:
                fields["before"] = rescale.before
        return fields

    def _made_width(self, stage: Stage) -> int:
        """Pixels of a row before the pooling, as far as that looks."""
        width = self.pipeline.graph.shapes[stage.output][2]
        return width * stage.pool.kernel[1] if stage.pool else width

    def _weights(self) -> str:
        return "uint8_t" if self.needs.bits4 else "int8_t"


def needs_of(parts: Sequence[Rows]) -> Needs:
    """What the pipelines of a network need."""
    features: set[str] = set()
    sinks: set[str] = set()
    steps = [step for part in parts for step in part.steps.values() if isinstance(step, Sums)]
    bits4 = any(step.bits == 4 for step in steps)
    features |= {"bits4"} if bits4 else set()
    features |= {"before"} if any(step.rescale and step.rescale.before for step in steps) else set()
    for part in parts:
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
    return Needs(bits4, frozenset(features), tuple(sink for sink in _SINKS if sink in sinks))


def has_factors(step: Sums) -> bool:
    """Whether sums have a multiplier and an offset with signs, and not a bias alone."""
    return step.rescale is not None and (step.node.scale is not None or bool(step.rescale.offsets.any()))


def sink_of(stage: Stage) -> str:
    """What becomes of a convolution's results."""
    if stage.pool is None:
        return "store"
    return "max" if stage.pool.kind == "max" else sum_type(stage.pool)


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
