from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchinfo
from torch import nn

from conftest import Command
from smidgen.anatomy.layers import examine
from smidgen.errors import SmidgenError, TrialError
from smidgen.inspection import inspect
from smidgen.nets.build import build_network
from smidgen.trial import Trial
from smidgen.trials.builtin import BUILTIN

REFERENCE_TABLE = (Path(__file__).parent / "golden" / "reference-table.txt").read_text()


def seed_rows() -> list[tuple[str, tuple[int, ...], int]]:
    """Type, output shape and parameters of each row of the reference notebooks' layer table."""
    rows = re.findall(r"(\w+)-\d+\s+\[-1, (\d+), (\d+), (\d+)\]\s+([\d,]+)", REFERENCE_TABLE)
    return [(kind, (int(c), int(h), int(w)), int(n.replace(",", ""))) for kind, c, h, w, n in rows]


@pytest.mark.parametrize("name", ["mnist-2-regularized", "mnist-3-augmented"])
def test_the_reference_notebooks_table_layer_by_layer(name: str) -> None:
    rows = seed_rows()
    assert len(rows) == 25
    anatomy = inspect(name).anatomy
    assert [(x.type, x.output_shape, x.parameters) for x in anatomy.layers] == rows
    assert anatomy.parameters == 8_000
    assert f"{anatomy.activation_bytes / 2**20:.2f}" == "0.56"
    assert f"{anatomy.parameter_bytes / 2**20:.2f}" == "0.03"


def test_the_first_trial_is_the_same_without_dropout() -> None:
    layers = [x for x in seed_rows() if x[0] != "Dropout"]
    assert [(x.type, x.output_shape, x.parameters) for x in inspect("mnist-1-skeleton").anatomy.layers] == layers


def test_macs_by_hand() -> None:
    """The reference network's convolutions: output pixels × output channels × input channels × taps."""
    by_hand = (
        26 * 26 * 8 * 9 + 24 * 24 * 14 * 8 * 9 + 24 * 24 * 10 * 14 + 10 * 10 * 14 * 10 * 9
        + 8 * 8 * 16 * 14 * 9 + 6 * 6 * 20 * 16 * 9 + 16 * 20 + 10 * 16
    )  # fmt: skip
    assert inspect("mnist-3-augmented").anatomy.macs == by_hand == 1_069_104


