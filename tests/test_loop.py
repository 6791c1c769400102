from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smidgen.data.augment import augment, normalize, to_float
from smidgen.data.dataset import Dataset
from smidgen.engines.choose import choose
from smidgen.engines.engine import Batch, Loader
from smidgen.engines.native.core import find_core
from smidgen.engines.native.images import Blocks
from smidgen.errors import RunError, SmidgenError, TrainingError
from smidgen.randomness import Purpose, Stream
from smidgen.runs.progress import Silent
from smidgen.runs.run import load_trial_data
from smidgen.runs.weights import weights_sha256
from smidgen.schedules import Cosine, OneCycle, Step
from smidgen.training import checkpoint
from smidgen.training.checkpoint import Origin
from smidgen.training.loop import EpochRecord, Training, new_network, start, train
from smidgen.trial import SGD, SOAP, Adam, AdamW, Augmentation, Conv, FullMatrixAdam, Network, Trial

ENGINE = choose(threads=1)


@pytest.fixture(scope="module")
def data(small_trial: Trial) -> Dataset:
    return load_trial_data(small_trial)


@pytest.fixture(autouse=True, params=["eager", "auto"])
def _one_thread_on_each_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys.modules[__name__], "ENGINE", choose(request.param, threads=1))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WatchedLoader:
    """Passes on a loader's batches, and keeps which images were asked for, when."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.calls = loader, list[tuple[list[int], int, int]]()

    def load(self, picks: torch.Tensor, epoch: int, step: int) -> tuple[Batch, torch.Tensor]:
        self.calls.append((picks.tolist(), epoch, step))
        return self.loader.load(picks, epoch, step)


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> list[WatchedLoader]:
    """The loaders of the trainings to come."""
    made: list[WatchedLoader] = []

    original = type(ENGINE).loader

    def make(*arguments: Any) -> WatchedLoader:
        made.append(WatchedLoader(original(*arguments)))
        return made[-1]

    monkeypatch.setattr(type(ENGINE), "loader", make)
    return made


class Watch(Silent):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        self.steps.append((epoch, images))


def trained(trial: Trial, data: Dataset, seed: int = 0) -> tuple[Training, list[EpochRecord]]:
    training = start(trial, new_network(trial, data, seed), ENGINE)
    return training, list(train(training, trial, data, seed, Silent()))


def everything(trial: Trial) -> Trial:
    """The trial with every kind of randomness on."""
    return replace(
        trial,
        dropout=0.1,
        label_smoothing=0.1,
        augmentation=Augmentation(rotation=10, translation=0.1, scale=0.1, shear=0.1, elastic=0.5),
    )


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(small_trial: Trial, data: Dataset) -> None:
    trial = everything(small_trial)
    torch.manual_seed(1)
    one, history = trained(trial, data)
    torch.manual_seed(2)
    again, same_history = trained(trial, data)
    other, _ = trained(trial, data, seed=1)
    assert weights_sha256(one.judged) == weights_sha256(again.judged) != weights_sha256(other.judged)
    figures = [(r.train_loss, r.train_accuracy, r.test_loss, r.test_correct) for r in history]
    assert figures == [(r.train_loss, r.train_accuracy, r.test_loss, r.test_correct) for r in same_history]


def test_each_image_is_drawn_once_an_epoch(small_trial: Trial, data: Dataset, loaders: list[WatchedLoader]) -> None:
    trial = replace(small_trial, batch_size=64)
    training = start(trial, new_network(trial, data, 0), ENGINE)
    watch = Watch()
    epochs = train(training, trial, data, 0, watch)
    orders = []
    for epoch in (1, 2):
        next(epochs)
        calls = [call for call in loaders[0].calls if call[1] == epoch]
        assert [len(picks) for picks, _, _ in calls] == [64] * 9 + [24]
        order = [pick for picks, _, _ in calls for pick in picks]
        assert sorted(order) == list(range(600))
        orders.append(order)
    assert orders[0] != orders[1]
    assert watch.steps[9] == (1, 600)


def test_each_step_is_augmented_by_its_own_stream(
    small_trial: Trial, data: Dataset, loaders: list[WatchedLoader]
) -> None:
    trained(small_trial, data, seed=6)
    assert [call[1:] for call in loaders[0].calls] == [(epoch, step) for epoch in (1, 2) for step in range(12)]
    strengths = Augmentation(rotation=10, translation=0.1, elastic=1.0)
    loader = ENGINE.loader(data.train, strengths, 6, data.mean, data.std)
    batch = loader.load(torch.arange(20), 2, 7)[0]
    images = batch.to_tensor() if isinstance(batch, Blocks) else batch
    assert isinstance(images, torch.Tensor)
    expected = augment(to_float(data.train.images[:20]), strengths, Stream(6, Purpose.AUGMENTATION, 2, 7))
    assert torch.allclose(images, normalize(expected, data.mean, data.std), atol=2e-3)


def test_a_step_is_what_plain_pytorch_does(small_trial: Trial, data: Dataset) -> None:
    """Two epochs without any randomness but the order, against a loop written down here from scratch."""
    trial = replace(small_trial, averaging=0.0, schedule=Step(every=1, factor=0.5), label_smoothing=0.05)
    training, history = trained(trial, data)
    network = new_network(trial, data, 0)
    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for epoch in (1, 2):
        total = 0.0
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.5 ** (epoch - 1)
        order = Stream(0, Purpose.ORDER, epoch).permutation(600)
        for first in range(0, 600, 50):
            picks = torch.from_numpy(order[first : first + 50])
            x = (data.train.images[picks].float() / 255 - data.mean) / data.std
            loss = nn.functional.cross_entropy(network(x), data.train.labels[picks], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * 50
        losses.append(total / 600)
    assert [r.train_loss for r in history] == pytest.approx(losses, rel=1e-3)
    for (name, a), b in zip(training.network.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-3), name


def test_accuracy_improves(small_trial: Trial, data: Dataset) -> None:
    _, history = trained(replace(small_trial, epochs=12), data)
    assert history[-1].train_loss < 0.6 * history[0].train_loss
    assert history[-1].test_accuracy > 60
    assert [r.epoch for r in history] == list(range(1, 13))


def test_the_learning_rate_follows_the_schedule(small_trial: Trial, data: Dataset) -> None:
    _, history = trained(replace(small_trial, schedule=Step(1, 0.1), optimizer=SGD(lr=0.5)), data)
    assert [r.learning_rate for r in history] == pytest.approx([0.5, 0.05])


def test_a_loss_that_is_not_finite_stops_and_names_the_step(small_trial: Trial, data: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1, step \d+ of 12.*lower optimizer.lr"):
        trained(replace(small_trial, optimizer=SGD(lr=1000, momentum=0.99)), data)


class Stop(Silent):
    """Ends a training after a number of steps, as a kill does."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


