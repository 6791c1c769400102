from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchinfo
from torch import nn

from conftest import Command
from smidgen.anatomy.layers import examine
from smidgen.errors import SmidgenError, TrialError
from smidgen.inspection import inspect
from smidgen.nets.build import build_network
from smidgen.trial import Trial
from smidgen.trials.builtin import BUILTIN

SEED_TABLE = (Path(__file__).parent / "golden" / "seed-table.txt").read_text()


def seed_rows() -> list[tuple[str, tuple[int, ...], int]]:
    """Type, output shape and parameters of each row of the reference notebooks' layer table."""
    rows = re.findall(r"(\w+)-\d+\s+\[-1, (\d+), (\d+), (\d+)\]\s+([\d,]+)", SEED_TABLE)
    return [(kind, (int(c), int(h), int(w)), int(n.replace(",", ""))) for kind, c, h, w, n in rows]


@pytest.mark.parametrize("name", ["mnist-2-regularized", "mnist-3-augmented"])
def test_the_seeds_table_layer_by_layer(name: str) -> None:
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
        "parameters": 0, "macs": 0, "activation_bytes": 4 * 8 * 26 * 26, "kernel": None, "stride": None,
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
    with pytest.raises(SmidgenError, match="three numbers"):
        inspect("mnist-4-strict", input_shape=(28, 28))
