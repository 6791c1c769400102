"""A network as an ONNX graph that takes raw uint8 images.

The file is put together with onnx's own helpers and not by PyTorch's exporter: that one traces the module again,
needs a third package (onnxscript), leaves BatchNorm and the normalization of the images to be dealt with
afterwards, and writes names and metadata that change from version to version. The graph is at hand already, and
each of its operations is one or two of ONNX's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from smidgen.exports.target import library
from smidgen.graph.ops import Activation, Add, Concatenate, Operation, Pool
from smidgen.lowering.fused import Affine, Array, Convolution, FusedGraph
from smidgen.version import VERSION


def onnx_model(graph: FusedGraph, name: str, about: dict[str, str]) -> bytes:
    """The content of an ONNX file.

    Args:
        graph: of the network.
        name: of the model.
        about: its metadata.

    Raises:
        SmidgenError: onnx is missing.
    """
    return GraphWriter(graph).content(name, about)


class GraphWriter:
    """An ONNX graph while it is being put together.

    Raises:
        SmidgenError: onnx is missing.
    """

    opset: ClassVar[int] = 20
    """The first with GELU; onnxruntime knows it from 1.17 on, of the beginning of 2024."""
    ir: ClassVar[int] = 9
    """Of the same time: onnx writes its newest by default, which older runtimes refuse."""

    def __init__(self, graph: FusedGraph) -> None:
        self.onnx, self.graph = library("onnx", "onnx"), graph
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: dict[int, str] = {}

    def content(self, name: str, about: dict[str, str]) -> bytes:
        """The whole file.

        Args:
            name: of the model.
            about: its metadata.
        """
        model = self.model(name, about)
        self.onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def model(self, name: str, about: dict[str, str]) -> Any:
        """The whole model; arguments as of `content`."""
        helper, types, graph = self.onnx.helper, self.onnx.TensorProto, self.graph
        self.names[0] = self.image()
        for node in graph.operations:
            self.names[node.output] = f"value{node.output}"
            self.add(node, [self.names[value] for value in node.inputs], self.names[node.output])
        self.emit("Flatten", [self.names[graph.output]], "scores", axis=1)
        made = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("images", types.UINT8, ["N", *graph.input_shape])],
            [helper.make_tensor_value_info("scores", types.FLOAT, ["N", graph.classes])],
            self.constants,
        )
        model = helper.make_model(
            made, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="smidgen", producer_version=VERSION
        )
        model.ir_version = self.ir
        helper.set_model_props(model, about)
        return model

    def emit(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """An operator; the name of its output."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """A constant; its name."""
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def channels(self, name: str, values: Array) -> str:
        """A constant with a number for each channel; its name."""
        return self.constant(name, values.reshape(1, -1, 1, 1))

    def image(self) -> str:
        """The name of the normalized image."""
        self.emit("Cast", ["images"], "pixels", to=self.onnx.TensorProto.FLOAT)
        scale, shift = 1 / (255 * self.graph.std), -self.graph.mean / self.graph.std
        self.emit("Mul", ["pixels", self.constant("pixel_scale", np.float32(scale))], "scaled")
        return self.emit("Add", ["scaled", self.constant("pixel_shift", np.float32(shift))], "normalized")

    def add(self, node: Operation, inputs: list[str], output: str) -> None:
        """One operation of the graph, from named inputs to a named output."""
        match node:
            case Convolution():
                self.convolution(node, inputs, output)
            case Affine():
                self.affine(inputs[0], output, node.scale, node.shift, relu=node.relu)
            case Pool():
                sides: dict[str, Any] = {
                    "kernel_shape": node.kernel,
                    "strides": node.stride,
                    "pads": (*node.padding, *node.padding),
                }
                if node.kind == "average":
                    sides["count_include_pad"] = int(node.count_padding)
                self.emit("MaxPool" if node.kind == "max" else "AveragePool", inputs, output, **sides)
            case Activation():
                self.activation(node, inputs[0], output)
            case Add():
                self.emit("Add", inputs, output)
            case Concatenate():
                self.emit("Concat", inputs, output, axis=1)
            case _:
                raise AssertionError(node)

    def convolution(self, node: Convolution, inputs: list[str], output: str) -> None:
        """A convolution with what is done to its sums."""
        after = node.scale is not None and node.shift is not None
        current = f"{output}.sum" if node.relu or after else output
        self.emit(
            "Conv",
            [*inputs, *self.weights(node, output)],
            current,
            kernel_shape=node.weight.shape[2:],
            strides=node.stride,
            pads=(*node.padding, *node.padding),
            dilations=node.dilation,
            group=node.groups,
        )
        if node.relu:
            current = self.emit("Relu", [current], f"{output}.relu" if after else output)
        if node.scale is not None and node.shift is not None:
            self.affine(current, output, node.scale, node.shift, relu=False)

    def weights(self, node: Convolution, output: str) -> list[str]:
        """The names of a convolution's weight and bias."""
        return [self.constant(f"{output}.weight", node.weight), self.constant(f"{output}.bias", node.bias)]

    def affine(self, current: str, output: str, scale: Array, shift: Array, *, relu: bool) -> None:
        """An affine map of each channel."""
        current = self.emit("Mul", [current, self.channels(f"{output}.scale", scale)], f"{output}.scaled")
        shifted = f"{output}.shifted" if relu else output
        current = self.emit("Add", [current, self.channels(f"{output}.shift", shift)], shifted)
        if relu:
            self.emit("Relu", [current], output)

    def activation(self, node: Activation, x: str, output: str) -> None:
        """A function of each value."""
        form = node.kind.onnx
        given = dict(zip(node.kind.parameters, node.parameters, strict=True))
        attributes: dict[str, Any] = {
            **form.attributes,
            **{attribute: given.pop(name) for name, attribute in form.parameter_attributes.items()},
        }
        inputs = [x, *(self.constant(f"{output}.{name}", np.float32(value)) for name, value in given.items())]
        made = f"{output}.{form.operator.lower()}" if form.times_input else output
        self.emit(form.operator, inputs, made, **attributes)
        if form.times_input:
            self.emit("Mul", [x, made], output)
