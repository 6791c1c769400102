"""Searches: within limits, the same however they are done, resumable, and blind to the test images."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Command, start_smidgen, write_folder
from smidgen.data.dataset import FILES, Dataset
from smidgen.errors import RunError, SettingError, SmidgenError
from smidgen.graph.cost import count_parameters
from smidgen.lowering.c.sizes import int8_needs
from smidgen.nets.build import build_network, measure
from smidgen.runs.options import RunOptions
from smidgen.schedules import Cosine
from smidgen.searches import ask
from smidgen.searches.ask import Asker, Limits
from smidgen.searches.candidate import Candidate, front, ranked, read_candidates, rungs, survivors
from smidgen.searches.found import Search
from smidgen.searches.search import SearchInterruptedError, SearchPlan, search
from smidgen.searches.space import Integers, Numbers, Reals, Space, Words, make_trial
from smidgen.sweeps.executor import Outcome, run_job
from smidgen.sweeps.jobs import Job
from smidgen.sweeps.progress import Standing, SweepProgress
from smidgen.trial import SOAP, AdamW, Conv, FullMatrixAdam, Trial
from smidgen.trials.find import find_trial
from smidgen.trials.mnist import separable_network

SPACE = Space(
    stages=(Integers(1, 2),),
    width=Integers(2, 8),
    batch_size=Numbers((50, 100)),
    averaging=Numbers((0.0, 0.9)),
    order=Words(("norm-activation",)),
    widths=Words(("each",)),
    kind=Words(("plain",)),
)
"""Small networks on 600 images: a run takes a fraction of a second."""


class Here:
    """Does jobs in this process; after so many of them, or at one of them, something happens."""

    def __init__(self, most: int | None = None, fails: dict[int, Outcome] | None = None) -> None:
        self.left, self.fails = most, fails or {}
        self.jobs: list[Job] = []

    def run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome]:
        for job in jobs:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left = None if self.left is None else self.left - 1
            self.jobs.append(job)
            if len(self.jobs) in self.fails:
                yield replace(self.fails[len(self.jobs)], job=job)
                continue
            yield run_job(job, root)

    def close(self) -> None:
        """Nothing was kept."""


def small_search(base: Trial, out: Path, **changes: Any) -> Search:
    """A search with some values of its plan, limits or other arguments changed."""
    plan: dict[str, Any] = {"candidates": 6, "batch": 3, "seeds": 2, "finalists": 2}
    plan |= {field.name: changes.pop(field.name) for field in fields(SearchPlan) if field.name in changes}
    limits = Limits(**{"parameters": 600, "epochs": 1, **changes.pop("limits", {})})
    about: dict[str, Any] = {"space": SPACE, "workers": Here(), "options": RunOptions(), **changes}
    return search(base, plan=SearchPlan(**plan), limits=limits, out=out, **about)


def record(found: Search) -> list[dict[str, Any]]:
    return [candidate.to_json() for candidate in found.candidates]


@pytest.fixture(scope="module")
def whole(small_trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Search:
    return small_search(small_trial, tmp_path_factory.mktemp("whole"))


class AtRandom:
    """Chooses at random, and notes what it was asked."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.asked: list[str] = []

    def integer(self, name: str, among: Integers) -> int:
        self.asked.append(name)
        return self.draw.randrange(among.low, among.high + 1, among.step)

    def real(self, name: str, among: Reals) -> float:
        self.asked.append(name)
        return self.draw.uniform(among.low, among.high)

    def number(self, name: str, among: Numbers) -> float:
        self.asked.append(name)
        return self.draw.choice(among.options)

    def word(self, name: str, among: Words) -> str:
        self.asked.append(name)
        return self.draw.choice(among.options)


