"""Where the command line writes its results."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import ClassVar, TextIO


class Results:
    """The stream for results: standard output."""

    _stream: ClassVar[TextIO | None] = None

    @classmethod
    def stream(cls) -> TextIO:
        """The stream for results."""
        return cls._stream or sys.stdout

    @classmethod
    @contextlib.contextmanager
    def alone(cls) -> Iterator[None]:
        """Meanwhile, redirect all other output, such as that of a user's code, to standard error."""
        stdout, stderr = sys.stdout, sys.stderr
        try:
            kept: int | None = os.dup(stdout.fileno())
            os.dup2(stderr.fileno(), stdout.fileno())  # for output that bypasses sys.stdout
        except (OSError, ValueError):  # no files, as in tests
            kept = None
        cls._stream = stdout if kept is None else os.fdopen(kept, "w", encoding="utf-8", errors="backslashreplace")
        try:
            with contextlib.redirect_stdout(stderr):
                yield
        finally:
            if kept is not None:
                os.dup2(kept, stdout.fileno())
                cls._stream.close()
            cls._stream = None

    @classmethod
    def flush(cls) -> None:
        """Write what is buffered."""
        cls.stream().flush()

    @classmethod
    def discard(cls) -> None:
        """Discard buffered output, which has no reader or cannot be written."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), cls.stream().fileno())
