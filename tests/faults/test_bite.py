"""The tests of kills and damage notice when smidgen is broken on purpose.

Each fault is put in by the zygote, in the process that trains; what is done to it is what the
other tests do.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from .conftest import Zygote, outcome

OPTIONS = ["--checkpoint-seconds", "0", "--epochs", "2", "--set", "batch_size=300"]


def outcome_or_damage(directory: Path) -> object:
    """What became of a run, or why that cannot even be read."""
    try:
        return outcome(directory)
    except (OSError, ValueError) as error:
        return error


def ends_as_left_alone(
    zygote: Zygote, arguments: list[str], folder: Path, stages: range, sabotage: str, *, half: bool = False
) -> bool:
    """Whether runs killed at these stages, and resumed, all end as one that was not killed."""
    assert zygote.call(*arguments, *OPTIONS, "--out", folder / "whole", sabotage=sabotage)[0] == 0
    expected = outcome(folder / "whole")
    for stage in stages:
        out = folder / str(stage)
        killed = zygote.call(*arguments, *OPTIONS, "--out", out, fail_at=stage, half=half, sabotage=sabotage)
        if killed[0] == 0:
            return True  # no such stage: the run was at its end
        status, _ = zygote.call(*arguments, *OPTIONS, "--out", out, sabotage=sabotage)
        if status != 0 or outcome_or_damage(out) != expected:
            return False
    return True


@pytest.mark.parametrize(
    ("sabotage", "victim", "stages"),
    [
        ("atomic write replaced by a plain one", "sgd, auto", range(200)),
        ("reseeding dropped", "eager sgd, eager", range(60, 90)),
        ("optimizer not saved", "sgd, auto", range(60, 90)),
        ("optimizer not saved", "adam, eager", range(60, 90)),
        ("running sums not saved", "sgd, auto", range(60, 90)),
        ("order of the images with a state", "sgd, auto", range(60, 90)),
    ],
)
def test_a_fault_in_saving_or_going_on_is_noticed(
    zygote: Zygote, victims: dict[str, list[str]], tmp_path: Path, sabotage: str, victim: str, stages: range
) -> None:
    assert not ends_as_left_alone(zygote, victims[victim], tmp_path, stages, sabotage, half="plain" in sabotage)


def test_without_a_fault_nothing_is_noticed(zygote: Zygote, victims: dict[str, list[str]], tmp_path: Path) -> None:
    """The other side of the test above: it is not the killing that it notices."""
    whole = zygote.call(*victims["sgd, auto"], *OPTIONS, "--out", tmp_path / "whole")
    assert whole[0] == 0
    for stage in range(60, 90, 7):
        assert zygote.call(*victims["sgd, auto"], *OPTIONS, "--out", tmp_path / str(stage), fail_at=stage)[0] < 0
        assert zygote.call(*victims["sgd, auto"], *OPTIONS, "--out", tmp_path / str(stage))[0] == 0
        assert outcome(tmp_path / str(stage)) == outcome(tmp_path / "whole")


@pytest.fixture
def damaged(zygote: Zygote, victims: dict[str, list[str]], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A killed run whose newest checkpoint has one bit of a weight flipped, and how it should end."""
    assert zygote.call(*victims["sgd, auto"], *OPTIONS, "--out", tmp_path / "whole")[0] == 0
    out = tmp_path / "r"
    assert zygote.call(*victims["sgd, auto"], *OPTIONS, "--out", out, fail_at=75)[0] == -signal.SIGKILL
    path = out / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin, _ = json.loads(content[8 : 8 + length])["network.conv1.weight"]["data_offsets"]
    content[8 + length + begin] ^= 8
    path.write_bytes(content)
    return out, outcome(tmp_path / "whole")


def test_a_hash_that_is_not_checked_is_noticed(zygote: Zygote, damaged: tuple[Path, dict[str, Any]]) -> None:
    out, expected = damaged
    copy = Path(shutil.copytree(out, out.with_name("copy")))
    assert zygote.call("run", "--resume", copy)[0] == 0
    assert outcome(copy) == expected
    assert zygote.call("run", "--resume", out, sabotage="hash not checked")[0] == 0
    assert outcome_or_damage(out) != expected


def test_a_previous_checkpoint_that_is_not_kept_is_noticed(
    zygote: Zygote, victims: dict[str, list[str]], tmp_path: Path
) -> None:
    out, sabotage = tmp_path / "r", "previous checkpoint not kept"
    assert zygote.call(*victims["sgd, auto"], *OPTIONS, "--out", out, fail_at=75, sabotage=sabotage)[0] < 0
    (out / "checkpoint.safetensors").write_bytes(b"")
    assert zygote.call("run", "--resume", out)[0] == 2


def test_a_lock_that_is_not_taken_is_noticed(zygote: Zygote, victims: dict[str, list[str]], tmp_path: Path) -> None:
    options = [*OPTIONS, "--out", str(tmp_path / "r")]
    pids = [zygote.start(*victims["sgd, auto"], *options, sabotage="lock not taken") for _ in range(2)]
    ended = [zygote.wait(pid) for pid in pids]
    assert not any("is in use by" in printed for _, printed in ended)