WIDE = Space(
    stages=(Integers(1, 4), Integers(1, 3)),
    kind=Words(("plain", "separable")),
    padding=Integers(0, 1),
    pool=Words(("max", "average", "stride")),
    norm_scale=Words(("yes", "no")),
    head=Words(("linear", "convolution", "separable")),
    optimizer=Words(("sgd", "adamw", "full-matrix-adam", "soap")),
    schedule=Words(("one-cycle", "cosine")),
)


@pytest.mark.parametrize("space", [Space(), WIDE, SPACE], ids=["default", "wide", "small"])
def test_every_choice_makes_a_trial_whose_size_is_known_before_it_is_built(space: Space, small_trial: Trial) -> None:
    kinds = set()
    for seed in range(60):
        choose = AtRandom(seed)
        trial = make_trial(space, choose, small_trial)
        assert len(set(choose.asked)) == len(choose.asked)
        assert Trial.from_json(trial.to_json()) == trial
        parameters, macs = measure(trial.network, input_shape=(1, 28, 28), classes=10)
        network = build_network(trial.network, input_shape=(1, 28, 28), classes=10)
        assert parameters == count_parameters(network)
        assert macs > 0
        kinds |= {type(trial.optimizer), type(trial.schedule)}
    assert ({AdamW, FullMatrixAdam, SOAP, Cosine} <= kinds) == (space is WIDE)


class Given(AtRandom):
    """Chooses what is given, and of the rest what comes."""

    def __init__(self, choices: dict[str, int]) -> None:
        super().__init__(0)
        self.choices = choices

    def integer(self, name: str, among: Integers) -> int:
        assert among.low <= self.choices[name] <= among.high
        return self.choices[name]


def test_networks_like_those_of_the_smallest_trials_are_in_the_space(small_trial: Trial) -> None:
    space = Space(
        stages=(Integers(1, 3), Integers(1, 4)), width=Integers(2, 20), widths=Words(("each",)),
        kind=Words(("separable",)), pool=Words(("average",)), squeeze=Words(("no",)),
        head=Words(("separable",)), order=Words(("norm-activation",)), norm_scale=Words(("no",)),
    )  # fmt: skip
    widths = {"width1-1": 4, "width1-2": 3, "width2-1": 4, "width2-2": 5, "width2-3": 9}
    made = make_trial(space, Given({"padding": 0, "stage1": 2, "stage2": 3, **widths}), small_trial)
    assert made.network == separable_network(Conv(4), (6,), (8, 10, 18), direct=True, scale=False)


def test_bounds_are_those_of_what_can_be_chosen() -> None:
    assert Space(rise=Reals(0.0, 0.4), schedule=Words(("cosine",))).rise.low == 0  # no rise is for cosine only
    assert Space(weight_decay=Reals(0.0, 2.0)).weight_decay.high == 2
    with pytest.raises(SettingError, match=r"Space.weight_decay.high is 20"):
        Space(weight_decay=Reals(0.0, 2.0), optimizer=Words(("adamw",)))


def test_spaces_that_cannot_be_are_named() -> None:
    for make, words in (
        (lambda: Integers(3, 2), "Integers.high is 2; allowed: at least low"),
        (lambda: Integers(1, 4, 2), "Integers.high is 4; allowed: a whole number of steps of 2 above 1"),
        (lambda: Reals(0.0, 1.0, True), "Reals.low is 0.0; allowed: above 0"),
        (lambda: Numbers(()), "Numbers.options"),
        (lambda: Words(("max", "max")), "each once"),
        (lambda: Space(flip=Reals(0.0, 1.1)), "Space.flip.high is 1.1; allowed: a number at least 0 and at most 1"),
        (lambda: Space(rise=Reals(0.0, 0.4)), "Space.rise.low is 0.0; allowed: a number above 0"),
        (lambda: Space(dropout=Reals(0.0, 0.99999)), "Space.dropout.high is 1.0"),
        (lambda: Space(batch_size=Numbers((64, 1))), "Space.batch_size.options is 1; allowed: a whole number"),
        (lambda: Space(averaging=Numbers((0.5, 1.0))), "Space.averaging.options is 1.0"),
        (lambda: Space(width=Integers(1, 6_000)), "Space.width.high is 12000"),
        (lambda: Space(padding=Integers(0, 32)), "Space.padding.high is 32"),
        (lambda: Space(pool=Words(("mean",))), "Space.pool.options is 'mean'; allowed: max, average, stride"),
        (lambda: Space(stages=()), "Space.stages is '0 items'"),
        (lambda: Space(width=Integers(0, 4)), "Space.width.low is 0"),
        (lambda: Space(batch_size=Numbers((32.5,))), "whole numbers"),
    ):
        with pytest.raises(SettingError) as caught:
            make()
        assert words in str(caught.value)


