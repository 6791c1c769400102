"""Checkpoints that are cut, flipped or gone: noticed, said, and made up for by the one before."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from smidgen.engines.choose import choose
from smidgen.errors import RunError
from smidgen.runs.run import load_trial_data
from smidgen.tensorfile import read_header, read_tensors
from smidgen.training import checkpoint
from smidgen.training.checkpoint import DamagedCheckpointError, Origin
from smidgen.training.loop import Training, new_network, start
from smidgen.trials.find import read_trial

from .conftest import Figures, Zygote, outcome

VICTIM = "sgd, auto"
NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"


@pytest.fixture(scope="module")
def killed(zygote: Zygote, victims: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its second epoch, with two checkpoints."""
    out = tmp_path_factory.mktemp("killed") / "r"
    options = ["--out", str(out), "--checkpoint-seconds", "0", "--set", "batch_size=300"]
    assert zygote.call(*victims[VICTIM], *options, fail_at=75)[0] == -signal.SIGKILL
    assert (out / PREVIOUS).exists()
    assert len((out / "epochs.jsonl").read_text().splitlines()) == 1
    return out


@pytest.fixture(scope="module")
def expected(zygote: Zygote, victims: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("whole") / "r"
    assert zygote.call(*victims[VICTIM], "--out", out, "--set", "batch_size=300")[0] == 0
    return outcome(out)


class Restorer:
    """Reads a checkpoint into a new training."""

    def __init__(self, directory: Path) -> None:
        self.trial = read_trial(directory / "trial.json")
        self.data = load_trial_data(self.trial)
        self.origin = Origin(self.trial.recipe_digest, self.data.digest, 7)

    def training(self) -> Training:
        return start(self.trial, new_network(self.trial, self.data, 0), choose("auto", threads=1))

    def __call__(self, path: Path) -> None:
        checkpoint.restore(self.training(), path, self.origin, self.trial, len(self.data.train))


def test_every_cut_and_every_flipped_bit_is_noticed(
    killed: Path, tmp_path: Path, thorough: bool, figures: Figures
) -> None:
    restore, path = Restorer(killed), tmp_path / NEWEST
    content = (killed / NEWEST).read_bytes()
    path.write_bytes(content)
    restore(path)
    chance = random.Random(2)
    cuts = [0, 1, 7, 8, 9, len(content) - 1, *chance.sample(range(10, len(content) - 1), 44)]
    header = 8 + int.from_bytes(content[:8], "little")
    # Half of them in the header, where a flip can change a meaning without breaking the form.
    places = [chance.randrange(8 * header) for _ in range(100)]
    places += [chance.randrange(8 * header, 8 * len(content)) for _ in range(100)]
    if thorough:
        places = [*range(8 * header), *places[100:], *(chance.randrange(8 * len(content)) for _ in range(3000))]
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(RunError, match="damaged"):
            restore(path)
    for bit in places:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(RunError):
            restore(path)
    figures.add(f"checkpoint cut at {len(cuts)} offsets, single bits flipped at {len(places)} places: all noticed")


def test_nothing_is_changed_by_a_checkpoint_that_is_refused(killed: Path, tmp_path: Path) -> None:
    restore = Restorer(killed)
    training = restore.training()
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    content = bytearray((killed / NEWEST).read_bytes())
    content[-1] ^= 1
    (tmp_path / NEWEST).write_bytes(content)
    with pytest.raises(RunError, match="does not match its hash"):
        checkpoint.restore(training, tmp_path / NEWEST, restore.origin, restore.trial, len(restore.data.train))
    assert all(tensor.equal(before[name]) for name, tensor in training.network.state_dict().items())
    assert (training.step, training.history) == (0, [])


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "no images seen": {"sums": {"seen": 0}},
    "more right than seen": {"sums": {"correct": 10**400}},
    "time that is no number": {"sums": {"seconds": float("nan")}},
    "a loss below nothing": {"sums": {"loss": -1.0}},
    "a step that is not there": {"step": 99},
    "a step before the first": {"step": -1},
    "no step, but sums": {"step": 0},
    "a list for the sums": {"sums": []},
    "an epoch that is not over": {"history": torch.full((1, 9), 0.5, dtype=torch.float64)},
    "more epochs than the trial has": {"history": torch.ones((100, 9), dtype=torch.float64)},
    "another form of history": {"history": torch.ones((1, 8), dtype=torch.float64)},
    "no history": {"history": None},
    "no optimizer": {"optimizer.weights.momentum_buffer": None},
    "another optimizer": {"optimizer.weights.exp_avg": torch.zeros(3)},
    "a negative variance": {"network.norm1.running_var": torch.full((4,), -1.0)},
    "a weight that is not finite": {"network.norm1.weight": torch.full((4,), float("inf"))},
    "weights of another type": {"network.norm1.weight": torch.zeros(4, dtype=torch.float64)},
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_sealed_checkpoint_that_contradicts_itself_is_damaged(killed: Path, tmp_path: Path, name: str) -> None:
    """Made by somebody who knows how to seal one."""
    restore, path = Restorer(killed), tmp_path / NEWEST
    headers = {path: read_header(path) for path in (killed / NEWEST, killed / PREVIOUS)}
    within, header = next((path, header) for path, header in headers.items() if header.about["step"])
    about, tensors = dict(header.about), read_tensors(within, header)
    del about["seal"]
    for key, value in CONTRADICTIONS[name].items():
        if key in about:
            about[key] = {**about[key], **value} if isinstance(value, dict) else value
        elif value is None:
            del tensors[key]
        else:
            tensors[key] = value
    content = safetensors.torch.save(
        tensors, {"smidgen": json.dumps({**about, "seal": "0" * 64}, sort_keys=True, separators=(",", ":"))}
    )
    path.write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1))
    with pytest.raises(DamagedCheckpointError):
        restore(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 16
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _link, Path.unlink])
def test_the_checkpoint_before_is_used_and_said(
    zygote: Zygote, killed: Path, expected: dict[str, Any], tmp_path: Path, damage: Any
) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "r"))
    damage(out / NEWEST)
    # Killed once more on the way: the damaged one must not take the place of the whole one.
    status, printed = zygote.call("run", "--resume", out, "--checkpoint-seconds", "0", fail_at=45)
    assert status == -signal.SIGKILL, printed
    if damage is not Path.unlink:  # as when killed between two renames: nothing is damaged
        note = next(line for line in printed.splitlines() if line.startswith("note: "))
        assert NEWEST in note
        assert "resumed from the checkpoint before it" in note
    status, printed = zygote.call("run", "--resume", out)
    assert status == 0, printed
    assert outcome(out) == expected


