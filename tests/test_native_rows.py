"""Convolutions and what is fused with them, some rows at a time, against PyTorch in float64, at every level."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from native import LEVELS, compare, generated, largest_difference
from smidgen.engines.native.core import find_core
from smidgen.engines.native.fuse import Fused, Norm, Separable, fuse
from smidgen.engines.native.module import NativeNetwork
from smidgen.errors import SmidgenError
from smidgen.graph.trace import trace
from smidgen.nets.build import build_network
from smidgen.randomness import Purpose, Stream
from smidgen.trial import Trial
from smidgen.trials.mnist import augmented, sprint, strict

if not LEVELS:
    pytest.skip("the native engine is not installed", allow_module_level=True)

TOLERANCE, ROUNDED = 1e-3, 0.1
CACHES = ("1", "60000", "1000000000")
"""For rows one by one, a few together, whole images."""

pytestmark = pytest.mark.usefixtures("level")


class Residual(nn.Module):
    """Adds what its layers give to what they get: two gradients for one value."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.layers(x)
        return result


def images(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn((count, channels, height, width), generator=torch.Generator().manual_seed(0))


def fused_of(network: nn.Module, shape: tuple[int, int, int]) -> Fused:
    core = find_core()
    assert core is not None
    return fuse(trace(network, shape), keep=True, activations=core.activations())


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A few blocks, each of any convolution, a depthwise one, a 1 × 1 one or the last two, and what may follow."""
    channels, height, width = draw(st.integers(2, 7)), draw(st.integers(5, 13)), draw(st.integers(5, 13))
    x = images(draw(st.sampled_from([3, 5, 16, 17, 33])), channels, height, width)
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    if draw(st.booleans()):
        layers.append(norm(channels))
    for _ in range(draw(st.integers(1, 3))):
        kernel, stride = draw(st.sampled_from([3, 5])), draw(st.sampled_from([1, 1, 2]))
        padding = (draw(st.integers(0, kernel - 1)), draw(st.integers(0, kernel - 1)))
        parts = draw(st.sampled_from(["full", "depthwise", "pointwise", "both"]))
        fits = height + 2 * padding[0] >= kernel and width + 2 * padding[1] >= kernel
        after = draw(st.sampled_from(["", "relu", "norm", "norm-relu", "relu-norm", "max", "average", "residual"]))
        # Before BatchNorm a bias has a gradient of 0, and what is found is rounding.
        biased = after in ("", "relu", "relu-norm")
        block: list[nn.Module] = []
        if parts == "full":
            outputs, sides = draw(st.integers(2, 18)), (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
            layer = nn.Conv2d(
                channels, outputs, sides, draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([(0, 0), (1, 1), sides])),
                draw(st.sampled_from([1, 1, 2])), bias=biased and draw(st.booleans()),
            )  # fmt: skip
            found = [
                (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
                for side, pad, dilation, kernel, stride in zip(
                    (height, width), as_pair(layer.padding), layer.dilation, sides, layer.stride, strict=True
                )
            ]
            if min(found) > 0:
                block.append(layer)
                channels, (height, width) = outputs, found
        elif parts != "pointwise" and fits:
            bias = biased and draw(st.booleans())
            block.append(nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias))
            height = (height + 2 * padding[0] - kernel) // stride + 1
            width = (width + 2 * padding[1] - kernel) // stride + 1
        if parts in ("pointwise", "both"):
            outputs = draw(st.integers(2, 18))
            block.append(nn.Conv2d(channels, outputs, 1, bias=biased and draw(st.booleans())))
            channels = outputs
        if after == "relu-norm":
            block.append(nn.ReLU())
        if after not in ("", "relu"):
            block.append(norm(channels))
        if after in ("relu", "norm-relu", "max", "average", "residual"):
            block.append(nn.ReLU())
        if after in ("max", "average") and height > 1 and width > 1:
            block.append(nn.MaxPool2d(2) if after == "max" else nn.AvgPool2d(2))
            height, width = height // 2, width // 2
        layers += block
        if after == "residual":
            layers.append(
                Residual(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False), norm(channels))
            )
    return nn.Sequential(*layers), x


def as_pair(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    assert isinstance(padding, tuple)
    return padding


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.uniform_(layer.weight, 0.5, 2)
    nn.init.uniform_(layer.bias, -1, 1)
    with torch.no_grad():
        layer.weight[::2] *= -1
    return layer


@generated
@given(case=networks(), cache=st.sampled_from(CACHES))
def test_networks_of_convolutions(monkeypatch: pytest.MonkeyPatch, case: tuple[nn.Module, Tensor], cache: str) -> None:
    monkeypatch.setenv("SMIDGEN_CORE_CACHE", cache)
    network, x = case
    compare(network.train(), x, TOLERANCE, noise=1.0)


@generated
@given(case=networks(), threads=st.sampled_from([2, 3, 7]), cache=st.sampled_from(CACHES))
def test_threads_that_share_a_block_change_nothing(
    monkeypatch: pytest.MonkeyPatch, level: str, case: tuple[nn.Module, Tensor], threads: int, cache: str
) -> None:
    """Scores, gradients and statistics are those of one thread, to the last byte."""
    monkeypatch.setenv("SMIDGEN_CORE_CACHE", cache)
    network, x = case
    for bfloat16 in (False, True)[: 1 + (level == "avx512bf16")]:
        found = []
        for count in (1, threads):
            native = NativeNetwork(copy.deepcopy(network).train(), count, bfloat16=bfloat16)
            given = x.clone().requires_grad_()
            scores = native(given)
            scores.square().sum().backward()
            tensors = [scores.detach(), given.grad, *(p.grad for p in native.parameters()), *native.buffers()]
            with torch.no_grad():
                tensors.append(native.eval()(x))
            found.append([t.numpy().tobytes() for t in tensors if t is not None])
        assert found[0] == found[1]


@generated
@given(case=networks(), cache=st.sampled_from(CACHES))
def test_networks_with_bfloat16_products(
    monkeypatch: pytest.MonkeyPatch, level: str, case: tuple[nn.Module, Tensor], cache: str
) -> None:
    """Of the forward pass: roundings add up in the gradients of deep networks, in PyTorch as well."""
    if level != "avx512bf16":
        pytest.skip("no bfloat16 products at this level")
    monkeypatch.setenv("SMIDGEN_CORE_CACHE", cache)
    network, x = case
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(x.double())
        assert largest_difference(NativeNetwork(network, 2, bfloat16=True)(x), exact, 1.0) < ROUNDED


@generated
@given(case=networks(), cache=st.sampled_from(CACHES))
def test_networks_with_fixed_statistics(
    monkeypatch: pytest.MonkeyPatch, case: tuple[nn.Module, Tensor], cache: str
) -> None:
    """In evaluation mode, gradients included."""
    monkeypatch.setenv("SMIDGEN_CORE_CACHE", cache)
    network, x = case
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    compare(network.eval(), x, TOLERANCE, noise=1.0)


def flagship_like() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), norm(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.Conv2d(16, 24, 1, bias=False), norm(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, groups=24, bias=False), nn.Conv2d(24, 24, 1, bias=False), norm(24), nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(24, 24, 3, groups=24, bias=False), nn.Conv2d(24, 40, 1, bias=False), norm(40), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10),
    )  # fmt: skip


@pytest.mark.parametrize("cache", CACHES)
def test_a_network_as_the_flagship_is(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    monkeypatch.setenv("SMIDGEN_CORE_CACHE", cache)
    compare(flagship_like(), images(37, 1, 28, 28), TOLERANCE)


def test_depthwise_and_pointwise_become_one_operation() -> None:
    fused = fused_of(flagship_like(), (1, 28, 28))
    assert [type(operation).__name__ for operation in fused.operations] == [
        "Convolution", "Norm", "Separable", "Norm", "Separable", "Norm", "Separable", "Norm", "Pool", "Convolution",
    ]  # fmt: skip
    separable = [operation for operation in fused.operations if isinstance(operation, Separable)]
    assert [operation.name for operation in separable] == ["3+4", "7+8", "12+13"]
    assert [operation.pool for operation in fused.operations if isinstance(operation, Norm)] == [
        "none", "none", "average", "none",
    ]  # fmt: skip


@pytest.mark.parametrize(("channels", "kind"), [(256, "Separable"), (257, "Convolution")])
def test_a_wide_pointwise_convolution_is_one_like_any_other(channels: int, kind: str) -> None:
    """Its gradients would not fit into any cache."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 256, 1))
    assert [type(operation).__name__ for operation in fused_of(network, (channels, 3, 2)).operations] == [kind]
    compare(network, images(17, channels, 3, 2), TOLERANCE)


def test_a_depthwise_result_that_others_read_is_kept() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.pointwise = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            middle = self.depthwise(x)
            return middle + self.pointwise(middle)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    compare(Branches(), images(20, 4, 7, 6), TOLERANCE)


def test_a_normalized_value_that_two_read_is_kept() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm(4)
            self.one = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.other = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.one(x) + self.other(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    compare(Branches(), images(20, 4, 7, 6), TOLERANCE)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("trial", [strict(), augmented(), sprint()], ids=lambda trial: trial.name)
def test_the_cache_has_no_influence_on_the_bytes(
    monkeypatch: pytest.MonkeyPatch, level: str, trial: Trial, bfloat16: bool
) -> None:
    """Machines differ in their caches; runs on one instruction level must not."""
    if bfloat16 and level != "avx512bf16":
        pytest.skip("no bfloat16 products at this level")
    x, labels = images(37, 1, 28, 28), torch.arange(37) % 10
    found = set()
    for cache in ("1", "100000", "1000000", "1000000000"):
        monkeypatch.setenv("SMIDGEN_CORE_CACHE", cache)
        torch.manual_seed(0)
        network = build_network(trial.network, input_shape=(1, 28, 28), classes=10, dropout=0.1)
        native = NativeNetwork(network, 2, bfloat16=bfloat16).train()
        native.loss_and_gradients(x, labels, stream=Stream(0, Purpose.TORCH))
        found.add(b"".join(bytes(p.grad.numpy().data) for p in native.parameters() if p.grad is not None))
    assert len(found) == 1


@pytest.mark.parametrize("wrong", ["0", "-1", "a lot", "1.5", "9" * 30])
def test_a_cache_that_is_no_number_of_bytes_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("SMIDGEN_CORE_CACHE", wrong)
    with pytest.raises(SmidgenError, match="SMIDGEN_CORE_CACHE is"):
        NativeNetwork(flagship_like(), 1)(images(1, 1, 28, 28))
