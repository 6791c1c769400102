"""What a finished run keeps of its answers, and that reports read it instead of classifying again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from conftest import Command
from smidgen.engines.choose import choose
from smidgen.errors import RunError, SmidgenError
from smidgen.reports import collect
from smidgen.reports.collect import TrialRuns
from smidgen.reports.compare import compare
from smidgen.reports.report import report
from smidgen.runs.options import RunOptions
from smidgen.runs.predictions import Predictions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import load_trial_data, run
from smidgen.tensorfile import sealed_bytes
from smidgen.training.evaluation import scores
from smidgen.trial import Trial

NAME = "predictions.safetensors"


@pytest.fixture
def copied(small_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_run.directory, tmp_path / "copied"))


def kept(made: Run) -> Predictions:
    assert made.predictions is not None
    return made.predictions


def group_of(*directories: Path) -> TrialRuns:
    return collect.collect(directories).trials[0]


def test_they_are_those_of_the_network_that_is_kept(small_run: Run, small_trial: Trial) -> None:
    data = load_trial_data(small_trial)
    logits = scores(small_run.network, data.held_out.images, data.mean, data.std)
    fresh = logits.double().softmax(1)
    for predictions in (kept(small_run), kept(load_run(small_run.directory))):
        assert np.array_equal(predictions.classes, fresh.argmax(1).numpy())
        assert np.allclose(predictions.probabilities, fresh.max(1).values.numpy(), atol=1e-5)
        assert int((predictions.classes == data.held_out.labels.numpy()).sum()) == small_run.history[-1].test_correct


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_run_resumed_after_its_last_epoch_ends_with_the_same_file(
    small_trial: Trial, tmp_path: Path, engine: str
) -> None:
    options = RunOptions(engine=engine, threads=1)  # type: ignore[arg-type]
    whole = run(small_trial, out=tmp_path / "r", options=options, progress=Silent())
    expected = (whole.directory / NAME).read_bytes()
    for name in (NAME, "result.json", "weights.safetensors"):
        (whole.directory / name).unlink()
    again = run(resume=whole.directory, progress=Silent())
    assert again.result.weights_sha256 == whole.result.weights_sha256
    assert (again.directory / NAME).read_bytes() == expected


def test_more_classes_than_a_byte_holds_are_kept(small_run: Run, tmp_path: Path) -> None:
    logits = torch.eye(300, 400)
    predictions = Predictions.from_logits(logits)
    tensors = safetensors.torch.load(predictions.to_bytes("0" * 64, 3))
    assert tensors["classes"].tolist() == list(range(300))


def test_reports_do_not_classify_again(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("classified again")

    monkeypatch.setattr(collect, "evaluate", fail)
    report([small_run.directory], tmp_path / "r.html")
    assert compare([small_run.directory], [small_run.directory]).difference == 0
    without = replace(small_run, predictions=None)
    with pytest.raises(AssertionError, match="classified again"):
        report([without], tmp_path / "r.html")


def test_a_run_of_an_older_version_is_classified_by_its_engine(small_run: Run, copied: Path) -> None:
    (copied / NAME).unlink()
    older = group_of(copied)
    assert older.runs[0].predictions is None
    assert np.array_equal(older.predictions[0].classes, kept(small_run).classes)
    if small_run.result.engine == "native":  # which gives the same for any number of threads
        assert np.array_equal(older.predictions[0].probabilities, kept(small_run).probabilities)
    np.testing.assert_allclose(older.predictions[0].probabilities, kept(small_run).probabilities, rtol=1e-5)
    assert older.notes == []


def test_an_engine_that_is_not_here_is_replaced_and_that_is_noted(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smidgen: Command
) -> None:
    (copied / NAME).unlink()

    def without_native(engine: str, *arguments: object) -> object:
        if engine == "eager":
            return choose("eager")
        raise SmidgenError("the native engine is not installed")

    monkeypatch.setattr(collect, "choose", without_native)
    result = json.loads((copied / "result.json").read_text())
    (copied / "result.json").write_text(json.dumps({**result, "engine": "native"}))
    report([copied], tmp_path / "r.md")
    assert "the native engine is not installed" in (tmp_path / "r.md").read_text()
    compared = smidgen("compare", copied, "--with", copied, "--json")
    assert compared.json["difference"] == 0
    assert "the native engine is not installed" in compared.err


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "garbage", "weights", "another run", "link"])
def test_a_file_that_is_not_what_was_written_is_refused(
    small_trial: Trial, copied: Path, tmp_path: Path, damage: str
) -> None:
    path = copied / NAME
    content = path.read_bytes()
    if damage == "another run":
        other = run(small_trial, seed=9, out=tmp_path / "other", progress=Silent())
        shutil.copy(other.directory / NAME, path)
    elif damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        flipped = bytearray(content)
        flipped[-5] ^= 8
        weights = (copied / "weights.safetensors").read_bytes()
        path.write_bytes(
            {"empty": b"", "half": content[: len(content) // 2], "flipped": bytes(flipped), "garbage": b"\xff{" * 50,
             "weights": weights}[damage]
        )  # fmt: skip
    with pytest.raises(RunError) as caught:
        load_run(copied)
    assert str(path) in str(caught.value)
    assert "remove it" in str(caught.value)
    path.unlink()
    assert load_run(copied).predictions is None


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": torch.full((200,), 10, dtype=torch.uint8)},
        {"classes": torch.full((200,), -1)},
        {"classes": torch.zeros(200)},
        {"classes": torch.zeros(199, dtype=torch.uint8)},
        {"probabilities": torch.full((200,), 1.5)},
        {"probabilities": torch.full((200,), float("nan"))},
        {"probabilities": torch.zeros(200, dtype=torch.float64)},
        {"correct": 3},
        {"correct": [1]},
        {"weights_sha256": None},
        {"format": 99},
    ],
    ids=str,
)
def test_sealed_content_is_checked_as_well(small_run: Run, copied: Path, changes: dict[str, object]) -> None:
    """Made by somebody who knows how to seal a file."""
    tensors = {"classes": torch.zeros(200, dtype=torch.uint8), "probabilities": torch.ones(200)}
    sha256, correct = small_run.result.weights_sha256, small_run.history[-1].test_correct
    about: dict[str, object] = {"format": 1, "weights_sha256": sha256, "correct": correct}
    for name, value in changes.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            about[name] = value
    (copied / NAME).write_bytes(sealed_bytes(tensors, about))
    with pytest.raises(RunError, match="remove it"):
        load_run(copied)


def test_answers_that_disagree_with_the_figures_are_refused(small_run: Run, copied: Path) -> None:
    predictions = replace(kept(small_run), classes=(kept(small_run).classes + 1) % 10)
    content = predictions.to_bytes(small_run.result.weights_sha256, small_run.history[-1].test_correct)
    (copied / NAME).write_bytes(content)
    with pytest.raises(RunError, match="remove it"):
        group_of(copied).predictions  # noqa: B018 - the access is the test
