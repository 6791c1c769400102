"""A trained network as few plain operations with BatchNorm folded away: what every export is made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from smidgen.engines.native.lower import CannotLowerError, Lowered, Operation, lower
from smidgen.errors import RunError
from smidgen.runs.weights import TrainedNetwork

Array = NDArray[np.float32]
Pair = tuple[int, int]
Shape = tuple[int, int, int]
Which = Literal["relu", "leaky_relu", "clamp", "hardswish", "gelu", "silu", "sigmoid", "tanh"]
_ACTIVATIONS: tuple[Which, ...] = (
    "relu", "leaky_relu", "clamp", "hardswish", "gelu", "silu", "sigmoid", "tanh",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """An operation: reads values, writes one.

    Attributes:
        name: of the layer that it comes from.
        inputs: values that it reads; 0 is the network's input.
        output: the value that it writes.
    """

    name: str
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Node):
    """A convolution with bias, then ReLU where it says so, then an affine map of each channel where there is one.

    A linear layer is one whose kernel is its whole input.

    Attributes:
        weight: [outputs, inputs / groups, kernel height, kernel width].
        bias: [outputs].
        stride: rows, columns.
        padding: rows, columns of zeros on each side.
        dilation: rows, columns.
        groups: of channels that do not see each other.
        relu: whether negative results become 0.
        scale: [outputs], multiplied with what comes out of the ReLU; None: nothing follows.
        shift: [outputs], added after that; None where scale is.
    """

    weight: Array
    bias: Array
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    relu: bool = False
    scale: Array | None = None
    shift: Array | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Node):
    """Each channel times `scale` plus `shift` (a BatchNorm with no convolution to fold it into), then perhaps ReLU."""

    scale: Array
    shift: Array
    relu: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Node):
    """Max or average pooling; padding never wins a maximum, and counts as zeros in a mean if `count_padding`."""

    kind: Literal["max", "average"]
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    count_padding: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation(Node):
    """A function of each value; `low` is leaky ReLU's slope, and `low` and `high` are the clamp's limits."""

    which: Which
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Node):
    """The sum of two values of the same shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Node):
    """Values one after another, by channels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A network for inference.

    The input is an image of float32 values, normalized as (pixel / 255 - mean) / std.

    Attributes:
        nodes: in an order in which they can be run.
        shapes: channels, height, width of each value; the first is the input's.
        output: the value that holds the scores, one a class.
        mean: to subtract from pixels of 0 to 1.
        std: to divide by after that.
    """

    nodes: tuple[Node, ...]
    shapes: tuple[Shape, ...]
    output: int
    mean: float
    std: float

    @property
    def input_shape(self) -> Shape:
        """Channels, height, width of an image."""
        return self.shapes[0]

    @property
    def classes(self) -> int:
        """Number of scores."""
        channels, height, width = self.shapes[self.output]
        return channels * height * width

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions and linear layers for one image."""
        total = 0
        for node in self.nodes:
            if isinstance(node, Convolution):
                _, height, width = self.shapes[node.output]
                total += node.weight.size * height * width
        return total

    def values(self, images: Tensor, dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
        """Every value for a batch, worked out by PyTorch: what exports are calibrated with and held against.

        Args:
            images: uint8 [count, channels, height, width].
            dtype: of the arithmetic.
        """
        found = {0: (images.to(dtype) / 255 - self.mean) / self.std}
        for node in self.nodes:
            found[node.output] = _run(node, [found[value] for value in node.inputs], dtype)
        return found

    def scores(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Scores (logits) [count, classes] of uint8 images [count, channels, height, width]."""
        return self.values(images, dtype)[self.output].flatten(1)


