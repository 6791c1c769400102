"""Receptive fields: the reference notebooks' table, published figures, and gradients on generated networks."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from smidgen.anatomy.layers import examine
from smidgen.anatomy.receptive import Field, NetworkTracer
from smidgen.inspection import inspect

REFERENCE_TABLE = (Path(__file__).parent / "golden" / "reference-receptive-fields.md").read_text()


def test_the_reference_notebooks_receptive_field_table() -> None:
    """Layer, input size, output size and receptive field of each of its ten rows."""
    rows = re.findall(r"\| (Conv2D|Max Pool|GAP|FC)\S* \| (\S+) \| (\S+) \| (\S+) \|", REFERENCE_TABLE)
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
    field = traced(network, image)
    assert field is not None
    image = image.requires_grad_()
    output = network(image * 1)
    if output.dim() == 2:
        output = output[:, :, None, None]
    for _ in range(3):
        row, column = (
            data.draw(st.integers(0, output.shape[2] - 1)),
            data.draw(st.integers(0, output.shape[3] - 1)),
        )
        (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), image, retain_graph=True)
        for reached, (first, last), (seen_first, seen_last) in zip(
            (gradient[0, 0].abs().sum(1), gradient[0, 0].abs().sum(0)),
            extents(field, row, column, seen=False),
            extents(field, row, column, seen=True),
            strict=True,
        ):
            pixels = reached.nonzero().flatten().tolist()
            if pixels:
                assert (pixels[0], pixels[-1]) == (seen_first, seen_last)
                assert first <= pixels[0] <= pixels[-1] <= last
            else:
                assert seen_first > seen_last


def extents(field: Field, row: int, column: int, *, seen: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row and column that a position sees; those that exist, or as if the image had no edges."""
    marks = field.marks.reshape(8, 1, 1, 1) if field.marks.dim() == 2 else field.marks
    top, bottom, left, right = marks[4 if seen else 0 :, 0, row, column].tolist()[:4]
    return (int(top), int(-bottom)), (int(left), int(-right))


def traced(network: nn.Module, image: Tensor | int = 12) -> Field | None:
    """The field of a network's output, for an image or one of that many pixels a side."""
    image = torch.zeros(1, 1, image, image) if isinstance(image, int) else image
    tracer = NetworkTracer(network, image)
    return tracer.field(tracer.run(network))


