"""Files from anywhere end in a result or in one line, within bounded memory and time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Command
from smidgen.errors import ImageError, RunError
from smidgen.images import read_image
from smidgen.runs.record import load_run
from smidgen.tensorfile import read_header, read_tensors, sealed_bytes

from .conftest import Figures, Zygote


@pytest.fixture(scope="module")
def runs(zygote: Zygote, victims: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and a killed one."""
    folder = tmp_path_factory.mktemp("hostile")
    assert zygote.call(*victims["sgd, auto"], "--out", folder / "run")[0] == 0
    options = ["--out", str(folder / "killed"), "--checkpoint-seconds", "0"]
    assert zygote.call(*victims["sgd, auto"], *options, fail_at=75)[0] == -signal.SIGKILL
    return folder


def test_generated_files_and_bombs_under_a_memory_limit(
    runs: Path, tmp_path: Path, thorough: bool, figures: Figures
) -> None:
    count = 12_000 if thorough else 450

    def half(first: int) -> Any:
        """What one of two processes reports, with every other reader."""
        folder = Path(shutil.copytree(runs, tmp_path / f"work{first}"))
        program = Path(__file__).with_name("hostile.py")
        command = [sys.executable, str(program), str(folder), str(count), str(first), "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(half, (0, 1)))
    readers = {name: reader for report in reports for name, reader in report["readers"].items()}
    assert len(readers) == 13
    inputs = sum(reader["inputs"] for reader in readers.values())
    assert inputs >= count
    for name, reader in readers.items():
        assert reader["refused"], name
    figures.add(
        f"{inputs} hostile files ({sum(report['bombs'] for report in reports)} bombs made by hand) under a limit of "
        f"1 GiB: none crashed; slowest {max(reader['slowest'] for reader in readers.values()):.2f} s, peak "
        f"{max(report['peak_mib'] for report in reports)} MiB"
    )
    for name, reader in readers.items():
        figures.add(f"  {name}: {reader['inputs']} files, {reader['read']} read, {reader['refused']} refused")


@pytest.mark.parametrize(
    "name",
    [
        "trial.json",
        "environment.json",
        "epochs.jsonl",
        "result.json",
        "weights.safetensors",
        "predictions.safetensors",
    ],
)
def test_pipes_and_links_in_a_run_directory_are_refused(
    runs: Path, tmp_path: Path, smidgen: Command, name: str
) -> None:
    for kind in ("pipe", "link"):
        directory = Path(shutil.copytree(runs / "run", tmp_path / kind))
        path = directory / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(runs / "run" / name)
        if name not in ("trial.json", "environment.json"):
            with pytest.raises(RunError, match="regular file|symbolic link"):
                load_run(directory)
        else:
            (directory / "result.json").unlink()
            assert smidgen("run", "--resume", directory).is_mistake(name)


def test_no_path_escapes_the_run_directory(runs: Path, tmp_path: Path, zygote: Zygote) -> None:
    """Links to files elsewhere under every name that a run writes: what is there is not touched."""
    directory = Path(shutil.copytree(runs / "killed", tmp_path / "r"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ["epochs.jsonl", "log.txt", "result.json", "weights.safetensors", "predictions.safetensors", ".lock"]
    names.append(".epochs.jsonl.0.tmp")
    for name in names:
        (elsewhere / name).write_text("precious\n")
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(elsewhere / name)
    for _ in names:  # each time it gets further, once what was in the way is removed
        status, printed = zygote.call("run", "--resume", directory)
        assert "Traceback" not in printed
        if status == 0:
            break
        assert status == 2
        last = printed.splitlines()[-1]
        culprit = next(name for name in names if (directory / name).is_symlink() and str(directory / name) in last)
        (directory / culprit).unlink()
    assert status == 0, printed
    assert {p.name: p.read_text() for p in elsewhere.iterdir()} == dict.fromkeys(names, "precious\n")


def test_a_trial_over_all_bounds_is_refused_before_memory_is_taken(
    runs: Path, tmp_path: Path, smidgen: Command
) -> None:
    trial = json.loads((runs / "run" / "trial.json").read_text())
    trial["goal"]["parameters"] = 10**15
    trial["network"]["blocks"].insert(0, {"type": "conv", "channels": 4096, "kernel": 63, "padding": 31})
    trial["network"]["blocks"].insert(0, {"type": "conv", "channels": 4096, "kernel": 63, "padding": 31})
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(trial))
    assert smidgen("run", path, "--out", tmp_path / "r").is_mistake("too large to be called tiny")
    assert smidgen("inspect", path).is_mistake("too large to be called tiny")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"resumed": [float("nan")]},
        {"seed": "7"},
        {"threads": 10**9},
        {"resumed": [0] * 100_000},
        {"cpu": "x" * 600_000},
    ],
)
def test_an_environment_that_cannot_be_is_one_line(
    runs: Path, tmp_path: Path, smidgen: Command, change: dict[str, object]
) -> None:
    directory = Path(shutil.copytree(runs / "killed", tmp_path / "r"))
    there = json.loads((directory / "environment.json").read_text())
    (directory / "environment.json").write_text(json.dumps({**there, **change}))
    assert smidgen("run", "--resume", directory).is_mistake("environment.json")


