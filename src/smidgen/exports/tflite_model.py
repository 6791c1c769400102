"""An integer network as a TFLite model.

Values of 8 bits are int8, 128 less than in the integer network. Those of 12 bits, and scores that are sums, are int16
with a zero point of 0, and what they are made of is converted to that before: no kernel goes from int8 to int16.
Images lie as [N, height, width, channels].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smidgen.errors import SmidgenError
from smidgen.exports.per_channel import PerChannel, per_channel
from smidgen.exports.tflite_writer import ModelWriter
from smidgen.graph.ops import Activation, Pair, Pool
from smidgen.lowering.fused import Affine, Convolution, FusedGraph
from smidgen.lowering.integer import (
    Averages,
    IntegerNetwork,
    Joined,
    Largest,
    Lookup,
    Scaled,
    Step,
    Sums,
    Together,
)
from smidgen.lowering.quantize import BYTE, FINE

HALF = 128
"""How far int8 is below uint8; also how many steps an int16 can have for one of an int8."""
EIGHTH = 8
"""How many steps an int16 has for one of 12 bits: values that start at 0 are cut at the same top."""
INT16 = 2**15 - 1


@dataclass(frozen=True)
class Steps:
    """What the integers of a tensor stand for: scale * (q - zero)."""

    kind: type[np.int8] | type[np.int16] | type[np.uint8]
    scale: float
    zero: int

    @property
    def is_wide(self) -> bool:
        """Whether they are int16."""
        return self.kind is np.int16


SIGMOID, TANH = Steps(np.int8, 1 / 256, -HALF), Steps(np.int8, 1 / HALF, 0)
"""What LOGISTIC and TANH give, always."""


@dataclass(frozen=True)
class Value:
    """A tensor of the model.

    Attributes:
        tensor: its number.
        shape: height, width, channels; of the scores of a linear layer their number.
        steps: of its integers.
    """

    tensor: int
    shape: tuple[int, ...]
    steps: Steps


def tflite_model(
    graph: FusedGraph, network: IntegerNetwork, largest_score: int, description: str, metadata: Mapping[str, str]
) -> bytes:
    """The content of a TFLite file: `images` uint8 [N, height, width, channels] in, `scores` [N, classes] out.

    Args:
        graph: that the network was made from.
        network: in integers.
        largest_score: of the size of a score on training images, where scores are sums; int16 holds twice that.
        description: of the model.
        metadata: texts by name.

    Raises:
        SmidgenError: LiteRT is missing, or a layer cannot be expressed; names it.
    """
    return _Model(graph, network, largest_score).content(description, metadata)


class _Model:
    def __init__(self, graph: FusedGraph, network: IntegerNetwork, largest_score: int) -> None:
        self.graph, self.network, self.largest_score = graph, network, largest_score
        self.writer = ModelWriter()
        self.values: dict[int, Value] = {}

    def content(self, description: str, metadata: Mapping[str, str]) -> bytes:
        pixels = self.network.grids[0]
        image = self.new("images", self.shape(0), Steps(np.uint8, pixels.scale, pixels.nearest_zero))
        self.values[0] = self.converted(image, self.steps(0))
        for step in self.network.steps:
            self.values[step.node.output] = self.converted(self.add(step), self.steps(step.node.output))
        return self.writer.content(image.tensor, self.scores().tensor, description, metadata)

    def scores(self) -> Value:
        """The output, one number a class."""
        found = self.values[self.network.output]
        if len(found.shape) == 1:
            return found
        if found.shape[:2] != (1, 1):
            last = self.network.steps[-1].node.name
            raise SmidgenError(
                f"{last} gives scores of more than one pixel, which TFLite has in another order; --to onnx can"
            )
        made = self.new("scores", found.shape[2:], found.steps)
        shape = self.writer.constant("scores.shape", np.array([-1, *made.shape], dtype=np.int32))
        self.writer.emit("RESHAPE", [found.tensor, shape], made.tensor, "ReshapeOptions", newShape=[-1, *made.shape])
        return made

    def steps(self, value: int) -> Steps:
        """What a value's integers stand for in the model."""
        grid = self.network.grids[value]
        if grid.top == BYTE:
            return Steps(np.int8, grid.scale, grid.nearest_zero - HALF)
        if grid.top == FINE:
            return Steps(np.int16, grid.scale / EIGHTH, 0)
        return Steps(np.int16, 2 * self.largest_score * grid.scale / INT16, 0)

    def shape(self, value: int) -> tuple[int, ...]:
        channels, height, width = self.graph.shapes[value]
        return height, width, channels

    def new(self, name: str, shape: tuple[int, ...], steps: Steps) -> Value:
        return Value(self.writer.tensor(name, (1, *shape), steps.kind, steps.scale, steps.zero), shape, steps)

    def converted(self, value: Value, steps: Steps) -> Value:
        """The same real numbers in other steps."""
        if value.steps == steps:
            return value
        made = self.new(f"converted{value.tensor}", value.shape, steps)
        self.writer.emit("QUANTIZE", [value.tensor], made.tensor, "QuantizeOptions")
        return made

    def add(self, step: Step) -> Value:
        """The result of one step of the network, not always in the steps that it should have."""
        node = step.node
        name, shape, steps = f"value{node.output}", self.shape(node.output), self.steps(node.output)
        inputs = [self.values[value] for value in node.inputs]
        match step:
            case Lookup():
                return self.activation(step.node, inputs[0], name)
            case Joined():
                made, parts = self.new(name, shape, steps), [self.converted(value, steps).tensor for value in inputs]
                self.writer.emit("CONCATENATION", parts, made.tensor, "ConcatenationOptions", axis=3)
                return made
            case Largest():
                return self.pooled(step.node, inputs[0], name)
            case Averages():
                # A mean in the steps of its input: in int16, there are more of those.
                fine = Steps(np.int16, inputs[0].steps.scale / HALF, 0)
                return self.pooled(step.node, self.converted(inputs[0], fine) if steps.is_wide else inputs[0], name)
        if steps.is_wide or any(value.steps.is_wide for value in inputs):
            inputs = [self.converted(value, Steps(np.int16, value.steps.scale, 0)) for value in inputs]
            steps = steps if steps.is_wide else Steps(np.int16, steps.scale / HALF, 0)
        match step:
            case Sums():
                return self.sums(step, inputs[0], name, steps)
            case Scaled():
                return self.convolved(_convolution(step.node), per_channel(self.network, step), inputs[0], name, steps)
            case Together():
                made = self.new(name, shape, steps)
                self.writer.emit("ADD", [v.tensor for v in inputs], made.tensor, "AddOptions", potScaleInt16=False)
                return made
        raise AssertionError(step)

    def sums(self, step: Sums, given: Value, name: str, steps: Steps) -> Value:
        """The sums of a convolution or of a linear layer, and an affine map of them where there is one."""
        node, made = step.node, per_channel(self.network, step)
        if step.rescale is None:
            # All classes have one scale; with several, a linear layer is a convolution.
            scores = self.new("scores", (len(made.bias),), steps)
            rows = made.weight.transpose(0, 2, 3, 1).reshape(len(made.weight), -1)
            weight = self.writer.constant(f"{name}.weight", rows, made.scales[:1])
            tensors = [given.tensor, weight, self.bias(made, given, name, made.scales[:1])]
            self.writer.emit("FULLY_CONNECTED", tensors, scores.tensor, "FullyConnectedOptions")
            return scores
        if node.scale is None or node.shift is None:
            return self.convolved(node, made, given, name, steps)
        assert node.relu  # any other norm is folded
        grid, signs = self.network.grids[node.output], np.sign(node.scale)
        ends = grid.scale * (np.where(signs > 0, grid.top, 0) - grid.zero)
        reach = max(float((signs * (ends - node.shift)).max()), grid.scale)
        positive = Steps(steps.kind, reach / (INT16 if steps.is_wide else BYTE), 0 if steps.is_wide else -HALF)
        between = self.convolved(node, made, given, f"{name}.relu", positive)
        norm = PerChannel(
            (127 * signs).astype(np.int8).reshape(-1, 1, 1, 1),
            np.full(len(signs), 1 / 127, dtype=np.float32),
            np.rint(127 * node.shift / positive.scale).astype(np.int32),
            positive.scale,
        )
        affine = Affine(name=node.name, inputs=node.inputs, output=node.output, scale=node.scale, shift=node.shift)
        return self.convolved(_convolution(affine), norm, between, name, steps)

    def convolved(self, node: Convolution, made: PerChannel, given: Value, name: str, steps: Steps) -> Value:
        """A convolution, its result in these steps."""
        padded, padding = self.padded(node, given)
        result = self.new(name, self.shape(node.output), steps)
        options = {
            "padding": padding,
            "strideH": node.stride[0],
            "strideW": node.stride[1],
            "dilationHFactor": node.dilation[0],
            "dilationWFactor": node.dilation[1],
            "fusedActivationFunction": getattr(
                self.writer.schema.ActivationFunctionType, "RELU" if node.relu else "NONE"
            ),
        }
        inputs = given.shape[-1]
        if node.groups == inputs > 1:
            operator, weight, axis = "DEPTHWISE_CONV_2D", made.weight.transpose(1, 2, 3, 0), 3
            kind, options["depthMultiplier"] = "DepthwiseConv2DOptions", len(made.weight) // inputs
        else:
            operator, weight, axis, kind = "CONV_2D", made.weight.transpose(0, 2, 3, 1), 0, "Conv2DOptions"
        tensors = [
            padded.tensor,
            self.writer.constant(f"{name}.weight", weight, made.scales, axis),
            self.bias(made, given, name, made.scales),
        ]
        self.writer.emit(operator, tensors, result.tensor, kind, **options)
        return result

    def bias(self, made: PerChannel, given: Value, name: str, scales: NDArray[np.float32]) -> int:
        """The biases as a tensor: of 64 bits where the values have 16, which may be in finer steps."""
        finer = round(made.input_scale / given.steps.scale)
        values = made.bias.astype(np.int64) * finer if given.steps.is_wide else made.bias
        return self.writer.constant(f"{name}.bias", values, np.float32(given.steps.scale) * scales)

    def pooled(self, node: Pool, given: Value, name: str) -> Value:
        """The means or the largest of windows, in the steps of the input."""
        padded, padding = self.padded(node, given)
        result = self.new(name, self.shape(node.output), given.steps)
        self.writer.emit(
            "MAX_POOL_2D" if node.kind == "max" else "AVERAGE_POOL_2D",
            [padded.tensor],
            result.tensor,
            "Pool2DOptions",
            padding=padding,
            strideH=node.stride[0],
            strideW=node.stride[1],
            filterHeight=node.kernel[0],
            filterWidth=node.kernel[1],
        )
        return result

    def padded(self, node: Convolution | Pool, given: Value) -> tuple[Value, int]:
        """A value with as much padding as TFLite's own cannot express, and which of those comes on top."""
        names = self.writer.schema.Padding
        if node.padding == (0, 0):
            return given, names.VALID
        if not (isinstance(node, Pool) and node.kind == "average") and all(
            map(_is_same, given.shape, self.shape(node.output), _extent(node), node.stride, node.padding)
        ):
            return given, names.SAME
        (rows, columns), (height, width, channels) = node.padding, given.shape
        made = self.new(f"padded{given.tensor}", (height + 2 * rows, width + 2 * columns, channels), given.steps)
        sides = np.array([[0, 0], [rows, rows], [columns, columns], [0, 0]], dtype=np.int32)
        tensors = [given.tensor, self.writer.constant(f"padding{given.tensor}", sides)]
        if isinstance(node, Pool) and node.kind == "max":
            lowest = np.array([np.iinfo(given.steps.kind).min], dtype=given.steps.kind)
            tensors.append(
                self.writer.constant(f"lowest{given.tensor}", lowest, given.steps.scale, zero=given.steps.zero)
            )
            self.writer.emit("PADV2", tensors, made.tensor, "PadV2Options")
        else:
            self.writer.emit("PAD", tensors, made.tensor, "PadOptions")
        return made, names.VALID

    def activation(self, node: Activation, given: Value, name: str) -> Value:
        """A function of each value, in int8."""
        grid, shape = self.network.grids[node.output], self.shape(node.output)
        coarse = grid.top / BYTE
        steps = Steps(np.int8, grid.scale * coarse, round(grid.zero / coarse) - HALF)

        def emit(operator: str, inputs: list[Value], steps: Steps, options: str = "", **fields: Any) -> Value:
            made = self.new(f"{name}.{operator.lower()}", shape, steps)
            self.writer.emit(operator, [value.tensor for value in inputs], made.tensor, options, **fields)
            return made

        match node.kind.name, node.parameters:
            case "relu", _:
                return emit("RELU", [given], steps)
            case "clamp", (0.0, 6.0):
                return emit("RELU6", [given], steps)
            case "leaky_relu", (slope,):
                return emit("LEAKY_RELU", [given], steps, "LeakyReluOptions", alpha=slope)
            case "hardswish", _:
                return emit("HARD_SWISH", [given], steps, "HardSwishOptions")
            case "sigmoid", _:
                return emit("LOGISTIC", [given], SIGMOID)
            case "silu", _:
                return emit("MUL", [given, emit("LOGISTIC", [given], SIGMOID)], steps, "MulOptions")
            case "tanh", _:
                return emit("TANH", [given], TANH)
        raise SmidgenError(f"{node.name} ({node.kind.title}) cannot be expressed in int8 TFLite; --to onnx can")


def _convolution(node: Affine) -> Convolution:
    """An affine map of each channel as a convolution of one pixel; its weights are those of the integer network."""
    weight = node.scale.reshape(-1, 1, 1, 1)
    return Convolution(
        name=node.name,
        inputs=node.inputs,
        output=node.output,
        weight=weight,
        bias=node.shift,
        groups=len(weight),
        relu=node.relu,
    )


def _extent(node: Convolution | Pool) -> Pair:
    """Pixels from one end of a window to the other."""
    if isinstance(node, Pool):
        return node.kernel
    (height, width), (rows, columns) = node.weight.shape[2:], node.dilation
    return (height - 1) * rows + 1, (width - 1) * columns + 1


def _is_same(size: int, output: int, extent: int, stride: int, padding: int) -> bool:
    """Whether padding along one axis is what TFLite calls SAME: half of what is missing before, the rest behind."""
    return output == -(-size // stride) and max((output - 1) * stride + extent - size, 0) // 2 == padding