def test_macs_of_grouped_and_strided_layers_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, stride=2), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(200, 3)
    )
    macs = [x.macs for x in examine(network, (4, 15, 15)).layers]
    assert macs == [7 * 7 * 8 * (4 // 2) * 9, 5 * 5 * 8 * 1 * 9, 0, 200 * 3]


class Head(nn.Module):
    """The mean over the image of what `inner` gives, and ten scores of it."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or nn.Conv2d(1, 4, 3)
        self.scores = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.scores(self.inside(x).mean((2, 3)))
        return output

    def inside(self, x: torch.Tensor) -> Any:
        return self.inner(x)


class CalledByKeyword(Head):
    def inside(self, x: torch.Tensor) -> Any:
        return self.inner(input=x)


class ForwardCalled(Head):
    def inside(self, x: torch.Tensor) -> Any:
        return self.inner.forward(x)


class AsFunction(Head):
    """Uses its layers' parameters only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.inner.weight, self.inner.bias)  # type: ignore[arg-type]
        return F.linear(x.mean((2, 3)), self.scores.weight) + self.scores.bias


class Scripted(Head):
    def __init__(self) -> None:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            super().__init__(torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(784, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight


class Tokens(Head):
    """Sixteen patches as tokens of eight features, and a layer that takes tokens."""

    def __init__(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(nn.Conv2d(1, 8, 7, 7))
        self.scores = nn.Linear(8, 10)
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.scores(self.layer(self.inner(x).flatten(2).transpose(1, 2)).mean(1))
        return output


class Attention(nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        output: torch.Tensor = super().forward(x, x, x)[0]
        return output


class Rows(nn.Module):
    """The image's 28 rows as steps of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.scores = layer, nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.scores(self.layer(x[:, 0])[0][:, -1, :16])
        return output


CONV = 26 * 26 * 4 * 9
SCORES = 4 * 10
PATCHES = 16 * 8 * 49
PRODUCTS = {
    "layer": (Head(), CONV + SCORES),
    "weight norm": (Head(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3, bias=False))), CONV + SCORES),
    "spectral norm": (Head(nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 4, 3, bias=False))), CONV + SCORES),
    "keyword": (CalledByKeyword(), CONV + SCORES),
    "forward": (ForwardCalled(), CONV + SCORES),
    "function": (AsFunction(), CONV + SCORES),
    "scripted": (Scripted(), CONV + SCORES),
    "grouped": (Head(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4))), CONV + 24 * 24 * 36 + SCORES),
    "transposed": (
        Head(nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 2, 2))),
        13 * 13 * 36 + 13 * 13 * 4 * 4 * 4 + SCORES,
    ),
    "matrix": (Product(), 784 * 10),
    "attention": (Tokens(Attention(8, 2, batch_first=True)), PATCHES + 16 * 4 * 64 + 2 * 16 * 16 * 8 + 80),
    "attention as a function": (
        Tokens(lambda t: F.scaled_dot_product_attention(t, t, t)),
        PATCHES + 2 * 16 * 16 * 8 + 80,
    ),
    "transformer": (
        Tokens(nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)),
        PATCHES + 16 * 4 * 64 + 2 * 16 * 16 * 8 + 16 * 2 * 8 * 32 + 80,
    ),
    "einsum": (Tokens(lambda t: torch.einsum("nld,nmd->nlm", t, t)[:, :, :8]), PATCHES + 16 * 16 * 8 + 80),
    "vector": (Tokens(lambda t: (t @ torch.ones(8))[..., None].expand(1, 16, 8)), PATCHES + 16 * 8 + 80),
    "lstm": (Rows(nn.LSTM(28, 16, batch_first=True)), 28 * 4 * 16 * (28 + 16) + 160),
    "gru": (Rows(nn.GRU(28, 16, batch_first=True)), 28 * 3 * 16 * (28 + 16) + 160),
    "both ways": (Rows(nn.LSTM(28, 16, batch_first=True, bidirectional=True)), 2 * 28 * 4 * 16 * (28 + 16) + 160),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_count_however_they_are_written(name: str) -> None:
    network, macs = PRODUCTS[name]
    anatomy = examine(network, (1, 28, 28))
    assert anatomy.macs == macs
    assert not [x.uncounted for x in anatomy.layers if x.uncounted]
    assert sum(x.parameters for x in anatomy.layers) == anatomy.parameters


def test_products_belong_to_the_module_that_computes_them() -> None:
    layers = examine(nn.Sequential(AsFunction(), nn.Linear(10, 10)), (1, 28, 28)).layers
    assert [(x.type, x.parameters, x.macs) for x in layers] == [
        ("AsFunction", 90, CONV + SCORES),
        ("Linear", 110, 100),
    ]


@pytest.mark.parametrize(
    "way",
    [torch.linalg.matrix_exp, torch.fft.rfft, lambda t: torch.from_numpy(t.detach().numpy() @ t.detach().numpy().T)],
)
def test_what_is_not_counted_is_named(way: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(way(x[0, 0]) + 0j)[None, None]

    network = nn.Sequential(nn.Conv2d(1, 1, 1), Strange())
    anatomy = examine(network, (1, 8, 8))
    assert anatomy.macs == 64
    strange = anatomy.layers[-1]
    assert (strange.type, bool(strange.uncounted), strange.macs_text) == ("Strange", True, "?")
    assert "at least 64 MACs" in anatomy.totals()
    assert strange.uncounted[0] in anatomy.totals()
    assert anatomy.to_json()["uncounted"] == list(strange.uncounted)


def test_frozen_parameters_are_counted_and_shown() -> None:
    network = Head()
    network.inner.requires_grad_(False)
    anatomy = examine(network, (1, 28, 28))
    assert (anatomy.parameters, anatomy.trainable) == (90, 50)
    assert [(x.name, x.parameters, x.trainable) for x in anatomy.layers] == [("inner", 40, 0), ("scores", 50, 50)]
    rows = [line.split(",") for line in anatomy.table("csv").splitlines()]
    assert [row[5:7] for row in rows] == [["parameters", "trainable"], ["40", "0"], ["50", "50"]]
    assert anatomy.totals().startswith("90 parameters (0.4 KiB as float32), 50 of them trainable\n")


class Shared(nn.Module):
    """A layer used twice, a parameter of its own, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.conv(self.conv(x)) * self.scale
        return output


COLLECTION = {
    "residual": (Shared(), (2, 8, 8)),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, stride=2), nn.Conv2d(8, 8, 3, groups=8)), (4, 15, 15)),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 6, 7), nn.ReLU(), nn.Linear(7, 2, bias=False)), (3, 5, 6)),
    "nested": (nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 5), nn.BatchNorm2d(4)), nn.AdaptiveAvgPool2d(1)), (1, 9, 9)),
    "dilated": (nn.Sequential(nn.Conv2d(1, 3, 3, dilation=2, padding="same"), nn.MaxPool2d(2)), (1, 10, 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BUILTIN, *COLLECTION])
def test_torchinfo_agrees(name: str) -> None:
    if name in BUILTIN:
        trial = BUILTIN[name].make()
        network, shape = (
            build_network(trial.network, input_shape=(1, 28, 28), classes=10, dropout=trial.dropout),
            (1, 28, 28),
        )
    else:
        network, shape = COLLECTION[name]
    ours = examine(network, shape)
    theirs = torchinfo.summary(network, (1, *shape), verbose=0, depth=9)
    leaves = [x for x in theirs.summary_list if x.is_leaf_layer and x.executed]
    assert ours.parameters == theirs.trainable_params
    own = [x for x in ours.layers if not (name == "residual" and x.type == "Shared")]
    assert [(x.type, x.output_shape) for x in own] == [(x.class_name, tuple(x.output_size[1:])) for x in leaves]
    # torchinfo counts a bias or a BatchNorm as a multiply-accumulate for each of its parameters;
    # here only products with weights count. So compare convolutions and linear layers without bias.
    for mine, other in zip(own, leaves, strict=True):
        if mine.type == "Conv2d" and other.module.bias is None:
            assert mine.macs == other.macs


