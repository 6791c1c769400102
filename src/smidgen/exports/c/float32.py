"""A graph in C with float32 arithmetic."""

from __future__ import annotations

from smidgen.exports.c.source import Code, c_float, check_sizes, features_of, shape_text, sides
from smidgen.exports.c.template import render
from smidgen.exports.fused import Affine, Convolution, FusedGraph
from smidgen.exports.memory import leads, lifetimes, plan
from smidgen.graph.ops import Activation, Add, Concatenate, Operation, Pool

_TYPES = {"in": "float", "out": "float", "weight": "float", "bias": "float", "sum": "float"}


def float32_code(graph: FusedGraph) -> Code:
    """The parts of the C files of a graph.

    Raises:
        SmidgenError: a layer is too large for the tables.
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
        )
        self.offsets, size = plan(lifetimes(graph), leads(graph))
        self.code.scratch.append(("float", "memory", size))
        self.code.steps += ["    float *const memory = scratch->memory;", ""]
        self.convolutions = features_of(node for node in graph.operations if isinstance(node, Convolution))
        self.pools = {
            kind: features_of(node for node in graph.operations if isinstance(node, Pool) and node.kind == kind)
            for kind in ("max", "average")
        }
        scale, shift = 1 / (255 * graph.std), -graph.mean / graph.std
        pixels = graph.shapes[0][0] * graph.shapes[0][1] * graph.shapes[0][2]
        rounded = {"scale": c_float(scale), "shift": c_float(shift)}
        self.code.kernels["normalize"] = render("normalize.c", {"pixels": pixels, **rounded})
        self.code.call("normalize", ["image", self.at(0)])
        for number, node in enumerate(graph.operations, start=1):
            self.add(f"layer{number}", node)
        self.code.steps.append(f"    return {self.at(graph.output)};")

    def at(self, value: int) -> str:
        offset = self.offsets[value]
        return f"memory + {offset}" if offset else "memory"

    def about(self, node: Operation) -> str:
        shapes = self.graph.shapes
        before = " and ".join(shape_text(shapes[value]) for value in node.inputs)
        return f"{node.name}: {before} to {shape_text(shapes[node.output])}"

    def add(self, name: str, node: Operation) -> None:
        """One operation."""
        code, shapes = self.code, self.graph.shapes
        count = shapes[node.output][0] * shapes[node.output][1] * shapes[node.output][2]
        source, target = self.at(node.inputs[0]), self.at(node.output)
        match node:
            case Convolution():
                self.convolution(name, node)
                code.call("convolution", [f"&${name}", source, target], self.about(node))
            case Pool():
                kernel, features = f"{node.kind}_pool", self.pools[node.kind]
                values = {**_TYPES, "name": kernel, "about": f"The {node.kind} of a window, channel by channel."}
                code.kernels[kernel] = render("pool.c", values, features | {node.kind})
                fields = sides(node, node.kernel, shapes, features)
                if node.kind == "average" and "padding" in features:
                    fields["count_padding"] = int(node.count_padding)
                code.struct(kernel, name, fields)
                code.call(kernel, [f"&${name}", source, target], self.about(node))
            case Affine():
                code.kernels["affine"] = render("affine_float32.c", {"relu": ", then perhaps ReLU"})
                channels, height, width = shapes[node.output]
                scale = code.array("float", f"{name}_scale", node.scale)
                shift = code.array("float", f"{name}_shift", node.shift)
                fields_ = {"scale": scale, "shift": shift, "pixels": height * width, "channels": channels}
                code.struct("affine", name, {**fields_, "relu": int(node.relu)})
                code.call("affine", [f"&${name}", source, target], self.about(node))
            case Activation():
                kind = node.kind
                limits = [c_float(value) for value in node.parameters]
                kernel = f"apply_{kind.name}"  # tanh, for one, is C's own
                values = {"name": kernel, "expression": kind.c}
                values["parameters"] = "".join(f", float {p}" for p in kind.parameters)
                code.kernels[kernel] = render("activation_float32.c", values)
                code.needs_math |= "expf" in kind.c or "tanhf" in kind.c
                code.call(kernel, [source, target, count, *limits], self.about(node))
            case Add():
                code.kernels["add"] = render("add_float32.c", {})
                code.call("add", [source, self.at(node.inputs[1]), target, count], self.about(node))
            case Concatenate():
                code.kernels["concatenate"] = render("concatenate_float32.c", {})
                channels, height, width = shapes[node.output]
                before = 0
                for value in node.inputs:
                    own = shapes[value][0]
                    place = f"memory + {self.offsets[node.output] + before}"
                    arguments = [self.at(value), place, height * width, own, channels]
                    code.call("concatenate", arguments, self.about(node))
                    before += own
            case _:
                raise AssertionError(node)

    def convolution(self, name: str, node: Convolution) -> None:
        code, features = self.code, self.convolutions
        about = "A convolution" + (", then ReLU." if "relu" in features else ".")
        per_group = " / groups" if "groups" in features else ""
        values = {**_TYPES, "name": "convolution", "about": about, "per_group": per_group}
        code.kernels["convolution"] = render("convolution.c", values, features)
        weights = node.weight.transpose(0, 2, 3, 1)
        fields: dict[str, object] = {
            "weights": code.array("float", f"{name}_weights", weights, node.name),
            "bias": code.array("float", f"{name}_bias", node.bias),
        }
        if node.scale is not None and node.shift is not None:
            fields["scale"] = code.array("float", f"{name}_scale", node.scale)
            fields["shift"] = code.array("float", f"{name}_shift", node.shift)
        kernel = (node.weight.shape[2], node.weight.shape[3])
        fields |= sides(node, kernel, self.graph.shapes, features)
        if "relu" in features:
            fields["relu"] = int(node.relu)
        code.struct("convolution", name, fields)
