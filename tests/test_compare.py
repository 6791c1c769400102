"""Which trials are compared, in reports and by `smidgen compare`; the figures are tested in test_statistics.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Command
from smidgen.reports.analysis import analyse
from smidgen.reports.collect import Collection, TrialRuns, collect
from smidgen.reports.compare import base_of, bases, compare_trials
from smidgen.reports.document import Bullets, Heading
from smidgen.reports.report import report
from smidgen.reports.write import write
from smidgen.runs.predictions import Predictions
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.trial import Trial
from smidgen.trials.builtin import BUILTIN


def runs_of(trial: Trial, like: Run, shares: Sequence[float] = (0.9, 0.9), images: int = 1_000) -> TrialRuns:
    """Runs of a trial with so large a share of images right, a seed each."""
    rng = np.random.default_rng([len(trial.name), *trial.name.encode()])
    group = TrialRuns(trial, [replace(like, trial=trial, seed=seed) for seed in range(len(shares))])
    group.labels = np.zeros(images, dtype=np.int64)
    group.predictions = [
        Predictions((rng.random(images) >= share).astype(np.int64), np.ones(images, dtype=np.float32))
        for share in shares
    ]
    return group


@pytest.fixture
def family(small_trial: Trial, small_run: Run) -> dict[str, TrialRuns]:
    """A trial, two that were made from it, and one that was made from the second of these."""
    second = replace(small_trial, name="second", batch_size=25)
    third = replace(small_trial, name="third", batch_size=64)
    fourth = replace(second, name="fourth", dropout=0.1)
    trials = (small_trial, second, third, fourth)
    return {t.name: runs_of(t, small_run, (0.9, 0.91)) for t in trials}


class TestBase:
    def test_it_is_what_replace_was_called_on_and_not_what_came_before(self, family: dict[str, TrialRuns]) -> None:
        groups = list(family.values())
        for order in (groups, groups[::-1]):
            found = {group.trial.name: base_of(group, order) for group in order}
            assert {name: base and base.trial.name for name, base in found.items()} == {
                "small": None, "second": "small", "third": "small", "fourth": "second",
            }  # fmt: skip

    def test_one_that_is_missing_gives_way_to_its_own(self, family: dict[str, TrialRuns]) -> None:
        assert base_of(family["fourth"], [family["small"], family["third"], family["fourth"]]) is family["small"]
        assert base_of(family["fourth"], [family["third"], family["fourth"]]) is None

    def test_it_survives_a_run_directory(self, small_trial: Trial, small_run: Run, tmp_path: Path) -> None:
        made = run(replace(small_trial, name="made", epochs=1), out=tmp_path / "made", progress=Silent())
        groups = collect([made.directory, small_run.directory]).trials
        assert groups[0].trial.base == "small"
        assert base_of(groups[0], groups) is groups[1]

    def test_old_runs_of_builtin_trials_have_the_base_of_the_built_in_one(self, small_run: Run) -> None:
        trials = []
        for name in ("mnist-3-augmented", "mnist-tiny", "mnist-4-strict", "mnist-sprint"):
            data = BUILTIN[name].make().to_json()
            del data["lineage"]
            trials.append(runs_of(Trial.from_json(data), small_run))
        third, tiny, flagship, sprint = trials
        assert base_of(tiny, trials) is flagship
        assert base_of(sprint, trials) is flagship
        assert base_of(flagship, trials) is third
        assert base_of(third, trials) is None

    def test_a_changed_builtin_trial_has_the_built_in_one(self, small_run: Run) -> None:
        tiny, flagship = BUILTIN["mnist-tiny"].make(), BUILTIN["mnist-4-strict"].make()
        groups = [
            runs_of(t, small_run) for t in (flagship, replace(tiny, batch_size=32), replace(tiny, epochs=2), tiny)
        ]
        assert bases(groups[1].trial)[:2] == ["mnist-tiny", "mnist-4-strict"]
        assert base_of(groups[1], groups) is groups[3]
        assert base_of(groups[1], groups[:3]) is groups[0]


class TestChapters:
    def heads(self, groups: list[TrialRuns]) -> list[str]:
        return [b.text for b in write(Collection(groups)).blocks if isinstance(b, Heading) and "changed" in b.text]

    def test_changes_and_comparison_are_with_the_base(self, family: dict[str, TrialRuns]) -> None:
        groups = list(family.values())
        assert self.heads(groups) == ["What changed from small"] * 2 + ["What changed from second"]
        sentences = analyse(family["fourth"], family["second"])
        assert "fourth against second" in sentences[-1]

    def test_the_verdict_is_that_of_compare(self, small_trial: Trial, small_run: Run) -> None:
        base = runs_of(small_trial, small_run, (0.95,) * 5)
        better = runs_of(replace(small_trial, name="better", epochs=1), small_run, (0.995,) * 5)
        level = runs_of(replace(small_trial, name="level", epochs=1), small_run, (0.953,) * 5)
        assert analyse(better, base)[-1].endswith(": better.")
        assert ": not distinguishable" in analyse(level, base)[-1]

    def test_without_the_base_nothing_is_compared(self, family: dict[str, TrialRuns]) -> None:
        document = write(Collection([family["third"]]))
        (sentence,) = [
            text
            for block in document.blocks
            if isinstance(block, Bullets)
            for text in block.items
            if "not in this report" in text
        ]
        assert "small" in sentence
        assert "against" not in " ".join(analyse(family["small"]))

    def test_other_images_are_not_compared(self, family: dict[str, TrialRuns]) -> None:
        family["small"].labels = np.ones(1_000, dtype=np.int64)
        assert "not evaluated on the same images" in analyse(family["second"], family["small"])[-1]


def test_sets_of_one_name_are_told_apart(family: dict[str, TrialRuns], small_trial: Trial, small_run: Run) -> None:
    first = family["small"]
    second = runs_of(replace(small_trial, epochs=1), small_run)
    comparison = compare_trials(first, second)
    assert str(comparison).startswith("small (first set) against small (second set)")
    assert comparison.notes[-1] == "both are called small; from the first set to the second: epochs: 2 -> 1"
    assert compare_trials(first, first).notes[-1].startswith("the two sets are the same runs")
    assert compare_trials(first, family["second"]).names == ("small", "second")


def test_report_and_compare_say_the_same(small_trial: Trial, small_run: Run, tmp_path: Path, smidgen: Command) -> None:
    made = run(replace(small_trial, name="made", epochs=1), seed=3, out=tmp_path / "made", progress=Silent())
    report([small_run, made], tmp_path / "r.md")
    said = smidgen("compare", made.directory, "--with", small_run.directory).out.strip()
    assert said in (tmp_path / "r.md").read_text()
    found = smidgen("compare", made.directory, "--with", small_run.directory, "--json").json
    assert found["difference"] == pytest.approx(made.accuracy - small_run.accuracy)
    assert (found["name"], found["name_with"], found["verdict"]) == ("made", "small", "unknown")
    assert (found["low95"], found["high95"], found["p_permutation"]) == (None, None, None)
    assert json.loads((tmp_path / "made" / "trial.json").read_text())["lineage"] == ["small", "made"]
