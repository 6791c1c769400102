"""One process at a time for a run directory; a dead one is no obstacle."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from smidgen.errors import RunError
from smidgen.runs import lock
from smidgen.runs.lock import Lock

from .conftest import Figures, Zygote, outcome


def test_two_processes_race_for_one_directory(
    zygote: Zygote,
    victims: dict[str, list[str]],
    left_alone: dict[str, dict[str, Any]],
    tmp_path: Path,
    thorough: bool,
    figures: Figures,
) -> None:
    races = 50 if thorough else 8
    refused = late = 0
    for race in range(races):
        out = tmp_path / str(race)
        # The second one a little later each time, through all of the first one's life.
        pids = [zygote.start(*victims["sgd, auto"], "--out", out, "--checkpoint-seconds", "0")]
        time.sleep(0.03 * (race % 16))
        pids.append(zygote.start(*victims["sgd, auto"], "--out", out, "--checkpoint-seconds", "0"))
        ended = [zygote.wait(pid) for pid in pids]
        won = [printed for status, printed in ended if status == 0]
        assert won, ended
        for status, printed in ended:
            if status != 0:
                assert status == 2, printed
                assert f"{out} is in use by " in printed
                assert printed.count("\n") == 1
                refused += 1
            elif "is finished already" in printed:
                late += 1
        assert sum("resumed after" not in text and "finished already" not in text for text in won) == 1
        assert outcome(out) == left_alone["sgd, auto"]
    assert refused
    figures.add(
        f"{races} races of two processes: {refused} refused, {late} too late and shown what was there, "
        f"{races} of {races} runs right"
    )


def test_who_holds_it_is_named(tmp_path: Path) -> None:
    held = Lock(tmp_path)
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path)
    held.release()
    assert not list(tmp_path.iterdir())
    Lock(tmp_path).release()


def test_the_lock_of_a_dead_process_is_taken_over(
    zygote: Zygote, victims: dict[str, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "r"
    assert zygote.call(*victims["sgd, auto"], "--out", out, fail_at=40)[0] == -signal.SIGKILL
    assert (out / Lock.NAME).exists()
    assert zygote.call("run", "--resume", out)[0] == 0


def test_a_stopped_process_keeps_it(zygote: Zygote, victims: dict[str, list[str]], tmp_path: Path) -> None:
    out = tmp_path / "r"
    options = ["--epochs", "3000", "--set", "goal.epochs=3000"]
    pid = zygote.start(*victims["sgd, auto"], *options, "--out", out)
    while not (out / "epochs.jsonl").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)
    status, printed = zygote.call("run", "--resume", out)
    assert status == 2
    assert f"in use by process {pid}" in printed
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait(pid)[0] == -signal.SIGKILL


def test_a_lock_that_was_removed_by_its_holder_is_not_held_by_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One opens the file, its holder lets go and removes it, a third takes a new one: the first must not go on."""
    held, locked, taken = Lock(tmp_path), lock._locked, list[Lock]()

    def meanwhile(handle: int) -> bool:
        monkeypatch.setattr(lock, "_locked", locked)
        held.release()
        taken.append(Lock(tmp_path))
        return locked(handle)

    monkeypatch.setattr(lock, "_locked", meanwhile)
    with pytest.raises(RunError, match="in use"):
        Lock(tmp_path)
    taken[0].release()
