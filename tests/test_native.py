"""The native engine as a module: whole networks, what it can and cannot run, misuse, threads, dropout."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from native import LEVELS, compare, largest_difference
from smidgen.data.augment import augment, normalize, to_float
from smidgen.data.dataset import Dataset
from smidgen.engines.choose import choose, choose_for
from smidgen.engines.flat import FlatState
from smidgen.engines.native import core as core_module
from smidgen.engines.native.core import level
from smidgen.engines.native.fuse import UnsupportedError
from smidgen.engines.native.images import NativeLoader
from smidgen.engines.native.module import NativeNetwork
from smidgen.engines.native.vectors import FlatSGD, move_towards
from smidgen.errors import SmidgenError, TrainingError
from smidgen.nets.build import build_network
from smidgen.randomness import Purpose, Stream
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import run
from smidgen.trial import SGD, Augmentation, Network, Trial
from smidgen.trials.mnist import augmented, strict, tiny

if not LEVELS:
    pytest.skip("the native engine is not installed", allow_module_level=True)


def network_of(trial: Trial, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return build_network(trial.network, input_shape=(1, 28, 28), classes=10, dropout=dropout)


def batch(count: int, channels: int = 1, side: int = 28) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn((count, channels, side, side), generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


# Whole networks.

UNSCALED = replace(tiny(), name="unscaled", network=replace(cast("Network", tiny().network), scale=False))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("trial", [strict(), augmented(), UNSCALED], ids=lambda t: t.name)
def test_built_in_networks_agree_with_pytorch(trial: Trial, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMIDGEN_ISA", name)
    for training in (True, False):
        network = network_of(trial).train(training)
        try:
            compare(network, batch(37)[0], 1e-4)
        except AssertionError:
            # Of millions of values, one may be within rounding of 0, where a ReLU can fall on either side. That is
            # chance: other images do not have it too.
            compare(network, batch(37)[0].flip(2), 1e-4)


@pytest.mark.parametrize("trial", [strict(), UNSCALED], ids=lambda t: t.name)
def test_several_steps_of_training_agree_with_pytorch(trial: Trial) -> None:
    exact, plain = network_of(trial).double(), network_of(trial)
    native = NativeNetwork(plain, 2)
    pairs = [(exact, torch.optim.SGD(exact.parameters(), 0.05, 0.9, nesterov=True))]
    pairs += [(native, torch.optim.SGD(native.parameters(), 0.05, 0.9, nesterov=True))]
    for step in range(4):
        images, labels = batch(40 + step)
        losses = []
        for module, optimizer in pairs:
            loss = F.cross_entropy(module(images.to(next(module.parameters()).dtype)), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for (name, p), q in zip(exact.state_dict().items(), native.state_dict().values(), strict=True):
        assert torch.allclose(q.double(), p.double(), rtol=1e-3, atol=2e-5), name


class Residual(nn.Module):
    """Branches, a sum, a concatenation, an output used twice, an activation by function."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding="same", groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.norm(self.first(x)), 0.2)
        b = a + self.second(a)
        c = torch.cat([b, F.max_pool2d(F.hardswish(a), 3, 1, 1)], 1)
        c = F.avg_pool2d(c, 2) + F.max_pool2d(c, 2)
        return self.head(torch.flatten(c.mean((2, 3), keepdim=True), 1))  # type: ignore[no-any-return]


