"""Building a PyTorch module from a trial's network."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from smidgen.errors import TrialError
from smidgen.graph.activations import BY_SETTING
from smidgen.graph.cost import macs_of_convolution, weight_shape
from smidgen.graph.layers import Dropout
from smidgen.nets.own import MOST_PARAMETERS, own_network
from smidgen.trial import ActivationName, AvgPool, Block, Conv, Linear, MaxPool, Module, Network

_Make = Callable[[], nn.Module]

MOST_ACTIVATIONS = 10_000_000
"""Bound on the values of one layer's output for one image, likewise."""


class Sequence2d(nn.Sequential):
    """Layers in sequence; the scores have the shape [count, classes] whatever the last layer is."""

    def forward(self, input: Tensor) -> Tensor:
        """Scores (logits) [count, classes] of images [count, channels, height, width]."""
        output: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return output.flatten(1)


def build_network(
    network: Network | Module, *, input_shape: Sequence[int], classes: int, dropout: float = 0.0
) -> nn.Module:
    """Build the network with PyTorch's default initial weights, drawn from PyTorch's generator.

    Layers are named by kind and number (`conv1`, `norm1`, `relu1`, `pool1`, ...).

    Args:
        network: the blocks, or a module of the user's own, whose file must have been named.
        input_shape: channels, height, width of an image.
        classes: number of scores.
        dropout: rate after each convolution with an activation; at 0 there is no such layer. A module has
            its own.

    Raises:
        TrialError: a block that does not fit what comes before it, or an output that is not one
            score a class; names the block.
    """
    if isinstance(network, Module):
        if dropout:
            raise TrialError(f"dropout is {dropout:g}, but {network} is a module of your own: put dropout into it")
        channels, height, width = input_shape
        return own_network(network, (channels, height, width), classes)
    plan = _planned(network, input_shape, classes, dropout)
    return Sequence2d(OrderedDict((name, make()) for name, make in plan.layers))


def _planned(network: Network, input_shape: Sequence[int], classes: int, dropout: float) -> _Plan:
    plan = _Plan(network, tuple(input_shape), classes, dropout)
    for index, block in enumerate(network.blocks):
        plan.add(index, block)
    if plan.shape != (classes, 1, 1):
        raise TrialError(
            f"the network ends with {plan.shape_text} values, but {classes} classes need {classes} x 1 x 1; "
            f"end it with a global average pooling and a linear layer, or a convolution to 1 x 1"
        )
    return plan


class _Plan:
    """The layers so far and their output shape; nothing is allocated until all fit."""

    def __init__(self, network: Network, input_shape: tuple[int, ...], classes: int, dropout: float) -> None:
        self.order, self.scale, self.dropout, self.classes = network.order, network.scale, dropout, classes
        channels, height, width = input_shape
        self.shape = (channels, height, width)
        self.layers: list[tuple[str, _Make]] = []
        self.parameters = self.macs = 0
        self._counts: Counter[str] = Counter()

    @property
    def shape_text(self) -> str:
        return " x ".join(map(str, self.shape))

    def add(self, index: int, block: Block) -> None:
        where = f"network.blocks.{index}"
        if self._counts["flatten"] and not isinstance(block, Linear):
            raise TrialError(f"{where}: only linear layers can follow a linear layer")
        match block:
            case Conv():
                self._conv(where, block)
            case MaxPool(size=size):
                self._pool(where, nn.MaxPool2d, size)
            case AvgPool(size=size):
                self._average(where, size)
            case Linear():
                self._linear(block)
        channels, height, width = self.shape
        if self.parameters > MOST_PARAMETERS or channels * height * width > MOST_ACTIVATIONS:
            raise TrialError(f"{where} makes the network too large to be called tiny; make it smaller")

    def _append(self, kind: str, make: _Make) -> None:
        self._counts[kind] += 1
        self.layers.append((f"{kind}{self._counts[kind]}", make))

    def _conv(self, where: str, block: Conv) -> None:
        channels, height, width = self.shape
        outputs = self.classes if block.channels is None else block.channels
        if channels % block.groups or outputs % block.groups:
            raise TrialError(
                f"{where}.groups is {block.groups}, which does not divide {channels} input and {outputs} "
                f"output channels"
            )
        sides = [(side + 2 * block.padding - block.kernel) // block.stride + 1 for side in (height, width)]
        if min(height, width) + 2 * block.padding < block.kernel:
            raise TrialError(
                f"{where}: a {block.kernel} x {block.kernel} convolution does not fit {self.shape_text}; "
                f"use padding, or fewer layers before it"
            )
        shape = weight_shape(channels, outputs, (block.kernel, block.kernel), block.groups)
        self.parameters += math.prod(shape)
        self.macs += macs_of_convolution(shape, sides[0] * sides[1])
        self._append(
            "conv",
            lambda: nn.Conv2d(
                channels,
                outputs,
                block.kernel,
                stride=block.stride,
                padding=block.padding,
                groups=block.groups,
                bias=False,
            ),
        )
        self.shape = (outputs, sides[0], sides[1])
        steps = ["norm", "activation"] if self.order == "norm-activation" else ["activation", "norm"]
        for step in steps:
            if step == "norm" and block.norm:
                self.parameters += (1 + self.scale) * outputs
                self._append("norm", lambda: _norm(outputs, scale=self.scale))
            elif step == "activation":
                self._activate(block.activation)
        if block.activation != "none" and self.dropout:
            self._append("dropout", lambda: Dropout(self.dropout))

    def _activate(self, activation: Literal[ActivationName, "none"]) -> None:
        if activation != "none":
            self._append(activation, BY_SETTING[activation].layer)

    def _pool(self, where: str, kind: type[nn.MaxPool2d] | type[nn.AvgPool2d], size: int) -> None:
        channels, height, width = self.shape
        if size > min(height, width):
            raise TrialError(f"{where}: pooling by {size} does not fit {self.shape_text}")
        self._append("pool", lambda: kind(size))
        self.shape = (channels, height // size, width // size)

    def _average(self, where: str, size: int | None) -> None:
        _, height, width = self.shape
        if size is not None:
            self._pool(where, nn.AvgPool2d, size)
        elif height == width:
            self._pool(where, nn.AvgPool2d, height)
        else:
            self._append("pool", lambda: nn.AdaptiveAvgPool2d(1))
            self.shape = (self.shape[0], 1, 1)

    def _linear(self, block: Linear) -> None:
        channels, height, width = self.shape
        inputs = channels * height * width
        outputs = self.classes if block.features is None else block.features
        if not self._counts["flatten"]:
            self._append("flatten", nn.Flatten)
        shape = weight_shape(inputs, outputs, ())
        self.parameters += math.prod(shape) + block.bias * outputs
        self.macs += macs_of_convolution(shape, 1)
        self._append("linear", lambda: nn.Linear(inputs, outputs, bias=block.bias))
        self._activate(block.activation)
        self.shape = (outputs, 1, 1)


def _norm(channels: int, *, scale: bool) -> nn.BatchNorm2d:
    """BatchNorm with a learnt shift and, where asked for, a learnt scale."""
    norm = nn.BatchNorm2d(channels)
    if not scale:
        norm.register_parameter("weight", None)
    return norm


def measure(network: Network | Module, *, input_shape: Sequence[int], classes: int) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for one image, from the blocks alone: nothing is built.

    Raises:
        TrialError: as `build_network`, or it is a module, whose parameters are known only once it is built.
    """
    if isinstance(network, Module):
        raise TrialError(f"{network} is a module of your own; a network made of blocks is needed here")
    plan = _planned(network, input_shape, classes, 0.0)
    return plan.parameters, plan.macs
