"""Modules as people write them: what PyTorch trains is trained, kept and read back; what would go wrong is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ENGINES, Command, native_only
from odd import trained, trial_of
from smidgen.data.dataset import load_dataset
from smidgen.errors import SmidgenError, TrialError
from smidgen.exports.export import export
from smidgen.inspection import inspect
from smidgen.runs.predict import predict
from smidgen.runs.record import Run, load_run
from smidgen.tensorfile import STORABLE
from smidgen.training.evaluation import scores
from smidgen.trial import Conv, Goal, Linear, Network, Trial
from smidgen.trials.find import find_trial

TRAINED = [
    "Plain",
    "Tied",
    "TwoNames",
    "TiedBuffer",
    "Chunks",
    "Lazy",
    "Frozen",
    "Typed",
    "Weighted",
    "Keyed",
    "Hooked",
]
REFUSED = {
    "Asserting": r"fails in training: AssertionError: only for evaluation \(nets\.py, line \d+\)",
    "Leaving": r"fails in training: SystemExit: I do not train \(nets\.py, line \d+\)",
    "Late": r"Late failed in epoch 1, step \d+ of 12: LookupError: ten is enough \(nets\.py, line \d+\)",
    "Missing": r"does not take images of 1x28x28: AttributeError: .* \(nets\.py, line \d+\)",
    "Whole": "Whole has no parameters to train",
    "AllFrozen": "AllFrozen has no parameters to train",
    "Detached": "fails in training: RuntimeError: element 0 of tensors does not require grad",
    "Noisy": "different scores for the same images in evaluation mode",
    "Unsaved": "neither parameters nor buffers",
    "NotPersistent": "neither parameters nor buffers",
    "ExtraState": "_extra_state is a dict; only tensors can be saved",
    "Complex": "turn is of type complex128, which weight files cannot hold",
    "Sparse": "table is of type sparse_coo, which weight files cannot hold",
    "Views": r"b\.weight and copy share memory",
    "ViewBuffer": r"first and b\.weight share memory",
    "Expanded": r"values of scale share memory",
    "Half": "scale has the dtype torch.float64; only float32 parameters can be trained",
}


def check_read_back(finished: Run, network: ModuleType | None = None) -> None:
    """The run in its directory is the network in memory."""
    again = load_run(finished.directory)
    images = load_dataset(finished.trial.data.source).held_out.images
    mean, std = finished.trained.mean, finished.trained.std
    assert torch.equal(scores(again.network, images, mean, std), scores(finished.network, images, mean, std))
    assert again.result == finished.result


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("name", TRAINED)
def test_what_pytorch_trains_is_trained_kept_and_read_back(
    nets: ModuleType, name: str, engine: str, small_trial: Trial, tmp_path: Path
) -> None:
    finished = trained(trial_of(getattr(nets, name), small_trial), tmp_path / "run", engine)
    check_read_back(finished)
    stored = sum(p.numel() for p in finished.network.parameters())
    assert finished.result.parameters == stored
    assert inspect(finished.trial).anatomy.parameters == stored
    assert export(finished, "safetensors", tmp_path / "out").passed


@pytest.mark.parametrize("dtype", sorted(STORABLE, key=str), ids=lambda dtype: str(dtype).partition(".")[2])
def test_buffers_of_every_type_that_weight_files_hold(
    nets: ModuleType, dtype: torch.dtype, small_trial: Trial, tmp_path: Path
) -> None:
    factory = getattr(nets, "Buffer_" + str(dtype).partition(".")[2])
    factory.__qualname__ = factory.__name__ = "Buffer_" + str(dtype).partition(".")[2]
    finished = trained(trial_of(factory, small_trial), tmp_path / "run")
    kept = finished.network.state_dict()["kept"]
    assert kept.dtype == dtype
    assert (kept.real if kept.is_complex() else kept).to(torch.float32).tolist() == [1, 0, 1, 1]
    check_read_back(finished)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_wrong_later_is_one_line(nets: ModuleType, name: str, small_trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(SmidgenError, match=REFUSED[name]) as caught:
        trained(trial_of(getattr(nets, name), small_trial), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert name == "Late" or not (tmp_path / "run").exists()


@native_only
@pytest.mark.parametrize(
    ("name", "chance"),
    [
        ("Branching", lambda: random.random()),
        ("Branching", lambda: float(np.random.rand())),  # noqa: NPY002 - as users do
        ("Branching", lambda: float(torch.rand(1))),
        ("Counting", None),
    ],
)
def test_networks_that_differ_from_call_to_call_are_not_traced(
    nets: ModuleType, name: str, chance: Any, small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nets, "CHANCE", chance, raising=False)
    trial = trial_of(getattr(nets, name), small_trial)
    with pytest.raises(SmidgenError, match="differs from call to call"):
        trained(trial, tmp_path / "native", "native")
    assert trained(trial, tmp_path / "auto").result.engine == "eager"


@pytest.mark.parametrize("name", ["Untracked", "AcrossTheBatch"])
def test_scores_that_depend_on_the_batch_are_of_no_use_later(
    nets: ModuleType, name: str, small_trial: Trial, tmp_path: Path, smidgen: Command
) -> None:
    finished = trained(trial_of(getattr(nets, name), small_trial), tmp_path / "run")
    assert "depend on the others in its batch" in (tmp_path / "run" / "log.txt").read_text()
    Image.linear_gradient("L").save(tmp_path / "x.png")
    with pytest.raises(SmidgenError, match="depend on the others in its batch"):
        predict(finished, [tmp_path / "x.png"])
    for target in ("onnx", "c", "page"):
        with pytest.raises(SmidgenError, match="cannot be exported: (norm: it normalizes by the statistics|mean)"):
            export(finished, target, tmp_path / target)
        assert not (tmp_path / target).exists()


def test_frozen_parameters_count_towards_the_budget(nets: ModuleType, small_trial: Trial, tmp_path: Path) -> None:
    trial = trial_of(nets.Frozen, small_trial, goal=Goal(accuracy=10, parameters=60, epochs=1))
    with pytest.raises(TrialError, match="90"):
        trained(trial, tmp_path / "run")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch_size", [599, 50])
def test_a_batch_of_one_image_that_cannot_be_normalized_is_found_first(
    nets: ModuleType, small_trial: Trial, engine: str, batch_size: int, tmp_path: Path
) -> None:
    """600 images: batches of 599 leave one image for the last, batches of 50 none."""
    blocks = Network(blocks=(Conv(4, stride=4), Conv(4, kernel=7), Linear()))
    for number, trial in enumerate(
        [
            trial_of(nets.Norm1d, small_trial, batch_size=batch_size),
            replace(small_trial, network=blocks, epochs=1, batch_size=batch_size),
        ]
    ):
        if batch_size == 50:
            assert trained(trial, tmp_path / str(number), engine).history
        else:
            with pytest.raises(TrialError, match=r"single image, which (inner\.1|norm2) cannot.*; change batch_size"):
                trained(trial, tmp_path / str(number), engine)
    if batch_size == 599:
        with pytest.raises(TrialError, match="single image, which the network cannot process"):
            trained(trial_of(nets.Squeezing, small_trial, batch_size=599), tmp_path / "s", "eager")


def test_reading_a_run_leaves_random_numbers_alone(nets: ModuleType, small_trial: Trial, tmp_path: Path) -> None:
    finished = trained(trial_of(nets.Plain, small_trial), tmp_path / "run")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_run(finished.directory)
    assert torch.equal(torch.rand(3), expected)


def test_inspect_calls_classes_with_what_they_take(nets: ModuleType, tmp_path: Path, smidgen: Command) -> None:
    assert inspect(nets.Keyed).anatomy.parameters == 90
    assert smidgen("inspect", f"{nets.__file__}:Keyed", "--json").json["parameters"] == 90
    assert smidgen("inspect", f"{nets.__file__}:Lazy", "--json").json["parameters"] == 98


def test_an_inspection_is_a_table_in_a_notebook(nets: ModuleType) -> None:
    shown = inspect(nets.Frozen)._repr_html_()
    assert "<table>" in shown
    assert "<td>40</td>" in shown
    assert "50 of them trainable" in shown
    trial = find_trial("mnist-tiny")
    assert "budget of at most" in inspect(trial)._repr_html_()
