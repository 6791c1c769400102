"""Receptive fields: the reference notebooks' table, published figures, and gradients on generated networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smidgen.anatomy.layers import examine
from smidgen.anatomy.receptive import Field, FieldTracer, trace
from smidgen.inspection import inspect

SEED_TABLE = (Path(__file__).parent / "golden" / "seed-receptive-fields.md").read_text()


def test_the_seeds_receptive_field_table() -> None:
    """Layer, input size, output size and receptive field of each of its ten rows."""
    rows = re.findall(r"\| (Conv2D|Max Pool|GAP|FC)\S* \| (\S+) \| (\S+) \| (\S+) \|", SEED_TABLE)
    assert len(rows) == 10
    layers = [x for x in inspect("mnist-3-augmented").anatomy.layers if x.type in ("Conv2d", "MaxPool2d", "AvgPool2d")]
    found = [
        ("x".join(map(str, (*x.input_shape[1:], x.input_shape[0]))),
         "x".join(map(str, (*x.output_shape[1:], x.output_shape[0]))),
         "x".join(map(str, x.receptive_field or ())))
        for x in layers
    ]  # fmt: skip
    assert found == [row[1:] for row in rows]


class Branches(nn.Module):
    """A residual sum of paths with different dilation, a concatenation, and a gate over the whole image."""

    def __init__(self, gate: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.wide = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.deep = nn.Conv2d(2, 2, 5, padding=2, groups=2)
        self.last = nn.Conv2d(4, 2, 3, stride=2)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = torch.cat([self.wide(x) + x, self.deep(x)], 1)
        if self.gate:
            y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        output: Tensor = self.last(y)
        return output


def test_branches_give_the_union_of_their_paths() -> None:
    layers = {x.name: x for x in examine(Branches(), (1, 17, 17)).layers}
    assert layers["wide"].receptive_field == (7, 7)
    assert layers["deep"].receptive_field == (7, 7)
    assert (layers["last"].receptive_field, layers["last"].jump, layers["last"].start) == (
        (9, 9),
        (2, 2),
        (-3, -3),
    )


def test_published_receptive_fields() -> None:
    """AlexNet's and VGG-16's last pooling, from the table of Araujo, Norris and Sim (Distill 2019): 195 and 212."""
    alexnet = nn.Sequential(
        nn.Conv2d(3, 1, 11, stride=4), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 5, padding=2), nn.MaxPool2d(3, 2),
        nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    assert examine(alexnet, (3, 227, 227)).layers[-1].receptive_field == (195, 195)
    vgg: list[nn.Module] = []
    for convolutions in (2, 2, 3, 3, 3):
        vgg += [nn.LazyConv2d(1, 3, padding=1) for _ in range(convolutions)] + [nn.MaxPool2d(2)]
    network = nn.Sequential(*vgg)
    network(torch.zeros(1, 3, 224, 224))
    last = examine(network, (3, 224, 224)).layers[-1]
    assert (last.receptive_field, last.jump) == ((212, 212), (32, 32))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.how == "add":
            return F.relu(x + y)
        if self.how == "cat":
            return torch.cat([x, y], 1)
        return x * F.adaptive_avg_pool2d(y, 1)


sides = st.integers(1, 3)


@st.composite
def layers(draw: st.DrawFn, channels: int) -> tuple[nn.Module, int]:
    """A layer for this many channels, and how many come out."""
    kind = draw(st.sampled_from(["conv", "conv", "depthwise", "pool", "act", "add", "cat", "gate", "up", "adaptive"]))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    if kind == "conv":
        return nn.Conv2d(channels, 2, kernel, stride=draw(sides), padding=padding, dilation=draw(st.integers(1, 2))), 2
    if kind == "depthwise":
        return nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, stride=draw(sides)), channels
    if kind == "pool":
        size = draw(sides)
        return nn.AvgPool2d(size, draw(sides), padding=min(draw(st.integers(0, 1)), size // 2)), channels
    if kind in ("add", "cat", "gate"):
        reach = draw(st.integers(0, 2))
        dilation = draw(sides)
        inner = nn.Conv2d(channels, channels, 2 * reach + 1, padding=reach * dilation, dilation=dilation)
        return Residual(inner, kind), channels * (2 if kind == "cat" else 1)
    if kind == "up":
        return nn.Upsample(scale_factor=2), channels
    if kind == "adaptive":
        return nn.AdaptiveAvgPool2d((draw(sides), draw(sides))), channels
    return draw(st.sampled_from([nn.ReLU(), nn.BatchNorm2d(channels), nn.Dropout(0.1)])), channels


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    channels, body = 1, []
    for _ in range(draw(st.integers(1, 5))):
        layer, channels = draw(layers(channels))
        body.append(layer)
    head = draw(st.sampled_from(["none", "linear", "gap"]))
    if head == "linear":
        body += [nn.Flatten(), nn.LazyLinear(2)]
    elif head == "gap":
        body += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)]
    return nn.Sequential(*body)


@settings(max_examples=150, deadline=None)
@given(networks(), st.integers(6, 17), st.integers(6, 17), st.data())
def test_gradients_reach_just_the_receptive_field(
    network: nn.Module, height: int, width: int, data: st.DataObject
) -> None:
    """With positive weights and inputs, a unit's gradient is not zero just where the unit sees."""
    image = torch.rand(1, 1, height, width) + 0.5
    try:
        network.eval()(image)
    except RuntimeError:  # a kernel larger than what is left of the image
        return
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(0.5, 1.5)
    tracer = FieldTracer(image)
    field = tracer.field(trace(tracer, network, image))
    assert field is not None
    image = image.requires_grad_()
    output = network(image * 1)
    if output.dim() == 2:
        output = output[:, :, None, None]
    assert output.shape[2:] == (len(field.height), len(field.width))
    for _ in range(3):
        row, column = (
            data.draw(st.integers(0, output.shape[2] - 1)),
            data.draw(st.integers(0, output.shape[3] - 1)),
        )
        (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), image, retain_graph=True)
        for axis, position, reached in (
            (field.height, row, gradient[0, 0].abs().sum(1)),
            (field.width, column, gradient[0, 0].abs().sum(0)),
        ):
            pixels = reached.nonzero().flatten().tolist()
            # Along one axis a unit sees nothing if along the other it sees only padding.
            if pixels:
                assert (pixels[0], pixels[-1]) == (axis.seen_first[position], axis.seen_last[position])
                assert axis.first[position] <= pixels[0] <= pixels[-1] <= axis.last[position]


