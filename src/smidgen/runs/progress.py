"""Progress of a run: a live bar on a terminal, a line an epoch elsewhere, a table in a notebook."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from smidgen.runs.callback import Callback, RunStart
from smidgen.runs.live import CellOutput, Timer, bar_html, in_notebook
from smidgen.runs.record import Run, history_html
from smidgen.tables import preformatted
from smidgen.training.loop import EpochRecord
from smidgen.verdict import percent


def epoch_line(record: EpochRecord, epochs: int, held_out: str) -> str:
    """An epoch in one line, with the figures of the reference notebooks' logs."""
    return (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  "
        f"train loss {record.train_loss:.4f}  accuracy {record.train_accuracy:5.2f} %  "
        f"{held_out} loss {record.test_loss:.4f}  {record.test_correct:,}/{record.test_total:,} = "
        f"{percent(record.test_correct, record.test_total)} %  "
        f"lr {record.learning_rate:.3g}  {record.seconds_training + record.seconds_evaluation:.1f} s"
    )


def _means(loss: float, accuracy: float) -> str:
    """Means of an epoch so far; nothing while they are still on a GPU."""
    return "" if math.isnan(loss) else f"loss {loss:.4f}  accuracy {accuracy:.2f} %"


class Silent(Callback):
    """Shows nothing."""


class Lines(Callback):
    """One plain line an epoch, for files and pipes; `write` takes a line without its newline."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._epochs, self._held_out = 0, "test"

    def begin(self, start: RunStart) -> None:
        self._epochs, self._held_out = start.trial.epochs, start.held_out
        self._write(start.header)

    def epoch(self, record: EpochRecord) -> None:
        self._write(epoch_line(record, self._epochs, self._held_out))

    def end(self, finished: Run | None) -> None:
        if finished is not None:
            self._write(finished.summary)


class Bar(Lines):
    """A live bar below the lines, for a terminal: loss, accuracy, images a second, time left."""

    def __init__(self, stream: TextIO) -> None:
        from rich import progress
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("left"),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        super().__init__(lambda text: self._console.print(text, soft_wrap=True))
        self._images = 0
        self._task: Any = None
        self._since: tuple[int, float] | None = None

    def begin(self, start: RunStart) -> None:
        super().begin(start)
        self._images = start.images
        self._task = self._bar.add_task(f"epoch 1/{self._epochs}", total=self._epochs * self._images, figures="")
        self._bar.start()

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        now = time.perf_counter()
        # Counted from the first step seen: an earlier process may have begun the epoch.
        first, began = self._since = self._since or (images, now)
        rate = f"  {(images - first) / (now - began):,.0f} images/s" if now > began else ""
        self._bar.update(
            self._task,
            completed=(epoch - 1) * self._images + images,
            description=f"epoch {epoch}/{self._epochs}",
            figures=f"{_means(loss, accuracy)}{rate}",
        )

    def epoch(self, record: EpochRecord) -> None:
        super().epoch(record)
        self._since = None

    def end(self, finished: Run | None) -> None:
        self._bar.stop()
        super().end(finished)


@contextlib.contextmanager
def progress_bar(stream: TextIO) -> Iterator[Callable[[str, str, float], None]]:
    """Progress of work other than training: a live bar on a terminal, elsewhere a line for each stage.

    Yields:
        A function of the stage, what is being done in it, and the fraction of all work that is done, 0 to 1.
    """
    if not stream.isatty():
        stages: list[str] = []

        def line(stage: str, what: str, fraction: float) -> None:  # noqa: ARG001 - the stage is enough
            if stage not in stages:
                stages.append(stage)
                print(f"{stage} ...", file=stream, flush=True)

        yield line
        return
    from rich import progress
    from rich.console import Console

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeRemainingColumn())
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, what, fraction: bar.update(task, completed=fraction, description=f"{stage}: {what}")


class Notebook(Callback):
    """One cell output, updated in place: a bar with the time left, and a row for each finished epoch."""

    _SECONDS_BETWEEN_UPDATES = 0.5

    def __init__(self) -> None:
        self._rows: list[EpochRecord] = []
        self._header, self._summary, self._now = "", "", ""
        self._epochs, self._images, self._held_out = 1, 1, "test"
        self._output, self._shown_at = CellOutput(), 0.0
        self._timer: Timer | None = None

    def begin(self, start: RunStart) -> None:
        self._header, self._epochs, self._images = start.header, start.trial.epochs, start.images
        self._held_out = start.held_out
        self._show(0.0)

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        fraction = ((epoch - 1) * self._images + images) / (self._epochs * self._images)
        self._timer = self._timer or Timer(fraction)
        self._now = f"epoch {epoch}/{self._epochs}: {_means(loss, accuracy)}{self._timer.left(fraction)}"
        if time.perf_counter() - self._shown_at > self._SECONDS_BETWEEN_UPDATES:
            self._show(fraction)

    def epoch(self, record: EpochRecord) -> None:
        self._rows.append(record)
        self._show(record.epoch / self._epochs)

    def end(self, finished: Run | None) -> None:
        self._summary, self._now = finished.summary if finished else "stopped", ""
        self._show(1.0)

    def _show(self, fraction: float) -> None:
        self._shown_at = time.perf_counter()
        self._output.show(self._html(fraction))

    def _html(self, fraction: float) -> str:
        now = preformatted(self._summary) if self._summary else bar_html(fraction, self._now)
        return (
            f"<details><summary>network and budgets</summary>{preformatted(self._header)}</details>"
            f"{history_html(self._rows, self._held_out)}{now}"
        )


def best_progress(stream: TextIO | None = None) -> Callback:
    """The kind of progress that suits the output: notebook, terminal, or anything else."""
    if stream is None and in_notebook():
        return Notebook()
    stream = stream or sys.stdout
    if stream.isatty():
        return Bar(stream)
    return Lines(_printer(stream))


def _printer(stream: TextIO) -> Callable[[str], None]:
    """Print lines until the reader closes the stream, which does not stop the training."""

    def write(text: str) -> None:
        try:
            print(text, file=stream, flush=True)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not isinstance(error, BrokenPipeError):
                print(f"smidgen: nothing more can be shown ({error.strerror}); training continues", file=sys.stderr)

    return write