ORIGIN = Origin("recipe", "data", 5)


@pytest.mark.parametrize("steps", [1, 7, 12, 19])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": Adam(lr=0.01, weight_decay=0.01), "schedule": OneCycle()},
        {"optimizer": AdamW(lr=0.01), "schedule": Cosine(warmup=0.1), "averaging": 0.0},
        {"optimizer": SGD(lr=0.05, momentum=0.0), "schedule": Step(1)},
        {"optimizer": FullMatrixAdam(lr=0.02, every=10)},
        {"optimizer": SOAP(lr=0.01, every=10, weight_decay=0.02)},
    ],
)
def test_going_on_from_a_checkpoint_ends_with_the_same_bytes(
    small_trial: Trial, data: Dataset, tmp_path: Path, change: dict[str, object], steps: int
) -> None:
    """After steps within an epoch, at its end before it is judged, and in the next one."""
    trial = replace(everything(small_trial), epochs=3, **change)  # type: ignore[arg-type]
    whole, history = trained(trial, data, seed=5)
    first = start(trial, new_network(trial, data, 5), ENGINE)
    with pytest.raises(KeyboardInterrupt):
        list(train(first, trial, data, 5, Stop(steps)))
    path = tmp_path / "checkpoint"
    path.write_bytes(checkpoint.to_bytes(first, ORIGIN))
    second = start(trial, new_network(trial, data, 6), ENGINE)
    checkpoint.restore(second, path, ORIGIN, trial, 600)
    assert (len(second.history), second.step) == divmod(steps, 12) if steps != 12 else (0, 12)
    rest = list(train(second, trial, data, 5, Silent()))
    assert [r.epoch for r in rest] == ([1, 2, 3] if steps <= 12 else [2, 3])
    assert weights_sha256(second.judged) == weights_sha256(whole.judged)

    def figures(records: list[EpochRecord]) -> list[tuple[float, ...]]:
        return [(r.train_loss, r.train_accuracy, r.test_loss, r.test_correct, r.learning_rate) for r in records]

    assert figures(second.history) == figures(history)


