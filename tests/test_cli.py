"""The contract of the command line: output, JSON, exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Command, start_smidgen
from smidgen.runs.record import Run
from smidgen.trial import Trial
from smidgen.version import VERSION

RUN_KEYS = {
    "trial", "seed", "engine", "device", "parameters", "epochs", "test_accuracy_last", "test_accuracy_best",
    "train_accuracy_last", "test_loss_last", "goal_met", "seconds_training", "images_per_second", "run_dir",
    "weights_sha256",
}  # fmt: skip


@pytest.fixture
def trial_json(small_trial: Trial, tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(small_trial.to_json()))
    return path


def test_run_trains_and_says_so(smidgen: Command, trial_json: Path, tmp_path: Path) -> None:
    done = smidgen("run", trial_json, "--seed", "3", "--threads", "1", "--out", tmp_path / "r")
    assert done.status == 0
    for words in (
        "small, seed 3", "600 training and 200 test images", "conv1", "678 of at most 1,000 parameters",
        "2 of at most 3 epochs", "MACs", "epoch 1/2", "epoch 2/2", "train loss", "/200 = ", "lr 0.05",
        "test accuracy, last epoch", "goal met", "chosen on the test images", f"run directory {tmp_path / 'r'}",
    ):  # fmt: skip
        assert words in done.out, words
    assert done.err == ""


def test_run_json_is_one_object_and_everything_else_is_on_standard_error(
    smidgen: Command, trial_json: Path, tmp_path: Path, small_run: Run
) -> None:
    done = smidgen("run", trial_json, "--seed", "3", "--threads", "1", "--out", tmp_path / "r", "--json")
    assert done.status == 0
    assert set(done.json) >= RUN_KEYS
    assert done.out.count("\n") == 1
    assert "epoch 2/2" in done.err
    assert done.json["run_dir"] == str(tmp_path / "r")
    assert done.json["weights_sha256"] == small_run.result.weights_sha256
    assert json.loads((tmp_path / "r" / "result.json").read_text()) == done.json


def test_a_missed_goal_is_status_1(smidgen: Command, trial_json: Path, tmp_path: Path) -> None:
    done = smidgen("run", trial_json, "--set", "goal.accuracy=100", "--out", tmp_path / "r")
    assert done.status == 1
    assert "MISSED" in done.out
    assert "goal missed" in done.out
    assert (tmp_path / "r" / "result.json").exists()


def test_the_options_change_the_trial(smidgen: Command, trial_json: Path, tmp_path: Path, small_folder: Path) -> None:
    done = smidgen(
        "run", trial_json, "--epochs", "1", "--set", "optimizer.lr=0.01", "--set", "batch_size=100",
        "--data", small_folder, "--engine", "eager", "--device", "cpu", "--precision", "fp32",
        "--out", tmp_path / "r", "--json",
    )  # fmt: skip
    assert done.json["epochs"] == 1
    trial = json.loads((tmp_path / "r" / "trial.json").read_text())
    assert (trial["optimizer"]["lr"], trial["batch_size"], trial["epochs"]) == (0.01, 100, 1)
    again = smidgen(
        "run", tmp_path / "r" / "trial.json", "--engine", "eager", "--out", tmp_path / "again", "--json"
    )  # fmt: skip
    assert again.json["weights_sha256"] == done.json["weights_sha256"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["fly"], ["invalid choice: 'fly'"]),
        (["run", "--fast"], ["--fast"]),
        (["run", "--seed", "x"], ["--seed", "'x'"]),
        (["run", "--seed", "-1"], ["the seed is -1"]),
        (["run", "--seed", str(2**63)], ["the seed is"]),
        (["run", "--epochs", "0"], ["epochs is 0", "at least 1"]),
        (["run", "--epochs", "15"], ["over budget", "15 epochs"]),
        (["run", "--set", "network.blocks.11.channels=60"], ["over budget", "8,378 parameters"]),
        (["run", "--set", "optimizer.lr"], ["path=value"]),
        (["run", "--set", "optimiser.lr=1"], ["did you mean 'optimizer'"]),
        (["run", "--engine", "warp"], ["--engine", "'warp'"]),
        (["run", "--engine", "native", "--device", "cuda"], ["--device cpu"]),
        (["run", "--precision", "bf16", "--engine", "eager"], ["native engine"]),
        (["run", "--threads", "0"], ["--threads is 0"]),
        (["run", "mnist-4-strikt"], ["did you mean 'mnist-4-strict'"]),
        (["run", "--data", "/nowhere"], ["/nowhere"]),
        (["run", "--out", "/dev/null"], ["/dev/null"]),
        (["run", "--out", "/dev/null/x"], ["/dev/null/x"]),
        (["run", "--out", "/proc/x"], ["/proc/x", "cannot be written"]),
        (["inspect"], ["TRIAL"]),
        (["inspect", "x.py:y"], ["x.py does not exist"]),
        (["predict", "/nowhere", "x.png"], ["/nowhere"]),
        (["bench", "--rounds", "0"], ["--rounds is 0"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    smidgen: Command, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert smidgen(*arguments).is_mistake(*words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["run", "mnist-tiny", "--epoch", "1"],
            "no argument '--epoch'; did you mean '--epochs'? see smidgen run --help",
        ),
        (
            ["inspect", "--formt=csv", "mnist-tiny"],
            "no argument '--formt'; did you mean '--format'? see smidgen inspect",
        ),
        (["trials", "mnist-tiny"], "no argument 'mnist-tiny'; see smidgen trials --help"),
    ],
)
def test_a_misspelt_option_gets_a_suggestion(smidgen: Command, arguments: list[str], error: str) -> None:
    outcome = smidgen(*arguments)
    assert outcome.status == 2
    assert outcome.err.count("\n") == 1
    assert error in outcome.err


def test_a_csv_table_has_its_verdict_beside_it(smidgen: Command) -> None:
    outcome = smidgen("inspect", "mnist-tiny-99", "--format", "csv", "--max-parameters", "10")
    assert outcome.status == 1
    assert "budget of at most 10 parameters: 972, MISSED" in outcome.err
    assert "budget" not in outcome.out


def test_a_mistake_with_json_is_one_object(smidgen: Command) -> None:
    done = smidgen("run", "nothing", "--json")
    assert done.status == 2
    assert "no trial 'nothing'" in done.json["error"]
    assert done.err.count("\n") == 1


def test_an_output_directory_that_holds_a_run_is_left_alone(smidgen: Command, trial_json: Path, small_run: Run) -> None:
    before = {p.name: p.read_bytes() for p in small_run.directory.iterdir()}
    assert smidgen("run", trial_json, "--out", small_run.directory).is_mistake("already holds another run")
    assert {p.name: p.read_bytes() for p in small_run.directory.iterdir()} == before


def test_trials_lists_all(smidgen: Command) -> None:
    done = smidgen("trials", "--json")
    assert [t["name"] for t in done.json["trials"]] == [
        "mnist-1-skeleton", "mnist-2-regularized", "mnist-3-augmented", "mnist-4-strict",
        "mnist-tiny", "mnist-tiny-99", "mnist-sprint", "fashion-small",
    ]  # fmt: skip
    for trial in done.json["trials"]:
        assert set(trial) >= {"name", "parameters", "epochs", "target"}
    text = smidgen("trials").out
    assert "dropout: 0 -> 0.05" in text
    assert "8,000" in text


@pytest.mark.parametrize("command", ["run", "trials", "inspect", "data", "new", "predict", "bench"])
def test_every_command_has_help_and_json(smidgen: Command, command: str) -> None:
    done = smidgen(command, "--help")
    assert done.status == 0
    assert "--json" in done.out
    assert command in smidgen("--help").out


def test_the_version(smidgen: Command) -> None:
    assert smidgen("--version").out == f"smidgen {VERSION}\n"


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys, smidgen.cli\ntry:\n    smidgen.cli.main(['--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_keeps_what_is_finished(
    trial_json: Path, tmp_path: Path, signal_number: signal.Signals, as_json: bool
) -> None:
    out = tmp_path / "r"
    process = start_smidgen(
        "run", trial_json, "--epochs", "100000", "--set", "goal.epochs=100000", "--threads", "1",
        "--out", out, *["--json"] * as_json,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out / "epochs.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal_number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    finished = len((out / "epochs.jsonl").read_text().splitlines())
    assert finished >= 1
    assert f"interrupted after {finished} finished epoch(s); to resume: smidgen run --resume {out}" in errors
    assert not (out / "result.json").exists()
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    if as_json:
        assert json.loads(printed) == {
            "interrupted": True,
            "run_dir": str(out),
            "epochs": finished,
            "resume": f"smidgen run --resume {out}",
        }


def test_a_reader_that_closes_the_stream_is_not_an_error() -> None:
    read, write = os.pipe()
    process = start_smidgen("trials", stdout=write)
    os.close(write)
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert errors == ""


def test_training_continues_when_its_reader_closes_the_stream(trial_json: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    process = start_smidgen("run", trial_json, "--out", tmp_path / "r", "--threads", "1", stdout=write)
    os.close(write)
    assert os.read(read, 5) == b"small"
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert process.returncode == 0
    assert (tmp_path / "r" / "result.json").exists()


def test_standard_output_on_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        process = start_smidgen("trials", "--json", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1, errors
    assert "No space left" in errors
