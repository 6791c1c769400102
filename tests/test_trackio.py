"""`--log trackio`: the database, read back by trackio itself."""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import Command, scalars_on_disk
from smidgen.runs.callback import Callback
from smidgen.runs.logged import hyperparameters
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import RunInterruptedError, run
from smidgen.runs.trackio import sheet
from smidgen.sweeps.sweep import sweep
from smidgen.trial import Augmentation, Trial

LOGGED = RunOptions(threads=1, log="trackio")

pytestmark = pytest.mark.skipif(find_spec("trackio") is None, reason="no trackio: make test-trackio installs it")


def forget() -> None:
    """Have trackio imported anew: it takes its folder from the environment only then."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of trackio, by the environment."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        forget()
        yield folder
        forget()


def runs(name: str) -> list[Any]:
    return [run for run in importlib.import_module("trackio").Api().runs("smidgen") if run.name == name]


def rows(run: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = importlib.import_module("trackio").SQLiteStorage.get_logs(
        "smidgen", run.name, run_id=run.id
    )
    return found


def assert_scalars(name: str, directory: Path, held_out: str = "test") -> None:
    """There is one run of that name, whose scalars are exactly those of epochs.jsonl and result.json."""
    (found,) = runs(name)
    epochs = scalars_on_disk(directory, held_out)
    there = [{name: value for name, value in row.items() if name != "timestamp"} for row in rows(found)]
    shown = [row for row in there if "learning rate" in row]
    assert shown == [epoch | {"step": step} for step, epoch in enumerate(epochs, start=1)]
    result = json.loads((directory / "result.json").read_text())
    name = f"{held_out}_accuracy_last"
    assert [row for row in there if name in row] == [{name: result[name], "step": len(epochs)}]


@pytest.fixture(scope="module")
def logged(root: Path, small_trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(small_trial, seed=3, out=tmp_path_factory.mktemp("runs") / "first", options=LOGGED, progress=Silent())


def test_the_run_is_in_the_database(logged: Run, small_run: Run, small_trial: Trial, root: Path) -> None:
    assert logged.result.weights_sha256 == small_run.result.weights_sha256
    assert not (logged.directory / "trackio").exists()
    assert_scalars("first", logged.directory)
    (found,) = runs("first")
    assert found.config == {**hyperparameters(small_trial, 3), "_Group": "small"}
    assert found.config["optimizer.lr"] == small_trial.optimizer.lr
    (image,) = [row["training images"] for row in rows(found) if "training images" in row]
    assert image["_type"] == "trackio.image"
    with Image.open(root / "media" / image["file_path"]) as picture:
        assert picture.size == (8 * 28, 4 * 28)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_side_by_side(channels: int) -> None:
    images = torch.rand(9, channels, 2, 5)
    shown = sheet(images)
    assert shown.size == (8 * 5, 2 * 2)
    assert shown.mode == {1: "L", 3: "RGB"}[channels]
    for number, image in enumerate(images):
        y, x = divmod(number, 8)
        tile = shown.crop((x * 5, y * 2, x * 5 + 5, y * 2 + 2))
        expected = (image.permute(1, 2, 0) * 255).round().byte()
        assert tile.tobytes() == expected.numpy().tobytes()


def test_the_database_is_open_during_a_run(root: Path, small_trial: Trial, tmp_path: Path) -> None:
    # Otherwise each write syncs it to disk, and the workers of a large sweep fail to get trackio's lock.
    log, seen = root / "smidgen.db-wal", []

    class Look(Callback):
        def epoch(self, record: object) -> None:
            seen.append(log.exists())

    run(small_trial, out=tmp_path / "open", options=LOGGED, callbacks=[Look()], progress=Silent())
    assert seen == [True, True]
    assert not log.exists()


def test_a_resumed_run_is_shown_once(root: Path, small_trial: Trial, tmp_path: Path) -> None:
    class Stop(Callback):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    trial = replace(small_trial, augmentation=Augmentation(rotation=10), data=replace(small_trial.data, evaluate="validation"))  # fmt: skip
    out = tmp_path / "resumed"
    with pytest.raises(RunInterruptedError):
        run(trial, out=out, options=LOGGED, callbacks=[Stop()], progress=Silent())
    (found,) = runs("resumed")
    assert [row["step"] for row in rows(found)] == [0, 1]
    run(resume=out, options=LOGGED, progress=Silent())
    assert_scalars("resumed", out, "validation")
    assert len(list((root / "media" / "smidgen" / "resumed").iterdir())) == 1


def test_a_run_that_starts_over_replaces_the_one_before(root: Path, small_trial: Trial, tmp_path: Path) -> None:
    for seed, epochs in ((0, 2), (1, 1)):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        run(small_trial, seed=seed, epochs=epochs, out=tmp_path / "again", options=LOGGED, progress=Silent())
    assert_scalars("again", tmp_path / "again")
    (found,) = runs("again")
    assert found.config["seed"] == 1


def test_runs_of_the_same_name_in_other_places_are_apart(root: Path, small_trial: Trial, tmp_path: Path) -> None:
    # The runs were finished without a log, and get one later.
    for place in ("a", "b"):
        run(small_trial, epochs=1, out=tmp_path / place / "same", progress=Silent())
        options = replace(LOGGED, log_dir=root)
        run(small_trial, epochs=1, out=tmp_path / place / "same", options=options, progress=Silent())
    assert len(runs("same")) == 2


def test_the_workers_of_a_sweep_share_a_database(root: Path, small_trial: Trial, tmp_path: Path) -> None:
    trial = replace(small_trial, epochs=1)
    made = sweep([trial], "0-1", workers=2, options=replace(LOGGED, log_dir=root), out=tmp_path / "s")
    for finished in made.trials[0].runs:
        assert_scalars(f"{finished.directory.parent.name}-{finished.directory.name}", finished.directory)
    assert not list((tmp_path / "s").rglob("*.db"))


def test_a_folder_that_cannot_be_written_is_reported_once(
    root: Path, small_trial: Trial, small_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    options = replace(LOGGED, log_dir=tmp_path / "file")
    forget()
    made = run(small_trial, seed=3, out=tmp_path / "r", options=options, progress=Silent())
    forget()
    assert made.result.weights_sha256 == small_run.result.weights_sha256
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "Trackio.begin failed" in shown
    assert str(tmp_path / "file") in shown


def test_a_full_disk_in_the_middle_is_reported_once(
    root: Path, small_trial: Trial, small_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(Callback):
        """No file can grow while the log, which is called between the callbacks and the progress, writes an epoch."""

        def epoch(self, record: object) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))

    class Free(Silent):
        def epoch(self, record: object) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        made = run(small_trial, seed=3, out=tmp_path / "full", options=LOGGED, callbacks=[Full()], progress=Free())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert made.result.weights_sha256 == small_run.result.weights_sha256
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "Trackio.epoch failed" in shown
    (found,) = runs("full")
    assert [row["step"] for row in rows(found)] == [0]


def test_the_command_uses_no_network_and_no_thread(small_trial: Trial, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_trial.to_json()))
    code = (
        "import sys, threading\n"
        "calls = []\n"
        "sys.addaudithook(lambda name, given: calls.append((name, given)) if name.startswith('socket.') else None)\n"
        "from smidgen.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print(status, [name for name, _ in calls if name not in ('socket.__new__', 'socket.gethostname')], "
        "threading.active_count(), file=sys.stderr)\n"
    )
    arguments = ["run", path, "--out", tmp_path / "r", "--epochs", "1", "--log", "trackio", "--json"]
    # With these, trackio.init would ask the Hub for the user's name, or send to a Space or server.
    remote = {"HF_TOKEN": "hf_x", "TRACKIO_SPACE_ID": "someone/space", "TRACKIO_SERVER_URL": "http://192.0.2.1"}
    environment = {**os.environ, **remote, "TRACKIO_DIR": str(tmp_path / "t")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert json.loads(done.stdout)["epochs"] == 1
    assert done.stderr.splitlines()[-1] == "0 [] 1", done.stderr
    assert (tmp_path / "t" / "smidgen.db").exists()


def test_what_cannot_be_logged_is_refused_before_training(
    root: Path, smidgen: Command, small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "small.json", tmp_path / "x"
    path.write_text(json.dumps(small_trial.to_json()))
    logged = ("--log", "trackio", "--out", out)
    trackio = importlib.import_module("trackio")
    assert smidgen("run", path, *logged, "--log-dir", tmp_path / "l").is_mistake(str(tmp_path / "l"), str(root))
    cluster = smidgen("sweep", path, *logged, "--log-dir", root, "--cluster", "ray://127.0.0.1:1")
    assert cluster.is_mistake("--log tensorboard")
    with monkeypatch.context() as patch:
        patch.setenv("TRACKIO_BUCKET_ID", "someone/bucket")
        assert smidgen("run", path, *logged).is_mistake("TRACKIO_BUCKET_ID")
    with monkeypatch.context() as patch:
        patch.setattr(trackio.utils, "_filesystem_type_for_path", lambda path: "nfs4")
        assert smidgen("run", path, *logged).is_mistake(str(root), "--log-dir")
    monkeypatch.setitem(sys.modules, "trackio", None)
    for command in ("run", "sweep", "search"):
        assert smidgen(command, path, *logged).is_mistake("pip install 'smidgen[trackio]'")
    assert not out.exists()