class Own(nn.Module):
    """A function as a layer; it is given two more convolutions' results if it takes them."""

    def __init__(self, name: str, width: int = 4) -> None:
        super().__init__()
        self.name = name
        self.other = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, width, (1, 5), padding=(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = OWN[self.name](x, self.other(x), self.third(x))
        return result


def written_into_zeros(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    new = torch.zeros(x.shape)
    new[:, :, 2:] = y[:, :, :-2]
    new[:, 1:3] += z[:, 1:3]
    return new


def slice_assigned(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    new = x.clone()
    new[:, :2] = y[:, :2]
    new.flatten(2)[:, 3] = z.flatten(2)[:, 3]
    return new


def through_a_view(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    new = x * 1
    new.view(-1).mul_(1.5)
    new.transpose(2, 3)[..., 1].copy_(y[:, :, 1])
    new.data[:, :, :, 0] = 0
    return new + z


def sorted_places(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return x.gather(3, torch.arange(x.shape[3] - 1, -1, -1).expand(x.shape))


def attention(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    q, k, v = (t.flatten(2).transpose(1, 2) for t in (x, y, z))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


def gated(x: Tensor, y: Tensor) -> Tensor:
    return x + y * torch.sigmoid(y)


with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    scripted = torch.jit.script(gated)


RECURRENT = nn.LSTM(4, 4, batch_first=True).requires_grad_(False)
CONSTANT = torch.tensor([2.0, 3.0, 4.0, 5.0]).view(4, 1, 1)
"""Neither parameter nor buffer, but there before the network runs."""

OWN: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "maximum": lambda x, y, z: torch.max(x, y),
    "slice assigned": slice_assigned,
    "written into zeros": written_into_zeros,
    "written through views": through_a_view,
    "masked": lambda x, y, z: y.clone().index_put_((torch.tensor([0]), torch.tensor([1])), x[:, 1]),
    "where": lambda x, y, z: torch.where(torch.arange(x.shape[3]) % 2 == 0, x, y),
    "scripted": lambda x, y, z: scripted(x, y),
    "rows joined": lambda x, y, z: torch.cat([x, y], 2)[:, :, 3 : 3 + x.shape[2]],
    "columns joined": lambda x, y, z: F.avg_pool2d(torch.cat([x, z], 3), (1, 3), 1)[:, :, :, : x.shape[3]],
    "stacked": lambda x, y, z: torch.stack([x, y, z], 2).amax(2),
    "columns permuted": lambda x, y, z: x + y[:, :, :, torch.arange(x.shape[3]).roll(2)],
    "rows picked": lambda x, y, z: x.index_select(2, torch.arange(x.shape[2]) // 2 * 2),
    "gathered": sorted_places,
    "flipped": lambda x, y, z: x + z.flip(3),
    "rolled": lambda x, y, z: x + y.roll((1, -2), (2, 3)),
    "turned": lambda x, y, z: x + F.adaptive_avg_pool2d(y.transpose(2, 3), (x.shape[2], x.shape[3])),
    "reflected": lambda x, y, z: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 2:, :-2],
    "circular": lambda x, y, z: F.pad(x, (1, 0, 2, 0), mode="circular")[:, :, :-2, :-1],
    "padded unevenly": lambda x, y, z: F.pad(x, (3, -3, -1, 1)),
    "einsum": lambda x, y, z: torch.einsum("nchw,cd->ndhw", x, torch.ones(x.shape[1], x.shape[1])),
    "einsum over rows": lambda x, y, z: torch.einsum("nchw,nciw->nchw", x, z),
    "attention": attention,
    "softmax over rows": lambda x, y, z: x.softmax(2) + y,
    "cumulative": lambda x, y, z: x.cumsum(3),
    "sorted": lambda x, y, z: x.sort(2).values,
    "strip": lambda x, y, z: x + y.mean(3, keepdim=True),
    "unfolded": lambda x, y, z: F.unfold(x, 3, padding=1).unflatten(1, (x.shape[1], 9)).sum(2).view(x.shape),
    "windows": lambda x, y, z: F.pad(x, (0, 2, 0, 0)).unfold(3, 3, 1).sum(-1),
    "shuffled": lambda x, y, z: F.pixel_unshuffle(F.interpolate(F.pixel_shuffle(x, 2), scale_factor=2), 4)[:, ::4],
    "group norm": lambda x, y, z: F.group_norm(x, 2) + z,
    "layer norm": lambda x, y, z: F.layer_norm(x, x.shape[3:]),
    "instance norm": lambda x, y, z: F.instance_norm(x) + y,
    "batch statistics": lambda x, y, z: F.batch_norm(x, None, None, training=True),
    "recurrent": lambda x, y, z: RECURRENT(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).reshape(x.shape),
    "hypernetwork": lambda x, y, z: F.conv2d(x, y.mean((2, 3)).view(-1, 1, 1, 1) * torch.ones(4, 4, 3, 3), padding=1),
    "transposed": lambda x, y, z: F.conv_transpose2d(x, torch.ones(4, 4, 4, 3), stride=2, padding=1)[:, :, ::2, ::2],
    "in place": lambda x, y, z: F.relu_((x * z).add_(y)),
    "by two layouts": lambda x, y, z: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2) + y,
    "tensor of its own": lambda x, y, z: x * CONSTANT + y,
}


def check_against_gradients(network: nn.Module, field: Field, side: int) -> None:
    """No gradient reaches beyond the field, nor does any position see more than the whole says."""
    image = (torch.rand(1, 1, side, side) + 0.5).requires_grad_()
    output = network(image * 1)
    size = [0, 0]
    for row in {0, output.shape[2] // 2, output.shape[2] - 1}:
        for column in {0, output.shape[3] // 2, output.shape[3] - 1}:
            (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), image, retain_graph=True)
            for axis, (first, last) in enumerate(extents(field, row, column, seen=True)):
                pixels = gradient[0, 0].abs().sum(1 - axis).nonzero().flatten().tolist()
                if pixels:
                    assert first <= pixels[0] <= pixels[-1] <= last
                    size[axis] = max(size[axis], pixels[-1] - pixels[0] + 1)
    assert all(said >= reached for said, reached in zip(field.size, size, strict=True))


def own_network(names: list[str]) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), *[Own(name) for name in names], nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(0.05, 0.15)
    return network


@pytest.mark.parametrize("name", OWN)
def test_operations_of_all_kinds_are_followed(name: str) -> None:
    torch.manual_seed(0)
    network = own_network([name])
    field = traced(network, 12)
    assert field is not None
    check_against_gradients(network, field, 12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(list(OWN)), min_size=1, max_size=4), st.integers(8, 13))
def test_fields_are_never_smaller_than_what_gradients_reach(names: list[str], side: int) -> None:
    torch.manual_seed(0)
    network = own_network(names)
    field = traced(network, side)
    if field is not None:
        check_against_gradients(network, field, side)


class Through(nn.Module):
    """Values on a way that no operator shows, and a convolution after it."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.wide, self.last = way, nn.Conv2d(1, 1, 5, padding=2), nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(x + self.way(self.wide(x)))
        return output


def in_another_thread(x: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(x * 2))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    "way",
    [
        lambda x: torch.from_numpy(x.detach().numpy() * 2),
        lambda x: torch.tensor(x.tolist()),
        lambda x: x * float(x.max()),
        lambda x: x if x.mean() > 0 else -x,
        in_another_thread,
        lambda x: F.grid_sample(x, torch.zeros(1, 12, 12, 2), align_corners=False),
        lambda x: x[x > 0].sum().expand(x.shape),
        lambda x: x.view(torch.int32).view(torch.float32).to_sparse().to_dense(),
    ],
    ids=["numpy", "list", "number", "branch", "thread", "no rule", "picked by value", "sparse"],
)
def test_what_cannot_be_followed_is_unknown(way: Callable[[Tensor], Tensor]) -> None:
    assert traced(Through(way)) is None


def test_a_tracer_that_fails_refuses_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: NetworkTracer, *_: object, **__: object) -> None:
        raise AssertionError("a fault of the tracer")

    monkeypatch.setattr(NetworkTracer, "_count", failing)
    anatomy = examine(own_network(["rows joined"]), (1, 12, 12))
    assert [x.receptive_field for x in anatomy.layers] == [None] * len(anatomy.layers)
    assert "at least 0 MACs" in str(anatomy)


def test_the_tracer_needs_neither_the_compiler_nor_all_tensors_of_the_process() -> None:
    """Importing PyTorch's compiler takes a second; a lazy layer elsewhere has no memory yet."""
    lazy = nn.LazyLinear(3)
    assert traced(own_network(["tensor of its own"]), 8) is not None
    assert lazy.has_uninitialized_params()
    code = "import sys, smidgen; smidgen.inspect('mnist-tiny'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_joined_rows_see_across_the_seam() -> None:
    """Two images one above the other, and a window of three rows over both."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 1, 5, padding=2), nn.AvgPool2d((3, 1), 1)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.pool(torch.cat([x, self.conv(x)], 2))
            return output

    assert examine(Joined(), (1, 28, 28)).layers[-1].receptive_field == (28, 5)


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.grid_sample(x, torch.zeros(1, *x.shape[2:], 2), align_corners=False)


def test_what_is_unknown_is_said_to_be() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3), Strange(), nn.Conv2d(1, 1, 3))
    assert traced(network) is None
    anatomy = examine(network, (1, 12, 12))
    assert [x.receptive_field for x in anatomy.layers] == [(3, 3), None, None]
    assert "?" in anatomy.table()


def test_a_gate_sees_the_whole_image() -> None:
    field = traced(Branches(gate=True), 17)
    assert field is not None
    assert all(extents(field, row, 0, seen=True)[0] == (0, 16) for row in range(8))


@pytest.mark.parametrize(("padding", "size"), [("same", 5), ("valid", 5)])
def test_padding_by_name(padding: str, size: int) -> None:
    field = traced(nn.Sequential(nn.Conv2d(1, 1, 3, padding=padding), nn.Conv2d(1, 1, 3, padding=padding)))
    assert field is not None
    assert field.size[1] == size
    assert field.start[1] == (-2 if padding == "same" else 0)


def test_max_pooling_counts_as_average_pooling_does() -> None:
    for pool in (nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(3, 2, padding=1)):
        field = traced(nn.Sequential(nn.Conv2d(1, 1, 3), pool))
        assert field is not None
        assert (field.size[1], field.start[1]) == (5, -1)
        assert field.jump[1] == 2
