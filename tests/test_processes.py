"""Threads, forked children, and what a user's file prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ENGINES
from odd import trained
from smidgen.inspection import inspect
from smidgen.trial import Trial


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_in_threads_of_one_process_give_the_same_weights(small_trial: Trial, tmp_path: Path, engine: str) -> None:
    trial = replace(small_trial, dropout=0.1, epochs=1)
    expected = trained(trial, tmp_path / "alone", engine).result.weights_sha256
    found: list[Any] = []

    def work(number: int) -> None:
        try:
            found.append(trained(trial, tmp_path / str(number), engine).result.weights_sha256)
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert inspect("mnist-tiny").anatomy.parameters
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


FORK = """
import os, sys, smidgen
from smidgen.runs.progress import Silent
threads = int(sys.argv[2])
options = smidgen.RunOptions(engine=sys.argv[3], threads=threads)
smidgen.run("mnist-tiny", epochs=1, data=sys.argv[1], settings=["goal.accuracy=1"], out=sys.argv[4] + "/parent", options=options, progress=Silent())
child = os.fork()
if child == 0:
    try:
        smidgen.run("mnist-tiny", epochs=1, data=sys.argv[1], settings=["goal.accuracy=1"], out=sys.argv[4] + "/child", options=options, progress=Silent())
    except smidgen.SmidgenError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_does_not_hang(small_folder: Path, tmp_path: Path, engine: str) -> None:
    command = [sys.executable, "-c", FORK, str(small_folder), "2", engine, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "forked" in done.stdout
    assert "spawn" in done.stdout
    assert not (tmp_path / "child").exists()


PRINTS = """
import os, subprocess, sys
import torch
from torch import nn
import smidgen
print("imported")
os.write(1, b"written\\n")
subprocess.run([sys.executable, "-c", "print('from a process')"])


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        print("made")
        self.a = nn.Linear(784, classes)

    def forward(self, x):
        print("called")
        return self.a(x.flatten(1))


def trial():
    return smidgen.Trial(
        name="loud", goal=smidgen.Goal(accuracy=1, parameters=8000, epochs=1), data=smidgen.Data(source=SOURCE),
        network=smidgen.from_module(Net), optimizer=smidgen.SGD(lr=0.05), batch_size=300, epochs=1,
    )
"""


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "FILE:Net", "--json"],
        ["run", "FILE:trial", "--json"],
        ["inspect", "FILE:missing", "--json"],
        ["inspect", "FILE:Net", "--format", "csv"],
    ],
)
def test_what_a_users_file_prints_is_not_among_the_results(
    command: list[str], small_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "loud.py"
    path.write_text(PRINTS.replace("SOURCE", repr(str(small_folder))))
    arguments = [argument.replace("FILE", str(path)) for argument in command]
    done = subprocess.run(
        [sys.executable, "-m", "smidgen", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    if "--json" in command:
        assert json.loads(done.stdout)
    else:
        assert done.stdout.startswith("layer,")
    for text in ("imported", "written", "from a process"):
        assert text in done.stderr
    assert "imported" not in done.stdout
