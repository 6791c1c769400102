"""The target `onnx`: one file that takes raw uint8 images, made from the folded graph.

The file is put together with onnx's own helpers and not by PyTorch's exporter: that one traces the module again,
needs a third package (onnxscript), leaves BatchNorm and the normalization of the images to be dealt with
afterwards, and writes names and metadata that change from version to version. The graph is at hand already, and
each of its operations is one or two of ONNX's.
"""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smidgen.errors import SmidgenError
from smidgen.exports.target import Check, Source, compared
from smidgen.graph.ops import Activation, Add, Concatenate, Operation, Pool
from smidgen.lowering.fused import Affine, Array, Convolution, FusedGraph
from smidgen.settings import canonical_json
from smidgen.version import VERSION

OPSET = 20
"""The first with GELU; onnxruntime knows it from 1.17 on, of the beginning of 2024."""
IR = 9
"""Of the same time: onnx writes its newest by default, which older runtimes refuse."""
BATCH = 500


class OnnxTarget:
    """One ONNX file: `images` uint8 [N, channels, height, width] in, `scores` float32 [N, classes] out."""

    def files(self, source: Source) -> dict[str, bytes]:
        """The file, named after the trial.

        Raises:
            SmidgenError: onnx or onnxruntime is missing.
        """
        _library("onnxruntime")
        trial, names = source.run.trial, source.run.trained.class_names
        about = {
            "trial": trial.name,
            "recipe": canonical_json(trial.to_json()),
            "seed": str(source.run.seed),
            "weights_sha256": source.run.result.weights_sha256,
            **({"class_names": json.dumps(names, ensure_ascii=False)} if names else {}),
        }
        return {self._name(source): onnx_model(source.graph, trial.name, about)}

    def usage(self, source: Source) -> str:
        """With onnxruntime."""
        shape = ", ".join(map(str, source.graph.input_shape))
        return (
            f'```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{self._name(source)}")\n'
            f'(scores,) = session.run(["scores"], {{"images": images}})  # uint8 [n, {shape}]\n'
            "labels = scores.argmax(1)\n```"
        )

    def check(self, source: Source, directory: Path) -> Check:
        """Classify all test images with onnxruntime on the CPU."""
        runtime = _library("onnxruntime")
        session = runtime.InferenceSession(directory / self._name(source), providers=["CPUExecutionProvider"])
        began = time.perf_counter()
        parts = [session.run(["scores"], {"images": part.numpy()})[0] for part in source.images.split(BATCH)]
        seconds = time.perf_counter() - began
        return compared(
            source, torch.from_numpy(np.concatenate(parts)), seconds, details={"onnxruntime": runtime.__version__}
        )

    @staticmethod
    def _name(source: Source) -> str:
        return f"{source.run.trial.name}.onnx"


def onnx_model(graph: FusedGraph, name: str, about: dict[str, str]) -> bytes:
    """The content of an ONNX file.

    Args:
        graph: of the network.
        name: of the model.
        about: its metadata.

    Raises:
        SmidgenError: onnx is missing.
    """
    onnx = _library("onnx")
    model = _Writer(onnx, graph).model(name, about)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SmidgenError(
            f"--to onnx needs the package {name}; install it with: pip install 'smidgen[onnx]'"
        ) from None


class _Writer:
    """An ONNX graph while it is being put together."""

    def __init__(self, onnx: Any, graph: FusedGraph) -> None:
        self.onnx, self.graph = onnx, graph
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names = {0: "normalized"}

    def model(self, name: str, about: dict[str, str]) -> Any:
        """The whole model."""
        helper, types, graph = self.onnx.helper, self.onnx.TensorProto, self.graph
        self.emit("Cast", ["images"], "pixels", to=types.FLOAT)
        scale, shift = 1 / (255 * graph.std), -graph.mean / graph.std
        self.emit("Mul", ["pixels", self.constant("pixel_scale", np.float32(scale))], "scaled")
        self.emit("Add", ["scaled", self.constant("pixel_shift", np.float32(shift))], "normalized")
        for node in graph.operations:
            self.names[node.output] = f"value{node.output}"
            self.add(node)
        self.emit("Flatten", [self.names[graph.output]], "scores", axis=1)
        made = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("images", types.UINT8, ["N", *graph.input_shape])],
            [helper.make_tensor_value_info("scores", types.FLOAT, ["N", graph.classes])],
            self.constants,
        )
        model = helper.make_model(
            made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="smidgen", producer_version=VERSION
        )
        model.ir_version = IR
        helper.set_model_props(model, about)
        return model

    def emit(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def channels(self, name: str, values: Array) -> str:
        return self.constant(name, values.reshape(1, -1, 1, 1))

    def add(self, node: Operation) -> None:
        """One operation of the graph."""
        inputs, output = [self.names[value] for value in node.inputs], self.names[node.output]
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
        weights = [self.constant(f"{output}.weight", node.weight), self.constant(f"{output}.bias", node.bias)]
        after = node.scale is not None and node.shift is not None
        current = f"{output}.sum" if node.relu or after else output
        self.emit(
            "Conv",
            [*inputs, *weights],
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

    def affine(self, current: str, output: str, scale: Array, shift: Array, *, relu: bool) -> None:
        current = self.emit("Mul", [current, self.channels(f"{output}.scale", scale)], f"{output}.scaled")
        shifted = f"{output}.shifted" if relu else output
        current = self.emit("Add", [current, self.channels(f"{output}.shift", shift)], shifted)
        if relu:
            self.emit("Relu", [current], output)

    def activation(self, node: Activation, x: str, output: str) -> None:
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
