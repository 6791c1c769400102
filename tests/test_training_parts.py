"""Schedules, optimizers, averaging and evaluation, each held against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from smidgen.data.dataset import Examples
from smidgen.training.averaging import WeightAverage
from smidgen.training.evaluation import evaluate, scores
from smidgen.training.flat import FlatState
from smidgen.training.optimizer import make_optimizer
from smidgen.training.schedule import rate_factor
from smidgen.trial import SGD, Adam, AdamW, Constant, Cosine, OneCycle, Optimizer, Schedule, Step

EPOCHS, STEPS = 6, 9


def ours(schedule: Schedule) -> list[float]:
    return [0.4 * rate_factor(schedule, step, STEPS, EPOCHS) for step in range(EPOCHS * STEPS)]


def torchs(make: Callable[..., LRScheduler], per_epoch: bool = False, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = make(optimizer, **options)
    rates = []
    for step in range(EPOCHS * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not per_epoch or (step + 1) % STEPS == 0:
            scheduler.step()
    return rates


@pytest.mark.parametrize(("every", "factor"), [(1, 0.5), (2, 0.1), (4, 0.1), (8, 0.1)])
def test_step_is_torchs(every: int, factor: float) -> None:
    expected = torchs(StepLR, per_epoch=True, step_size=every, gamma=factor)
    assert ours(Step(every, factor)) == pytest.approx(expected)


@pytest.mark.parametrize("rise", [0.1, 0.2, 0.3, 0.5, 0.9])
def test_one_cycle_is_torchs(rise: float) -> None:
    expected = torchs(
        OneCycleLR, max_lr=0.4, total_steps=EPOCHS * STEPS, pct_start=rise, div_factor=10,
        final_div_factor=1000, cycle_momentum=False,
    )  # fmt: skip
    assert ours(OneCycle(rise, start=0.1, final=1e-4)) == pytest.approx(expected)


def test_cosine_warms_up_and_ends_where_it_should() -> None:
    rates = ours(Cosine(warmup=0.25, final=0.1))
    peak = round(0.25 * EPOCHS * STEPS)
    assert rates[:peak] == pytest.approx([0.4 * (i + 1) / peak for i in range(peak)])
    assert rates[peak] == pytest.approx(0.4)
    assert rates[-1] == pytest.approx(0.04)
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))


def test_constant_is_constant() -> None:
    assert set(ours(Constant())) == {0.4}


@given(
    st.one_of(
        st.builds(Step, st.integers(1, 9), st.floats(0.01, 1)),
        st.builds(Cosine, st.floats(0, 0.99), st.floats(0, 1)),
        st.builds(OneCycle, st.floats(0.001, 0.999), st.floats(0.001, 1), st.floats(0, 1)),
    ),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_every_factor_is_between_0_and_1(schedule: Schedule, steps: int, epochs: int) -> None:
    for step in range(steps * epochs):
        assert 0 <= rate_factor(schedule, step, steps, epochs) <= 1


def test_a_peak_in_the_first_step() -> None:
    """Where PyTorch's own schedule divides by zero."""
    assert rate_factor(OneCycle(rise=1 / 3, start=0.1), 0, 1, 3) == 1.0


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 4))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        (SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01), lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, nesterov=True)),
        (SGD(lr=0.1, momentum=0, weight_decay=0.01), lambda g: torch.optim.SGD(g, lr=0.1)),
        (Adam(lr=0.01, beta1=0.8, weight_decay=0.01), lambda g: torch.optim.Adam(g, lr=0.01, betas=(0.8, 0.999))),
        (AdamW(lr=0.01, beta2=0.99, weight_decay=0.01), lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.9, 0.99))),
    ],
)  # fmt: skip
def test_optimizers_are_torchs_with_decay_on_weights_only(settings: Optimizer, reference: object, fused: bool) -> None:
    mine, other = small_network(), small_network()
    conv, norm, _, linear = other.children()
    groups = [
        {"params": [conv.weight, linear.weight], "weight_decay": 0.01},
        {"params": [norm.weight, norm.bias, linear.bias], "weight_decay": 0.0},
    ]
    weights = [p for p in mine.parameters() if p.dim() > 1]
    vectors = [p for p in mine.parameters() if p.dim() <= 1]
    optimizers = (make_optimizer(settings, weights, vectors, fused=fused), reference(groups))  # type: ignore[operator]
    for step in range(5):
        x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip((mine, other), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), torch.arange(8) % 4).backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_average_is_the_ramped_recurrence() -> None:
    network = small_network()
    average = WeightAverage(network, FlatState(network), decay=0.9)
    expected = {k: v.clone().double() for k, v in network.state_dict().items()}
    for step in range(1, 40):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p) * 0.1)
            network(torch.randn(4, 1, 8, 8))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.double()
            )
    average.settle()
    for name, value in average.network.state_dict().items():
        assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 1300))
def test_evaluation_is_the_mean_over_all_images_however_they_are_cut(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (count,), generator=generator)
    network = small_network().train()
    result = evaluate(network, Examples(images, labels), mean=0.2, std=0.4)
    assert network.training
    with torch.no_grad():
        logits = network.eval()((images.float() / 255 - 0.2) / 0.4)
    assert result.total == count
    assert result.correct == int((logits.argmax(1) == labels).sum())
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    assert torch.allclose(scores(network, images, 0.2, 0.4), logits, atol=1e-5)