class SharedTwice(nn.Module):
    """One convolution and one normalization used twice: their gradients add up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)) + x
        x = torch.tanh(self.norm(x))
        x = self.norm(self.conv(x) + x + x)
        return x.view(x.size(0), -1)


def test_branches_sums_and_concatenations() -> None:
    torch.manual_seed(0)
    compare(Residual(), batch(21, 2, 9)[0], 1e-4)
    compare(Residual().eval(), batch(21, 2, 9)[0], 1e-4)


def test_shared_layers() -> None:
    torch.manual_seed(0)
    compare(SharedTwice(), batch(19, 3, 7)[0], 1e-4)


def test_the_loops_short_way_gives_what_autograd_gives() -> None:
    images, labels = batch(50)
    slow, quick = NativeNetwork(network_of(strict()), 2), NativeNetwork(network_of(strict()), 2)
    logits = slow(images)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    expected.backward()
    loss, hits = quick.loss_and_gradients(images, labels, 0.2)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert hits == int((logits.argmax(1) == labels).sum())
    for (name, p), q in zip(slow.named_parameters(), quick.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert largest_difference(q.grad, p.grad.double()) < 1e-5, name
    kept = quick.get_parameter("conv1.weight").grad
    quick.loss_and_gradients(images, labels)
    assert quick.get_parameter("conv1.weight").grad is kept  # overwritten in place, not added to


def test_it_is_the_same_module_to_everything_else() -> None:
    plain = network_of(strict())
    native = NativeNetwork(plain, 1)
    assert list(native.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in native.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(a is b for a, b in zip(native.parameters(), plain.parameters(), strict=True))
    assert choose("native").plain(native) is plain
    twin = copy.deepcopy(native)
    with torch.no_grad():
        twin.get_parameter("linear1.bias").fill_(100)
        assert twin.eval()(batch(2)[0]).min() > 50
        assert native.eval()(batch(2)[0]).max() < 50
    assert not plain.training
    native.train()
    assert plain.training


def test_frozen_parameters_and_frozen_normalization() -> None:
    plain = network_of(strict())
    plain.get_parameter("conv1.weight").requires_grad_(False)
    plain.get_submodule("norm2").eval()
    exact = copy.deepcopy(plain).double()
    native = NativeNetwork(plain, 2)
    images, labels = batch(20)
    F.cross_entropy(exact(images.double()), labels).backward()
    F.cross_entropy(native(images), labels).backward()
    assert native.get_parameter("conv1.weight").grad is None
    for (name, p), q in zip(exact.named_parameters(), native.parameters(), strict=True):
        if p.grad is not None:
            assert q.grad is not None
            assert largest_difference(q.grad, p.grad) < 1e-4, name
    assert torch.equal(plain.get_buffer("norm2.running_mean"), torch.zeros(24))
    native.zero_grad()
    native.loss_and_gradients(images, labels)
    assert native.get_parameter("conv1.weight").grad is None


def test_two_forward_passes_before_their_backward_passes() -> None:
    exact, native = network_of(strict()).double(), NativeNetwork(network_of(strict()), 2)
    (a, labels), (b, _) = batch(33), batch(18)
    for module, kind in ((exact, torch.float64), (native, torch.float32)):
        first, second = module(a.to(kind)), module(b.to(kind))
        (F.cross_entropy(first, labels) + second.square().mean()).backward()
    for (name, p), q in zip(exact.named_parameters(), native.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert largest_difference(q.grad, p.grad) < 1e-4, name


@pytest.mark.parametrize("count", [3, 16, 40, 150])
@pytest.mark.parametrize("trial", [augmented, strict])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_any_number_of_threads_gives_the_same_bytes(trial: Callable[[], Trial], bfloat16: bool, count: int) -> None:
    """Also where there are more threads than blocks of images, and they share the work on a block."""
    if bfloat16 and not core_module.has_bfloat16():
        pytest.skip("no bfloat16 products here")
    images, labels = batch(count)
    results = []
    for threads in (1, 2, 3, 16):
        native = NativeNetwork(network_of(trial(), dropout=0.1), threads, bfloat16=bfloat16)
        torch.manual_seed(3)
        logits = native(images)
        F.cross_entropy(logits, labels).backward()
        tensors = [logits.detach(), *[p.grad for p in native.parameters() if p.grad is not None], *native.buffers()]
        results.append([t.numpy().tobytes() for t in tensors])
    assert results[0] == results[1] == results[2] == results[3]


def test_runs_end_with_the_same_bytes_for_any_number_of_threads(small_trial: Trial, tmp_path: Path) -> None:
    hashes = {
        run(small_trial, options=RunOptions(threads=n), out=tmp_path / str(n), progress=Silent()).result.weights_sha256
        for n in (1, 2, 4)
    }
    assert len(hashes) == 1


def test_engines_train_alike(small_trial: Trial, tmp_path: Path) -> None:
    """The same images in the same order with the same distortions: losses part only slowly."""
    histories = [
        run(small_trial, options=RunOptions(engine=engine, threads=2), out=tmp_path / engine, progress=Silent()).history
        for engine in ("native", "eager")
    ]
    first = [history[0].train_loss for history in histories]
    assert first[0] == pytest.approx(first[1], rel=2e-3)
    last = [history[-1].test_accuracy for history in histories]
    assert abs(last[0] - last[1]) < 5


def test_bfloat16_products_stay_near_float32() -> None:
    if not core_module.has_bfloat16():
        pytest.skip("no bfloat16 products here")
    images, labels = batch(64)
    networks = [NativeNetwork(network_of(strict()), 2, bfloat16=b) for b in (False, True)]
    losses = [network.loss_and_gradients(images, labels)[0] for network in networks]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    exact, rough = (torch.cat([p.grad.flatten() for p in n.parameters() if p.grad is not None]) for n in networks)
    assert F.cosine_similarity(exact, rough, dim=0) > 0.95


# Dropout.


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    native = NativeNetwork(nn.Sequential(nn.AvgPool2d(1), nn.Dropout(0.3)), 2)
    ones = torch.ones((200, 3, 13, 11), requires_grad=True)
    torch.manual_seed(5)
    out = native(ones)
    kept = out != 0
    assert abs(float(kept.float().mean()) - 0.7) < 0.005
    assert torch.allclose(out[kept], torch.tensor(1 / 0.7), rtol=1e-4)
    for dims in ((0, 1, 2), (1, 2, 3)):  # no column and no image has a share of its own
        assert (kept.float().mean(dims) - 0.7).abs().max() < 0.15
    out.sum().backward()
    assert ones.grad is not None
    assert torch.equal(ones.grad != 0, kept)
    torch.manual_seed(5)
    assert torch.equal(native(ones), out)
    assert not torch.equal(native(ones), out)
    assert torch.equal(native.eval()(ones), ones)


def test_dropout_fused_with_normalization_drops_where_it_says() -> None:
    norm, relu = nn.BatchNorm2d(4), nn.ReLU()
    x = torch.randn((40, 4, 6, 5), generator=torch.Generator().manual_seed(0))
    for layers in ([norm, nn.Dropout(0.25)], [norm, relu, nn.Dropout(0.25)]):
        native = NativeNetwork(nn.Sequential(*layers), 2)
        inputs = x.clone().requires_grad_()
        out = native(inputs)
        out.square().sum().backward()
        # The same by PyTorch, with the mask read off the output; a value that ReLU made 0 has no gradient anyhow.
        mask = (out.detach() != 0).double() / 0.75
        again = x.double().requires_grad_()
        y = F.batch_norm(again, None, None, training=True)
        y = (F.relu(y) if relu in layers else y) * mask
        y.square().sum().backward()
        assert inputs.grad is not None
        assert again.grad is not None
        assert largest_difference(out.detach(), y.detach()) < 1e-4
        assert largest_difference(inputs.grad, again.grad) < 1e-3
        share = float((out == 0).float().mean())
        assert share == pytest.approx(0.625 if relu in layers else 0.25, abs=0.03)


def test_images_are_dropped_by_their_place_in_the_batch_alone() -> None:
    native = NativeNetwork(nn.Sequential(nn.AvgPool2d(1), nn.Dropout(0.5)), 2)
    ones = torch.ones((37, 2, 5, 5))
    torch.manual_seed(1)
    many = native(ones)
    torch.manual_seed(1)
    assert torch.equal(native(ones[:20]), many[:20])


# What cannot be lowered, and misuse.


def module_of(function: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    return Custom()


def hooked() -> nn.Module:
    conv = nn.Conv2d(1, 4, 3)
    conv.register_forward_hook(lambda *_: None)
    return nn.Sequential(conv)


UNSUPPORTED = [
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4)), "1", "InstanceNorm2d"),
    (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")), "0", "reflect"),
    (nn.Sequential(nn.Conv2d(3, 4, 3)), "0", "3 channels"),
    (nn.Sequential(nn.Conv2d(1, 4, 30)), "0", "output is empty"),
    (nn.Sequential(nn.Flatten(), nn.Linear(5, 4)), "1", "5 values"),
    (nn.Sequential(nn.Linear(28, 4)), "0", "not flattened"),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None)), "1", "momentum"),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU()), "1", "tanh"),
    (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "0", "ceil_mode"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(5)), "0", "28x28 to 5x5"),
    (nn.Sequential(), "output", "nothing"),
    (hooked(), "0", "hooks"),
    (module_of(lambda m, x: m.conv(x) * 2), "mul", "mul"),  # type: ignore[operator]
    (module_of(lambda m, x: m.conv(x) if x.sum() > 0 else x), "Custom", "control flow"),  # type: ignore[operator]
    (module_of(lambda m, x: m.conv(x) + 1), "add", "not the network's data"),  # type: ignore[operator]
    (module_of(lambda m, x: (y := m.conv(x)).relu_() + y), "relu_", "in place"),  # type: ignore[operator]
    (module_of(lambda m, x: (y := m.conv(x), y.relu_())[0]), "relu_", "in place"),  # type: ignore[operator]
    (module_of(lambda m, x: torch.cat([m.conv(x), m.conv(x)], 2)), "cat", "channels"),  # type: ignore[operator]
]


@pytest.mark.parametrize(("network", "layer", "reason"), UNSUPPORTED, ids=[f"{u[1]}-{u[2]}" for u in UNSUPPORTED])
def test_what_cannot_be_run_is_named_with_the_reason(network: nn.Module, layer: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=f"cannot run .*{reason}") as caught:
        NativeNetwork(network, 1).check((1, 28, 28))
    assert caught.value.layer in (layer, "Custom")
    assert "\n" not in str(caught.value)


def test_auto_falls_back_to_eager_and_says_why() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4))
    wanted = choose("auto")
    assert wanted.name == "native"
    fitted = choose_for(wanted, "auto", strict(), network, (1, 28, 28))
    assert fitted.name == "eager"
    assert "InstanceNorm2d" in fitted.note
    assert not isinstance(fitted.prepare(network), NativeNetwork)
    with pytest.raises(SmidgenError, match=r"cannot run 1: InstanceNorm2d .*--engine eager"):
        choose_for(choose("native"), "native", strict(), network, (1, 28, 28))
    assert choose_for(wanted, "auto", strict(), network_of(strict()), (1, 28, 28)) == wanted
    assert network.training


def test_without_the_extension_everything_works_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, small_trial: Trial, tmp_path: Path
) -> None:
    monkeypatch.setattr(core_module, "find_core", lambda: None)
    with pytest.raises(SmidgenError, match=r"not installed.*C\+\+ compiler.*--engine eager"):
        choose("native")
    with pytest.raises(SmidgenError, match="bf16 needs the native engine"):
        choose("auto", precision="bf16")
    finished = run(small_trial, options=RunOptions(threads=1), out=tmp_path / "run", progress=Silent())
    assert finished.result.engine == "eager"
    assert (tmp_path / "run" / "log.txt").read_text().count("the native engine is not installed") == 1
    assert choose("eager").note == ""


def test_an_impossible_instruction_level_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMIDGEN_ISA", "avx1024")
    with pytest.raises(SmidgenError, match=r"SMIDGEN_ISA is 'avx1024'; this machine has: baseline"):
        choose()
    monkeypatch.setenv("SMIDGEN_ISA", "baseline")
    assert level() == "baseline"
    with pytest.raises(SmidgenError, match="no bfloat16 products"):
        choose("native", precision="bf16")


def test_misuse_raises_and_names_the_input() -> None:
    native = NativeNetwork(network_of(strict()), 2)
    images, labels = batch(4)
    with pytest.raises(TypeError, match=r"input: .*float64"):
        native(images.double())
    with pytest.raises(TypeError, match="input: .*ndarray"):
        native(images.numpy())
    with pytest.raises(ValueError, match="input: it has 3 dimensions"):
        native(images[0])
    with pytest.raises(UnsupportedError, match="conv1: it takes 1 channels, but gets 2"):
        native(images.repeat(1, 2, 1, 1))
    with pytest.raises(UnsupportedError, match="output is empty"):
        native(images[:, :, :4, :4])
    with pytest.raises(ValueError, match=r"labels: they must be int64 \[4\]"):
        native.loss_and_gradients(images, labels[:3])
    for label in (-1, 10, 2**40):
        with pytest.raises(ValueError, match="labels: a label is not among the classes"):
            native.loss_and_gradients(images, torch.full((4,), label))
    with pytest.raises(TrainingError, match="at least one image"):
        native(images[:0])
    assert native.eval()(images[:0]).shape == (0, 10)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(bad: float) -> None:
    images, labels = batch(40)
    native = NativeNetwork(network_of(strict()), 2)
    broken = images.clone()
    broken[35, 0, 3, 3] = bad
    with pytest.raises(TrainingError, match="input: an image holds a value"):
        native.loss_and_gradients(broken, labels)
    with pytest.raises(TrainingError, match="input: an image holds a value"):
        native.eval()(broken)
    native.train()
    with torch.no_grad():
        native.get_parameter("conv3.weight")[2, 1, 0, 0] = bad
    with pytest.raises(TrainingError, match="norm2: what it normalizes"):
        native.loss_and_gradients(images, labels)
    with torch.no_grad():
        native.get_parameter("conv3.weight")[2, 1, 0, 0] = 0
    native.loss_and_gradients(images, labels)  # and it works again


def test_one_value_a_channel_cannot_be_normalized() -> None:
    native = NativeNetwork(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), 2)
    with pytest.raises(TrainingError, match="1: normalization in training needs more than one value"):
        native(torch.randn(1, 1, 3, 3))


def test_backward_twice_and_changed_parameters_are_refused() -> None:
    native = NativeNetwork(network_of(strict()), 2)
    images, _ = batch(5)
    out = native(images).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already called"):
        out.backward()
    out = native(images).sum()
    with torch.no_grad():
        native.get_parameter("conv1.weight").mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()


def test_parameters_of_another_type_are_refused() -> None:
    native = NativeNetwork(network_of(strict()), 2)
    images, _ = batch(5)
    native(images)
    weight = native.get_parameter("conv1.weight")
    weight.data = weight.data.double()
    with pytest.raises(TypeError, match=r"conv1\.weight: .*float32"):
        native(images)
    weight.data = torch.zeros(3, 1, 3, 3)
    with pytest.raises(ValueError, match=r"conv1\.weight: its shape was \[16, 1, 3, 3\] and is now \[3"):
        native(images)
    with pytest.raises(ValueError, match="threads is 0"):
        NativeNetwork(network_of(strict()), 0)


def test_a_gradient_that_cannot_be_written_into_is_replaced() -> None:
    native = NativeNetwork(network_of(strict()), 2)
    images, labels = batch(20)
    weight = native.get_parameter("conv2.weight")
    weight.grad = torch.zeros(1).expand(weight.shape)
    native.loss_and_gradients(images, labels)
    assert weight.grad.is_contiguous()
    assert weight.grad.abs().max() > 0


def test_replaced_parameters_and_buffers_are_followed() -> None:
    plain = network_of(strict())
    native = NativeNetwork(plain, 2)
    images, labels = batch(20)
    native(images)
    torch.manual_seed(9)
    fresh = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in plain.state_dict().items()}
    fresh = {n: t.abs() + 0.1 if n.endswith("var") else t for n, t in fresh.items()}
    native.load_state_dict(fresh, assign=True)
    assert (
        largest_difference(native.eval()(images).detach(), copy.deepcopy(plain).double()(images.double()).detach())
        < 1e-3
    )
    native.train()
    native.double()
    native.float()
    before = plain.get_buffer("norm1.running_mean").clone()
    native.loss_and_gradients(images, labels)
    assert not torch.equal(plain.get_buffer("norm1.running_mean"), before)


def test_tensors_that_contradict_their_layer_are_refused() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 8, 3))
    layers[0].weight = nn.Parameter(layers[0].weight[:4])  # type: ignore[index]
    with pytest.raises(UnsupportedError, match=r"0\.weight: its shape is \[4, 1, 3, 3\], not \[8, 1, 3, 3\]"):
        NativeNetwork(layers, 1)(batch(2)[0])


def test_labels_and_picks_may_be_slices(mnist: Dataset) -> None:
    native = NativeNetwork(network_of(strict()), 2)
    images, labels = batch(20)
    wide = torch.stack([labels, labels + 100], 1)
    assert native.loss_and_gradients(images, wide[:, 0]) == native.loss_and_gradients(images, labels)
    loader = NativeLoader(mnist.train.images, mnist.train.labels, Augmentation(), 0, 0.0, 1.0, 1)
    assert torch.equal(loader.load(torch.arange(8)[::2], 1, 0)[1], mnist.train.labels[:8:2])
    with pytest.raises(TypeError, match="picks must be int64"):
        loader.load(torch.arange(8, dtype=torch.int32), 1, 0)


def test_a_nan_passes_through_pooling() -> None:
    images, labels = batch(20)
    native = NativeNetwork(
        nn.Sequential(nn.Conv2d(1, 10, 3), nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 2
    )
    with torch.no_grad():
        native.get_parameter("0.weight").fill_(float("nan"))
    assert math.isnan(native.loss_and_gradients(images, labels)[0])


def test_statistics_that_are_not_tracked_are_left_alone() -> None:
    norm = nn.BatchNorm2d(1)
    norm.track_running_stats = False
    NativeNetwork(nn.Sequential(norm), 1)(batch(8)[0])
    assert int(norm.num_batches_tracked or 0) == 0
    assert torch.equal(norm.running_mean, torch.zeros(1))  # type: ignore[arg-type]


class UnusedBranch(nn.Module):
    """A branch whose result nothing uses: its statistics are gathered, its weights have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side, self.norm = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(self.side(x))
        return torch.relu(self.main(x))