def traced(network: nn.Module, side: int = 12) -> Field | None:
    image = torch.zeros(1, 1, side, side)
    tracer = FieldTracer(image)
    return tracer.field(trace(tracer, network, image))


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


def test_what_is_unknown_is_said_to_be() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3), Turned(), nn.Conv2d(1, 1, 3))
    assert traced(network) is None
    anatomy = examine(network, (1, 12, 12))
    assert [x.receptive_field for x in anatomy.layers] == [(3, 3), None, None]
    assert "?" in anatomy.table()


def test_a_gate_sees_the_whole_image() -> None:
    field = traced(Branches(gate=True), 17)
    assert field is not None
    assert [(int(a), int(b)) for a, b in zip(field.height.seen_first, field.height.seen_last, strict=True)] == [
        (0, 16)
    ] * 8


@pytest.mark.parametrize(("padding", "size"), [("same", 5), ("valid", 5)])
def test_padding_by_name(padding: str, size: int) -> None:
    field = traced(nn.Sequential(nn.Conv2d(1, 1, 3, padding=padding), nn.Conv2d(1, 1, 3, padding=padding)))
    assert field is not None
    assert field.width.size == size
    assert field.width.start == (-2 if padding == "same" else 0)


def test_max_pooling_counts_as_average_pooling_does() -> None:
    for pool in (nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(3, 2, padding=1)):
        field = traced(nn.Sequential(nn.Conv2d(1, 1, 3), pool))
        assert field is not None
        assert (field.width.size, int(field.width.jump), field.width.start) == (5, 2, -1)
