"""Progress of a run: a live bar on a terminal, a line an epoch elsewhere, a table in a notebook."""

from __future__ import annotations

import contextlib
import html
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from smidgen.tables import render
from smidgen.training.loop import EpochRecord
from smidgen.verdict import percent


class Progress(Protocol):
    """Receives progress callbacks of a run; also a `Watcher` of the training loop."""

    def begin(self, header: str, epochs: int, images: int, held_out: str) -> None:
        """Before training: the header, and how many epochs of how many images are to come."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """After a step: images seen in the epoch, and means of loss and accuracy (percent) over them."""

    def epoch(self, record: EpochRecord) -> None:
        """After an epoch and its evaluation, when its record is on disk."""

    def end(self, verdict: str | None) -> None:
        """After training, with the verdict, or None if it did not finish."""


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


class Silent:
    """Shows nothing."""

    def begin(self, header: str, epochs: int, images: int, held_out: str) -> None:
        """Nothing."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """Nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Nothing."""

    def end(self, verdict: str | None) -> None:
        """Nothing."""


class Lines(Silent):
    """One plain line an epoch, for files and pipes; `write` takes a line without its newline."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._epochs, self._held_out = 0, "test"

    def begin(self, header: str, epochs: int, images: int, held_out: str) -> None:
        self._epochs, self._held_out = epochs, held_out
        self._write(header)

    def epoch(self, record: EpochRecord) -> None:
        self._write(epoch_line(record, self._epochs, self._held_out))

    def end(self, verdict: str | None) -> None:
        if verdict is not None:
            self._write(verdict)


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

    def begin(self, header: str, epochs: int, images: int, held_out: str) -> None:
        super().begin(header, epochs, images, held_out)
        self._images = images
        self._task = self._bar.add_task(f"epoch 1/{epochs}", total=epochs * images, figures="")
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

    def end(self, verdict: str | None) -> None:
        self._bar.stop()
        super().end(verdict)


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


class Notebook(Silent):
    """One cell output, updated in place: a bar, and a row for each finished epoch."""

    _SECONDS_BETWEEN_UPDATES = 0.5

    def __init__(self) -> None:
        self._rows: list[EpochRecord] = []
        self._header, self._verdict, self._now = "", "", ""
        self._epochs, self._images, self._held_out = 1, 1, "test"
        self._done, self._shown_at = 0.0, 0.0
        self._handle: Any = None

    def begin(self, header: str, epochs: int, images: int, held_out: str) -> None:
        self._header, self._epochs, self._images, self._held_out = header, epochs, images, held_out
        self._show()

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        self._done = (epoch - 1) * self._images + images
        self._now = f"epoch {epoch}/{self._epochs}: {_means(loss, accuracy)}"
        if time.perf_counter() - self._shown_at > self._SECONDS_BETWEEN_UPDATES:
            self._show()

    def epoch(self, record: EpochRecord) -> None:
        self._rows.append(record)
        self._show()

    def end(self, verdict: str | None) -> None:
        self._verdict, self._now = verdict or "stopped", ""
        self._show()

    def _show(self) -> None:
        from IPython.display import HTML, display

        self._shown_at = time.perf_counter()
        shown = HTML(self._html())
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def _html(self) -> str:
        now = f"<progress max='{self._epochs * self._images}' value='{self._done:.0f}'></progress> {self._now}"
        verdict = f"<pre>{html.escape(self._verdict)}</pre>" if self._verdict else f"<p>{now}</p>"
        return (
            f"<details><summary>network and budgets</summary><pre>{html.escape(self._header)}</pre></details>"
            f"{history_html(self._rows, self._held_out)}{verdict}"
        )


def history_html(history: list[EpochRecord] | tuple[EpochRecord, ...], held_out: str) -> str:
    """The epochs as an HTML table."""
    columns = ["epoch", "train loss", "train accuracy", f"{held_out} loss", f"{held_out} accuracy", "lr", "seconds"]
    rows = [
        [
            r.epoch,
            f"{r.train_loss:.4f}",
            f"{r.train_accuracy:.2f} %",
            f"{r.test_loss:.4f}",
            f"{percent(r.test_correct, r.test_total)} %",
            f"{r.learning_rate:.3g}",
            f"{r.seconds_training + r.seconds_evaluation:.1f}",
        ]
        for r in history
    ]
    return render(columns, rows, "html")


def best_progress(stream: TextIO | None = None) -> Progress:
    """The kind of progress that suits the output: notebook, terminal, or anything else."""
    if stream is None and _in_notebook():
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


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
