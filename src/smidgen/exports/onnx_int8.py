"""An integer network as an ONNX graph in QDQ form: float operators between DequantizeLinear and QuantizeLinear.

Runtimes with integer kernels take an operator and the conversions around it as one; others compute in float32 what
the conversions then round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from smidgen.exports.onnx_graph import GraphWriter
from smidgen.exports.per_channel import offset, per_channel
from smidgen.graph.ops import Operation, Pool
from smidgen.lowering.fused import Convolution, FusedGraph
from smidgen.lowering.integer import Grid, IntegerNetwork, Sums
from smidgen.lowering.quantize import BYTE, WORD


class QdqWriter(GraphWriter):
    """An ONNX graph in QDQ form while it is being put together.

    Values of 8 bits are uint8, those of 12 bits uint16; weights are int8 with a scale for each output channel, biases
    int32. Scores that are sums are not rounded to anything.

    Raises:
        SmidgenError: onnx is missing.
    """

    opset: ClassVar[int] = 21
    """The first with uint16; onnxruntime knows it from 1.18 on, of May 2024."""
    ir: ClassVar[int] = 10

    def __init__(self, graph: FusedGraph, network: IntegerNetwork) -> None:
        super().__init__(graph)
        self.network = network
        self.sums = {step.node.output: step for step in network.steps if isinstance(step, Sums)}
        self.steps: dict[int, list[str]] = {}
        self.centred: dict[int, str] = {}

    def image(self) -> str:
        """The name of the image's real values, whose zero is rounded to an integer."""
        return self.dequantized(0, "images", "pixels")

    def add(self, node: Operation, inputs: list[str], output: str) -> None:
        """One operation of the graph, its result rounded to the steps of the value."""
        if isinstance(node, Convolution):
            if node.scale is not None:
                node = replace(node, scale=np.sign(node.scale))  # the rest is in the weights
        elif not (isinstance(node, Pool) and node.kind == "max"):
            inputs = [self.centre(value) for value in node.inputs]
        if self.network.grids[node.output].top == WORD:
            super().add(node, inputs, output)
            return
        super().add(node, inputs, f"{output}.real")
        self.dequantized(node.output, self.quantized(node.output, f"{output}.real", output), output)

    def weights(self, node: Convolution, output: str) -> list[str]:
        """The names of a convolution's weight and bias, converted from integers."""
        made = per_channel(self.network, self.sums[node.output])
        bias = [made.bias, np.float32(made.input_scale) * made.scales]
        # Without zeros of their own, onnxruntime gives weights a single one where it makes them unsigned, and stops.
        weight = [made.weight, made.scales, np.zeros(len(made.weight), dtype=np.int8)]
        names = []
        for name, parts in (("weight", weight), ("bias", bias)):
            kinds = ("integers", "steps", "zeros")
            inputs = [self.constant(f"{output}.{name}.{kind}", part) for kind, part in zip(kinds, parts, strict=False)]
            names.append(self.emit("DequantizeLinear", inputs, f"{output}.{name}", axis=0))
        return names

    def centre(self, value: int) -> str:
        """The name of a value with what the rounding of its zero took away."""
        missing = offset(self.network.grids[value])
        if missing and value not in self.centred:
            name = self.names[value]
            constant = self.constant(f"{name}.offset", np.float32(missing))
            self.centred[value] = self.emit("Add", [name, constant], f"{name}.centred")
        return self.centred.get(value, self.names[value])

    def quantized(self, value: int, name: str, output: str) -> str:
        """The name of a value's integers, made from the real numbers of that name."""
        grid = self.network.grids[value]
        if grid.top != BYTE:  # uint16 would hold more than the value does
            limits = [np.float32((limit - grid.zero) * grid.scale) for limit in (0, grid.top)]
            bounds = [self.constant(f"{output}.bound{number}", limit) for number, limit in enumerate(limits)]
            name = self.emit("Clip", [name, *bounds], f"{output}.clipped")
        return self.emit("QuantizeLinear", [name, *self.step(value, output)], f"{output}.integers")

    def dequantized(self, value: int, integers: str, output: str) -> str:
        """The name of the real numbers that a value's integers stand for."""
        return self.emit("DequantizeLinear", [integers, *self.step(value, output)], output)

    def step(self, value: int, output: str) -> list[str]:
        """The names of a value's scale and zero point."""
        grid: Grid = self.network.grids[value]
        if value not in self.steps:
            kind = np.uint8 if grid.top == BYTE else np.uint16
            self.steps[value] = [
                self.constant(f"{output}.step", np.float32(grid.scale)),
                self.constant(f"{output}.zero", kind(grid.nearest_zero)),
            ]
        return self.steps[value]