def test_a_shared_layer_counts_once_and_an_unused_one_is_in_the_total() -> None:
    network = Shared()
    anatomy = examine(network, (2, 8, 8))
    assert [(x.name, x.parameters) for x in anatomy.layers] == [("conv", 38), ("conv", 0), ("", 1)]
    assert anatomy.parameters == 38 + 1 + 12
    assert anatomy.macs == 2 * 8 * 8 * 2 * 2 * 9


def test_looking_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    examine(network, (1, 8, 8))
    assert network.training
    assert network[1].training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not network[0]._forward_hooks


def test_a_network_that_does_not_take_the_input_is_one_line() -> None:
    with pytest.raises(TrialError, match="does not take an input of 3x8x8"):
        examine(nn.Conv2d(1, 2, 3), (3, 8, 8))


def test_the_command_agrees_with_the_library(smidgen: Command) -> None:
    done = smidgen("inspect", "mnist-3-augmented", "--json")
    assert done.status == 0
    assert done.json["parameters"] == 8_000
    assert done.json["macs"] == 1_069_104
    assert done.json["budget"] == {"parameters": 8_000, "epochs": 15, "met": True}
    assert len(done.json["layers"]) == 25
    assert done.json["layers"][1] == {
        "name": "relu1", "type": "ReLU", "input_shape": [8, 26, 26], "output_shape": [8, 26, 26],
        "parameters": 0, "trainable": 0, "macs": 0, "uncounted": [], "activation_bytes": 4 * 8 * 26 * 26, "kernel": None, "stride": None,
        "padding": None, "dilation": None, "receptive_field": 3, "jump": 1, "start": 0,
    }  # fmt: skip


def test_inspecting_what_is_over_budget_says_so(smidgen: Command, tmp_path: Path) -> None:
    from smidgen.trials.mnist import augmented

    data = augmented().to_json()
    data["goal"]["parameters"] = 7_999  # type: ignore[call-overload,index]
    (tmp_path / "trial.json").write_text(json.dumps(data))
    done = smidgen("inspect", tmp_path / "trial.json")
    assert done.status == 1
    assert "MISSED, 1 too many" in done.out


def test_a_trials_own_data_give_shape_and_classes(small_trial: Trial) -> None:
    anatomy = inspect(replace(small_trial, data=replace(small_trial.data, validation=6_000))).anatomy
    assert anatomy.input_shape == (1, 28, 28)
    assert anatomy.parameters == 678


def test_inspecting_a_module_in_a_file(smidgen: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))\n"
        "def build():\n    return Net()\n"
    )
    for name in ("Net", "build"):
        done = smidgen("inspect", f"{tmp_path / 'mine.py'}:{name}", "--input", "3x8x8", "--json")
        assert done.status == 0
        assert done.json["parameters"] == 3 * 4 * 9 + 4 + 144 * 2 + 2
        assert done.json["budget"] is None
    assert smidgen("inspect", f"{tmp_path / 'mine.py'}:Net").is_mistake("does not take an input of 1x28x28")


@pytest.mark.parametrize("shape", ["28", "1x28", "0x28x28", "axbxc", "1x28x28x1"])
def test_a_wrong_input_shape_is_one_line(smidgen: Command, shape: str) -> None:
    assert smidgen("inspect", "mnist-4-strict", "--input", shape).is_mistake("CxHxW")


def test_an_input_that_the_trials_network_does_not_take() -> None:
    with pytest.raises(SmidgenError, match="does not fit"):
        inspect("mnist-4-strict", input_shape=(1, 12, 12))
    shapes: list[Any] = [(28, 28), (1, -28, 28), (1, 28, 28.0), (1, True, 28), (0, 28, 28)]
    for shape in shapes:
        for what in ("mnist-4-strict", nn.Sequential(nn.Flatten(), nn.Linear(784, 2))):
            with pytest.raises(SmidgenError, match="three whole numbers of at least 1"):
                inspect(what, input_shape=shape)


def test_a_module_with_lazy_layers_has_sizes() -> None:
    network = nn.Sequential(
        nn.LazyConv2d(4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)
    )  # fmt: skip
    inspection = inspect(network)
    assert inspection.anatomy.parameters == 4 * 9 + 4 + 40 + 10
    assert inspection.sizes is not None
    assert inspection.sizes.flash > 90


def test_parameters_that_no_image_passes_are_said_to_be_so() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(9, 2), nn.Linear(100, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.used(x.flatten(1))
            return scores

    anatomy = examine(Unused(), (1, 3, 3))
    assert sum(layer.parameters for layer in anatomy.layers) == 20
    assert "1,030 parameters (4.0 KiB as float32), 1,030 of them trainable, 1,010 in layers that no image passes" in (
        anatomy.totals()
    )
    assert "no image passes" not in examine(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), (1, 3, 3)).totals()
