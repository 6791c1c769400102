"""Parts of live displays: an output of a notebook that is updated in place, a bar, the time left."""

from __future__ import annotations

import html
import sys
import time
from typing import Any


class CellOutput:
    """HTML in the output of a notebook's cell, replaced by each call of `show`."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, content: str) -> None:
        """Show HTML in place of what was shown before."""
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(content), display_id=True)
        else:
            self._handle.update(HTML(content))


class Timer:
    """Estimates the time left from the speed since it was made.

    Args:
        fraction: of the work that was done before, 0 to 1.
    """

    def __init__(self, fraction: float = 0.0) -> None:
        self._first, self._began = fraction, time.perf_counter()

    def left(self, fraction: float) -> str:
        """`, about 40 s left` for a fraction of the work that is done, 0 to 1; nothing where it is not known."""
        done = fraction - self._first
        if done <= 0 or fraction >= 1:
            return ""
        seconds = (time.perf_counter() - self._began) / done * (1 - fraction)
        if seconds >= 5400:
            return f", about {seconds / 3600:.1f} hours left"
        return f", about {seconds / 60:.0f} minutes left" if seconds > 90 else f", about {seconds:.0f} s left"


def bar_html(fraction: float, text: str) -> str:
    """A bar that shows a fraction, 0 to 1, and a line of text beside it."""
    return f"<p><progress max='1' value='{fraction:.4f}'></progress> {html.escape(text)}</p>"


def in_notebook() -> bool:
    """Whether this is a cell of a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