def test_a_branch_that_nothing_uses() -> None:
    images, _ = batch(20)
    plain = UnusedBranch()
    native = NativeNetwork(copy.deepcopy(plain), 2)
    plain(images)
    for _ in range(2):
        native.zero_grad()
        native(images).sum().backward()
    side = native.get_parameter("side.weight").grad
    assert side is None or not side.any()
    assert native.get_parameter("main.weight").grad is not None
    native(images)
    assert int(native.get_buffer("norm.num_batches_tracked")) == 3
    assert native.get_buffer("norm.running_mean").abs().max() > 0


def test_it_works_in_a_forked_process() -> None:
    """As in a DataLoader's worker: the child has none of the parent's threads."""
    native = NativeNetwork(network_of(strict()).eval(), 2)
    images, _ = batch(40)
    with torch.no_grad():
        expected = native(images)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(native(images), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Images and vectors.

STRENGTHS = [
    Augmentation(),
    Augmentation(rotation=15, translation=0.1, scale=0.2, shear=0.3),
    Augmentation(elastic=2.0, elastic_smoothness=3.0),
    Augmentation(rotation=180, translation=1.0, scale=0.9, elastic=1.0),
    Augmentation(flip=0.5),
    Augmentation(rotation=15, translation=0.1, scale=0.2, shear=0.3, elastic=1.0, flip=0.5),
]


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("settings", STRENGTHS, ids=["none", "affine", "elastic", "wild", "flip", "all"])
def test_the_loader_augments_as_augment_does(
    settings: Augmentation, name: str, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMIDGEN_ISA", name)
    picks = torch.arange(37) * 1000
    found = []
    for threads in (1, 3):
        loader = NativeLoader(
            mnist.train.images, mnist.train.labels, settings, 5, mnist.mean, mnist.std, threads
        )  # fmt: skip
        images, labels = loader.load(picks, 2, 11)
        found.append(images.to_tensor())
        assert torch.equal(labels, mnist.train.labels[picks])
    assert torch.equal(found[0], found[1])
    stream = Stream(5, Purpose.AUGMENTATION, 2, 11)
    expected = normalize(augment(to_float(mnist.train.images[picks]), settings, stream), mnist.mean, mnist.std)
    assert (found[0] - expected).abs().max() < 2e-3


def test_loader_takes_the_nearest_pixel_as_augment_does(mnist: Dataset) -> None:
    settings = Augmentation(rotation=20, translation=0.1, scale=0.1, interpolation="nearest")
    picks = torch.arange(64)
    loader = NativeLoader(mnist.train.images, mnist.train.labels, settings, 5, 0.0, 1.0, 2)
    expected = augment(to_float(mnist.train.images[picks]), settings, Stream(5, Purpose.AUGMENTATION, 1, 0))
    differ = (loader.load(picks, 1, 0)[0].to_tensor() - expected).abs() > 1e-6
    assert differ.float().mean() < 1e-3  # places that lie between two pixels up to rounding


def test_loader_of_several_channels_and_odd_sizes() -> None:
    images = torch.randint(0, 256, (30, 3, 7, 13), dtype=torch.uint8)
    settings = Augmentation(rotation=30, scale=0.2, elastic=1.0, flip=0.5)
    loader = NativeLoader(images, torch.zeros(30, dtype=torch.int64), settings, 1, 0.3, 0.5, 2)
    expected = augment(to_float(images), settings, Stream(1, Purpose.AUGMENTATION, 1, 2))
    found = loader.load(torch.arange(30), 1, 2)[0].to_tensor()
    assert (found - normalize(expected, 0.3, 0.5)).abs().max() < 1e-4


def test_loader_refuses_what_is_not_there(mnist: Dataset) -> None:
    images, labels = mnist.train.images, mnist.train.labels
    loader = NativeLoader(images, labels, Augmentation(), 0, 0.0, 1.0, 1)
    for pick in (-1, 60_000, 2**40):
        with pytest.raises(IndexError, match="beyond the images"):
            loader.load(torch.tensor([0, pick]), 1, 0)
    with pytest.raises(TypeError, match="uint8"):
        NativeLoader(images.float(), labels, Augmentation(), 0, 0.0, 1.0, 1)
    with pytest.raises(TypeError, match="int64"):
        NativeLoader(images, labels[:-1], Augmentation(), 0, 0.0, 1.0, 1)


@pytest.mark.parametrize("nesterov", [False, True])
def test_flat_sgd_does_as_pytorch_does(nesterov: bool) -> None:
    torch.manual_seed(0)
    start = torch.randn(1008)
    theirs = nn.Parameter(start.clone().double())
    state = FlatState(nn.ParameterList([start.clone().view(7, 144)]))
    flat, mine = FlatSGD(SGD(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01), state), state.weights
    reference = torch.optim.SGD([theirs], 0.1, 0.9, nesterov=nesterov, weight_decay=0.01)
    for step in range(5):
        gradient = torch.randn(1008)
        mine.grad, theirs.grad = gradient.clone(), gradient.double()
        reference.param_groups[0]["lr"] = 0.1 / (1 + step)
        flat.set_rate(0.1 / (1 + step))
        flat.step()
        reference.step()
    assert largest_difference(mine.detach(), theirs.detach()) < 1e-6


def test_move_towards_is_lerp() -> None:
    means, values = torch.randn(777), torch.randn(777)
    expected = means.lerp(values, 0.3)
    move_towards(means, values, 0.3)
    assert torch.allclose(means, expected, atol=1e-6)
