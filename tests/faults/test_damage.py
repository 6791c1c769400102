"""Checkpoints that are cut, flipped or gone: noticed, said, and made up for by the one before."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from smidgen.engines.prepare import place
from smidgen.errors import RunError
from smidgen.runs.run import load_trial_data
from smidgen.training import checkpoint
from smidgen.training.checkpoint import Origin
from smidgen.training.loop import Training, new_network, start, steps_per_epoch
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
        return start(self.trial, new_network(self.trial, self.data, 0), place("auto", threads=1))

    def __call__(self, path: Path) -> None:
        checkpoint.restore(
            self.training(), path, self.origin, epochs=self.trial.epochs, steps=steps_per_epoch(self.trial, self.data)
        )


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
    with pytest.raises(RunError, match="does not have the hash"):
        checkpoint.restore(training, tmp_path / NEWEST, restore.origin, epochs=3, steps=3)
    assert all(tensor.equal(before[name]) for name, tensor in training.network.state_dict().items())
    assert (training.step, training.history) == (0, [])


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
        assert "goes on from the checkpoint before it" in note
    status, printed = zygote.call("run", "--resume", out)
    assert status == 0, printed
    assert outcome(out) == expected


def test_without_a_whole_checkpoint_nothing_goes_on(zygote: Zygote, killed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(killed, tmp_path / "r"))
    for name in (NEWEST, PREVIOUS):
        _flip(out / name)
    before = {p.name: p.read_bytes() for p in out.iterdir() if not p.name.startswith(".")}
    status, printed = zygote.call("run", "--resume", out)
    assert status == 2
    assert printed.count("\n") == 1
    assert "there is no whole one before it" in printed
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
