"""SOAP, against its formula in float64, the kernels against PyTorch, and by what it promises."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from native import LEVELS, largest_difference
from smidgen.engines.flat import FlatState
from smidgen.engines.native.vectors import NativeSoap
from smidgen.engines.soap import EPSILON, MOST_SIDE, SoapOptimizer
from smidgen.errors import SettingError, TrainingError
from smidgen.trial import SOAP

SETTINGS = SOAP(lr=0.03, beta1=0.8, beta2=0.95, every=20, weight_decay=0.2)


def by_the_formula(settings: SOAP, weight: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """A weight [rows, columns] after a step along each gradient, as a naive loop; in the type of the weight."""
    w, mean, square = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    left, right = (torch.zeros(side, side, dtype=w.dtype) for side in w.shape)
    u, v = (torch.eye(side, dtype=w.dtype) for side in w.shape)
    beta1, beta2 = settings.beta1, settings.beta2
    for step, g in enumerate(gradients, 1):
        left = beta2 * left + (1 - beta2) * g @ g.T
        right = beta2 * right + (1 - beta2) * g.T @ g
        turned = u.T @ g @ v
        mean = beta1 * mean + (1 - beta1) * turned
        square = beta2 * square + (1 - beta2) * turned**2
        ahead = (beta1 * mean + (1 - beta1) * turned) / (1 - beta1 ** (step + 1))
        change = u @ (ahead / ((square / (1 - beta2**step)).sqrt() + EPSILON)) @ v.T
        w = w * (1 - settings.lr * settings.weight_decay) - settings.lr * change
        if step in (8, 16, 20, 40, 60):  # doubling up to `every`, then every so many
            plain = u @ mean @ v.T
            u, v = torch.linalg.eigh(left)[1], torch.linalg.eigh(right)[1]
            mean = u.T @ plain @ v
    return w


def some_gradients(parameter: Tensor, count: int) -> list[Tensor]:
    """Gradients that are correlated, so that axes matter, and whose products have distinct eigenvalues."""
    rows, columns = parameter.shape[0], parameter[0].numel()
    mix, other = torch.randn(rows, rows), torch.randn(columns, columns)
    return [(mix @ torch.randn(rows, columns) @ other).view_as(parameter) for _ in range(count)]


def test_steps_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3, 2, 1))
    start = weight.detach().reshape(5, 6).double()
    gradients = some_gradients(weight, 65)
    optimizer = SoapOptimizer(SETTINGS, [weight])
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    expected = by_the_formula(SETTINGS, start, [g.reshape(5, 6).double() for g in gradients])
    torch.testing.assert_close(weight.detach().reshape(5, 6).double(), expected, rtol=1e-3, atol=1e-3)
    assert optimizer.state()["step"] == 65


def test_biases_are_updated_by_adam_with_nesterovs_look_ahead() -> None:
    """PyTorch's NAdam has another schedule of the momentum, so this is against the formula too."""
    torch.manual_seed(0)
    bias = nn.Parameter(torch.randn(7))
    w, mean, square = bias.detach().double(), torch.zeros(7).double(), torch.zeros(7).double()
    optimizer = SoapOptimizer(SETTINGS, [bias])
    for step in range(1, 31):
        g = torch.randn(7)
        bias.grad = g.clone()
        optimizer.step()
        mean, square = 0.8 * mean + 0.2 * g, 0.95 * square + 0.05 * g.double() ** 2
        w = w - 0.03 * (0.8 * mean + 0.2 * g) / (1 - 0.8 ** (step + 1)) / (square / (1 - 0.95**step)).sqrt()
    torch.testing.assert_close(bias.detach().double(), w, rtol=1e-4, atol=1e-5)  # without decay


def test_a_long_side_keeps_its_axes() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(3, MOST_SIDE + 1))
    optimizer = SoapOptimizer(SETTINGS, [weight])
    for gradient in some_gradients(weight, 9):
        weight.grad = gradient
        optimizer.step()
    state = optimizer.state()
    assert state["0.columns.axes"].shape == state["0.columns.products"].shape == (0, 0)
    assert not torch.equal(state["0.rows.axes"], torch.eye(3))


@pytest.mark.parametrize("side", [3, 60])
def test_gradients_that_are_not_finite_do_not_go_unnoticed(side: int) -> None:
    w = nn.Parameter(torch.ones(side, side))
    optimizer = SoapOptimizer(SETTINGS, [w])
    w.grad = torch.full((side, side), torch.nan)
    for _ in range(7):
        optimizer.step()
    assert torch.isnan(w).all()
    try:
        optimizer.step()
    except TrainingError as error:
        assert str(error) == "the gradients are not finite, or too large"
    else:
        assert torch.isnan(w).all()


def test_gradients_of_zero_move_nothing() -> None:
    w = nn.Parameter(torch.ones(4, 3))
    optimizer = SoapOptimizer(replace(SETTINGS, weight_decay=0.0), [w])
    for _ in range(50):
        w.grad = torch.zeros(4, 3)
        optimizer.step()
    assert torch.equal(w.detach(), torch.ones(4, 3))


