"""Callbacks: what they receive, and that they cannot change a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import smidgen as package
from conftest import ENGINES
from smidgen.data.augment import to_float
from smidgen.engines.eager import EagerLoader
from smidgen.errors import SmidgenError
from smidgen.randomness import Purpose, Stream
from smidgen.runs.callback import Callback, RunStart
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import RunInterruptedError, load_trial_data, run
from smidgen.sweeps.sweep import sweep
from smidgen.training.loop import EpochRecord
from smidgen.trial import Augmentation, Trial

ONE = RunOptions(threads=1)


class Recorder(Callback):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def begin(self, start: RunStart) -> None:
        self.calls.append(("begin", start))

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        self.calls.append(("step", (epoch, images)))

    def epoch(self, record: EpochRecord) -> None:
        self.calls.append(("epoch", record))

    def end(self, finished: Run | None) -> None:
        self.calls.append(("end", finished))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def get(self, name: str) -> list[Any]:
        return [value for called, value in self.calls if called == name]


def test_a_callback_receives_the_whole_run_and_changes_nothing(
    small_trial: Trial, small_run: Run, tmp_path: Path
) -> None:
    recorder = Recorder()
    made = run(small_trial, seed=3, out=tmp_path / "r", options=ONE, callbacks=[recorder], progress=Silent())
    assert made.result.weights_sha256 == small_run.result.weights_sha256
    assert recorder.names() == ["begin", *["step"] * 12, "epoch", *["step"] * 12, "epoch", "end"]
    start: RunStart = recorder.get("begin")[0]
    assert (start.trial, start.seed, start.directory) == (small_trial, 3, tmp_path / "r")
    assert (start.anatomy.parameters, start.images, start.held_out) == (678, 600, "test")
    assert recorder.get("step")[:2] == [(1, 50), (1, 100)]
    assert tuple(recorder.get("epoch")) == made.history
    assert recorder.get("end") == [made]


@pytest.mark.parametrize("engine", ENGINES)
def test_random_numbers_in_a_callback_do_not_reach_training(small_trial: Trial, tmp_path: Path, engine: Any) -> None:
    class Draws(Callback):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            torch.manual_seed(images)
            torch.rand(3)
            np.random.seed(images)  # noqa: NPY002 - the generator that a user's code may share

    trial, options = replace(small_trial, dropout=0.1, epochs=1), RunOptions(engine=engine, threads=1)
    alone = run(trial, out=tmp_path / "alone", options=options, progress=Silent())
    drawn = run(trial, out=tmp_path / "drawn", options=options, callbacks=[Draws()], progress=Silent())
    assert drawn.result.weights_sha256 == alone.result.weights_sha256


def test_a_finished_run_is_received_from_its_files(small_trial: Trial, small_run: Run) -> None:
    recorder = Recorder()
    run(small_trial, seed=3, out=small_run.directory, options=ONE, callbacks=[recorder], progress=Silent())
    assert recorder.names() == ["begin", "epoch", "epoch", "end"]
    assert tuple(recorder.get("epoch")) == small_run.history
    assert recorder.get("begin")[0].augmented(4).shape == (4, 1, 28, 28)


def test_the_sample_images_are_those_of_the_first_step(small_trial: Trial, tmp_path: Path) -> None:
    augmentation = Augmentation(rotation=20, translation=0.1, elastic=2.0)
    recorder, trial = Recorder(), replace(small_trial, augmentation=augmentation, epochs=1)
    run(trial, seed=5, out=tmp_path / "r", callbacks=[recorder], progress=Silent())
    shown = recorder.get("begin")[0].augmented(8)
    examples = load_trial_data(trial).train
    order = torch.from_numpy(Stream(5, Purpose.ORDER, 1).permutation(len(examples)))
    loader = EagerLoader(examples, augmentation, 5, 0.0, 1.0, torch.contiguous_format)
    trained, _ = loader.load(order[:50], 1, 0)
    torch.testing.assert_close(shown, trained[:8])
    assert not torch.equal(shown, to_float(examples.images[order[:8]]))


@pytest.mark.parametrize("method", ["begin", "step", "epoch", "end"])
def test_a_callback_that_raises_is_reported_once_and_left_out(
    small_trial: Trial, small_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    class Broken(Recorder):
        def fail(self, *arguments: Any) -> None:
            self.calls.append((method, arguments))
            raise ValueError("no\nsuch thing")

    broken, recorder = Broken(), Recorder()
    setattr(broken, method, broken.fail)
    callbacks = [broken, recorder]
    made = run(small_trial, seed=3, out=tmp_path / "r", options=ONE, callbacks=callbacks, progress=Silent())
    assert made.result.weights_sha256 == small_run.result.weights_sha256
    assert broken.names().count(method) == 1
    assert broken.names()[-1] == method
    assert len(recorder.names()) == 28
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    for words in (f"Broken.{method} failed", "ValueError: no such thing", "test_callbacks.py, line", "left out"):
        assert words in shown, words
    assert (tmp_path / "r" / "log.txt").read_text().count(shown) == 1


def test_even_sys_exit_does_not_end_a_run(small_trial: Trial, tmp_path: Path) -> None:
    class Exits(Callback):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            raise SystemExit(3)

    assert len(run(small_trial, out=tmp_path / "r", callbacks=[Exits()], progress=Silent()).history) == 2


def test_an_interrupted_run_ends_without_a_result_and_is_received_again(
    small_trial: Trial, small_run: Run, tmp_path: Path
) -> None:
    class Stops(Recorder):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    stops, recorder = Stops(), Recorder()
    with pytest.raises(RunInterruptedError):
        run(small_trial, seed=3, out=tmp_path / "r", options=ONE, callbacks=[stops], progress=Silent())
    assert stops.names() == ["begin", "epoch", "end"]
    assert stops.get("end") == [None]
    made = run(resume=tmp_path / "r", callbacks=[recorder], progress=Silent())
    assert made.result.weights_sha256 == small_run.result.weights_sha256
    assert tuple(recorder.get("epoch")) == made.history
    assert recorder.get("step")[0] == (2, 50)


@pytest.mark.parametrize("callbacks", [[Recorder], [print], Recorder(), [None]])
def test_what_is_no_callback_is_refused(small_trial: Trial, tmp_path: Path, callbacks: Any) -> None:
    for function in (run, lambda trial, **about: sweep([trial], "0", **about)):
        with pytest.raises(SmidgenError, match=r"list of instances of subclasses of smidgen\.Callback"):
            function(small_trial, out=tmp_path / "r", callbacks=callbacks)
    assert not (tmp_path / "r").exists()


def test_in_a_sweep_callbacks_receive_finished_runs(
    small_trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Callback):
        def end(self, finished: Run | None) -> None:
            raise LookupError("not here")

    recorder = Recorder()
    made = sweep([small_trial], "0-1", workers=2, out=tmp_path, callbacks=[Broken(), recorder])
    runs = made.trials[0].runs
    assert recorder.names() == ["begin", "epoch", "epoch", "end"] * 2
    assert sorted(start.seed for start in recorder.get("begin")) == [0, 1]
    assert {received.result.weights_sha256 for received in recorder.get("end")} == {
        finished.result.weights_sha256 for finished in runs
    }
    assert capsys.readouterr().err.count("Broken.end failed") == 1
    again = Recorder()
    sweep([small_trial], "0-1", workers=1, out=tmp_path, callbacks=[again])
    assert again.calls == []


def test_the_public_names() -> None:
    assert package.Callback is Callback
    assert package.RunStart is RunStart
