"""Measuring BatchNorm's statistics anew at the end, held against PyTorch's own BatchNorm."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smidgen.data.dataset import Dataset
from smidgen.engines.choose import choose
from smidgen.engines.engine import Batch, EngineName, Loader
from smidgen.errors import TrialError
from smidgen.graph.layers import Dropout
from smidgen.runs.progress import Silent
from smidgen.runs.run import load_trial_data
from smidgen.runs.weights import weights_sha256
from smidgen.training import checkpoint, loop
from smidgen.training.checkpoint import Origin
from smidgen.training.recalibration import recalibrate
from smidgen.trial import Augmentation, Conv, Linear, Network, Trial

ENGINES = ["auto", "eager"]


def augmented(trial: Trial) -> Trial:
    return replace(trial, epochs=2, recalibration=0.3, augmentation=Augmentation(rotation=10, translation=0.1))


def whole_and_continued(
    trial: Trial, data: Dataset, steps: int, folder: Path
) -> tuple[loop.Training, loop.Training, int]:
    """A training, the same going on from a checkpoint after so many steps, and how many of its epoch it had taken."""
    engine = choose(threads=1)
    whole = loop.start(trial, loop.new_network(trial, data, 5), engine)
    list(loop.train(whole, trial, data, 5, Silent()))
    first = loop.start(trial, loop.new_network(trial, data, 5), engine)
    with pytest.raises(KeyboardInterrupt):
        list(loop.train(first, trial, data, 5, Stop(steps)))
    path, origin = folder / "checkpoint", Origin("recipe", "data", 5)
    path.write_bytes(checkpoint.to_bytes(first, origin))
    second = loop.start(trial, loop.new_network(trial, data, 6), engine)
    checkpoint.restore(second, path, origin, trial, len(data.train))
    taken = second.step
    list(loop.train(second, trial, data, 5, Silent()))
    return whole, second, taken


class Stop(Silent):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def small_data(small_trial: Trial) -> Dataset:
    return load_trial_data(small_trial)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 10, 1, 9, 9, generator=torch.Generator().manual_seed(1)) * 3 + 1


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_are_the_means_over_the_batches(engine: EngineName, images: Tensor) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), Dropout(0.5), nn.Conv2d(4, 3, 3, bias=False),
        nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 10),
    ).eval()  # fmt: skip
    first, second = plain[1], plain[5]
    # The cumulative mean that PyTorch keeps with momentum=None is what is wanted; in double precision.
    wanted = copy.deepcopy(plain).double()
    for module in (wanted[1], wanted[5]):
        assert isinstance(module, nn.BatchNorm2d)
        module.reset_running_stats()
        module.momentum = None
        module.train()
    for batch in images:
        wanted(batch.double())
    network = choose(engine, "cpu", 1).prepare(plain)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    recalibrate(network, iter(images))

    for module, other in ((first, wanted[1]), (second, wanted[5])):
        assert isinstance(module, nn.BatchNorm2d)
        assert isinstance(other, nn.BatchNorm2d)
        torch.testing.assert_close(module.running_mean, other.running_mean, check_dtype=False, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.running_var, other.running_var, check_dtype=False, rtol=1e-5, atol=1e-5)
        assert module.momentum == 0.1
        assert not module.training
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{place}.running_{kind}" for place in (1, 5) for kind in ("mean", "var")}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("averaging", [0.9, 0.0])
def test_last_images_of_the_last_epoch_only_measure(
    engine: EngineName, averaging: float, small_trial: Trial, small_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image is drawn once an epoch, learnt from or measured by; what is measured is unaugmented."""
    trial = replace(augmented(small_trial), averaging=averaging)
    drawn: list[tuple[int, bool, list[int]]] = []

    runner = choose(engine, "cpu", 1)
    make = type(runner).loader

    def watched(self: Any, examples: object, augmentation: Augmentation, *rest: Any) -> Loader:
        loader = make(self, examples, augmentation, *rest)  # type: ignore[arg-type]

        class Watched:
            def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Batch, Tensor]:
                drawn.append((epoch, augmentation.is_on, picks.tolist()))
                return loader.load(picks, epoch, step)

        return Watched()

    monkeypatch.setattr(type(runner), "loader", watched)
    training = loop.start(trial, loop.new_network(trial, small_data, 0), runner)
    epochs = loop.train(training, trial, small_data, 0, Silent())
    next(epochs)
    statistics = {n: t.clone() for n, t in training.judged.state_dict().items() if "running" in n}
    next(epochs)

    count, steps = len(small_data.train), loop.steps_per_epoch(trial, small_data)
    for epoch in (1, 2):
        assert sorted(i for e, _, picks in drawn if e == epoch for i in picks) == list(range(count))
    assert [augmented for _, augmented, _ in drawn[:steps]] == [True] * steps
    measuring = loop.recalibration_steps(trial, steps)
    assert 0 < measuring < steps
    assert [augmented for _, augmented, _ in drawn[steps:]] == [True] * (steps - measuring) + [False] * measuring
    for name, tensor in training.judged.state_dict().items():
        if "running" in name:
            assert not torch.equal(tensor, statistics[name])
    picks = torch.tensor([i for _, augmented, picks in drawn[steps:] if not augmented for i in picks])
    expected = copy.deepcopy(training.judged)
    parts = picks.split(trial.batch_size)
    plain = make(runner, small_data.train, Augmentation(), 0, small_data.mean, small_data.std)
    recalibrate(expected, (plain.load(part, 2, 0)[0] for part in parts))
    for name, tensor in training.judged.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_without_it_every_step_updates_the_weights(small_trial: Trial) -> None:
    assert loop.recalibration_steps(small_trial, 10) == 0
    assert loop.recalibration_steps(replace(small_trial, recalibration=0.05), 10) == 1
    assert loop.recalibration_steps(replace(small_trial, recalibration=0.99), 10) == 9
    assert loop.recalibration_steps(replace(small_trial, recalibration=0.5), 1) == 0
    assert small_trial.recipe_digest != replace(small_trial, recalibration=0.05).recipe_digest


def test_a_network_without_batchnorm_is_refused(small_trial: Trial, small_data: Dataset) -> None:
    network = Network(blocks=(Conv(4, stride=4, norm=False), Linear()))
    trial = replace(small_trial, network=network, recalibration=0.1)
    with pytest.raises(TrialError, match="recalibration is 0.1, but the network has no BatchNorm; set it to 0"):
        loop.new_network(trial, small_data, 0)


@pytest.mark.parametrize("steps", [15, 20])
def test_going_on_from_a_checkpoint_in_the_last_epoch(
    steps: int, small_trial: Trial, small_data: Dataset, tmp_path: Path
) -> None:
    """In the middle of the learning, and after its last step, before anything is measured."""
    trial = augmented(small_trial)
    each = loop.steps_per_epoch(trial, small_data)
    assert each < steps <= 2 * each - loop.recalibration_steps(trial, each)
    whole, second, taken = whole_and_continued(trial, small_data, steps, tmp_path)
    assert taken == steps - each
    assert weights_sha256(second.judged) == weights_sha256(whole.judged)
    assert second.history[-1].test_correct == whole.history[-1].test_correct