def _run(node: Node, inputs: list[Tensor], dtype: torch.dtype) -> Tensor:
    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(array).to(dtype)

    def channels(array: Array) -> Tensor:
        return tensor(array).reshape(1, -1, 1, 1)

    x = inputs[0]
    match node:
        case Convolution():
            x = F.conv2d(
                x, tensor(node.weight), tensor(node.bias), node.stride, node.padding, node.dilation, node.groups
            )
            x = x.relu() if node.relu else x
            return x if node.scale is None or node.shift is None else x * channels(node.scale) + channels(node.shift)
        case Affine():
            x = x * channels(node.scale) + channels(node.shift)
            return x.relu() if node.relu else x
        case Pool(kind="max"):
            return F.max_pool2d(x, node.kernel, node.stride, node.padding)
        case Pool():
            return F.avg_pool2d(x, node.kernel, node.stride, node.padding, count_include_pad=node.count_padding)
        case Activation():
            return activate(node, x)
        case Add():
            return x + inputs[1]
        case Concat():
            return torch.cat(inputs, 1)
    raise AssertionError(node)


def activate(node: Activation, x: Tensor) -> Tensor:
    """The function that an activation stands for, of each value."""
    match node.which:
        case "leaky_relu":
            return F.leaky_relu(x, node.low)
        case "clamp":
            return x.clamp(node.low, node.high)
        case "gelu":
            return F.gelu(x, approximate="tanh")
        case "hardswish":
            return F.hardswish(x)
        case "silu":
            return F.silu(x)
        case _:
            result: Tensor = getattr(torch, node.which)(x)
            return result


def to_graph(trained: TrainedNetwork) -> Graph:
    """A trained network as operations, with BatchNorm folded into the convolutions.

    Args:
        trained: with weights, in evaluation mode, on the CPU.

    Raises:
        RunError: it has a layer that cannot be expressed; names it and the reason.
    """
    try:
        lowered = lower(trained.network.eval(), trained.input_shape, keep=False)
    except CannotLowerError as error:
        raise RunError(f"{trained.trial.name} cannot be exported: {error.layer}: {error.reason}") from None
    nodes = [node for operation in lowered.operations for node in _nodes(lowered, operation)]
    nodes, shapes, output = _numbered(nodes, lowered)
    return Graph(nodes=tuple(_pushed(nodes, output)), shapes=shapes, output=output, mean=trained.mean, std=trained.std)


def _nodes(lowered: Lowered, operation: Operation) -> list[Node]:
    """An operation of the native engine's lowering, which may stand for several layers in one pass."""
    settings: dict[str, Any] = operation.settings
    about: dict[str, Any] = {
        "name": operation.name,
        "inputs": tuple(operation.inputs),
        "output": operation.output,
    }
    match operation.kind:
        case "conv":
            return [_convolution(lowered, operation, about)]
        case "norm":
            scale, shift = _affine(lowered, settings)
            relu = bool(settings.get("relu"))
            if not settings.get("pool"):
                return [Affine(**about, scale=_f32(scale), shift=_f32(shift), relu=relu)]
            between = -operation.output  # a value of its own, numbered afterwards
            return [
                Affine(**{**about, "output": between}, scale=_f32(scale), shift=_f32(shift), relu=relu),
                Pool(**{**about, "inputs": (between,)}, kind="max", kernel=(2, 2), stride=(2, 2)),
            ]
        case "max_pool" | "average_pool":
            return [
                Pool(
                    **about,
                    kind="max" if operation.kind == "max_pool" else "average",
                    kernel=settings["kernel"],
                    stride=settings["stride"],
                    padding=settings["padding"],
                    count_padding=settings.get("count_padding", True),
                )
            ]
        case "activation":
            which = _ACTIVATIONS[settings["which"] - 1]
            return [Activation(**about, which=which, low=settings["low"], high=settings["high"])]
        case "add":
            return [Add(**about)]
        case "concat":
            return [Concat(**about)]
    raise RunError(f"{operation.name} cannot be exported: {operation.kind} is not among the operations of exports")


def _f64(lowered: Lowered, place: int) -> NDArray[np.float64]:
    return lowered.tensors[place].detach().cpu().double().numpy()


def _f32(values: NDArray[np.float64]) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)