def candidate(number: int, mean: float, parameters: int) -> Candidate:
    return Candidate(number, 0, find_trial("mnist-4-strict"), {}, {}, parameters, 1, accuracies=(mean,))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(90, 95), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    candidates = [candidate(i, mean, parameters) for i, (mean, parameters) in enumerate(points)]
    found = {c.number for c in front(candidates)}
    for i, (mean, parameters) in enumerate(points):
        beaten = any(m >= mean and p <= parameters and (m, p) != (mean, parameters) for m, p in points)
        assert (i in found) == (not beaten)
    best = ranked(candidates, pareto=True)
    assert {c.number for c in best[: len(found)]} == found
    assert [c.mean for c in ranked(candidates, pareto=False)] == sorted((m for m, _ in points), reverse=True)


def test_halving() -> None:
    assert [rungs(n) for n in (1, 2, 3, 4, 5, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 5], [1, 2, 4, 8]]
    five = [candidate(i, mean, 1) for i, mean in enumerate([91, 95, 93, 94, 92])]
    assert [c.number for c in survivors(five, pareto=False)] == [1, 2, 3]
    assert survivors([replace(five[0], accuracies=(), error="diverged")], pareto=False) == []


def asker(base: Trial, **changes: Any) -> Asker:
    about: dict[str, Any] = {
        "space": SPACE, "base": base, "limits": Limits(400), "input_shape": (1, 28, 28), "classes": 10,
        "seed": 0, "pareto": False, **changes,
    }  # fmt: skip
    return Asker(**about)


def test_asking_keeps_the_limits_and_depends_on_nothing_but_what_was_told(small_trial: Trial) -> None:
    asked, rejected = asker(small_trial).ask([], 0, 12)
    assert all(c.parameters <= 400 for c in asked)
    assert rejected > 0
    assert len({c.trial.recipe_digest for c in asked}) == 12
    assert asker(small_trial).ask([], 0, 12) == (asked, rejected)
    assert asker(small_trial, seed=1).ask([], 0, 12)[0] != asked
    told = [replace(c, accuracies=(90 + i / 10,)) for i, c in enumerate(asked)]
    more = asker(small_trial).ask(told, 1, 4)[0]
    assert [c.number for c in more] == [12, 13, 14, 15]
    assert asker(small_trial).ask(told, 1, 4)[0] == more
    assert asker(small_trial).ask(told[:-1], 1, 4)[0] != more
    fewer = asker(small_trial, limits=Limits(10_000, macs=100_000)).ask([], 0, 8)[0]
    assert all(c.macs <= 100_000 for c in fewer)


def test_a_network_too_large_for_its_optimizer_is_not_asked_for(
    small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "MOST_PARAMETERS", 300)
    space = replace(SPACE, optimizer=Words(("sgd", "full-matrix-adam")))
    asked, _ = asker(small_trial, space=space, limits=Limits(1_000)).ask([], 0, 24)
    assert {isinstance(c.trial.optimizer, FullMatrixAdam) for c in asked} == {True, False}
    assert any(c.parameters > 300 for c in asked)
    assert all(c.parameters <= 300 for c in asked if isinstance(c.trial.optimizer, FullMatrixAdam))


