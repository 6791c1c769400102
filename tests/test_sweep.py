"""Sweeps: each job once, whoever does it and however often it is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Command, start_smidgen
from smidgen.errors import RunError, SmidgenError
from smidgen.reports.compare import compare
from smidgen.runs.options import RunOptions
from smidgen.runs.record import load_run
from smidgen.sweeps import executor
from smidgen.sweeps.executor import MOST_ATTEMPTS, LocalWorkers, Outcome, Running, run_job
from smidgen.sweeps.jobs import Job, make_jobs, parse_seeds, parse_shard
from smidgen.sweeps.progress import Standing, SweepLines, SweepProgress
from smidgen.sweeps.sweep import Sweep, SweepInterruptedError, sweep
from smidgen.sweeps.workers import settled
from smidgen.trial import SGD, Trial

SETTLED = settled(RunOptions())
"""With the engine that is here."""


def digests(finished: Sweep) -> dict[tuple[str, int], str]:
    return {
        (result.trial.name, run.seed): str(run.result.weights_sha256)
        for result in finished.trials
        for run in result.runs
    }


@pytest.fixture(scope="module")
def trials(small_trial: Trial) -> list[Trial]:
    return [small_trial, replace(small_trial, name="slower", optimizer=SGD(lr=0.01))]


@pytest.fixture(scope="module")
def whole(trials: list[Trial], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return sweep(trials, "0-2", workers=1, out=tmp_path_factory.mktemp("whole"))


def test_seeds_and_shards_are_parsed() -> None:
    assert parse_seeds("0-3,8, 2,12-13") == [0, 1, 2, 3, 8, 12, 13]
    assert parse_seeds("7") == [7]
    for wrong in ("", "3-1", "x", "1,,2", "-1", "0-99999999", str(2**64), "1.5"):
        with pytest.raises(SmidgenError, match="--seeds"):
            parse_seeds(wrong)
    assert parse_shard("2/5") == (2, 5)
    for wrong in ("0/5", "6/5", "5", "a/b", "1/0", "-1/2"):
        with pytest.raises(SmidgenError, match="--shard"):
            parse_shard(wrong)


def test_a_job_is_addressed_by_what_shapes_its_result(small_trial: Trial) -> None:
    native = RunOptions("native", "fp32", "cpu", 1)
    job = make_jobs([small_trial], [3], native)[0]
    assert job.place == Path(f"small-{job.key[:8]}/seed3")
    same = make_jobs([replace(small_trial, note="another note")], [3], replace(native, threads=8))[0]
    assert same.key == job.key
    others = [
        make_jobs([replace(small_trial, epochs=1)], [3], native)[0],
        make_jobs([small_trial], [3], replace(native, engine="eager"))[0],
        make_jobs([small_trial], [3], replace(native, engine="eager", threads=2))[0],
        make_jobs([small_trial], [3], replace(native, precision="bf16"))[0],
        replace(job, data_sha256="0" * 64),
    ]
    assert len({other.key for other in others} | {job.key}) == 6
    assert len(make_jobs([small_trial, replace(small_trial, name="copy")], [0, 1], native)) == 2


def test_the_runs_are_those_that_run_makes(whole: Sweep, trials: list[Trial], tmp_path: Path) -> None:
    assert (whole.done, whole.kept, whole.failures) == (6, 0, ())
    job = make_jobs(trials, [1], SETTLED)[1]
    assert run_job(job, tmp_path) == Outcome(job)
    made = load_run(tmp_path / job.place)
    assert made.result.weights_sha256 == digests(whole)["slower", 1]


def test_two_workers_and_shards_copied_together_make_the_same(
    whole: Sweep, trials: list[Trial], tmp_path: Path
) -> None:
    two = sweep(trials, "0-2", workers=2, out=tmp_path / "two")
    assert digests(two) == digests(whole)
    shards = [sweep(trials, "0-2", workers=1, shard=f"{i}/2", out=tmp_path / "one") for i in (1, 2)]
    assert [shard.done for shard in shards] == [3, 3]
    again = sweep(trials, "0-2", out=tmp_path / "one")
    assert (again.done, again.kept) == (0, 6)
    assert digests(again) == digests(whole)


def test_a_shard_without_runs_is_done(trials: list[Trial], tmp_path: Path, smidgen: Command) -> None:
    nothing = sweep(trials[0], "0", workers=1, shard="2/2", out=tmp_path / "empty")
    assert (nothing.done, nothing.kept, nothing.failures) == (0, 0, ())
    (path := tmp_path / "trial.json").write_text(json.dumps(trials[0].to_json()))
    done = smidgen("sweep", path, "--seeds", "0", "--shard", "9/10", "--out", tmp_path / "empty")
    assert done.status == 0, done
    assert "0/1" in done.out


def test_only_what_is_missing_is_done(whole: Sweep, trials: list[Trial], tmp_path: Path) -> None:
    sweep(trials, "0-1", workers=1, out=tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    more = sweep(trials, "0-2", workers=1, out=tmp_path)
    assert (more.done, more.kept) == (2, 4)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert digests(more) == digests(whole)


def kill_workers(monkeypatch: pytest.MonkeyPatch, root: Path, most: int) -> None:
    """Kill the workers that the first few jobs go to, each as soon as a run has begun below the root."""
    give = executor._Worker.give
    kills = iter(range(most))

    def give_and_kill(self: executor._Worker, job: Job, attempt: int, folder: Path) -> None:
        give(self, job, attempt, folder)
        if next(kills, None) is not None:
            while not list(root.rglob("trial.json")):
                time.sleep(0.02)
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGKILL)  # not yet waited for, so its number is still its own

    monkeypatch.setattr(executor._Worker, "give", give_and_kill)


def test_seeds_take_turns_on_the_folds(trials: list[Trial], tmp_path: Path) -> None:
    made = sweep(trials, "0-3", folds=3, workers=2, out=tmp_path)
    assert [len(result.runs) for result in made.trials] == [4, 4]
    for result in made.trials:
        assert [run.trial.data.fold for run in result.runs] == [0, 1, 2, 0]
        assert {run.result.held_out for run in result.runs} == {"validation"}
    assert [result.trial.name for result in made.trials] == ["small", "slower"]
    assert made.goals_met is None
    for folds, words in ((0, "--folds is 0"), (7, "6 blocks of 100")):
        with pytest.raises(SmidgenError, match=words):
            sweep(trials, "0-3", folds=folds, workers=1, out=tmp_path)


def test_a_sweep_changes_its_trials_as_run_does(
    trials: list[Trial], small_folder: Path, tmp_path: Path, smidgen: Command
) -> None:
    made = sweep(trials, "0", epochs=1, settings=["batch_size=100"], data=small_folder, workers=1, out=tmp_path / "s")
    for result in made.trials:
        assert (result.trial.epochs, result.trial.batch_size) == (1, 100)
        assert [run.result.epochs for run in result.runs] == [1]
    path = tmp_path / "small.json"
    path.write_text(json.dumps(trials[0].to_json()))
    arguments = [path, "--epochs", "1", "--set", "batch_size=100", "--data", small_folder]
    one = smidgen("run", *arguments, "--threads", "1", "--out", tmp_path / "r", "--json").json
    swept = smidgen("sweep", *arguments, "--seeds", "0", "--out", tmp_path / "s", "--json").json
    assert swept["kept"] == 1
    assert swept["trials"][0]["weights_sha256"] == [one["weights_sha256"]]
    assert smidgen("sweep", path, "--set", "optimiser.lr=1", "--out", tmp_path / "x").is_mistake("optimizer")
    assert smidgen("sweep", path, "--epochs", "4", "--seeds", "0", "--out", tmp_path / "x").status == 2


def test_a_worker_that_is_killed_is_replaced_and_its_job_done(
    whole: Sweep, trials: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    kill_workers(monkeypatch, tmp_path, most=1)
    finished = sweep(trials, "0-2", workers=2, out=tmp_path, progress=SweepLines(lines.append))
    assert digests(finished) == digests(whole)
    assert finished.failures == ()
    assert any(line.endswith("its worker was killed by SIGKILL; trying again") for line in lines), lines


@pytest.mark.parametrize("how", ["a file", "standard input"])
def test_a_script_needs_no_guard(trials: list[Trial], tmp_path: Path, how: str) -> None:
    trial, script = tmp_path / "small.json", tmp_path / "script.py"
    trial.write_text(json.dumps(replace(trials[0], epochs=1).to_json()))
    script.write_text(
        "import smidgen\nprint('once')\n"
        f"made = smidgen.sweep([{str(trial)!r}], '0-1', workers=2, out={str(tmp_path / 's')!r})\n"
        "print(len(made.trials[0].runs), 'runs', made.failures)\n"
    )
    command = [sys.executable, *([str(script)] if how == "a file" else ["-"])]
    with script.open() as text:
        done = subprocess.run(command, stdin=text, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.count("once") == 1
    assert done.stdout.endswith("2 runs ()\n")
    assert not done.stderr


def test_a_bad_seed_does_not_lose_the_others(trials: list[Trial], tmp_path: Path) -> None:
    """A job whose place is taken by a file, and one that always kills its worker: the rest is done."""
    bad = make_jobs(trials, [1], SETTLED)[0]
    (tmp_path / bad.place).parent.mkdir()
    (tmp_path / bad.place).write_text("in the way")
    finished = sweep(trials, "0-2", workers=2, options=RunOptions(SETTLED.engine), out=tmp_path)
    assert [str(job) for job, _ in finished.failures] == ["small, seed 1"]
    assert "is a file" in finished.failures[0][1]
    assert len(digests(finished)) == 5


def test_a_job_that_always_dies_is_given_up(
    trials: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_workers(monkeypatch, tmp_path, most=MOST_ATTEMPTS)
    jobs = make_jobs([replace(trials[0], epochs=3000, goal=replace(trials[0].goal, epochs=3000))], [0], SETTLED)
    workers = LocalWorkers(1)
    outcomes = [outcome for outcome in workers.run(jobs, tmp_path) if not isinstance(outcome, Running)]
    workers.close()
    assert [outcome.again for outcome in outcomes] == [True] * (MOST_ATTEMPTS - 1) + [False]
    assert all("killed by SIGKILL" in outcome.error for outcome in outcomes)


def test_what_cannot_be_is_one_line(smidgen: Command, tmp_path: Path) -> None:
    for arguments, words in (
        (["mnist-4-strict", "--seeds", "x"], "--seeds"),
        (["mnist-4-strict", "--workers", "0"], "--workers is 0"),
        (["mnist-4-strict", "--shard", "3/2"], "--shard is '3/2'"),
        (["nothing"], "there is no trial 'nothing'"),
    ):
        assert smidgen("sweep", *arguments, "--out", tmp_path / "s").is_mistake(words)
    assert not (tmp_path / "s").exists()


def test_the_command(smidgen: Command, whole: Sweep, trials: list[Trial], tmp_path: Path) -> None:
    paths = []
    for trial in trials:
        paths.append(tmp_path / f"{trial.name}.json")
        paths[-1].write_text(json.dumps(trial.to_json()))
    root = whole.trials[0].runs[0].directory.parent.parent
    done = smidgen("sweep", *paths, "--seeds", "0-2", "--out", root, "--json")
    first = done.json["trials"][0]
    assert first["n"] == 3
    assert set(first) >= {"name", "mean", "sd", "min", "max", "goal_share", "goal_share_low95", "weights_sha256"}
    assert first["mean"] == pytest.approx(sum(run.accuracy for run in whole.trials[0].runs) / 3)
    assert (done.json["done"], done.json["kept"]) == (0, 6)
    assert done.status == (0 if whole.goals_met else 1)
    shown = smidgen("sweep", *paths, "--seeds", "0-2", "--out", root)
    assert "6 runs in" in shown.out
    assert "3/3" in shown.out
    compared = smidgen(
        "compare", root / first["run_dirs"][0].split("/")[-2], "--with", Path(first["run_dirs"][0]).parent, "--json"
    )
    assert compared.json["difference"] == 0
    assert compared.json["p"] == 1
    other = smidgen(
        "compare", Path(first["run_dirs"][0]).parent, "--with", Path(done.json["trials"][1]["run_dirs"][0]).parent
    )
    assert "3 runs against 3, paired by seed" in other.out
    assert smidgen("compare", root, "--with", root).is_mistake("is of several trials")
    reported = smidgen("report", root, "-o", tmp_path / "x.html", "--json")
    assert [trial["seeds"] for trial in reported.json["trials"]] == [[0, 1, 2], [0, 1, 2]]


def test_sets_that_do_not_fit_are_refused(whole: Sweep, small_trial: Trial, tmp_path: Path) -> None:
    tuned = sweep(
        [replace(small_trial, data=replace(small_trial.data, evaluate="validation"))], "0-1", workers=1, out=tmp_path
    )
    assert tuned.goals_met is None
    assert tuned.to_json()["trials"][0]["goal_share"] is None
    with pytest.raises(RunError, match="not evaluated on the same images"):
        compare(whole.trials[0].runs, tuned.trials[0].runs)
    with pytest.raises(RunError, match="of several trials"):
        compare([*whole.trials[0].runs, *whole.trials[1].runs], whole.trials[0].runs)


def test_an_interrupted_sweep_keeps_finished_runs_and_resumes(trials: list[Trial], tmp_path: Path) -> None:
    trial = tmp_path / "small.json"
    trial.write_text(json.dumps(trials[0].to_json()))
    arguments = ["sweep", str(trial), "--seeds", "0-5", "--workers", "2", "--out", str(tmp_path / "s")]
    process = start_smidgen(*arguments, "--json")
    while not list((tmp_path / "s").glob("*/*/result.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    if process.returncode == 130:
        assert "of 6 runs done" in errors
        shown = json.loads(printed)
        assert shown["resume"] == shlex.join(["smidgen", *arguments, "--json"])
        assert (shown["interrupted"], shown["out"], shown["wanted"]) == (True, str(tmp_path / "s"), 6)
        assert 0 <= shown["finished"] <= 6  # it may not have noticed the first yet
    else:
        assert process.returncode in (0, 1), errors  # it was done before the signal came
    again = start_smidgen(*arguments)
    printed, errors = again.communicate(timeout=120)
    assert again.returncode in (0, 1), errors
    assert "6/6" in printed


def test_ctrl_c_in_a_notebook_reports_the_progress(trials: list[Trial], tmp_path: Path) -> None:
    class Interrupt(SweepProgress):
        def update(self, standing: Standing) -> None:
            if standing.done == "1 of 6 runs done":
                raise KeyboardInterrupt

    with pytest.raises(SweepInterruptedError, match="interrupted with 1 of 6 runs done") as caught:
        sweep(trials, "0-2", workers=1, out=tmp_path, progress=Interrupt())
    assert caught.value.finished == 1
    shown = caught.value.to_json()
    assert shown == {
        "interrupted": True, "run_dir": None, "epochs": None, "resume": None, "out": str(tmp_path), "finished": 1, "wanted": 6,
    }  # fmt: skip
    assert not multiprocessing.active_children()
