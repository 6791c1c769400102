from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from smidgen.runs import progress
from smidgen.runs.progress import Bar, Lines, Notebook, best_progress, progress_bar
from smidgen.runs.run import run
from smidgen.trial import Trial


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_there_is_one_plain_line_an_epoch(small_trial: Trial, tmp_path: Path) -> None:
    lines: list[str] = []
    run(small_trial, out=tmp_path / "r", progress=Lines(lines.append))
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == 2
    pattern = (
        r"epoch 1/2  train loss \d\.\d{4}  accuracy +\d+\.\d\d %  test loss \d\.\d{4}  \d+/200 = \d+\.\d\d %  "
        r"lr 0\.05  \d+\.\d s"
    )
    assert re.fullmatch(pattern, epochs[0])
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_live_bar(small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    stream = Terminal()
    bar = best_progress(stream)
    assert isinstance(bar, Bar)
    run(small_trial, out=tmp_path / "r", progress=bar)
    text = stream.getvalue()
    for words in ("epoch 2/2", "images/s", "loss", "accuracy", "left", "goal met"):
        assert words in text, words
    assert "\x1b[" in text
    assert text.count("epoch 1/2  train loss") == 1


def test_the_bar_is_removed_when_training_fails(
    small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")

    class Failing(Bar):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            raise KeyboardInterrupt

    bar = Failing(Terminal())
    with pytest.raises(KeyboardInterrupt):
        run(small_trial, out=tmp_path / "r", progress=bar)
    assert bar._bar.finished or not bar._bar.live.is_started


def test_markup_in_a_name_is_only_text(small_trial: Trial, tmp_path: Path) -> None:
    stream = Terminal()
    run(small_trial, settings=["note=[red]x[/nonsense]"], out=tmp_path / "r", progress=Bar(stream))
    assert "[red]x[/nonsense]" in stream.getvalue()


def test_a_notebook_gets_one_table_that_grows(
    small_trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    shell = InteractiveShell.instance()
    shell.user_ns |= {"trial": small_trial, "out": tmp_path / "r"}
    with capture_output() as captured:
        result = shell.run_cell("import smidgen\nrun = smidgen.run(trial, out=out)\nrun")
    assert result.success
    pages = [o.data["text/html"] for o in captured.outputs if "text/html" in o.data]
    last = pages[-1]
    assert last.count("<tr>") == 3
    assert "goal met" in last
    assert "678 of at most 1,000 parameters" in last
    assert "<progress" in pages[0]
    assert result.result._repr_html_().count("<tr>") == 3


def test_a_notebook_shows_names_as_text(small_trial: Trial, tmp_path: Path) -> None:
    shown = Notebook()
    shown._header, shown._summary = "<script>", "<b>"
    assert "<script>" not in shown._html(0.5)
    assert "&lt;script&gt;" in shown._html(0.5)


def test_what_suits_a_file_is_lines() -> None:
    assert isinstance(best_progress(io.StringIO()), Lines)
    assert not isinstance(best_progress(io.StringIO()), Bar)


def test_work_without_epochs_has_a_bar_on_a_terminal_and_a_line_a_stage_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    stages = [("first", "a", 0.0), ("first", "b", 0.25), ("second", "a", 0.5)]
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        with progress_bar(stream) as report:
            for stage in stages:
                report(*stage)
    assert pipe.getvalue().splitlines() == ["first ...", "second ..."]
    assert "second: a" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
