"""The folded graph as the JSON that the web page's script reads, weights included."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from smidgen.graph.activations import ACTIVATIONS
from smidgen.graph.ops import Activation, Add, Concatenate, Operation, Pool
from smidgen.lowering.fused import Affine, Array, Convolution, FusedGraph


class _Weights:
    """All numbers of the network in one array; a place in it is [start, count]."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = 0

    def place(self, array: Array | None) -> tuple[int, int] | None:
        if array is None:
            return None
        self.parts.append(array.astype("<f4").tobytes())
        start, self.count = self.count, self.count + array.size
        return start, array.size


def page_model(graph: FusedGraph) -> dict[str, Any]:
    """The graph as plain values for JSON.

    Returns:
        `shapes`, `output`, `mean`, `std` as in the graph; `nodes`, each with its `kind`, its settings
        and places among the weights; `weights`, float32 in little-endian order as base64.
    """
    weights = _Weights()
    nodes = [
        {"name": node.name, "title": title(node, graph), "inputs": node.inputs, "output": node.output}
        | _settings(node, weights)
        for node in graph.operations
    ]
    return {
        "shapes": graph.shapes,
        "output": graph.output,
        # As the arithmetic takes them, so that JavaScript rounds nothing differently.
        "mean": float(np.float32(graph.mean)),
        "std": float(np.float32(graph.std)),
        "nodes": nodes,
        "weights": base64.b64encode(b"".join(weights.parts)).decode(),
    }


def _settings(node: Operation, weights: _Weights) -> dict[str, Any]:
    match node:
        case Convolution():
            return {
                "kind": "convolution",
                "kernel": node.weight.shape[2:],
                "stride": node.stride,
                "padding": node.padding,
                "dilation": node.dilation,
                "groups": node.groups,
                "relu": node.relu,
                "weight": weights.place(node.weight),
                "bias": weights.place(node.bias),
                "scale": weights.place(node.scale),
                "shift": weights.place(node.shift),
            }
        case Affine():
            return {
                "kind": "affine",
                "relu": node.relu,
                "scale": weights.place(node.scale),
                "shift": weights.place(node.shift),
            }
        case Pool():
            return {
                "kind": "pool",
                "which": node.kind,
                "kernel": node.kernel,
                "stride": node.stride,
                "padding": node.padding,
                "countPadding": node.count_padding,
            }
        case Activation():
            return {"kind": "activation", "which": node.kind.name, "parameters": list(map(_finite, node.parameters))}
        case Add():
            return {"kind": "add"}
        case Concatenate():
            return {"kind": "concatenate"}
    raise AssertionError(node)


def activations_script() -> str:
    """The activations as JavaScript: a function of the parameters that gives a function of a value, by name."""
    rows = [f"  {kind.name}: ({', '.join(kind.parameters)}) => (x) => {kind.javascript}," for kind in ACTIVATIONS]
    return "\n".join(["const activations = {", *rows, "};"])


def _finite(limit: float) -> float:
    """JSON has no infinity; no float32 lies beyond the largest."""
    most = float(np.finfo(np.float32).max)
    return min(max(limit, -most), most)


def title(node: Operation, graph: FusedGraph) -> str:
    """A description of a node for learners: `3 × 3 convolution, ReLU`."""
    source = graph.shapes[node.inputs[0]]
    match node:
        case Convolution():
            whole = tuple(node.weight.shape[2:]) == source[1:] and node.padding == (0, 0)
            words = ["linear layer" if whole else f"{_by(node.weight.shape[2:])} convolution"]
            words += [f"stride {_by(node.stride)}"] * (node.stride != (1, 1))
            words += [f"dilation {_by(node.dilation)}"] * (node.dilation != (1, 1))
            words += [f"{node.groups} groups"] * (node.groups != 1)
            words += ["ReLU"] * node.relu
            words += ["normalization"] * (node.scale is not None)
        case Affine():
            words = ["normalization"] + ["ReLU"] * node.relu
        case Pool():
            largest = "largest" if node.kind == "max" else "mean"
            words = [f"{largest} of the whole image" if node.kernel == source[1:] else _pooling(node, largest)]
        case Activation():
            words = [node.kind.title]
        case Add():
            words = ["sum of two layers"]
        case _:
            words = ["layers side by side"]
    return ", ".join(words)


def _pooling(node: Pool, largest: str) -> str:
    every = "" if node.stride == node.kernel else f", every {_by(node.stride)}"
    return f"{largest} of each {_by(node.kernel)}{every}"


def _by(sides: Sequence[int]) -> str:
    height, width = sides
    return f"{height} × {width}"
