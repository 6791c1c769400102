"""Defers Ctrl-C and termination until the training step is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interruption:
    """Whether this process was asked to stop.

    Attributes:
        requested: a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def deferred() -> Iterator[Interruption]:
    """Record the first SIGINT or SIGTERM instead of acting on it; the second one acts at once.

    Only in the main thread, where Python handles signals; and only of signals that Python handles
    already, so that a program which left SIGTERM alone dies of it as before.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    former: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if interruption.requested:
            former[number](number, frame)
        interruption.requested = True

    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            former[number] = signal.signal(number, note)
    try:
        yield interruption
    finally:
        for installed, handler in former.items():
            signal.signal(installed, handler)