def test_what_is_told_is_heeded(small_trial: Trial) -> None:
    """After thirty candidates of which the wide ones do well, wide ones are asked for."""
    told: list[Candidate] = []
    wide = asker(small_trial, space=replace(SPACE, stages=(Integers(1, 1),)), limits=Limits(10_000))
    for batch in range(6):
        asked, _ = wide.ask(told, batch, 5)
        told += [replace(c, accuracies=(float(c.choices["width1-1"]),)) for c in asked]
    first, last = ([c.choices["width1-1"] for c in told[part]] for part in (slice(10), slice(20, 30)))
    assert sum(last) / len(last) > sum(first) / len(first) + 1


def test_a_space_that_holds_nothing_within_the_limits_is_one_line(
    small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "MOST_REJECTED", 50)
    with pytest.raises(SmidgenError, match=r"none of 50 candidates in a row was new, fitted .* at most 10 parameters"):
        small_search(small_trial, tmp_path, limits={"parameters": 10})
    assert small_search(small_trial, tmp_path, candidates=2, batch=2, seeds=1, finalists=1).candidates


def test_what_a_search_gives(whole: Search, smidgen: Command) -> None:
    assert len(whole.candidates) == 6
    assert whole.to_json()["evaluated"] == 6
    for batch in (0, 1):
        members = [c for c in whole.candidates if c.batch == batch]
        kept = {c.number for c in members if len(c.accuracies) == 2}
        assert len(kept) == 2  # of three
        dropped = [c for c in members if c.number not in kept]
        assert all(d.accuracies[0] <= k.accuracies[0] for d in dropped for k in members if k.number in kept)
    assert all(c.parameters <= 600 for c in whole.candidates)
    assert [len(f.candidate.fresh) for f in whole.finalists] == [2, 2]
    means = [f.mean for f in whole.finalists]
    assert means == sorted(means, key=lambda mean: -(mean or 0))
    best = find_trial(whole.best.file)
    assert best.data.evaluate == "test"
    assert best.goal.parameters == 600
    assert best.network == whole.best.candidate.trial.network
    assert whole.chart.read_text().startswith("<svg ")
    ran = smidgen("run", whole.best.file, "--out", whole.chart.parent / "judged", "--json")
    assert ran.json["held_out"] == "test"
    assert ran.json["parameters"] == whole.best.candidate.parameters
    text = str(whole)
    assert whole.best.candidate.trial.name in text
    assert f"smidgen sweep {whole.best.file}" in text


def test_the_recorded_accuracies_are_those_of_runs_with_the_same_seeds(whole: Search, small_trial: Trial) -> None:
    runs = whole.chart.parent / "runs"
    for found in whole.candidates:
        results = sorted(runs.glob(f"{found.trial.name}-*/seed*/result.json"))
        held = [json.loads(path.read_text()) for path in results]
        assert {r["held_out"] for r in held} == {"validation"}
        assert [r["validation_accuracy_last"] for r in held] == [*found.accuracies, *found.fresh]


def test_one_worker_two_workers_and_none_find_the_same(whole: Search, small_trial: Trial, tmp_path: Path) -> None:
    for workers in (1, 2):
        found = small_search(small_trial, tmp_path / str(workers), workers=workers)
        assert record(found) == record(whole)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("after", [0, 2, 4, 7, 12])
def test_an_interrupted_search_resumes(whole: Search, small_trial: Trial, tmp_path: Path, after: int) -> None:
    """In the first batch, between the rounds, in the second batch, with the finalists."""
    with pytest.raises(SearchInterruptedError, match="of 6 candidates"):
        small_search(small_trial, tmp_path, workers=Here(most=after))
    rest = Here()
    found = small_search(small_trial, tmp_path, workers=rest)
    assert record(found) == record(whole)
    assert after + len(rest.jobs) == found.to_json()["runs"]  # none twice
    nothing = Here()
    assert record(small_search(small_trial, tmp_path, workers=nothing)) == record(whole)
    assert nothing.jobs == []