def test_without_an_undamaged_checkpoint_nothing_resumes(zygote: Zygote, killed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "r"))
    for name in (NEWEST, PREVIOUS):
        _flip(out / name)
    before = {p.name: p.read_bytes() for p in out.iterdir() if not p.name.startswith(".")}
    status, printed = zygote.call("run", "--resume", out)
    assert status == 2
    assert printed.count("\n") == 1
    assert "there is no undamaged one before it" in printed
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_epochs_that_were_torn_or_lost_are_written_again(
    zygote: Zygote, killed: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    for content in (b"", b'{"epoch": 1, "train', b"\xff" * 300):
        out = Path(shutil.copytree(killed, tmp_path / str(len(content))))
        (out / "epochs.jsonl").write_bytes(content)
        assert zygote.call("run", "--resume", out)[0] == 0
        assert outcome(out) == expected


@pytest.mark.parametrize("name", ["trial.json", "environment.json"])
def test_what_the_run_began_with_must_be_whole(zygote: Zygote, killed: Path, tmp_path: Path, name: str) -> None:
    for content in (b"", b"[]", b"{}", b"\xff{"):
        out = Path(shutil.copytree(killed, tmp_path / f"{len(content)}{content[:1].hex()}"))
        (out / name).write_bytes(content)
        status, printed = zygote.call("run", "--resume", out)
        assert status == 2, printed
        assert str(out) in printed
        assert printed.count("\n") == 1