def test_what_an_environment_says_is_not_shown_raw(runs: Path, tmp_path: Path, zygote: Zygote) -> None:
    for number, text in enumerate(("\x1b]0;owned\x07", "one\ntwo", "\ud800")):
        directory = Path(shutil.copytree(runs / "killed", tmp_path / str(number)))
        there = json.loads((directory / "environment.json").read_text())
        (directory / "environment.json").write_text(json.dumps({**there, "torch": text}))
        status, printed = zygote.call("run", "--resume", directory)
        assert status == 0, printed
        assert ascii(text) in printed
        assert "\x1b" not in printed


def test_a_hard_link_to_a_file_elsewhere_is_not_written_through(runs: Path, tmp_path: Path, smidgen: Command) -> None:
    for name in ("log.txt", ".lock"):
        directory = Path(shutil.copytree(runs / "killed", tmp_path / f"with{name}"))
        elsewhere = tmp_path / f"victim{name}"
        elsewhere.write_text("precious")
        (directory / name).unlink(missing_ok=True)
        os.link(elsewhere, directory / name)
        assert smidgen("run", "--resume", directory).is_mistake("further hard links")
        assert elsewhere.read_text() == "precious"


def test_names_that_are_not_utf8_work(runs: Path, tmp_path: Path, zygote: Zygote) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))
    shutil.copytree(runs / "killed", directory)
    status, printed = zygote.call("run", "--resume", directory)
    assert status == 0, printed


@pytest.mark.parametrize("options", [{"stdout": None}, {"stderr": None}, {"PYTHONIOENCODING": "ascii"}])
def test_closed_or_narrow_output_works(options: dict[str, str | None]) -> None:
    close = "".join(f" {number}>&-" for number, name in ((1, "stdout"), (2, "stderr")) if name in options)
    env = {**os.environ, **{k: v for k, v in options.items() if v}}
    done = subprocess.run(f"{sys.executable} -m smidgen trials{close}", shell=True, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("tensor", "value"),
    [("linear1.weight", 3e38), ("norm1.running_var", -1.0)],
)
def test_weights_that_score_beyond_numbers_are_one_line(
    runs: Path, tmp_path: Path, smidgen: Command, tensor: str, value: float
) -> None:
    directory = Path(shutil.copytree(runs / "run", tmp_path / "r"))
    path = directory / "weights.safetensors"
    header = read_header(path)
    tensors = read_tensors(path, header)
    tensors[tensor].fill_(value)
    about = {k: v for k, v in header.about.items() if k != "seal"}
    if tensor == "linear1.weight":
        about["std"] = 1e-30
    path.write_bytes(sealed_bytes(tensors, about))
    (directory / "predictions.safetensors").unlink()
    result = json.loads((directory / "result.json").read_text())
    digest = hashlib.sha256()
    for name, each in sorted(tensors.items()):
        digest.update(f"{name} {each.dtype} {list(each.shape)}\n".encode() + each.numpy().tobytes())
    (directory / "result.json").write_text(json.dumps({**result, "weights_sha256": digest.hexdigest()}))
    drawing = tmp_path / "x.png"
    picture = Image.new("L", (20, 20))
    picture.paste(255, (5, 5, 9, 15))
    picture.save(drawing)
    assert smidgen("predict", directory, drawing).is_mistake(str(directory), ["finite", "negative"][value < 0])
    assert smidgen("report", directory, "-o", tmp_path / "x.html").status == 2


def test_a_last_batch_of_one_image_is_refused_before_training(runs: Path, tmp_path: Path, smidgen: Command) -> None:
    trial = json.loads((runs / "run" / "trial.json").read_text())
    trial["network"]["blocks"].insert(-2, {"type": "conv", "channels": 4, "kernel": 3})
    trial["batch_size"] = 649
    (tmp_path / "trial.json").write_text(json.dumps(trial))
    for engine in ("auto", "eager"):
        done = smidgen("run", tmp_path / "trial.json", "--engine", engine, "--out", tmp_path / "r")
        assert done.is_mistake("a single image, which norm4 cannot process in training")
    assert not (tmp_path / "r").exists()


def test_a_diverged_but_finite_run_can_be_read(runs: Path, tmp_path: Path, smidgen: Command) -> None:
    directory = Path(shutil.copytree(runs / "run", tmp_path / "r"))
    lines = [json.loads(line) for line in (directory / "epochs.jsonl").read_text().splitlines()]
    lines[0]["test_loss"] = 8.6e18
    (directory / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_run(directory).history[0].test_loss == 8.6e18


def test_an_inspection_takes_no_time_for_a_large_input(runs: Path, tmp_path: Path, smidgen: Command) -> None:
    """Ten billion multiplications, which are counted and not done: the test would not end."""
    trial = json.loads((runs / "run" / "trial.json").read_text())
    conv = {"type": "conv", "channels": 1, "kernel": 63, "padding": 31, "norm": False}
    trial["network"]["blocks"] = [conv] * 8 + [{"type": "avg-pool"}, {"type": "linear"}]
    trial["goal"]["parameters"] = 10**6
    (tmp_path / "trial.json").write_text(json.dumps(trial))
    done = smidgen("inspect", tmp_path / "trial.json", "--input", "1x1000x1000", "--json")
    assert done.json["macs"] > 10**10


def test_a_phone_picture_of_several_parts_is_read_within_the_same_bounds(tmp_path: Path) -> None:
    picture = Image.new("L", (60, 60))
    picture.paste(255, (15, 15, 25, 45))
    picture.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[picture])
    assert read_image(tmp_path / "x.jpg").max() > 200
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "y.jpg").write_bytes(content + b"\xff\xda" * 60)
    with pytest.raises(ImageError, match="more than 50 scans"):
        read_image(tmp_path / "y.jpg")
