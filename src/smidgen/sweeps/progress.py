"""Progress of a sweep or search: a table and a bar with the time left, live on a terminal and in a notebook."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from smidgen.runs.live import CellOutput, bar_html, in_notebook
from smidgen.tables import TableFormat, paragraph

_KEPT = 5
"""Messages that a notebook shows below the bar: the newest."""
_WIDTH = 30
"""Of the bar on a terminal, columns."""


@dataclass(frozen=True)
class Standing:
    """How far a sweep or search has come.

    Attributes:
        table: the results so far, as a table.
        done: what is done, as in `3 of 8 runs done`.
        fraction: of the whole work, 0 to 1.
        left: the time left, as in `, about 40 s left`; empty while it is not known.
    """

    table: Callable[[TableFormat], str]
    done: str
    fraction: float
    left: str


class SweepProgress:
    """Shows how a sweep or search is getting on; this class itself shows nothing."""

    def message(self, text: str) -> None:
        """A line about a run, or a failure."""

    def update(self, standing: Standing) -> None:
        """After each run, and about twice a second."""

    def end(self) -> None:
        """At the end, however it ends."""


class SweepLines(SweepProgress):
    """A plain line for each message and each run, for files and pipes; `write` takes a line without its newline."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._done = write, ""

    def message(self, text: str) -> None:
        """As `SweepProgress` says."""
        self._write(text)

    def update(self, standing: Standing) -> None:
        """As `SweepProgress` says."""
        if standing.done != self._done:
            self._done = standing.done
            self._write(f"{standing.done}{standing.left}")


class SweepBar(SweepProgress):
    """Messages that scroll, and below them a table and a bar in place, for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, transient=True, auto_refresh=False)

    def message(self, text: str) -> None:
        """As `SweepProgress` says."""
        self._console.print(text, soft_wrap=True)

    def update(self, standing: Standing) -> None:
        """As `SweepProgress` says."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(1.0, standing.fraction, width=_WIDTH), Text(f"{standing.done}{standing.left}"))
        self._live.start()
        self._live.update(Group(Text(standing.table("table")), line), refresh=True)

    def end(self) -> None:
        """As `SweepProgress` says: what was shown in place is removed."""
        self._live.stop()


class SweepNotebook(SweepProgress):
    """One cell output, updated in place: a table, a bar, the newest messages."""

    def __init__(self) -> None:
        self._output = CellOutput()
        self._messages: deque[str] = deque(maxlen=_KEPT)
        self._standing: Standing | None = None
        self._ended = False

    def message(self, text: str) -> None:
        """As `SweepProgress` says."""
        self._messages.append(text)
        self._show()

    def update(self, standing: Standing) -> None:
        """As `SweepProgress` says."""
        self._standing = standing
        self._show()

    def end(self) -> None:
        """As `SweepProgress` says: the table stays."""
        self._ended = True
        self._show()

    def _show(self) -> None:
        parts, standing = [], self._standing
        if standing is not None:
            line = f"{standing.done}{'' if self._ended else standing.left}"
            parts += [standing.table("html"), paragraph(line) if self._ended else bar_html(standing.fraction, line)]
        self._output.show("".join([*parts, paragraph(*self._messages)]))


def best_sweep_progress(stream: TextIO | None = None) -> SweepProgress:
    """The kind of progress that suits the output: notebook, terminal, or anything else.

    Args:
        stream: to write to; None takes a notebook's cell, or standard output.
    """
    if stream is None and in_notebook():
        return SweepNotebook()
    stream = stream or sys.stdout
    if stream.isatty():
        return SweepBar(stream)
    return SweepLines(lambda text: print(text, file=stream, flush=True))
