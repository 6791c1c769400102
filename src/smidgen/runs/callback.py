"""Callbacks: receive the progress of a run without influencing it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smidgen.anatomy.layers import Anatomy
from smidgen.data.augment import augment, to_float
from smidgen.data.dataset import Dataset
from smidgen.errors import SmidgenError
from smidgen.nets.code import where
from smidgen.randomness import Purpose, Stream
from smidgen.training.loop import EpochRecord
from smidgen.trial import Trial

if TYPE_CHECKING:
    from smidgen.runs.record import Run


@dataclass(frozen=True)
class RunStart:
    """What is known of a run before its first step.

    Attributes:
        trial: the recipe with its goal.
        seed: the random seed.
        directory: of the run.
        anatomy: layers, costs and receptive fields of the network.
        images: training images per epoch; 0 if the run was finished before, when its data is not loaded.
        held_out: what the network is evaluated on, `test` or `validation`.
        header: the run as text: data, layer table, budgets, engine.
        data: the trial's data, loaded when called if it is not in memory.
    """

    trial: Trial
    seed: int
    directory: Path
    anatomy: Anatomy
    images: int
    held_out: str
    header: str
    data: Callable[[], Dataset] = field(repr=False)

    def augmented(self, count: int = 32) -> Tensor:
        """The first images of the run's first step, augmented as in training, without the normalization.

        Args:
            count: how many, 1 to the trial's batch size.

        Returns:
            float32 [count, channels, height, width], 0 to 1; fewer if the batch has fewer.

        Raises:
            DataError: the run was finished before, and its data is missing or damaged.
        """
        images = self.data().train.images
        order = Stream(self.seed, Purpose.ORDER, 1).permutation(len(images))
        picks = torch.from_numpy(order[: min(count, self.trial.batch_size)])
        return augment(to_float(images[picks]), self.trial.augmentation, Stream(self.seed, Purpose.AUGMENTATION, 1, 0))


class Callback:
    """Receives the progress of a run; every method does nothing unless a subclass overrides it.

    A callback does not change the result: what it receives is a copy or immutable, and training takes no random numbers
    from PyTorch's or NumPy's generators as a callback leaves them. Only PyTorch's number of threads must stay as it is.

    If a method raises, the error is reported once, in one line on standard error and in the run's `log.txt`, and the
    callback receives nothing further; training continues. Only `KeyboardInterrupt` passes: it stops the run as Ctrl-C
    does.

    A resumed run starts with `begin` and the epochs that are finished, as if it had not been interrupted. A run that
    was finished before is reported from its files: `begin`, every epoch, `end`, but no steps.
    """

    def begin(self, start: RunStart) -> None:
        """Before the first step."""

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """After a step.

        Args:
            epoch: counted from 1.
            images: seen in this epoch.
            loss: mean over those images, nats. On a GPU, losses are read every half second: nan before that.
            accuracy: percent of the same images.
        """

    def epoch(self, record: EpochRecord) -> None:
        """After an epoch and its evaluation, when its record is on disk."""

    def end(self, finished: Run | None) -> None:
        """After training, with the run, or None if it was interrupted or has failed."""


class Callbacks(Callback):
    """Several callbacks as one, of which each is left out once it has raised.

    Args:
        callbacks: in the order in which they are called.
        log: receives the line that reports an error, besides standard error.
    """

    def __init__(self, callbacks: Iterable[Callback], log: Callable[[str], None] = lambda _line: None) -> None:
        self._callbacks, self._log = list(callbacks), log
        self._begun: list[Callback] = []

    def begin(self, start: RunStart) -> None:
        """As `Callback` says. Of this run, only callbacks that were called here receive anything else."""
        self._begun = []
        for callback in tuple(self._callbacks):
            self._begun.append(callback)
            self._tell(callback, "begin", start)

    def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
        """As `Callback` says."""
        for callback in tuple(self._begun):
            self._tell(callback, "step", epoch, images, loss, accuracy)

    def epoch(self, record: EpochRecord) -> None:
        """As `Callback` says."""
        for callback in tuple(self._begun):
            self._tell(callback, "epoch", record)

    def end(self, finished: Run | None) -> None:
        """As `Callback` says."""
        for callback in tuple(self._begun):
            self._tell(callback, "end", finished)

    def replay(self, start: Callable[[], RunStart], finished: Run) -> None:
        """A finished run: its beginning, which is made only if there are callbacks, its epochs and its end."""
        if not self._callbacks:
            return
        self.begin(start())
        for record in finished.history:
            self.epoch(record)
        self.end(finished)

    def _tell(self, callback: Callback, method: str, *arguments: object) -> None:
        try:
            getattr(callback, method)(*arguments)
        except (Exception, SystemExit) as error:
            self._callbacks.remove(callback)
            self._begun.remove(callback)
            what = f"{type(callback).__name__}.{method} failed: {where(error)}"
            if isinstance(error, SmidgenError):  # one of smidgen's own, which says what is wrong
                what = str(error)
            line = f"smidgen: {' '.join(what.split())}; {type(callback).__name__} is left out from here on"
            with contextlib.suppress(OSError, ValueError):  # standard error may be closed
                print(line, file=sys.stderr, flush=True)
            with contextlib.suppress(SmidgenError):  # a full disk ends the run soon enough
                self._log(line)


def checked(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """The callbacks of a caller.

    Raises:
        SmidgenError: it is not a list of instances of `Callback`.
    """
    allowed = "allowed: a list of instances of subclasses of smidgen.Callback"
    if not isinstance(callbacks, Iterable):
        raise SmidgenError(f"callbacks is {callbacks!r}; {allowed}")
    found = tuple(callbacks)
    for callback in found:
        if not isinstance(callback, Callback):
            raise SmidgenError(f"callbacks has {callback!r}; {allowed}")
    return found
