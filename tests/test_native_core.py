"""The compiled part of the native engine: what it refuses to be built from, and batches that lie in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from native import LEVELS
from smidgen.data.augment import normalize, to_float
from smidgen.data.dataset import Dataset
from smidgen.engines.native.core import find_core
from smidgen.engines.native.images import LANES, Blocks, NativeLoader, laid_out_images
from smidgen.engines.native.module import NativeNetwork
from smidgen.nets.build import build_network
from smidgen.trial import Augmentation, Trial
from smidgen.trials.mnist import augmented, strict

core: Any = find_core()
if core is None:
    pytest.skip("the native engine is not installed", allow_module_level=True)

Changes = dict[str, Any]


def convolution(**changes: Any) -> Any:
    """From value 0, of 2x6x5, to value 1, of 4x4x3, with tensors 0 and 1."""
    settings: Changes = {
        "name": "conv", "inputs": [0], "output": 1, "weight": 0, "bias": 1, "kernel": (3, 3), "stride": (1, 1),
        "padding": (0, 0), "dilation": (1, 1), "groups": 1, "relu": False, "input_relu": False, "before": None,
        "after": None,
    }  # fmt: skip
    return core.Convolution(**{**settings, **changes})


def separable(**changes: Any) -> Any:
    """From value 0, of 2x6x5, to value 1, of 4x4x3, with tensors 6, 7, 8 and 1."""
    settings: Changes = {
        "name": "sep", "inputs": [0], "output": 1, "depthwise": 6, "middle_bias": 7, "pointwise": 8, "bias": 1,
        "kernel": 3, "stride": 1, "padding": (0, 0), "relu": False, "input_relu": False, "before": None, "after": None,
    }  # fmt: skip
    return core.Separable(**{**settings, **changes})


def norm(**changes: Any) -> Any:
    """From value 1, of 4x4x3, to value 2, of the same shape, with tensors 1 to 4."""
    settings: Changes = {
        "name": "norm", "inputs": [1], "output": 2, "weight": 1, "bias": 2, "running_mean": 3, "running_var": 4,
        "batches": 5, "momentum": 0.1, "epsilon": 1e-5, "batch": True, "relu": False, "pool": "none", "dropped": 0,
        "input_relu": False,
    }  # fmt: skip
    return core.Norm(**{**settings, **changes})


def activation(**changes: Any) -> Any:
    settings: Changes = {"name": "act", "inputs": [1], "output": 2, "function": "relu", "low": 0.0, "high": 0.0}
    return core.Activation(**{**settings, **changes})


def pool(**changes: Any) -> Any:
    """From value 1, of 4x4x3, to value 3, of 4x2x1."""
    settings: Changes = {
        "name": "pool", "inputs": [1], "output": 3, "kind": "max", "kernel": (2, 2), "stride": (2, 2),
        "padding": (0, 0), "count_padding": True,
    }  # fmt: skip
    return core.Pool(**{**settings, **changes})


def dropout(**changes: Any) -> Any:
    return core.Dropout(**{"name": "drop", "inputs": [1], "output": 2, "dropped": 6554, **changes})


def folded(**changes: Any) -> Any:
    settings: Changes = {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4, "epsilon": 1e-5}
    return core.FoldedNorm(**{**settings, **changes})


def program(*operations: Any, **changes: Any) -> Any:
    settings: Changes = {
        "shapes": [(2, 6, 5), (4, 4, 3), (4, 4, 3), (4, 2, 1), (6, 4, 3)],
        "operations": list(operations),
        "tensor_sizes": [72, 4, 4, 4, 4, 1, 18, 2, 8],
        "output": 2 if len(operations) > 1 else 1,
        "keep": True,
        "input_gradient": False,
        "bfloat16": False,
        "level": LEVELS[-1],
    }
    return core.Program(**{**settings, **changes})


MAKERS = [convolution, separable, norm, activation, pool, dropout, folded]


@pytest.mark.parametrize("make", MAKERS)
def test_an_unknown_setting_is_refused(make: Callable[..., Any]) -> None:
    make()
    with pytest.raises(TypeError):
        make(kernle=(3, 3))


COMPLETE = [
    (core.Add, {"name": "", "inputs": [1, 1], "output": 2}),
    (core.Concatenate, {"name": "", "inputs": [1, 1], "output": 2}),
    (core.Dropout, {"name": "", "inputs": [1], "output": 2, "dropped": 1}),
    (core.FoldedNorm, {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4, "epsilon": 0.0}),
    (
        core.Convolution,
        {"name": "", "inputs": [0], "output": 1, "weight": 0, "bias": 1, "kernel": (3, 3), "stride": (1, 1),
         "padding": (0, 0), "dilation": (1, 1), "groups": 1, "relu": False, "input_relu": False, "before": None,
         "after": None},
    ),
    (
        core.Augmentation,
        {"rotation": 1.0, "translation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0, "elastic_smoothness": 4.0,
         "flip": 0.0, "nearest": False},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), COMPLETE, ids=[kind.__name__ for kind, _ in COMPLETE])
def test_a_missing_or_positional_setting_is_refused(kind: Any, settings: Changes) -> None:
    kind(**settings)
    with pytest.raises(TypeError):
        kind(*settings.values())
    for name in settings:
        with pytest.raises(TypeError):
            kind(**{other: value for other, value in settings.items() if other != name})


def test_activations_are_known_by_name() -> None:
    names = core.activations()
    assert names == ["relu", "leaky_relu", "clamp", "hardswish", "gelu", "silu", "sigmoid", "tanh"]
    for name in names:
        program(convolution(), activation(function=name))
    with pytest.raises(ValueError, match="softplus"):
        activation(function="softplus")
    with pytest.raises(ValueError, match="median"):
        pool(kind="median")


def test_every_kind_of_operation_is_accepted() -> None:
    program(convolution(), norm())
    program(convolution(), dropout())
    program(convolution(), pool(), output=3)
    program(convolution(before=folded(), after=folded()), keep=False)
    program(separable(), norm())
    program(separable(before=folded(), after=folded()), keep=False)
    program(convolution(), activation(), core.Add(name="add", inputs=[1, 2], output=5), output=5,
            shapes=[(2, 6, 5), (4, 4, 3), (4, 4, 3), (4, 2, 1), (6, 4, 3), (4, 4, 3)])  # fmt: skip
    program(convolution(relu=True, input_relu=True), norm(input_relu=True))


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("value read", lambda: program(convolution(inputs=[9])), "conv"),
    ("value written", lambda: program(convolution(output=9)), "conv"),
    ("value never written", lambda: program(convolution(), norm(inputs=[3])), "norm"),
    ("value written twice", lambda: program(convolution(), norm(output=1)), "norm"),
    ("images overwritten", lambda: program(convolution(output=0)), "conv"),
    ("negative value", lambda: program(convolution(inputs=[-1])), "conv"),
    ("output", lambda: program(convolution(), output=2), "output"),
    ("no such output", lambda: program(convolution(), output=-1), "output"),
    ("tensor", lambda: program(convolution(weight=9)), "conv"),
    ("no weight", lambda: program(convolution(weight=-1)), "conv"),
    ("weight's size", lambda: program(convolution(weight=1)), "conv"),
    ("bias's size", lambda: program(convolution(bias=0)), "conv"),
    ("no inputs", lambda: program(convolution(inputs=[])), "conv"),
    ("two inputs", lambda: program(convolution(inputs=[0, 0])), "conv"),
    ("kernel", lambda: program(convolution(kernel=(0, 3))), "conv"),
    ("stride", lambda: program(convolution(stride=(1, 0))), "conv"),
    ("padding", lambda: program(convolution(padding=(-1, 0))), "conv"),
    ("dilation", lambda: program(convolution(dilation=(0, 1))), "conv"),
    ("groups", lambda: program(convolution(groups=3)), "conv"),
    ("no groups", lambda: program(convolution(groups=0)), "conv"),
    ("output's shape", lambda: program(convolution(padding=(1, 1))), "conv"),
    ("ReLU's gradient by nobody", lambda: program(convolution(relu=True, input_relu=True), norm()), "conv"),
    ("gradient of no ReLU", lambda: program(convolution(), norm(input_relu=True)), "norm"),
    ("folded, with a backward pass", lambda: program(convolution(before=folded())), "conv"),
    ("folded tensor", lambda: program(convolution(after=folded(running_var=-1)), keep=False), "conv"),
    ("no part", lambda: program(separable(depthwise=-1, middle_bias=-1, pointwise=-1, kernel=0)), "sep"),
    ("depthwise kernel", lambda: program(separable(kernel=4)), "sep"),
    ("no depthwise kernel", lambda: program(separable(kernel=0)), "sep"),
    ("depthwise stride", lambda: program(separable(stride=3)), "sep"),
    ("depthwise padding", lambda: program(separable(padding=(3, 0))), "sep"),
    ("negative depthwise padding", lambda: program(separable(padding=(0, -1))), "sep"),
    ("depthwise weights' size", lambda: program(separable(depthwise=0)), "sep"),
    ("1x1 weights' size", lambda: program(separable(pointwise=0)), "sep"),
    ("channels without a 1x1 part", lambda: program(separable(middle_bias=-1, pointwise=-1)), "sep"),
    ("bias between one part", lambda: program(separable(depthwise=-1, kernel=0)), "sep"),
    ("separable output's shape", lambda: program(separable(padding=(1, 1))), "sep"),
    ("separable, folded, with a backward pass", lambda: program(separable(before=folded())), "sep"),
    ("statistics' size", lambda: program(convolution(), norm(running_mean=0)), "norm"),
    ("one statistic", lambda: program(convolution(), norm(running_var=-1)), "norm"),
    ("no statistics", lambda: program(convolution(), norm(batch=False, running_mean=-1, running_var=-1)), "norm"),
    ("counter's size", lambda: program(convolution(), norm(batches=1)), "norm"),
    ("epsilon", lambda: program(convolution(), norm(epsilon=float("nan"))), "norm"),
    ("pooled shape", lambda: program(convolution(), norm(pool="max")), "norm"),
    (
        "pooling and dropout",
        lambda: program(convolution(), norm(pool="average", dropped=5, output=3), output=3),
        "norm",
    ),
    ("share dropped", lambda: program(convolution(), dropout(dropped=65536)), "drop"),
    ("activation's shape", lambda: program(convolution(), activation(output=3), output=3), "act"),
    ("pool's shape", lambda: program(convolution(), pool(kernel=(3, 3)), output=3), "pool"),
    ("pool's padding", lambda: program(convolution(), pool(padding=(2, 0)), output=3), "pool"),
    ("sum", lambda: program(convolution(), core.Add(name="add", inputs=[0, 1], output=2)), "add"),
    ("sum of one", lambda: program(convolution(), core.Add(name="add", inputs=[1], output=2)), "add"),
    ("joined", lambda: program(convolution(), core.Concatenate(name="cat", inputs=[1, 1], output=4), output=4), "cat"),
    ("joined nothing", lambda: program(convolution(), core.Concatenate(name="cat", inputs=[], output=4)), "cat"),
    ("shape", lambda: program(convolution(), shapes=[(2, 6, 5), (4, 0, 3)]), "value 1"),
    ("size", lambda: program(convolution(), shapes=[(2, 6, 5), (4, 4, 3), (2**15, 2**15, 2**15)]), "value 2"),
    ("nothing", lambda: program(shapes=[], output=0), "input"),
    ("level", lambda: program(convolution(), level="mmx"), "no instruction level 'mmx'"),
]


@pytest.mark.parametrize(("build", "name"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_program_that_contradicts_itself_is_refused_by_name(build: Callable[[], Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        build()


# Blocks.


def network_of(trial: Trial) -> NativeNetwork:
    torch.manual_seed(1)
    return NativeNetwork(build_network(trial.network, input_shape=(1, 28, 28), classes=10, dropout=trial.dropout), 2)


def blocks_of(images: Tensor) -> Blocks:
    count, *shape = images.shape
    blocks = Blocks.empty(count, tuple(shape))
    padded = torch.zeros((len(blocks.values) * LANES, *shape))
    padded[:count] = images
    blocks.values.copy_(padded.unflatten(0, (-1, LANES)).permute(0, 2, 3, 4, 1))
    return blocks


@pytest.fixture
def images() -> Tensor:
    return torch.randn((37, 1, 28, 28), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("trial", [strict(), augmented()], ids=lambda t: t.name)
def test_blocks_give_the_same_bytes_as_a_strided_tensor(trial: Trial, images: Tensor) -> None:
    labels = torch.arange(37) % 10
    found = []
    for batch in (images, images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), blocks_of(images)):
        network = network_of(trial)
        torch.manual_seed(4)
        result = network.loss_and_gradients(batch, labels, 0.1)
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        network.zero_grad()
        output = network(batch)
        F.cross_entropy(output, labels).backward()
        gradients += [p.grad for p in network.parameters() if p.grad is not None]
        with torch.no_grad():
            evaluated = network.eval()(batch)
        tensors = [output.detach(), evaluated, *gradients, *network.buffers()]
        found.append((result, [t.numpy().tobytes() for t in tensors]))
    assert found[0] == found[1] == found[2]


class ReadTwice(nn.Module):
    """The images go into every kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(10, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.norm(x), torch.tanh(x), x + x, x, F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1)]
        return self.conv(torch.cat(parts, 1))  # type: ignore[no-any-return]