def test_killed_at_random_moments_it_ends_as_if_left_alone(small_trial: Trial, tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(small_trial.to_json()))
    arguments: list[str | Path] = [
        "search", path, "--max-parameters", "600", "--max-epochs", "1", "--candidates", "4", "--batch", "2",
        "--seeds", "2", "--finalists", "1", "--workers", "2", "--set", 'stages=[{"low":1,"high":2}]',
        "--set", "width.low=2", "--set", "width.high=8",
    ]  # fmt: skip
    draw = random.Random(5)
    for _ in range(2):
        process = start_smidgen(*arguments, "--out", tmp_path / "killed")
        time.sleep(draw.uniform(1.5, 5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for name in ("killed", "whole"):
        process = start_smidgen(*arguments, "--out", tmp_path / name)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    killed, whole = (read_candidates(tmp_path / name / "candidates.jsonl") for name in ("killed", "whole"))
    assert killed == whole


def test_more_candidates_go_on_from_the_end(whole: Search, small_trial: Trial, tmp_path: Path) -> None:
    fewer = small_search(small_trial, tmp_path, candidates=1)
    assert len(fewer.candidates) == 3  # a whole batch
    more = small_search(small_trial, tmp_path)
    assert [c.accuracies for c in more.candidates] == [c.accuracies for c in whole.candidates]


def test_the_test_images_are_never_opened(
    small_trial: Trial, mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "data", mnist, 600, 200)
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    base = replace(small_trial, data=replace(small_trial.data, source=str(folder)))
    found = small_search(base, tmp_path / "search")
    watching = False
    names = {Path(path).name for path in opened if path.startswith(str(folder))}
    assert names == {FILES["train_images"], FILES["train_labels"]}
    # And without them it finds the same.
    for name in ("test_images", "test_labels"):
        (folder / FILES[name]).unlink()
    again = small_search(base, tmp_path / "again")
    assert record(again) == record(found)
    # While the trials that it writes are for them.
    with pytest.raises(SmidgenError, match=FILES["test_images"]):
        small_search(find_trial(again.best.file), tmp_path / "third", name="x", workers=OnTestImages())


class OnTestImages(Here):
    """Judges on the test images, as no search may: to see that the test above would notice."""

    def run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome]:
        for job in jobs:
            trial = replace(job.trial, data=replace(job.trial.data, evaluate="test"))
            yield from super().run([replace(job, trial=trial)], root)


def test_seeds_take_turns_on_the_folds(small_trial: Trial, tmp_path: Path) -> None:
    executor = Here()
    small_search(small_trial, tmp_path, candidates=1, batch=2, seeds=4, folds=3, workers=executor)
    assert {(job.seed, job.trial.data.fold) for job in executor.jobs} == {(s, s % 3) for s in range(8)}
    with pytest.raises(SmidgenError, match=r"6 blocks of 100; set a lower data\.fold"):
        small_search(small_trial, tmp_path / "many", folds=7)


def test_a_candidate_that_diverges_is_noted_and_the_rest_continues(small_trial: Trial, tmp_path: Path) -> None:
    diverged = Outcome(Job(small_trial, 0, None, ""), "training diverged", recipe=True)  # type: ignore[arg-type]
    found = small_search(small_trial, tmp_path, workers=Here(fails={2: diverged, 5: diverged}))
    errors = [c.error for c in found.candidates]
    assert errors.count("training diverged") == 2
    assert found.to_json()["failed"] == 2
    assert not any(c.accuracies for c in found.candidates if c.error)
    assert all(not f.candidate.error for f in found.finalists)


def test_a_finalist_that_once_diverges_comes_after_those_that_do_not(
    whole: Search, small_trial: Trial, tmp_path: Path
) -> None:
    """The last four runs are the finalists': seed 2 of both, then seed 3."""
    runs = whole.to_json()["runs"]
    first = whole.best.candidate.number
    diverged = Outcome(Job(small_trial, 0, None, ""), "training diverged", recipe=True)  # type: ignore[arg-type]
    for position in (runs - 3, runs - 2):
        executor = Here(fails={position: diverged})
        found = small_search(small_trial, tmp_path / str(position), workers=executor)
        lost = executor.jobs[position - 1].trial.name
        assert found.finalists[-1].candidate.trial.name == lost
        assert len(found.finalists[-1].candidate.fresh) == 1
        assert (found.best.candidate.number == first) == (lost != whole.best.candidate.trial.name)


def test_a_full_disk_does_not_count_against_a_candidate(whole: Search, small_trial: Trial, tmp_path: Path) -> None:
    full = Outcome(Job(small_trial, 0, None, ""), "x cannot be written: No space left on device")  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"No space left on device"):
        small_search(small_trial, tmp_path, workers=Here(fails={2: full}))
    assert record(small_search(small_trial, tmp_path)) == record(whole)


