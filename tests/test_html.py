"""What results show in a notebook: well-formed HTML in which names are only text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from smidgen.inspection import Inspection, inspect
from smidgen.runs.live import Timer
from smidgen.runs.options import RunOptions
from smidgen.runs.predict import Prediction, PredictionList
from smidgen.runs.progress import Notebook
from smidgen.runs.record import Run
from smidgen.runs.run import finished_start
from smidgen.searches.candidate import Candidate
from smidgen.searches.found import Finalist, Search
from smidgen.statistics import Comparison, compare_sets
from smidgen.sweeps.jobs import Job
from smidgen.sweeps.progress import Standing, SweepBar, SweepLines, SweepNotebook, best_sweep_progress
from smidgen.sweeps.sweep import Sweep, TrialResult, sweep
from smidgen.tables import render
from smidgen.trial import Trial

BAD = "<script>alert(1)</script> & 'co'"


def parsed(shown: str) -> ElementTree.Element:
    """The HTML, which is also XML but for the line breaks."""
    assert "<script" not in shown
    return ElementTree.fromstring(f"<div>{shown.replace('<br>', '<br/>')}</div>")


def text_of(shown: str) -> str:
    return "".join(parsed(shown).itertext())


def named(trial: Trial) -> Trial:
    """The trial with a name that its settings would refuse: one from elsewhere need not be checked."""
    changed = replace(trial)
    object.__setattr__(changed, "name", BAD)
    return changed


def run_of(finished: Run) -> Run:
    return replace(finished, trial=named(finished.trial))


def sweep_of(finished: Run) -> Sweep:
    trial = named(finished.trial)
    failed = Job(trial, 7, RunOptions(), "")
    return Sweep((TrialResult(trial, (finished,), 2),), ((failed, f"it failed: {BAD}"),), 1, 0, 1.0)


def search_of(finished: Run) -> Search:
    one = Candidate(0, 0, named(finished.trial), {}, {}, 678, 1000, (50.0,), (51.0,))
    return Search((one,), (Finalist(one, Path("best.json")),), 0, Path("pareto.svg"))


def comparison_of(finished: Run) -> Comparison:
    correct = np.arange(40).reshape(2, 20) % 3 == 0
    made = compare_sets(correct, ~correct, ([0, 1], [0, 1]))
    return replace(made, names=(BAD, "other"), notes=(BAD,))


def inspection_of(finished: Run) -> Inspection:
    return replace(inspect(finished.trial), name=BAD)


def predictions_of(finished: Run) -> PredictionList:
    return PredictionList([Prediction(f"{BAD}.png", 0, 0.5, BAD), Prediction("b.png", 1, 1.0, "cat")])


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (run_of, 3),
        (sweep_of, 2),
        (search_of, 4),
        (comparison_of, 0),
        (inspection_of, None),
        (predictions_of, 3),
    ],
)
def test_results_are_tables_in_which_names_are_text(
    small_run: Run, make: Callable[[Run], Any], rows: int | None
) -> None:
    shown = make(small_run)._repr_html_()
    assert BAD in text_of(shown).replace('"', "'")
    found = len(parsed(shown).findall(".//tr"))
    assert found == (rows if rows is not None else len(inspect(small_run.trial).anatomy.layers) + 1)


def test_an_inspection_is_printed_as_its_table_and_shown_in_one_line(small_trial: Trial) -> None:
    inspection = inspect(small_trial)
    assert str(inspection) == inspection.text()
    assert repr(inspection) == "Inspection('small': 678 parameters, 19,104 MACs, within budget)"
    assert repr(inspect(small_trial, max_parameters=600)).endswith(", over budget)")


def test_a_sweep_shows_its_figures(small_run: Run) -> None:
    shown = text_of(sweep_of(small_run)._repr_html_())
    assert f"{small_run.accuracy:.3f}" in shown
    assert "1/2" in shown
    assert "seed 7: it failed" in shown


def standing(done: str, fraction: float, left: str) -> Standing:
    return Standing(partial(render, ["trial", "mean"], [[BAD, 1]]), done, fraction, left)


def test_a_sweep_in_a_notebook_is_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    shown = SweepNotebook()
    monkeypatch.setattr(shown._output, "show", pages.append)
    shown.message(BAD)
    shown.update(standing("1 of 4 runs done", 0.25, ", about 30 s left"))
    assert BAD in text_of(pages[0])
    (bar,) = parsed(pages[1]).findall(".//progress")
    assert (bar.get("max"), bar.get("value")) == ("1", "0.2500")
    assert "1 of 4 runs done, about 30 s left" in text_of(pages[1])
    shown.update(standing("4 of 4 runs done", 1.0, ""))
    shown.end()
    assert not parsed(pages[-1]).findall(".//progress")
    assert "4 of 4 runs done" in text_of(pages[-1])


def test_a_sweep_on_a_terminal_is_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    shown = best_sweep_progress(stream)
    assert isinstance(shown, SweepBar)
    shown.update(standing("1 of 4 runs done", 0.25, ", about 30 s left"))
    shown.message("[red]a message[/nonsense]")
    shown.update(standing("2 of 4 runs done", 0.5, ""))
    shown.end()
    text = stream.getvalue()
    for words in ("1 of 4 runs done, about 30 s left", "2 of 4 runs done", "[red]a message[/nonsense]", "━", BAD):
        assert words in text, words
    assert text.count("[red]a message[/nonsense]\n") == 1
    assert "\x1b[2K" in text  # lines are erased


def test_elsewhere_a_sweep_is_a_line_for_each_run() -> None:
    lines: list[str] = []
    shown = SweepLines(lines.append)
    shown.message("4 runs in there")
    for fraction in (0.1, 0.2):
        shown.update(standing("0 of 4 runs done", fraction, f", about {fraction} s left"))
    shown.update(standing("1 of 4 runs done", 0.25, ""))
    assert lines == ["4 runs in there", "0 of 4 runs done, about 0.1 s left", "1 of 4 runs done"]
    assert isinstance(best_sweep_progress(io.StringIO()), SweepLines)


def test_the_time_left_follows_from_the_speed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("smidgen.runs.live.time.perf_counter", lambda: now)
    timer = Timer(0.5)  # resumed
    assert timer.left(0.5) == ""
    now = 110.0
    assert timer.left(0.6) == ", about 40 s left"
    assert timer.left(0.51) == ", about 8 minutes left"
    assert timer.left(0.5001) == ", about 13.9 hours left"
    assert timer.left(1.0) == ""


def test_a_run_in_a_notebook_has_the_time_left(small_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    shown = Notebook()
    monkeypatch.setattr(shown._output, "show", pages.append)
    monkeypatch.setattr(Notebook, "_SECONDS_BETWEEN_UPDATES", -1.0)
    shown.begin(replace(finished_start(small_run), images=600))
    shown.step(1, 50, 2.0, 10.0)
    shown.step(1, 300, 2.0, 10.0)
    assert re.search(r"epoch 1/2: loss 2\.0000  accuracy 10\.00 %, about \d+ s left", text_of(pages[-1]))
    (bar,) = parsed(pages[-1]).findall(".//progress")
    assert bar.get("value") == "0.2500"
    shown.epoch(small_run.history[0])
    shown.end(small_run)
    assert not parsed(pages[-1]).findall(".//progress")
    assert small_run.summary in text_of(pages[-1])


def test_epochs_of_running_jobs_count(small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two runs of which each takes a while, the bar moves before the first is finished."""
    monkeypatch.setattr("smidgen.sweeps.executor.MOMENT", 0.01)
    seen: list[Standing] = []

    class Keep(SweepLines):
        def update(self, standing: Standing) -> None:
            seen.append(standing)

    trial = replace(small_trial, epochs=12, goal=replace(small_trial.goal, epochs=12))
    sweep([trial], "0-1", workers=1, out=tmp_path, progress=Keep(lambda _: None))
    fractions = [standing.fraction for standing in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    first = [s.fraction for s in seen if s.done.startswith("0 of 2")]
    assert any(0 < fraction < 0.5 for fraction in first), first
    assert any("left" in s.left for s in seen)