@pytest.mark.parametrize(
    "name", ["optimizer.0.square", "optimizer.weights.exp_avg_sq", "network.norm1.running_var", "network.mine.square"]
)
def test_a_second_moment_below_zero_is_damage_but_a_layer_may_have_any_name(name: str) -> None:
    mine = name.endswith("mine.square")
    with contextlib.nullcontext() if mine else pytest.raises(ValueError, match="negative values"):
        checkpoint._check_values({name: torch.tensor([-1.0])}, 1)


def test_a_finished_training_whose_last_steps_recalibrated_is_restored(
    small_trial: Trial, data: Dataset, tmp_path: Path
) -> None:
    """Adam counts its steps; those that recalibrate are not among them."""
    trial = replace(everything(small_trial), epochs=2, optimizer=Adam(lr=0.01), recalibration=0.3)
    whole, _ = trained(trial, data)
    path = tmp_path / "checkpoint"
    path.write_bytes(checkpoint.to_bytes(whole, ORIGIN))
    again = start(trial, new_network(trial, data, 0), ENGINE)
    checkpoint.restore(again, path, ORIGIN, trial, 600)
    assert weights_sha256(again.judged) == weights_sha256(whole.judged)


def test_a_checkpoint_of_something_else_is_refused(small_trial: Trial, data: Dataset, tmp_path: Path) -> None:
    training, _ = trained(replace(small_trial, epochs=1), data)
    saved = checkpoint.to_bytes(training, ORIGIN)
    fresh = start(small_trial, new_network(small_trial, data, 0), ENGINE)
    path = tmp_path / "checkpoint"
    path.write_bytes(saved)
    with pytest.raises(RunError, match="another trial, seed or data"):
        checkpoint.restore(fresh, path, replace(ORIGIN, seed=1), small_trial, 600)
    for broken in (b"", saved[:100], saved[:-10], b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(RunError, match="damaged"):
            checkpoint.restore(fresh, path, ORIGIN, small_trial, 600)
    path.write_bytes(saved)
    other = start(replace(small_trial, averaging=0.0), new_network(small_trial, data, 0), ENGINE)
    with pytest.raises(RunError, match="does not fit"):
        checkpoint.restore(other, path, ORIGIN, small_trial, 600)
    with pytest.raises(FileNotFoundError):
        checkpoint.restore(fresh, tmp_path / "nothing", ORIGIN, small_trial, 600)


def test_a_state_that_is_not_finite_is_not_saved(small_trial: Trial, data: Dataset) -> None:
    training, _ = trained(replace(small_trial, epochs=1), data)
    with torch.no_grad():
        next(iter(training.network.parameters()))[0, 0, 0, 0] = float("inf")
    with pytest.raises(TrainingError, match="no longer finite"):
        checkpoint.to_bytes(training, ORIGIN)


def test_the_callers_generator_is_left_alone_when_a_network_is_made(small_trial: Trial, data: Dataset) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    new_network(small_trial, data, 0)
    assert torch.equal(torch.rand(3), expected)


def test_what_cannot_be_chosen_is_one_line() -> None:
    for options, words in (
        ({"engine": "native", "device": "cuda"}, "CUDA|runs on the CPU"),
        ({"engine": "eager", "precision": "bf16"}, "needs the native engine"),
        ({"threads": 0}, "1 to 256"),
    ):
        with pytest.raises(SmidgenError, match=words):
            choose(**options)
    if not torch.cuda.is_available():
        with pytest.raises(SmidgenError, match="no CUDA device"):
            choose(device="cuda")
    assert choose().name == ("native" if find_core() else "eager")
    assert choose("eager").name == "eager"
    assert choose(threads=3).threads == 3


def test_initial_weights_have_the_spread_that_is_asked_for(data: Dataset, small_trial: Trial) -> None:
    assert isinstance(small_trial.network, Network)
    blocks = (Conv(256, stride=2), *small_trial.network.blocks[1:])
    wide = replace(small_trial, network=replace(small_trial.network, blocks=blocks))
    for name, gain in (("pytorch", 1 / 3), ("he", 2.0)):
        network = new_network(replace(wide, initial_weights=name), data, 0)  # type: ignore[arg-type]
        for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
            fan_in = conv.weight[0].numel()
            if conv.weight.numel() > 2_000:
                assert float(conv.weight.detach().var()) * fan_in == pytest.approx(gain, rel=0.1)
    assert wide.recipe_digest == replace(wide, initial_weights="pytorch").recipe_digest
    assert wide.recipe_digest != replace(wide, initial_weights="he").recipe_digest
