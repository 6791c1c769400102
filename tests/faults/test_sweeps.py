"""A sweep killed at random moments, over and over, ends complete, and does nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

from conftest import start_smidgen
from smidgen.sweeps.sweep import sweep
from smidgen.trials.find import read_trial

from .conftest import Figures


def test_a_sweep_killed_at_random_moments(
    victims: dict[str, list[str]], tmp_path: Path, thorough: bool, figures: Figures
) -> None:
    trial = replace(read_trial(Path(victims["sgd, auto"][1])), epochs=60)
    trial = replace(trial, goal=replace(trial.goal, epochs=60))
    path = tmp_path / "victim.json"
    path.write_text(json.dumps(trial.to_json()))
    seeds = "0-5" if thorough else "0-1"
    expected = sweep([trial], seeds, workers=1, out=tmp_path / "whole")
    chance, kills, rounds = random.Random(3), 0, 0
    while kills < (24 if thorough else 2):
        out = tmp_path / str(rounds)
        arguments = ["sweep", str(path), "--seeds", seeds, "--workers", "2", "--out", str(out), "--json"]
        while True:
            process = start_smidgen(*arguments)
            time.sleep(1.5 + 3 * chance.random())  # most of it is importing PyTorch, twice
            finished = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
            if process.poll() is None and kills < (24 if thorough else 2):
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            printed, errors = process.communicate()
            assert all(p.stat().st_mtime_ns == when for p, when in finished.items()), "a finished run was made again"
            if process.returncode != -signal.SIGKILL:
                break
        assert process.returncode in (0, 1), errors
        made = json.loads(printed)["trials"][0]
        assert made["weights_sha256"] == expected.to_json()["trials"][0]["weights_sha256"]
        assert made["n"] == made["wanted"]
        rounds += 1
    figures.add(f"{kills} kills of sweeps at random moments, {rounds} of {rounds} sweeps complete and identical")
