"""From a folder of colour pictures to a trial file, a run, its report and its predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Command, native_only
from images import CLASSES, picture, write_images
from smidgen.data.known import KNOWN
from smidgen.errors import RunError, TrialError
from smidgen.graph.cost import count_parameters
from smidgen.nets.build import build_network, measure
from smidgen.nets.sizing import sized_network
from smidgen.reports.report import report
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import run
from smidgen.runs.weights import read_weights
from smidgen.trial import Conv
from smidgen.trials.find import find_trial
from smidgen.trials.new import new_trial

NAMES = ("circle ring", "naïve\\nsquare", "三角")


@pytest.fixture
def folder(colour_folder: Path) -> Path:
    return colour_folder


@pytest.fixture
def file(colour_file: Path) -> Path:
    return colour_file


@pytest.mark.parametrize("budget", [600, 2_000, 7_999, 20_000, 100_000])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 12, 20), (1, 96, 96), (3, 5, 5)])
def test_networks_are_sized_just_under_the_budget(shape: tuple[int, int, int], budget: int) -> None:
    network = sized_network(shape, 10, budget)
    parameters, _ = measure(network, input_shape=shape, classes=10)
    assert budget * 0.8 <= parameters <= budget
    assert count_parameters(build_network(network, input_shape=shape, classes=10)) == parameters


@pytest.mark.parametrize(
    ("shape", "budget"),
    [((1, 28, 28), 8_000), ((1, 28, 28), 104), ((1, 8, 8), 33), ((3, 20, 12), 900), ((3, 96, 96), 20_000)],
)
def test_the_network_in_the_file_is_the_one_that_was_sized(
    shape: tuple[int, int, int], budget: int, tmp_path: Path
) -> None:
    channels, height, width = shape
    images = np.zeros((8, height, width) if channels == 1 else (8, height, width, channels), np.uint8)
    images += np.arange(8, dtype=np.uint8).reshape(8, *[1] * (images.ndim - 1))
    labels = np.arange(8) % 4
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    written = new_trial(tmp_path / "mine.py", data=tmp_path / "data.npz", max_parameters=budget)
    trial = find_trial(f"{tmp_path / 'mine.py'}:trial")
    assert trial.network == written.network
    assert written.dataset.input_shape == shape
    assert measure(trial.network, input_shape=shape, classes=4)[0] == written.parameters


@pytest.mark.parametrize(("ram", "is_separable"), [(None, True), (2_000, False), (100_000, True)])
def test_convolutions_are_separable_unless_memory_is_short(
    ram: int | None, is_separable: bool, folder: Path, tmp_path: Path
) -> None:
    written = new_trial(tmp_path / "t.py", data=folder, max_flash=6_000, max_ram=ram)
    assert any(isinstance(block, Conv) and block.groups > 1 for block in written.network.blocks) == is_separable
    assert ("separable" in (tmp_path / "t.py").read_text()) == is_separable
    assert written.needs is not None
    assert 4_000 < written.needs.flash <= 6_000


def test_a_budget_that_nothing_fits_is_named() -> None:
    with pytest.raises(TrialError, match=r"the smallest network for 1x28x28 and 10 classes has .* more than 9"):
        sized_network((1, 28, 28), 10, 9)


def test_a_new_trial_file_runs_as_it_stands(file: Path, colour_run: Run) -> None:
    trial = find_trial(f"{file}:trial")
    assert trial.name == "my_trial"
    assert trial.data.shape == (3, 12, 12)
    assert trial.goal.parameters == 3_000
    assert 2_400 < colour_run.result.parameters <= 3_000
    assert colour_run.accuracy > 90
    assert colour_run.result.class_names == tuple(NAMES)


def test_a_file_that_is_there_is_not_overwritten(file: Path, folder: Path, smidgen: Command, tmp_path: Path) -> None:
    before = file.read_text()
    assert smidgen("new", file, "--data", folder).is_mistake("is there already and is not overwritten")
    assert file.read_text() == before
    assert smidgen("new", tmp_path / "x.txt", "--data", folder).is_mistake("must end in .py")
    assert smidgen("new", tmp_path / "x.py", "--data", folder, "--max-parameters", "9").is_mistake("raise --max-param")
    done = smidgen("new", tmp_path / "näh'{x}.py", "--data", folder, "--max-parameters", "900", "--json").json
    assert 700 < done["parameters"] <= 900
    assert smidgen("inspect", done["trial"], "--json").json["parameters"] == done["parameters"]


def test_data_without_test_images_give_a_trial_evaluated_on_validation(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 50)):
        write_images(tmp_path / "d" / split, 8, first=first)
    new_trial(tmp_path / "t.py", data=tmp_path / "d", max_parameters=800, epochs=1)
    finished = run(f"{tmp_path / 't.py'}:trial", out=tmp_path / "r", progress=Silent())
    assert finished.result.held_out == "validation"
    assert finished.history[-1].test_total == 24


@native_only
def test_both_engines_train_alike_on_colour(file: Path, colour_run: Run, tmp_path: Path) -> None:
    assert colour_run.result.engine == "native"
    settings = ["augmentation.flip=0.5", "augmentation.translation=0", "augmentation.scale=0"]
    eager = run(
        f"{file}:trial", out=tmp_path / "e", settings=settings, options=RunOptions(engine="eager"), progress=Silent()
    )
    assert abs(eager.history[0].train_loss - colour_run.history[0].train_loss) < 1e-3
    assert eager.accuracy > 90


def test_class_names_are_kept_to_the_end(colour_run: Run, folder: Path, smidgen: Command, tmp_path: Path) -> None:
    again = load_run(colour_run.directory)
    assert again.trained.class_names == NAMES
    assert again.trained.form == "picture"
    path = tmp_path / "new one.png"
    picture(2, 1_000, side=24).resize((12, 12)).save(path)
    known = folder / CLASSES[1] / "n003.png"
    found = smidgen("predict", colour_run.directory, known, path, "--json").json["predictions"]
    assert (found[0]["label"], found[0]["name"]) == (1, NAMES[1])
    assert NAMES[1] in smidgen("predict", colour_run.directory, known).out
    text = report([colour_run], tmp_path / "r.md").path.read_text()
    assert "3 x 12 x 12, 3 classes: circle ring" in text
    assert "all channels together" in text
    assert "50% of them are mirrored" in text
    assert "as 三角" in text
    assert report([colour_run], tmp_path / "r.html").path.stat().st_size > 10_000
    with Image.open(tmp_path / "r-images" / "sheet-my_trial-before.png") as sheet:
        assert sheet.mode == "RGB"
    with Image.open(tmp_path / "r-images" / "filters-my_trial.png") as sheet:
        assert sheet.mode == "RGB"


@pytest.mark.parametrize(
    "changed",
    [{"class_names": ["a"]}, {"class_names": ["a", "b\nc", "d"]}, {"class_names": 3}, {"form": "sculpture"}],
)
def test_weights_with_impossible_names_are_refused(colour_run: Run, tmp_path: Path, changed: dict[str, Any]) -> None:
    from smidgen.tensorfile import read_header, read_tensors, sealed_bytes

    path = colour_run.directory / "weights.safetensors"
    header = read_header(path)
    about = {key: value for key, value in header.about.items() if key != "seal"}
    (tmp_path / "w.safetensors").write_bytes(sealed_bytes(read_tensors(path, header), about | changed))
    with pytest.raises(RunError, match="class names|form"):
        read_weights(tmp_path / "w.safetensors")


def test_the_data_command_describes_a_folder(folder: Path, smidgen: Command, tmp_path: Path) -> None:
    done = smidgen("data", folder, "--sheet", tmp_path / "sheet.png")
    assert "12 x 12        180  ####" in done.out
    assert "三角" in done.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * (12 * 14 - 2), 4 * (3 * 14 - 2))
    (found,) = smidgen("data", folder, "--json").json["datasets"]
    assert found["class_names"] == list(NAMES)
    assert sum(found["train_images_per_class"]) + sum(found["test_images_per_class"]) == 180
    assert found["sizes"] == [[12, 12, 180]]
    assert json.dumps(found)
    assert smidgen("data", folder, "--sheet", tmp_path / "x.txt").is_mistake("must be a file", ".png")
    assert smidgen("data", folder, "--sheet", tmp_path / "no" / "x.png").is_mistake("another place with --sheet")
    for split, count, first in (("train", 5, 0), ("val", 3, 10), ("test", 2, 20)):
        write_images(tmp_path / "d" / split, count, first=first)
    (found,) = smidgen("data", tmp_path / "d", "--json").json["datasets"]
    assert (found["train_images"], found["validation_images"], found["test_images"]) == (15, 9, 6)


def test_a_named_data_set_that_is_not_installed_is_one_line(smidgen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setitem(KNOWN, "fashion-mnist", replace(KNOWN["fashion-mnist"], folder=Path("/nothing/here")))
    assert smidgen("run", "fashion-small").is_mistake("Debian's package dataset-fashion-mnist", "--data")
    assert smidgen("inspect", "fashion-small").status == 0


def test_inspect_holds_any_network_against_a_budget(smidgen: Command, tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())\n")
    met = smidgen("inspect", f"{path}:net", "--input", "3x8x8", "--max-parameters", "112")
    assert met.status == 0
    assert "budget of at most 112 parameters: 112, met, 0 to spare" in met.out
    missed = smidgen("inspect", f"{path}:net", "--input", "3x8x8", "--max-parameters", "111", "--json")
    assert missed.status == 1
    assert missed.json["budget"] == {"parameters": 111, "met": False}
    assert smidgen("inspect", f"{path}:net", "--input", "3x8x8").status == 0