def test_pareto_looks_for_small_ones_too(small_trial: Trial, tmp_path: Path) -> None:
    found = small_search(small_trial, tmp_path, pareto=True, candidates=9)
    assert [f.candidate.number for f in found.finalists] == [
        f.candidate.number for f in sorted(found.finalists, key=lambda f: -(f.mean or 0))
    ]
    whole = [c for c in found.candidates if len(c.accuracies) == 2]
    assert {c.number for c in front(whole)} >= {f.candidate.number for f in found.finalists[:1]}
    shown = found.to_json()["front"]
    assert [point["parameters"] for point in shown] == sorted(point["parameters"] for point in shown)
    assert [point["mean"] for point in shown] == sorted(point["mean"] for point in shown)


def test_another_search_in_the_folder_is_refused(whole: Search, small_trial: Trial) -> None:
    root = whole.chart.parent
    for changes, words in (
        ({"seeds": 3}, r"another plan\.seeds \(2, here 3\)"),
        ({"settings": ["width.high=6"]}, r"another space\.width\.high \(8, here 6\)"),
        ({"limits": {"parameters": 500}}, "another base.goal.parameters"),
        ({"options": RunOptions("eager", threads=2)}, "another (engine|threads)"),
    ):
        with pytest.raises(RunError, match=f"holds a search with {words}") as caught:
            small_search(small_trial, root, **changes)
        assert "--out" in str(caught.value)


