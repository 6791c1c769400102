"""An integer network in C."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from smidgen.exports.c.source import Code, c_float, check_sizes, features_of, shape_text, sides
from smidgen.exports.c.template import render
from smidgen.exports.fused import FusedGraph
from smidgen.exports.integer import (
    Averages,
    IntegerNetwork,
    Joined,
    Largest,
    Lookup,
    Rescale,
    Scaled,
    Step,
    Sums,
    Together,
)
from smidgen.exports.memory import Buffer, leads, lifetimes, plan

_SCORES = "int32_t"
_SUFFIX = {"uint8_t": "8", "uint16_t": "16", _SCORES: "scores"}


def int8_code(graph: FusedGraph, network: IntegerNetwork) -> Code:
    """The parts of the C files of an integer network.

    Args:
        graph: that it was made from.
        network: the same layers in integers.

    Raises:
        SmidgenError: a layer is too large for the tables.
    """
    check_sizes(graph.shapes, graph.operations)
    return _Writer(graph, network).code


class _Writer:
    def __init__(self, graph: FusedGraph, network: IntegerNetwork) -> None:
        self.graph, self.network = graph, network
        self.code = Code(
            arithmetic=(
                "Arithmetic in integers only: weights of 8 bits with a scale for each output channel, values of 8 bits "
                "(16 where there is but one pixel), sums of 32 bits, which cannot overflow."
            ),
            score=_SCORES,
            score_unit=c_float(network.score_unit),
            score_format='" %ld", (long)scores[c]',
        )
        self.types = {value: "uint8_t" if grid.top <= 255 else "uint16_t" for value, grid in enumerate(network.grids)}
        last = network.steps[-1]
        self.direct = isinstance(last, Sums | Averages) and last.rescale.top is None
        if self.direct:
            self.types[network.output] = _SCORES
        self.offsets = self._planned()
        self.features = self._features()
        for number, step in enumerate(network.steps, start=1):
            self.add(f"layer{number}", step)
        classes = graph.classes
        if not self.direct:
            self.code.steps.append("    {")
            self.code.steps.append("        int32_t i;")
            self.code.steps.append(
                f"        for (i = 0; i < {classes}; i++) scratch->scores[i] = ({self.at(network.output)})[i];"
            )
            self.code.steps.append("    }")
        self.code.steps.append("    return scratch->scores;")

    def _planned(self) -> dict[int, int]:
        """Places of the values, bytes and words in a stretch each; the image and the scores have their own."""
        offsets: dict[int, int] = {}
        code = self.code
        code.scratch.append((_SCORES, "scores", self.graph.classes))
        for kind, name in (("uint16_t", "words"), ("uint8_t", "bytes")):
            own: list[Buffer] = [b for b in lifetimes(self.graph) if b.value and self.types[b.value] == kind]
            found, size = plan(own, leads(self.graph))
            offsets |= found
            if size:
                code.scratch.append((kind, name, size))
                code.steps.append(f"    {kind} *const {name} = scratch->{name};")
        code.steps.append("")
        return offsets

    def _features(self) -> dict[str, set[str]]:
        """The used features of each kernel, by its name."""
        found: dict[str, set[str]] = {}
        for step in self.network.steps:
            if isinstance(step, Sums | Largest | Averages):
                chosen = found.setdefault(self.kernel(step), set())
                chosen |= features_of([step.node]) - {"after"}
                if isinstance(step, Sums):
                    chosen |= {"integer"} | ({"zero"} if step.zero else set())
                    chosen |= {"scores"} if step.rescale.top is None else set()
                    chosen |= {"offsets"} if len(set(step.rescale.offsets.tolist())) > 1 else set()
                if isinstance(step, Averages):
                    chosen |= {"integer", "average"} | ({"scores"} if step.rescale.top is None else set())
        return found

    def kernel(self, step: Step) -> str:
        """The name of the function that does a step: its kind and the types that it reads and writes."""
        kinds = {
            Sums: "convolution", Scaled: "affine", Largest: "max_pool", Averages: "average_pool",
            Lookup: "lookup", Together: "add", Joined: "concatenate",
        }  # fmt: skip
        inputs = step.node.inputs if isinstance(step, Together) else step.node.inputs[:1]
        values = [*inputs, step.node.output]
        return "_".join([kinds[type(step)], *(_SUFFIX[self.types[value]] for value in values)])

    def at(self, value: int) -> str:
        if value == 0:
            return "image"
        if self.types[value] == _SCORES:
            return "scratch->scores"
        name = "bytes" if self.types[value] == "uint8_t" else "words"
        return f"{name} + {self.offsets[value]}" if self.offsets[value] else name

    def about(self, step: Step) -> str:
        shapes = self.graph.shapes
        before = " and ".join(shape_text(shapes[value]) for value in step.node.inputs)
        return f"{step.node.name}: {before} to {shape_text(shapes[step.node.output])}"

    def kinds(self, step: Step) -> dict[str, object]:
        """The values of the placeholders in a fragment."""
        inputs = [self.types[value] for value in step.node.inputs]
        return {
            "name": self.kernel(step),
            "in": inputs[0],
            "in2": inputs[-1],
            "out": self.types[step.node.output],
            "weight": "int8_t",
            "bias": "int32_t",
            "sum": "int32_t",
        }

    def add(self, name: str, step: Step) -> None:
        """One operation."""
        code, shapes, kernel = self.code, self.graph.shapes, self.kernel(step)
        source, target = self.at(step.node.inputs[0]), self.at(step.node.output)
        channels, height, width = shapes[step.node.output]
        match step:
            case Sums():
                self.sums(name, step)
            case Largest() | Averages():
                self.pool(name, step)
            case Scaled():
                self.need("steps")
                code.kernels[kernel] = render("affine_integer.c", self.kinds(step))
                code.struct(
                    kernel,
                    name,
                    {
                        "multipliers": code.array("int32_t", f"{name}_multipliers", step.rescale.multipliers),
                        "offsets": code.array("int64_t", f"{name}_offsets", step.rescale.offsets),
                        "pixels": height * width,
                        "channels": channels,
                        **_ends(step.rescale),
                    },
                )
            case Lookup():
                code.kernels[kernel] = render("lookup.c", self.kinds(step))
                table = code.array(self.types[step.node.output], f"{name}_table", step.table, step.node.name)
                count = channels * height * width
                code.call(kernel, [source, target, count, table], self.about(step))
                return
            case Together():
                self.need("steps")
                code.kernels[kernel] = render("add_integer.c", self.kinds(step))
                first, second = step.rescales
                code.struct(
                    kernel,
                    name,
                    {
                        "first": int(first.multipliers[0]),
                        "second": int(second.multipliers[0]),
                        "offset": f"INT64_C({int(first.offsets[0])})",
                        "count": channels * height * width,
                        **_ends(first),
                    },
                )
                code.call(kernel, [f"&${name}", source, self.at(step.node.inputs[1]), target], self.about(step))
                return
            case Joined():
                self.joined(name, step)
                return
        code.call(kernel, [f"&${name}", source, target], self.about(step))

    def need(self, helper: str) -> None:
        """A helper that the kernels call; it comes before them."""
        if helper not in self.code.kernels:
            self.code.kernels = {helper: render(f"{helper}.c", {}), **self.code.kernels}

    def sums(self, name: str, step: Sums) -> None:
        code, kernel, node = self.code, self.kernel(step), step.node
        features = self.features[kernel]
        self.need("score" if "scores" in features else "steps")
        about = "A convolution" + (", then ReLU." if "relu" in features else ".")
        per_group = " / groups" if "groups" in features else ""
        code.kernels[kernel] = render(
            "convolution.c", {**self.kinds(step), "about": about, "per_group": per_group}, features
        )
        fields: dict[str, object] = {
            "weights": code.array("int8_t", f"{name}_weights", step.weight.transpose(0, 2, 3, 1), node.name),
            "bias": code.array("int32_t", f"{name}_bias", step.bias),
            "multipliers": code.array("int32_t", f"{name}_multipliers", step.rescale.multipliers),
        }
        if "scores" not in features:
            if "offsets" in features:
                offsets = np.broadcast_to(step.rescale.offsets, step.bias.shape)
                fields["offsets"] = code.array("int64_t", f"{name}_offsets", offsets)
            else:
                fields["offset"] = f"INT64_C({int(step.rescale.offsets[0])})"
        fields |= sides(node, (node.weight.shape[2], node.weight.shape[3]), self.graph.shapes, features)
        if "zero" in features:
            fields["zero"] = step.zero
        if "scores" not in features:
            fields |= _ends(step.rescale)
        if "relu" in features:
            fields["relu"] = int(node.relu)
        code.struct(kernel, name, fields)

    def pool(self, name: str, step: Largest | Averages) -> None:
        code, kernel = self.code, self.kernel(step)
        features, node = self.features[kernel], step.node
        which = "largest" if isinstance(step, Largest) else "mean"
        values = {**self.kinds(step), "about": f"The {which} of a window, channel by channel."}
        fields: dict[str, object] = {**sides(node, node.kernel, self.graph.shapes, features)}
        if isinstance(step, Averages):
            self.need("score" if "scores" in features else "steps")
            fields["multiplier"] = int(step.rescale.multipliers[0])
            fields["offset"] = f"INT64_C({int(step.rescale.offsets[0])})"
            if "padding" in features:
                fields["zero"] = step.zero
            if "scores" not in features:
                fields |= _ends(step.rescale)
        code.kernels[kernel] = render("pool.c", values, features)
        code.struct(kernel, name, fields)

    def joined(self, name: str, step: Joined) -> None:
        code = self.code
        channels, height, width = self.graph.shapes[step.node.output]
        self.need("steps")
        before = 0
        for part, (value, rescale) in enumerate(zip(step.node.inputs, step.rescales, strict=True), start=1):
            own, given = self.graph.shapes[value][0], self.types[value]
            made = self.types[step.node.output]
            kernel = f"concatenate_{_SUFFIX[given]}_{_SUFFIX[made]}"
            code.kernels[kernel] = render("concatenate_integer.c", {"name": kernel, "in": given, "out": made})
            fields: Mapping[str, object] = {
                "multiplier": int(rescale.multipliers[0]),
                "offset": f"INT64_C({int(rescale.offsets[0])})",
                "pixels": height * width,
                "channels": own,
                "out_channels": channels,
                **_ends(rescale),
            }
            code.struct(kernel, f"{name}_{part}", fields)
            place = f"{self.at(step.node.output)} + {before}" if before else self.at(step.node.output)
            code.call(kernel, [f"&${name}_{part}", self.at(value), place], self.about(step))
            before += own


def _ends(rescale: Rescale) -> dict[str, int]:
    assert rescale.top is not None
    return {"top": rescale.top, "shift": rescale.shift}