def a_network() -> nn.Module:
    """Sides shorter and longer than the kernels' tiles and no multiples of them, too long ones, and vectors."""
    network = nn.Sequential(
        nn.Conv2d(1, 7, 5), nn.BatchNorm2d(7), nn.Conv2d(7, 7, 3, groups=7, bias=False), nn.Conv2d(7, 33, 1),
        nn.Conv2d(5, 18, 3), nn.Linear(16, 48), nn.Linear(MOST_SIDE + 9, 10), nn.Linear(3, MOST_SIDE + 1),
        nn.Linear(MOST_SIDE + 1, MOST_SIDE + 2, bias=False), nn.Linear(1, 1),
    )  # fmt: skip
    network.register_parameter("single", nn.Parameter(torch.ones(())))
    return network


def take_steps(network: nn.Module, optimizer: SoapOptimizer, gradients: list[list[Tensor]]) -> None:
    """A step along each set of gradients."""
    optimizer.set_rate(0.01)
    for each in gradients:
        with torch.no_grad():
            for p, g in zip(network.parameters(), each, strict=True):
                assert p.grad is not None
                p.grad.copy_(g)
        optimizer.step()


def test_the_kernels_take_the_steps_of_pytorch(level: str) -> None:
    """One after another where no axes were renewed since they began alike: close eigenvalues differ by rounding."""
    torch.manual_seed(0)
    networks = [a_network()]
    networks += [copy.deepcopy(networks[0]) for _ in range(2)]
    for network in networks:
        FlatState(network)  # which lays parameters and gradients as the engines have them
    settings = replace(SETTINGS, beta2=0.9999)  # the highest, of which the kernels take 1 - beta2 in float32
    ours = SoapOptimizer(settings, list(networks[0].parameters()))
    theirs = [
        NativeSoap(settings, list(n.parameters()), threads) for n, threads in zip(networks[1:], (1, 2), strict=True)
    ]
    by_parameter = [
        some_gradients(p, 30) if p.dim() > 1 else list(torch.randn(30, *p.shape)) for p in networks[0].parameters()
    ]
    gradients = [list(each) for each in zip(*by_parameter, strict=True)]
    for start, end in ((0, 8), (8, 16), (16, 20), (20, 30)):
        for network, optimizer in zip(networks[1:], theirs, strict=True):
            optimizer.restore({name: tensor.clone() for name, tensor in ours.state().items()})
            network.load_state_dict(networks[0].state_dict())
        for network, one in zip(networks, (ours, *theirs), strict=True):
            take_steps(network, one, gradients[start:end])
        for p, found, by_two in zip(*(n.parameters() for n in networks), strict=True):
            torch.testing.assert_close(found, p, rtol=1e-3, atol=1e-4)
            assert torch.equal(found, by_two)
        for name, tensor in ours.state().items():
            if name.endswith(("products", "square", "step")):
                assert largest_difference(theirs[0].state()[name], tensor.double()) < 1e-3


def test_the_kernels_see_new_axes(level: str) -> None:
    """A training that goes on is as one that is restored after each renewal, to the last byte."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(20, 11), nn.Conv2d(6, 5, 2))]
    networks.append(copy.deepcopy(networks[0]))
    for network in networks:
        FlatState(network)
    going, stopping = (NativeSoap(SETTINGS, list(network.parameters()), 1) for network in networks)
    by_parameter = [
        some_gradients(p, 60) if p.dim() > 1 else list(torch.randn(60, *p.shape)) for p in networks[0].parameters()
    ]
    gradients = [list(each) for each in zip(*by_parameter, strict=True)]
    for start in range(0, 60, 4):
        take_steps(networks[0], going, gradients[start : start + 4])
        take_steps(networks[1], stopping, gradients[start : start + 4])
        stopping.restore({name: tensor.clone() for name, tensor in stopping.state().items()})
    for p, q in zip(*(n.parameters() for n in networks), strict=True):
        assert torch.equal(p, q)


def test_gradients_of_zero_move_nothing_in_the_kernels(level: str) -> None:
    network = nn.Linear(20, 11)
    FlatState(network)
    before = copy.deepcopy(network)
    optimizer = NativeSoap(replace(SETTINGS, weight_decay=0.0), list(network.parameters()), 1)
    take_steps(network, optimizer, [[torch.zeros_like(p) for p in network.parameters()]] * 20)
    for p, q in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.skipif(not LEVELS, reason="the native engine is not installed")
def test_the_kernels_memory_is_bounded_by_the_values() -> None:
    """A flattened image's linear layer has a side without axes, whose square would be gigabytes."""
    resource = pytest.importorskip("resource")
    network = nn.Linear(60_000, 10)
    FlatState(network)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimizer = NativeSoap(SETTINGS, list(network.parameters()), 1)
    take_steps(network, optimizer, [[torch.ones_like(p) for p in network.parameters()]])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB; four times its state


@pytest.mark.skipif(not LEVELS, reason="the native engine is not installed")
def test_the_kernels_refuse_what_they_would_misread() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(TypeError, match="contiguous float32"):
        NativeSoap(SETTINGS, list(network.parameters()), 1)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(SettingError, match=r"SOAP.every is 0; allowed"):
        SOAP(lr=0.1, every=0)
