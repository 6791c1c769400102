"""Schedules, optimizers, averaging and evaluation, each held against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from conftest import native_only
from smidgen.data.dataset import Examples
from smidgen.engines.choose import choose, choose_to_classify
from smidgen.engines.eager import EagerEngine
from smidgen.engines.engine import EngineName
from smidgen.randomness import Purpose, Stream
from smidgen.schedules import Constant, Cosine, OneCycle, Schedule, Step
from smidgen.training import evaluation
from smidgen.training.averaging import WeightAverage
from smidgen.training.evaluation import BATCH, HeldOut, evaluate, scores
from smidgen.trial import SGD, Adam, AdamW, Optimizer

EPOCHS, STEPS = 6, 9


def ours(schedule: Schedule) -> list[float]:
    return [0.4 * schedule.fraction(step, STEPS, EPOCHS) for step in range(EPOCHS * STEPS)]


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
        assert 0 <= schedule.fraction(step, steps, epochs) <= 1


def test_a_peak_in_the_first_step() -> None:
    """Where PyTorch's own schedule divides by zero."""
    assert OneCycle(rise=1 / 3, start=0.1).fraction(0, 1, 3) == 1.0


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 4))


@pytest.mark.parametrize("engine", ["eager", "auto"])
@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        (SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01), lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, nesterov=True)),
        (SGD(lr=0.1, momentum=0, weight_decay=0.01), lambda g: torch.optim.SGD(g, lr=0.1)),
        (Adam(lr=0.01, beta1=0.8, weight_decay=0.01), lambda g: torch.optim.Adam(g, lr=0.01, betas=(0.8, 0.999))),
        (AdamW(lr=0.01, beta2=0.99, weight_decay=0.01), lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.9, 0.99))),
    ],
)  # fmt: skip
def test_optimizers_are_torchs_with_decay_on_weights_only(
    settings: Optimizer, reference: object, engine: EngineName
) -> None:
    runner = choose(engine, threads=1)
    mine, other = runner.prepare(small_network()), small_network()
    conv, norm, _, linear = other.children()
    groups = [
        {"params": [conv.weight, linear.weight], "weight_decay": 0.01},
        {"params": [norm.weight, norm.bias, linear.bias], "weight_decay": 0.0},
    ]
    ours, average = runner.optimizer(settings, mine, averaged=False)
    theirs = reference(groups)  # type: ignore[operator]
    assert average is None
    for step in range(5):
        x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        labels, rate = torch.arange(8) % 4, settings.lr / (1 + step)
        ours.set_rate(rate)
        for group in theirs.param_groups:
            group["lr"] = rate
        runner.gradients(mine, x, labels, 0.0, Stream(0, Purpose.TORCH, 1, step))
        theirs.zero_grad()
        F.cross_entropy(other(x), labels).backward()
        ours.step()
        theirs.step()
    for a, b in zip(mine.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["eager", "auto"])
def test_the_average_is_the_ramped_recurrence(name: EngineName) -> None:
    engine = choose(name, threads=1)
    network = engine.prepare(small_network())
    _, flat = engine.optimizer(SGD(lr=0.1), network, averaged=True)
    assert flat is not None
    average = WeightAverage(flat, decay=0.9)
    expected = {k: v.clone().double() for k, v in network.state_dict().items()}
    for step in range(1, 40):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p) * 0.1)
            network(torch.randn(4, 1, 8, 8))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value if value.is_floating_point() else value.double()
    average.settle()
    for key, value in average.network.state_dict().items():
        assert torch.allclose(value.double(), expected[key], atol=1e-5), key
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 1300))
def test_evaluation_is_the_mean_over_all_images_however_they_are_cut(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (count,), generator=generator)
    network = small_network().train()
    result = evaluate(network, HeldOut(choose("eager"), Examples(images, labels), mean=0.2, std=0.4))
    assert network.training
    with torch.no_grad():
        logits = network.eval()((images.float() / 255 - 0.2) / 0.4)
    assert result.total == count
    assert result.correct == int((logits.argmax(1) == labels).sum())
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    assert torch.allclose(scores(network, images, 0.2, 0.4), logits, atol=1e-5)


@pytest.mark.parametrize("name", ["eager", "auto"])
@pytest.mark.parametrize("kept", [True, False])
def test_held_out_images_are_laid_out_once_where_memory_allows(
    name: EngineName, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, network = choose(name, threads=1), small_network()
    images = torch.randint(0, 256, (BATCH + 70, 1, 8, 8), dtype=torch.uint8)
    calls: list[int] = []
    batch = type(engine).batch

    def counted(self: EagerEngine, part: Tensor, mean: float, std: float) -> object:
        calls.append(len(part))
        return batch(self, part, mean, std)

    monkeypatch.setattr(type(engine), "batch", counted)
    if not kept:
        monkeypatch.setattr(evaluation, "KEPT_BYTES", 4 * images.numel() - 1)
    held_out = HeldOut(engine, Examples(images, torch.arange(len(images)) % 4), 0.2, 0.4)
    prepared = engine.prepare(network)
    first, second = evaluate(prepared, held_out), evaluate(prepared, held_out)
    assert torch.equal(first.logits, second.logits)
    assert calls == [BATCH, 70] * (1 if kept else 2)
    assert torch.allclose(first.logits, scores(engine.plain(prepared), images, 0.2, 0.4), atol=1e-4)


@native_only
def test_what_classifies_does_so_on_the_native_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    images, network = torch.randint(0, 256, (70, 1, 8, 8), dtype=torch.uint8), small_network()
    exact = network.double().eval()((images.double() / 255 - 0.2) / 0.4)
    network.float()
    monkeypatch.setattr(EagerEngine, "batch", lambda *_: pytest.fail("PyTorch classified"))
    assert torch.allclose(scores(network, images, 0.2, 0.4).double(), exact, atol=1e-4)
    assert choose_to_classify(network, (1, 8, 8)).name == "native"


@pytest.mark.parametrize("layer", [nn.PReLU(), nn.BatchNorm2d(1).double()], ids=["unknown", "float64"])
def test_what_the_native_engine_cannot_run_is_classified_by_pytorch(layer: nn.Module) -> None:
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert choose_to_classify(nn.Sequential(layer), (1, 8, 8)).name == "eager"
    network = nn.Sequential(nn.PReLU(), nn.Flatten(), nn.Linear(64, 4))
    expected = network((images.float() / 255 - 0.2) / 0.4)
    assert torch.allclose(scores(network, images, 0.2, 0.4), expected, atol=1e-5)
    assert network.training
