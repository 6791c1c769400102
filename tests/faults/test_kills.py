"""A run killed at any instant and resumed ends with the same bytes as one left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import start_smidgen
from smidgen import RunInterruptedError, run

from .conftest import Figures, Zygote, outcome

Victims = dict[str, list[str]]
Outcomes = dict[str, dict[str, Any]]


def killed_until_done(
    zygote: Zygote, arguments: list[str], out: Path, seconds: float, chance: random.Random, **suffering: Any
) -> int:
    """Start a run and kill it after a random time, over and over, until it is quicker; gives the kills."""
    for kills in range(10_000):
        # By the same command, or by --resume once there is something to resume.
        again = ["run", "--resume", str(out)] if (out / "trial.json").exists() and chance.random() < 0.5 else None
        pid = zygote.start(*(again or [*arguments, "--out", str(out)]), "--checkpoint-seconds", "0.02", **suffering)
        time.sleep(seconds * chance.random())
        os.kill(pid, signal.SIGKILL)  # of nobody, if it has ended: it is waited for below
        status, printed = zygote.wait(pid)
        assert status in (0, -signal.SIGKILL), printed
        if status == 0:
            return kills
    raise AssertionError("it never ends")


def test_killed_at_random_moments(
    zygote: Zygote, victims: Victims, left_alone: Outcomes, tmp_path: Path, thorough: bool, figures: Figures
) -> None:
    chance, kills, runs = random.Random(1), 0, 0
    wanted = 300 if thorough else 12
    while kills < wanted or runs < len(victims):
        name = list(victims)[runs % len(victims)]
        began = time.perf_counter()
        zygote.call(*victims[name], "--out", tmp_path / f"timed{runs}")
        seconds = time.perf_counter() - began
        out = tmp_path / str(runs)
        kills += killed_until_done(zygote, victims[name], out, 1.3 * seconds, chance)
        assert outcome(out) == left_alone[name], name
        runs += 1
    figures.add(f"{kills} kills at random moments, {runs} of {runs} runs of {len(victims)} kinds bit-identical")


@pytest.mark.parametrize("name", ["sgd, auto", "adam, eager"])
def test_killed_at_every_stage_of_every_write(
    zygote: Zygote,
    victims: Victims,
    left_alone: Outcomes,
    tmp_path: Path,
    thorough: bool,
    figures: Figures,
    name: str,
) -> None:
    options = ["--checkpoint-seconds", "0", "--epochs", "2", "--set", "batch_size=300"]
    count = tmp_path / "count"
    status, printed = zygote.call(*victims[name], *options, "--out", tmp_path / "whole", count=str(count))
    assert status == 0, printed
    expected, operations = outcome(tmp_path / "whole"), json.loads(count.read_text())
    assert {"open", "write", "fsync", "replace"} <= set(operations)
    # The short form starts at another place for each kind, and a step that shares no factor with the pattern of a write.
    # The last operation comes after the last checkpoint.
    last = len(operations) - 1
    chosen = range(last + 1) if thorough else [*range(len(name) % 17, last, 17), last]
    kills = 0
    for stage in chosen:
        for half in (False, True) if operations[stage] == "write" else (False,):
            out = tmp_path / f"{stage}{half}"
            status, printed = zygote.call(*victims[name], *options, "--out", out, fail_at=stage, half=half)
            assert status == -signal.SIGKILL, (stage, printed)
            status, printed = zygote.call(*victims[name], *options, "--out", out)
            assert status == 0, (stage, operations[stage], printed)
            assert outcome(out) == expected, (stage, operations[stage])
            assert "damaged" not in printed
            kills += 1
    figures.add(
        f"{name}: {kills} kills at failpoints ({len(operations)} stages in all), {kills} of {kills} bit-identical"
    )


def test_a_real_process_killed_and_resumed(
    zygote: Zygote, victims: Victims, left_alone: Outcomes, tmp_path: Path
) -> None:
    """The command itself, not a fork; killed as soon as it has made a checkpoint within an epoch."""
    out = tmp_path / "r"
    process = start_smidgen(*victims["sgd, auto"], "--out", out, "--checkpoint-seconds", "0")
    while process.poll() is None and not (out / "checkpoint-previous.safetensors").exists():
        time.sleep(0.001)
    process.kill()
    process.communicate()
    resumed = start_smidgen("run", "--resume", out)
    printed, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert "goal met" in printed
    assert outcome(out) == left_alone["sgd, auto"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_names_the_command(
    zygote: Zygote, victims: Victims, left_alone: Outcomes, tmp_path: Path, number: signal.Signals
) -> None:
    out, named = tmp_path / "r", 0
    for tries in range(100):
        pid = zygote.start(*victims["adam, eager"], "--out", out)
        time.sleep(0.1 + 0.05 * tries)
        os.kill(pid, number)
        status, printed = zygote.wait(pid)
        if status == 0:
            break
        assert status == 130, printed
        last = printed.splitlines()[-1]
        resumable = last.endswith(f"to resume: smidgen run --resume {out}")
        # While arguments are read or the verdict is printed, no run is interrupted.
        assert resumable or last == "smidgen: interrupted", printed
        named += resumable
        if out.exists():
            assert not list(out.glob(".*"))
    assert named, "it never came within the run"
    assert outcome(out) == left_alone["adam, eager"]


def test_a_signal_while_a_resumed_run_sets_up_names_the_command_too(
    zygote: Zygote, victims: Victims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    options = ["--out", str(out), "--checkpoint-seconds", "0"]
    assert zygote.call(*victims["adam, eager"], *options, fail_at=60)[0] == -signal.SIGKILL

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smidgen.runs.run.load_trial_data", interrupted)
    with pytest.raises(RunInterruptedError, match=f"to resume: smidgen run --resume {out}"):
        run(resume=out)


def test_another_number_of_threads_makes_no_difference_to_native(
    zygote: Zygote, victims: Victims, left_alone: Outcomes, tmp_path: Path
) -> None:
    from smidgen.engines.native.core import find_core

    if find_core() is None:
        pytest.skip("no native engine here")
    out = tmp_path / "r"
    options = ["--out", str(out), "--checkpoint-seconds", "0"]
    assert zygote.call(*victims["sgd, auto"], *options, fail_at=60)[0] == -signal.SIGKILL
    status, printed = zygote.call("run", "--resume", out, "--threads", "2")
    assert status == 0, printed
    assert "note: resumed with" not in printed
    ended, expected = outcome(out), left_alone["sgd, auto"]
    assert ended["weights"] == expected["weights"]
    assert ended["epochs"] == expected["epochs"]


def test_what_differs_is_named_before_going_on(zygote: Zygote, victims: Victims, tmp_path: Path) -> None:
    out = tmp_path / "r"
    options = ["--out", str(out), "--checkpoint-seconds", "0"]
    assert zygote.call(*victims["adam, eager"], *options, fail_at=60)[0] == -signal.SIGKILL
    path = out / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps({**environment, "torch": "1.0"}))
    status, printed = zygote.call("run", "--resume", out, "--threads", "2")
    assert status == 0, printed
    note = next(line for line in printed.splitlines() if line.startswith("note: resumed with"))
    assert "(was 1.0)" in note
    assert "threads 2 (was 1)" in note
    assert "may differ" in note
    assert printed.index("note: resumed with") < printed.index("epoch 3/3")
    resumed = json.loads(path.read_text())["resumed"]
    assert resumed[0]["changed"].keys() == {"torch", "threads"}
    assert json.loads((out / "result.json").read_text())["resumptions"] == 1


def test_changed_data_are_refused(zygote: Zygote, victims: Victims, tmp_path: Path) -> None:
    out, arguments = tmp_path / "r", victims["sgd, auto"]
    assert zygote.call(*arguments, "--out", out, "--checkpoint-seconds", "0", fail_at=60)[0] == -signal.SIGKILL
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    data = Path(json.loads((out / "trial.json").read_text())["data"]["source"])
    labels = data / "train-labels-idx1-ubyte"
    content = labels.read_bytes()
    try:
        labels.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))
        status, printed = zygote.call("run", "--resume", out)
    finally:
        labels.write_bytes(content)
    assert status == 2
    assert "has changed since the run started" in printed
    assert printed.count("\n") == 1
    after = {p.name: p.read_bytes() for p in out.iterdir()}
    assert {n: c for n, c in after.items() if n != ".lock"} == {
        n: c for n, c in before.items() if n != ".lock" and not n.endswith(".tmp")
    }
