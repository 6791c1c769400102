"""What a network is: tracing, folding and counting, held against PyTorch; and each activation, everywhere."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import Command, native_only
from networks import unsettled
from smidgen.engines.engine import EngineName
from smidgen.engines.native.fuse import UnsupportedError, fuse
from smidgen.errors import TrialError
from smidgen.graph import ops
from smidgen.graph.activations import ACTIVATIONS, BY_SETTING, ActivationKind
from smidgen.graph.cost import cost, macs_by_layer
from smidgen.graph.fold import fold, run
from smidgen.graph.trace import TraceError, trace
from smidgen.nets.build import build_network, measure
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import run as run_trial
from smidgen.trial import ActivationName, AvgPool, Conv, Linear, MaxPool, Network, Trial

by_title = pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: kind.name)


class Branches(nn.Module):
    """Sums, concatenation, a layer called twice, functions and methods instead of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3, bias=False)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        y = self.twice(self.twice(x))
        x = torch.cat([nn.functional.silu(x + y), torch.tanh(y)], 1)
        return self.last(nn.functional.avg_pool2d(x, 9).flatten(1))  # type: ignore[no-any-return]


# Tracing and folding.

blocks = st.lists(
    st.one_of(
        st.builds(
            Conv,
            channels=st.sampled_from([4, 6]),
            kernel=st.sampled_from([1, 2, 3]),
            stride=st.sampled_from([1, 2]),
            padding=st.sampled_from([0, 1]),
            groups=st.sampled_from([1, 2]),
            norm=st.booleans(),
            activation=st.sampled_from([*get_args(ActivationName), "none"]),
        ),
        st.sampled_from([MaxPool(2), AvgPool(2)]),
    ),
    min_size=1,
    max_size=4,
)


def built(
    blocks: Sequence[Conv | MaxPool | AvgPool], order: str = "norm-activation", *, scale: bool = True
) -> tuple[Network, nn.Module]:
    """A network of blocks that fit, in evaluation mode, and its description."""
    first = Conv(4, kernel=3, padding=1)  # to an even number of channels, for the groups
    described = Network(blocks=(first, *blocks, AvgPool(), Linear()), order=order, scale=scale)  # type: ignore[arg-type]
    try:
        return described, build_network(described, input_shape=(1, 20, 16), classes=5, dropout=0.2).eval()
    except TrialError:
        reject()


@settings(max_examples=60, deadline=None)
@given(
    blocks=blocks,
    order=st.sampled_from(["norm-activation", "activation-norm"]),
    scale=st.booleans(),
    seed=st.integers(0, 100),
)
def test_traced_and_folded_graphs_are_the_network(
    blocks: list[Conv | MaxPool | AvgPool], order: str, scale: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    network = unsettled(built(blocks, order, scale=scale)[1])
    graph = trace(network, (1, 20, 16))
    images = torch.randn(3, 1, 20, 16)
    expected = copy.deepcopy(network).double()(images.double()).detach()
    folded = fold(graph)
    values = run(folded, images)
    for value, found in values.items():
        assert tuple(found.shape[1:]) == folded.shapes[value]
    assert (values[folded.output].flatten(1) - expected).abs().max() < 1e-4 * (float(expected.abs().max()) + 1e-3)
    assert not [op for op in folded.operations if isinstance(op, ops.BatchNorm | ops.Dropout)]


def test_branches_are_traced() -> None:
    network = unsettled(Branches()).eval()
    graph = trace(network, (2, 9, 9))
    images = torch.randn(4, 2, 9, 9)
    folded = fold(graph)
    values = run(folded, images)
    torch.testing.assert_close(values[folded.output].flatten(1), network(images), rtol=1e-4, atol=1e-4)
    assert [type(op).__name__ for op in folded.operations].count("Concatenate") == 1
    assert graph.flat


def test_why_an_addition_is_refused() -> None:
    class Sum(nn.Module):
        def __init__(self, second: Callable[[Tensor], Tensor], alpha: float = 1) -> None:
            super().__init__()
            self.second, self.alpha = second, alpha

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, self.second(x), alpha=self.alpha)

    with pytest.raises(TraceError, match="an addition with alpha=2"):
        trace(Sum(torch.relu, 2), (1, 4, 4))
    with pytest.raises(TraceError, match="an addition of values of different shapes"):
        trace(Sum(lambda x: torch.max_pool2d(x, 2)), (1, 4, 4))


def test_in_training_batch_statistics_and_dropout_are_there_and_cannot_be_folded() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.25)).train()
    graph = trace(network, (1, 8, 8))
    _, norm, dropout = graph.operations
    assert isinstance(norm, ops.BatchNorm)
    assert isinstance(dropout, ops.Dropout)
    assert norm.batch
    assert dropout.rate == 0.25
    with pytest.raises(TraceError, match=r"^1: it normalizes by the statistics of the batch$"):
        fold(graph)
    assert len(fold(trace(network.eval(), (1, 8, 8))).operations) == 1