def _affine(lowered: Lowered, norm: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A BatchNorm in evaluation mode as scale and shift of each channel."""
    mean, var = _f64(lowered, norm["running_mean"]), _f64(lowered, norm["running_var"])
    scale = 1 / np.sqrt(var + norm["epsilon"])
    if norm["weight"] >= 0:
        scale = scale * _f64(lowered, norm["weight"])
    shift = -mean * scale
    if norm["bias"] >= 0:
        shift = shift + _f64(lowered, norm["bias"])
    return scale, shift


def _convolution(lowered: Lowered, operation: Operation, about: dict[str, Any]) -> Convolution:
    settings = operation.settings
    weight = _f64(lowered, settings["weight"])
    kernel = settings["kernel"]
    groups = settings.get("groups", 1)
    weight = weight.reshape(weight.shape[0], -1, *kernel)
    bias = _f64(lowered, settings["bias"]) if settings["bias"] >= 0 else np.zeros(len(weight))
    if "before" in settings:
        scale, shift = _affine(lowered, settings["before"])
        weight, bias = weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift
    after = _affine(lowered, settings["after"]) if "after" in settings else None
    return Convolution(
        **about,
        weight=_f32(weight),
        bias=_f32(bias),
        stride=settings.get("stride", (1, 1)),
        padding=settings.get("padding", (0, 0)),
        dilation=settings.get("dilation", (1, 1)),
        groups=groups,
        relu=bool(settings.get("relu")),
        scale=_f32(after[0]) if after else None,
        shift=_f32(after[1]) if after else None,
    )


def _numbered(nodes: list[Node], lowered: Lowered) -> tuple[list[Node], tuple[Shape, ...], int]:
    """Values numbered from 0 in the order in which they are written, with the shape of each."""
    numbers, shapes, numbered = {0: 0}, [lowered.shapes[0]], []
    for node in nodes:
        numbers[node.output] = len(shapes)
        if node.output < 0:  # between an affine map and its pooling: the shape of what came in
            shapes.append(shapes[numbers[node.inputs[0]]])
        else:
            shapes.append(lowered.shapes[node.output])
        inputs = tuple(numbers[value] for value in node.inputs)
        numbered.append(replace(node, inputs=inputs, output=numbers[node.output]))
    return numbered, tuple(shapes), numbers[lowered.output]


def _pushed(nodes: list[Node], output: int) -> list[Node]:
    """Affine maps after a ReLU moved into the next convolution, where that changes nothing.

    It does not where the convolution pads (the padding would have to be shifted too) or where somebody
    else reads the value; a max pooling in between commutes with positive scales only.
    """
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            readers.setdefault(value, []).append(index)
    result = list(nodes)
    for index, node in enumerate(nodes):
        current = result[index]
        if not isinstance(current, Convolution) or current.scale is None or current.shift is None:
            continue
        value = node.output
        while value != output and len(readers.get(value, [])) == 1:
            at = readers[value][0]
            following = result[at]
            if isinstance(following, Pool) and following.padding == (0, 0):
                if following.kind == "max" and not bool((current.scale > 0).all()):
                    break
                value = following.output
                continue
            if isinstance(following, Convolution) and following.padding == (0, 0):
                result[at] = _taking(following, current.scale, current.shift)
                result[index] = replace(current, scale=None, shift=None)
            break
    return result


def _taking(node: Convolution, scale: Array, shift: Array) -> Convolution:
    """A convolution that does the affine map of its input too."""
    outputs, inputs, height, width = node.weight.shape
    per_group = outputs // node.groups
    weight, bias = node.weight.astype(np.float64), node.bias.astype(np.float64)
    channels = len(scale)
    # A linear layer on a flattened image has as many inputs as the image has channels: its kernel is the image.
    for group in range(node.groups):
        own = slice(group * per_group, (group + 1) * per_group)
        seen = slice(group * channels // node.groups, (group + 1) * channels // node.groups)
        bias[own] += np.einsum("oihw,i->o", weight[own], shift[seen].astype(np.float64))
        weight[own] *= scale[seen].astype(np.float64).reshape(1, -1, 1, 1)
    assert weight.shape == (outputs, inputs, height, width)
    return replace(node, weight=_f32(weight), bias=_f32(bias))
