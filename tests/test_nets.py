from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smidgen.errors import TrialError
from smidgen.graph.cost import count_parameters, count_trainable
from smidgen.graph.layers import Dropout
from smidgen.nets.build import build_network
from smidgen.trial import AvgPool, Block, Conv, Linear, MaxPool, Network


def build(
    *blocks: Block,
    shape: tuple[int, int, int] = (1, 28, 28),
    dropout: float = 0,
    order: str = "norm-activation",
) -> nn.Module:
    return build_network(Network(blocks, order), input_shape=shape, classes=10, dropout=dropout)  # type: ignore[arg-type]


def kinds(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network.children()]


def test_the_order_of_a_block() -> None:
    head = (AvgPool(), Linear())
    assert kinds(build(Conv(3), *head, dropout=0.1))[:4] == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout"]
    assert kinds(build(Conv(3), *head, dropout=0.1, order="activation-norm"))[:4] == [
        "Conv2d", "ReLU", "BatchNorm2d", "Dropout",
    ]  # fmt: skip
    assert kinds(build(Conv(3), *head)) == ["Conv2d", "BatchNorm2d", "ReLU", "AvgPool2d", "Flatten", "Linear"]
    plain = Conv(3, norm=False, activation="none")
    assert kinds(build(plain, *head, dropout=0.1))[0:2] == ["Conv2d", "AvgPool2d"]


def test_without_a_scale_a_norm_has_a_shift_only() -> None:
    torch.manual_seed(0)
    network = build_network(Network((Conv(3), AvgPool(), Linear()), scale=False), input_shape=(1, 8, 8), classes=4)
    norm = network.get_submodule("norm1")
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    assert count_parameters(network) == 27 + 3 + 3 * 4 + 4
    images = torch.randn(5, 3, 6, 6)
    expected = (images - images.mean((0, 2, 3), keepdim=True)) / (
        images.var((0, 2, 3), False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(norm(images), expected)


blocks = st.one_of(
    st.builds(
        Conv,
        st.sampled_from([2, 4, 6]),
        kernel=st.integers(1, 5),
        stride=st.integers(1, 3),
        padding=st.integers(0, 2),
        groups=st.sampled_from([1, 2]),
        norm=st.booleans(),
        activation=st.sampled_from(["relu", "none"]),
    ),
    st.builds(MaxPool, st.integers(1, 3)),
    st.builds(AvgPool, st.integers(1, 3)),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(blocks, max_size=5),
    st.tuples(st.just(2), st.integers(5, 30), st.integers(5, 30)),
    st.sampled_from(
        [(AvgPool(), Linear()), (AvgPool(), Conv(None, kernel=1)), (Linear(8, activation="relu"), Linear())]
    ),
    st.integers(2, 12),
)
def test_whatever_is_built_gives_one_score_a_class(
    body: list[Block], shape: tuple[int, int, int], head: tuple[Block, ...], classes: int
) -> None:
    try:
        network = build_network(Network((*body, *head)), input_shape=shape, classes=classes, dropout=0.1)
    except TrialError as error:
        assert "network.blocks." in str(error)
        return
    images = torch.randn(3, *shape)
    assert network(images).shape == (3, classes)
    network(images).sum().backward()
    assert network.eval()(images[:1]).shape == (1, classes)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((MaxPool(30), Linear()), "network.blocks.0: pooling by 30"),
        ((Conv(3, kernel=29), Linear()), "network.blocks.0: a 29 x 29 convolution does not fit 1 x 28 x 28"),
        ((Conv(4), Conv(6, groups=4), Linear()), "network.blocks.1.groups is 4"),
        ((Conv(4),), "ends with 4 x 26 x 26 values"),
        ((AvgPool(), Linear(9)), "ends with 9 x 1 x 1"),
        ((Linear(5), Conv(3), Linear()), "network.blocks.1: only linear"),
        ((Conv(4096), Linear(4096)), "network.blocks.1 makes the network too large"),
        ((Conv(4096), Conv(4096, kernel=5)), "network.blocks.1 makes the network too large"),
    ],
)
def test_what_does_not_fit_is_named(parts: tuple[Block, ...], words: str) -> None:
    with pytest.raises(TrialError, match=words):
        build(*parts)


def test_a_network_that_is_too_large_takes_no_memory() -> None:
    """50 layers of 4,096 channels would take 30 GB; the first too large one is refused before any is made."""
    with pytest.raises(TrialError, match="too large"):
        build(*[Conv(4096, padding=1)] * 50, shape=(1, 4, 4))


def test_pooling_a_whole_image_that_is_not_square() -> None:
    network = build(Conv(4), AvgPool(), Linear(), shape=(1, 9, 12))
    assert network(torch.zeros(2, 1, 9, 12)).shape == (2, 10)


class TestDropout:
    def test_it_drops_at_its_rate_and_keeps_the_mean(self) -> None:
        torch.manual_seed(0)
        layer = Dropout(0.05).train()
        out = layer(torch.ones(64, 8, 40, 40))
        dropped = float((out == 0).float().mean())
        assert abs(dropped - 0.05) < 0.001
        assert abs(float(out.mean()) - 1) < 0.002
        assert len(out.unique()) == 2

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_every_place_is_dropped_by_itself(self, layout: torch.memory_format) -> None:
        torch.manual_seed(0)
        layer = Dropout(0.5).train()
        x = torch.ones(400, 3, 5, 7).contiguous(memory_format=layout)
        out = layer(x)
        assert out.is_contiguous(memory_format=layout)
        kept = (out != 0).flatten(1).double()
        assert float((kept.mean(0) - 0.5).abs().max()) < 0.12
        correlation = torch.corrcoef(kept.T) - torch.eye(kept.shape[1])
        assert float(correlation.abs().max()) < 0.3

    def test_it_follows_the_seed_and_does_nothing_in_evaluation(self) -> None:
        layer, x = Dropout(0.3), torch.randn(4, 3, 6, 5)
        torch.manual_seed(7)
        one = layer(x)
        torch.manual_seed(7)
        assert torch.equal(layer(x), one)
        assert not torch.equal(layer(x), one)
        assert layer.eval()(x) is x

    def test_its_gradient_is_its_mask(self) -> None:
        x = torch.randn(6, 4, 5, 5, requires_grad=True)
        out = Dropout(0.4)(x)
        out.sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad * x.detach(), out.detach())

    def test_an_odd_number_of_values_and_none(self) -> None:
        assert Dropout(0.5)(torch.ones(7)).shape == (7,)
        assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)


def test_shared_parameters_count_once_and_frozen_ones_too() -> None:
    layer = nn.Linear(3, 4)
    assert count_parameters(nn.Sequential(layer, nn.Linear(4, 3), layer)) == 16 + 15
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 16
    assert count_trainable(layer) == 12