def test_damaged_records_are_one_line_and_the_runs_are_kept(whole: Search, small_trial: Trial, tmp_path: Path) -> None:
    small_search(small_trial, tmp_path, candidates=3)
    path = tmp_path / "candidates.jsonl"
    good = path.read_text()
    line = json.loads(good.splitlines()[0])
    for bad in (
        good[: len(good) // 2],
        json.dumps({**line, "accuracies": [101]}) + "\n",
        json.dumps({**line, "number": 1}) + "\n",
        json.dumps({**line, "choices": {}}) + "\n",
        "[]\n",
        "\x00\n",
    ):
        path.write_text(bad)
        with pytest.raises(RunError, match=r"candidates\.jsonl is damaged"):
            small_search(small_trial, tmp_path, candidates=3)
    path.unlink()
    executor = Here()
    assert record(small_search(small_trial, tmp_path, candidates=3, workers=executor)) != []
    assert executor.jobs == []
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(RunError, match=r"search\.json is damaged"):
        small_search(small_trial, tmp_path, candidates=3)


def test_two_searches_at_once_in_a_folder_are_one_too_many(small_trial: Trial, tmp_path: Path) -> None:
    class Second(Here):
        def run(self, jobs: Sequence[Job], root: Path) -> Iterator[Outcome]:
            with pytest.raises(RunError, match=f"is in use by process {os.getpid()}"):
                small_search(small_trial, tmp_path)
            return super().run(jobs, root)

    small_search(small_trial, tmp_path, candidates=3, workers=Second())


def test_bad_flags_and_a_missing_library_are_one_line(
    smidgen: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--out", tmp_path / "s"]
    for arguments, words in (
        (["--candidates", "0"], "--candidates is 0"),
        (["--seeds", "-1"], "--seeds is -1"),
        (["--max-parameters", "-5"], "--max-parameters"),
        (["--max-flash", "0"], "--max-flash is 0; allowed: a whole number, at least 1"),
        (["--folds", "11"], "10 blocks of 6,000"),
        (["--set", "width.hihg=6"], "did you mean 'high'?"),
        (["--workers", "0"], "--workers is 0"),
        (["--name", "a/b"], "Trial.name is 'a/b'"),
        (["nothing"], "there is no trial 'nothing'"),
    ):
        assert smidgen("search", *arguments, *out).is_mistake(words)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert smidgen("search", *out).is_mistake("a search needs Optuna; install it with: pip install 'smidgen[search]'")
    assert not (tmp_path / "s" / "candidates.jsonl").exists()


def test_the_command(smidgen: Command, small_trial: Trial, tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(small_trial.to_json()))
    out = tmp_path / "s"
    arguments = ["search", path, "--max-parameters", "600", "--max-epochs", "1", "--candidates", "2", "--batch", "2"]
    arguments += ["--seeds", "1", "--finalists", "1", "--workers", "1", "--name", "mine", "--out", out]
    done = smidgen(*arguments, "--json")
    assert done.status == 0
    assert done.json["evaluated"] == 2
    assert done.json["best"]["file"] == str(out / "best" / f"{done.json['best']['name']}.json")
    assert done.json["best"]["name"].startswith("mine-")
    shown = smidgen(*arguments)
    assert "2 candidates are there already" in shown.out
    assert "what no other candidate beats in both" in shown.out
    reported = smidgen("report", out / "runs", "-o", tmp_path / "r.html")
    assert reported.status == 0


def test_limits_in_bytes_keep_candidates_from_training(
    small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Here()
    changes = {"candidates": 4, "batch": 4, "seeds": 1, "finalists": 1, "workers": executor}
    found = small_search(small_trial, tmp_path / "s", limits={"flash": 700, "ram": 900}, **changes)
    assert found.rejected > 0
    assert {job.trial.goal.flash for job in executor.jobs} == {700}
    for candidate in found.candidates:
        network = build_network(candidate.trial.network, input_shape=(1, 28, 28), classes=10)
        needs = int8_needs(network, (1, 28, 28), most_ram=900)
        assert needs.flash <= 700
        assert needs.ram <= 900
        assert not candidate.error
    best = find_trial(found.best.file).goal
    assert (best.flash, best.ram) == (700, 900)
    monkeypatch.setattr("smidgen.searches.ask.MOST_REJECTED", 5)
    with pytest.raises(SmidgenError, match=r"at most 600 parameters and 900 bytes of flash and 60 bytes of RAM"):
        small_search(small_trial, tmp_path / "none", limits={"flash": 900, "ram": 60}, workers=Here(most=0))


def test_the_bar_reaches_the_end_of_the_whole_search(small_trial: Trial, tmp_path: Path) -> None:
    seen: list[Standing] = []

    class Keep(SweepProgress):
        def update(self, standing: Standing) -> None:
            seen.append(standing)

    plan = SearchPlan(candidates=3, batch=3, seeds=2, finalists=1)
    found = small_search(small_trial, tmp_path, progress=Keep(), candidates=3, finalists=1)
    assert plan.runs == found.to_json()["runs"] == 3 + 2 + 2
    fractions = [standing.fraction for standing in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert seen[-1].done == "3 of 3 candidates evaluated on the validation split, 2 of 2 runs of this round"
    assert seen[-1].table("table").count("found-") == 3
