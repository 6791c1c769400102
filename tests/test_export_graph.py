"""The graph behind the exports: the same scores as the network, for every kind of network that can be expressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from networks import unsettled
from smidgen.errors import RunError
from smidgen.exports.target import fused_graph
from smidgen.lowering.fused import Affine, Convolution
from smidgen.nets.build import build_network
from smidgen.runs.weights import TrainedNetwork
from smidgen.trial import AvgPool, Conv, Linear, MaxPool, Network
from smidgen.trials.mnist import REFERENCE_NETWORK, strict


def trained(network: nn.Module, classes: int = 10) -> TrainedNetwork:
    """A network whose weights and statistics are as different from their beginnings as after training."""
    torch.manual_seed(1)
    unsettled(network)
    return TrainedNetwork(network.eval().requires_grad_(False), strict(), (1, 28, 28), classes, 0.13, 0.31)


class Branches(nn.Module):
    """What the built-in networks do not have: residuals, concatenation, other activations, padding, groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3)
        self.norm2 = nn.BatchNorm2d(6)
        self.norm3 = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.last = nn.Conv2d(12, 8, 1)
        self.linear = nn.Linear(8, 10)
        self.norm4 = nn.BatchNorm1d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        y = self.norm2(torch.relu(self.deep(x)))
        x = torch.cat([nn.functional.silu(x + y), nn.functional.leaky_relu(y, 0.1)], 1)
        x = nn.functional.max_pool2d(torch.relu(self.norm3(x)), 2)
        x = nn.functional.hardswish(self.last(self.pool(x)))
        result: torch.Tensor = self.norm4(self.linear(x.mean((2, 3))))
        return result


def build(network: Network) -> Callable[[], nn.Module]:
    return lambda: build_network(network, input_shape=(1, 28, 28), classes=10)


PADDED = Network(
    (
        Conv(6, padding=1),
        Conv(8, padding=1, groups=2),
        MaxPool(2),
        Conv(8, stride=2),
        AvgPool(2),
        Linear(16, activation="relu"),
        Linear(),
    ),
    order="activation-norm",
)


def separable(channels: int, outputs: int, kernel: int, *between: nn.Module, **settings: Any) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, kernel, groups=channels, bias=False, **settings), *between,
        nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    ]  # fmt: skip


def padded_separable() -> nn.Module:
    """Odd numbers of channels, stride, padding, a larger kernel, something between, dilation, rows of three pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(),
        *separable(5, 7, 3, stride=2, padding=1),
        *separable(7, 8, 5, nn.BatchNorm2d(7), nn.ReLU(), padding=2), nn.MaxPool2d(2),
        *separable(8, 9, 3, dilation=2),
        *separable(9, 6, 3, padding=1), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(6, 10),
    )  # fmt: skip


def unpadded_separable() -> nn.Module:
    """The same where bands of rows can be made again, with a pooling whose windows leave a row and a column out."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=(1, 1)), nn.BatchNorm2d(6), nn.ReLU(),
        *separable(6, 9, 5), nn.AvgPool2d(3),
        *separable(9, 7, 2, nn.ReLU()), nn.MaxPool2d(2),
        *separable(7, 5, 2), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(5, 10),
    )  # fmt: skip


PLAIN = Network(
    blocks=(Conv(10), Conv(10), Conv(10), MaxPool(2), Conv(14), Conv(14), Conv(16), AvgPool(), Linear()),
)
NETWORKS = {
    "plain": build(PLAIN),
    "flagship": build(cast("Network", strict().network)),
    "reference": build(REFERENCE_NETWORK),
    "reference, activation first": build(Network(REFERENCE_NETWORK.blocks, order="activation-norm")),
    "padded, activation first": build(PADDED),
    "no scale": build(replace(cast("Network", strict().network), scale=False)),
    "no scale, activation first": build(replace(PADDED, scale=False)),
    "branches": Branches,
    "separable, padded": padded_separable,
    "separable, unpadded": unpadded_separable,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_the_network_s(name: str) -> None:
    example = trained(NETWORKS[name]())
    graph = fused_graph(example)
    images = torch.randint(0, 256, (32, 1, 28, 28), dtype=torch.uint8)
    normalized = (images.double() / 255 - example.mean) / example.std
    expected = example.network.double()(normalized)
    scores = graph.scores(images, torch.float64)
    assert scores.shape == (32, 10)
    assert graph.classes == 10
    # Folded weights are rounded to float32.
    torch.testing.assert_close(scores, expected, rtol=2e-6, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_of_the_values(name: str) -> None:
    graph = fused_graph(trained(NETWORKS[name]()))
    values = graph.values(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    assert [tuple(values[value].shape[1:]) for value in range(len(graph.shapes))] == list(graph.shapes)


def test_norms_are_folded_away_where_that_is_exact() -> None:
    graph = fused_graph(trained(NETWORKS["reference"]()))
    assert not [node for node in graph.operations if isinstance(node, Affine)]
    assert all(node.scale is None for node in graph.operations if isinstance(node, Convolution))
    kept = fused_graph(trained(NETWORKS["padded, activation first"]()))
    convolutions = [node for node in kept.operations if isinstance(node, Convolution)]
    assert convolutions[0].scale is not None  # what follows pads
    assert convolutions[2].scale is None  # goes through the average into the linear layer
    assert kept.macs == sum(
        node.weight.size * kept.shapes[node.output][1] * kept.shapes[node.output][2] for node in convolutions
    )


def test_a_layer_that_cannot_be_expressed_is_named() -> None:
    with pytest.raises(RunError, match="mnist-4-strict cannot be exported: 2: .*Softplus"):
        fused_graph(trained(nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten(), nn.Softplus())))