def test_the_tensors_are_the_module_s_own() -> None:
    network = Branches()
    graph = trace(network, (2, 9, 9))
    named = dict(network.named_parameters()) | dict(network.named_buffers())
    assert {id(entry.tensor) for entry in graph.tensors} == {id(tensor) for tensor in named.values()}
    assert all(entry.owner[entry.key] is entry.tensor for entry in graph.tensors)
    assert {entry.name for entry in graph.tensors if entry.is_parameter} == set(dict(network.named_parameters()))


# Costs.


def multiply_adds_by_pytorch(network: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2


@settings(max_examples=40, deadline=None)
@given(blocks=blocks, scale=st.booleans())
def test_costs_are_those_that_pytorch_counts(blocks: list[Conv | MaxPool | AvgPool], scale: bool) -> None:
    described, network = built(blocks, scale=scale)
    found = cost(trace(network, (1, 20, 16)))
    assert found.macs == multiply_adds_by_pytorch(network, (1, 20, 16))
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert (found.parameters, found.macs) == measure(described, input_shape=(1, 20, 16), classes=5)


def test_a_layer_that_is_called_twice_counts_twice_and_holds_its_weights_once() -> None:
    network = Branches().eval()
    graph = trace(network, (2, 9, 9))
    assert cost(graph).macs == multiply_adds_by_pytorch(network, (2, 9, 9))
    assert macs_by_layer(graph)["twice"] == 2 * 6 * 2 * 9 * 81
    assert cost(graph).parameters == sum(p.numel() for p in network.parameters())
    channels = [graph.shapes[op.output] for op in graph.operations]
    assert cost(graph).value_bytes == 4 * sum(c * h * w for c, h, w in channels)


def test_folding_leaves_fewer_parameters() -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
    graph = trace(network, (1, 8, 8))
    assert cost(graph).parameters == sum(p.numel() for p in network.parameters())
    assert cost(fold(graph)).parameters == cost(graph).parameters - 12  # BatchNorm's scale and shift


# Activations.


def test_every_activation_of_a_trial_has_a_row_and_the_other_way_round() -> None:
    assert set(BY_SETTING) == set(get_args(ActivationName))
    assert len({kind.name for kind in ACTIVATIONS}) == len(ACTIVATIONS)


@by_title
def test_a_row_says_one_function(kind: ActivationKind) -> None:
    """As a layer, a call and a method, and as what the tracer makes of each."""
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 4
    layer = kind.layer().eval()
    expected = layer(x.clone())
    assert type(layer) in kind.modules

    def traced(network: nn.Module) -> Tensor:
        graph = trace(network, (3, 4, 4))
        (operation,) = graph.operations
        assert isinstance(operation, ops.Activation)
        assert operation.kind is kind
        return run(graph, x)[graph.output]

    torch.testing.assert_close(traced(nn.Sequential(layer)), expected)
    required = dict(kind.required)
    for call in kind.calls:
        module = Calling(functools.partial(call.function, **required))
        torch.testing.assert_close(traced(module), module(x.clone()))
    for method in kind.methods:
        module = Calling(operator.methodcaller(method))
        torch.testing.assert_close(traced(module), module(x.clone()))


class Calling(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@native_only
def test_an_activation_that_the_kernels_lack_is_refused_by_name() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU()), (1, 8, 8))
    with pytest.raises(UnsupportedError, match="cannot run 1: SiLU is not among its activations"):
        fuse(graph, keep=True, activations=["relu"])


@by_title
def test_a_trial_with_any_activation_trains_on_both_engines_and_is_exported(
    kind: ActivationKind, small_trial: Trial, tmp_path: Path, smidgen: Command
) -> None:
    network = Network(
        blocks=(
            Conv(4, stride=2, activation=kind.setting),
            Conv(6, stride=2, norm=False, activation=kind.setting),
            AvgPool(),
            Linear(8, activation=kind.setting),
            Linear(),
        )
    )
    trial = replace(small_trial, network=network, epochs=1, averaging=0.0)
    losses = []
    engines: tuple[EngineName, ...] = ("eager", "auto")
    for engine in engines:
        out = tmp_path / engine
        made = run_trial(trial, out=out, options=RunOptions(engine=engine, threads=1), progress=Silent())
        losses.append((made.history[0].train_loss, made.history[0].test_loss))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    for target, *options in (["c", "--type", "float32"], ["c", "--type", "int8"], ["onnx"], ["page"]):
        done = smidgen(
            "export", out, "--to", target, *options, "--out", tmp_path / f"{target}{len(options)}{options[-1:]}"
        )
        assert done.status == 0, done.err