def test_every_operation_reads_blocks_where_they_lie() -> None:
    images = torch.randn((19, 2, 7, 5), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    network = ReadTwice()
    found = []
    for batch in (images, blocks_of(images)):
        native = NativeNetwork(network, 2)
        native.zero_grad()
        native.train()
        output = native(batch)
        output.square().sum().backward()
        with torch.no_grad():
            evaluated = native.eval()(batch)
        found.append(
            [t.detach().clone() for t in (output, *(p.grad for p in native.parameters() if p.grad is not None))]
        )
        network.norm.reset_running_stats()
        assert evaluated.shape == output.shape
    assert len(found[0]) == 5
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_misaligned_blocks_are_refused(images: Tensor) -> None:
    blocks = blocks_of(images)
    memory = torch.zeros(blocks.values.numel() + 1)
    moved = memory[1:].view_as(blocks.values).copy_(blocks.values)
    network = network_of(augmented())
    with pytest.raises(ValueError, match="aligned"):
        network(Blocks(moved, 37))
    with pytest.raises(ValueError, match="aligned"):
        network.loss_and_gradients(Blocks(moved, 37), torch.zeros(37, dtype=torch.int64))
    network(blocks)


def test_blocks_of_another_type_or_number_are_refused() -> None:
    values = torch.zeros((2, 1, 28, 28, LANES))
    assert Blocks(values, 32).shape == (32, 1, 28, 28)
    for count in (0, 16, 33):
        with pytest.raises(ValueError, match="blocks"):
            Blocks(values, count)
    with pytest.raises(ValueError, match="blocks"):
        Blocks(values[0], 16)
    for other in (values.double(), values.transpose(2, 3)):
        with pytest.raises(TypeError, match="blocks"):
            Blocks(other, 32)


@pytest.mark.parametrize("settings", [Augmentation(), Augmentation(rotation=20), Augmentation(elastic=1.0)])
def test_unused_lanes_hold_zeros(settings: Augmentation, mnist: Dataset) -> None:
    loader = NativeLoader(mnist.train.images, mnist.train.labels, settings, 0, mnist.mean, mnist.std, 2)
    blocks, _ = loader.load(torch.arange(21), 1, 0)
    assert len(blocks.values) == 2
    assert not blocks.values[1, ..., 5:].any()
    assert blocks.values[1, ..., :5].flatten(0, 2).any(0).all()


def test_images_are_laid_out_as_they_are(mnist: Dataset) -> None:
    images = mnist.held_out.images[:100:2]
    blocks = laid_out_images(images, mnist.mean, mnist.std, 2)
    assert blocks.count == 50
    assert torch.allclose(blocks.to_tensor(), normalize(to_float(images), mnist.mean, mnist.std), atol=1e-5)
    with pytest.raises(ValueError, match="finite"):
        laid_out_images(images, 0.0, 1e-50, 1)


def test_strengths_that_make_no_sense_are_refused(mnist: Dataset) -> None:
    settings = {
        "rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0, "elastic_smoothness": 4.0,
        "flip": 0.0, "nearest": False,
    }  # fmt: skip
    for change in ({"rotation": -1.0}, {"elastic": float("nan")}, {"elastic_smoothness": 0.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            core.Augmentation(**{**settings, **change})
    with pytest.raises(TypeError):
        core.Augmentation(**settings, contrast=0.5)


def test_an_image_is_augmented_alike_however_many_follow_it(mnist: Dataset) -> None:
    settings = Augmentation(rotation=20, elastic=1.0)
    loader = NativeLoader(mnist.train.images, mnist.train.labels, settings, 3, mnist.mean, mnist.std, 2)
    few, many = (loader.load(torch.arange(count), 1, 0)[0].to_tensor() for count in (5, 40))
    assert torch.equal(few, many[:5])
