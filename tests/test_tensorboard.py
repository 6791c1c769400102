"""`--log tensorboard`: the event files, read back by TensorBoard itself."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from conftest import Command, scalars_on_disk
from smidgen.errors import SmidgenError
from smidgen.runs.callback import Callback
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import RunInterruptedError, run
from smidgen.sweeps.sweep import sweep
from smidgen.trial import Augmentation, Trial

LOGGED = RunOptions(threads=1, log="tensorboard")


def read(folder: Path) -> Any:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def assert_scalars(events: Any, directory: Path, held_out: str = "test") -> None:
    """The scalars are exactly those of epochs.jsonl, and the last accuracy that of result.json."""
    epochs = scalars_on_disk(directory, held_out)
    for tag in epochs[0]:
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(step, pytest.approx(epoch[tag], rel=1e-6)) for step, epoch in enumerate(epochs, start=1)], tag
    result = json.loads((directory / "result.json").read_text())
    (last,) = events.Scalars(f"{held_out}_accuracy_last")
    assert last.value == pytest.approx(result[f"{held_out}_accuracy_last"], rel=1e-6)


@pytest.fixture(scope="module")
def logged(small_trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(small_trial, seed=3, out=tmp_path_factory.mktemp("runs") / "r", options=LOGGED, progress=Silent())


def test_the_run_is_in_the_event_file(logged: Run, small_run: Run) -> None:
    assert logged.result.weights_sha256 == small_run.result.weights_sha256
    events = read(logged.directory / "tensorboard")
    assert_scalars(events, logged.directory)
    (image,) = events.Images("training images")
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (8 * 28, 4 * 28)
    (table,) = events.Tensors("layers/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert "| conv1 | Conv2d |" in text
    assert "678 parameters" in text


def test_the_hyperparameters_are_the_trials(logged: Run, small_trial: Trial) -> None:
    events = read(logged.directory / "tensorboard")
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["optimizer.lr"].number_value == small_trial.optimizer.lr
    assert settings["schedule.type"].string_value == "constant"
    assert settings["network"].string_value == str(small_trial.network)
    assert settings["seed"].number_value == 3
    experiment = HParamsPluginData.FromString(events.summary_metadata["_hparams_/experiment"].plugin_data.content)
    assert [metric.name.tag for metric in experiment.experiment.metric_infos] == ["test_accuracy_last"]


def test_a_resumed_run_is_shown_once(small_trial: Trial, tmp_path: Path) -> None:
    class Stop(Callback):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    trial = replace(small_trial, augmentation=Augmentation(rotation=10), data=replace(small_trial.data, evaluate="validation"))  # fmt: skip
    with pytest.raises(RunInterruptedError):
        run(trial, out=tmp_path / "r", options=LOGGED, callbacks=[Stop()], progress=Silent())
    run(resume=tmp_path / "r", options=LOGGED, progress=Silent())
    assert len(list((tmp_path / "r" / "tensorboard").iterdir())) == 2
    assert_scalars(read(tmp_path / "r" / "tensorboard"), tmp_path / "r", "validation")


def test_a_run_that_was_finished_without_a_log_gets_one(small_trial: Trial, tmp_path: Path) -> None:
    run(small_trial, epochs=1, out=tmp_path / "r", progress=Silent())
    run(small_trial, epochs=1, out=tmp_path / "r", options=replace(LOGGED, log_dir=tmp_path / "l"), progress=Silent())
    assert not (tmp_path / "r" / "tensorboard").exists()
    assert_scalars(read(tmp_path / "l" / "r"), tmp_path / "r")
    table = read(tmp_path / "l" / "r").Tensors("layers/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "678 of them trainable" in table


def test_the_workers_of_a_sweep_write_logs(small_trial: Trial, tmp_path: Path) -> None:
    trial = replace(small_trial, epochs=1)
    made = sweep([trial], "0-1", workers=2, options=LOGGED, out=tmp_path / "s")
    for finished in made.trials[0].runs:
        assert_scalars(read(finished.directory / "tensorboard"), finished.directory)
    elsewhere = replace(LOGGED, log_dir=tmp_path / "l")
    (finished,) = sweep([trial], "2", workers=1, options=elsewhere, out=tmp_path / "s").trials[0].runs
    assert_scalars(read(tmp_path / "l" / finished.directory.parent.name / "seed2"), finished.directory)
    # The log is no part of the recipe: all of these runs are there already.
    assert sweep([trial], "0-2", workers=1, out=tmp_path / "s").kept == 3


def test_a_log_that_cannot_be_written_is_reported_once(
    small_trial: Trial, small_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    options = replace(LOGGED, log_dir=tmp_path / "file")
    made = run(small_trial, seed=3, out=tmp_path / "r", options=options, progress=Silent())
    assert made.result.weights_sha256 == small_run.result.weights_sha256
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert str(tmp_path / "file") in shown
    assert "choose another place with --log-dir" in shown
    assert "space" not in shown  # it is a file, not a full disk
    assert "TensorBoard is left out from here on" in shown


def test_a_full_disk_in_the_middle_is_reported_once(
    small_trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Vanish(Callback):
        """Replaces the log by a device that is always full."""

        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if (epoch, images) == (1, 50):
                (log,) = (tmp_path / "r" / "tensorboard").iterdir()
                log.unlink()
                log.symlink_to("/dev/full")

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    made = run(small_trial, out=tmp_path / "r", options=LOGGED, callbacks=[Vanish()], progress=Silent())
    assert len(made.history) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "TensorBoard is left out from here on" in shown
    assert os.strerror(28) in shown


def test_the_command(smidgen: Command, small_trial: Trial, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_trial.to_json()))
    done = smidgen("run", path, "--out", tmp_path / "r", "--log", "tensorboard", "--epochs", "1", "--json")
    assert done.json["epochs"] == 1
    assert_scalars(read(tmp_path / "r" / "tensorboard"), tmp_path / "r")
    assert smidgen("run", path, "--log-dir", "x", "--out", tmp_path / "x").is_mistake("--log-dir x needs --log")
    assert smidgen("run", path, "--log", "paper", "--out", tmp_path / "x").is_mistake("tensorboard")
    arguments = ["--cluster", "local", "--log", "tensorboard", "--out", tmp_path / "x"]
    assert smidgen("sweep", path, *arguments).is_mistake("--log-dir")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("log", "module"), [("tensorboard", "torch.utils.tensorboard.summary"), ("trackio", "trackio")]
)
def test_without_the_extra_nothing_begins(
    log: str, module: str, smidgen: Command, small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_trial.to_json()))
    monkeypatch.setitem(sys.modules, module, None)
    for command in ("run", "sweep", "search"):
        done = smidgen(command, path, "--log", log, "--out", tmp_path / "x")
        assert done.is_mistake(f"pip install 'smidgen[{log}]'")
    assert not (tmp_path / "x").exists()
    with pytest.raises(SmidgenError, match="--log is 'paper'"):
        RunOptions(log="paper")  # type: ignore[arg-type]
