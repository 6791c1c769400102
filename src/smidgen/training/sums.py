"""Running sums of an epoch, some of which may still wait on the engine's device."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smidgen.engines.engine import Figures
from smidgen.errors import TrainingError


class LossError(TrainingError):
    """A step's loss is not finite.

    Attributes:
        steps_ago: how many steps were taken after it.
    """

    def __init__(self, loss: float, steps_ago: int) -> None:
        super().__init__(f"the loss is {loss}")
        self.steps_ago = steps_ago


@dataclass
class EpochSums:
    """Running sums of the current epoch.

    An engine on a GPU gives the figures of a step before they are computed. They are kept where they are until `read`,
    so that the training does not wait for the GPU after each step.

    Attributes:
        loss: training loss, added over the images whose figures are read.
        correct: of the same images, those that were classified correctly.
        seen: all images.
        seconds: spent on the steps.
    """

    loss: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    _waiting: list[tuple[Tensor, int]] = field(default_factory=list, init=False, repr=False, compare=False)
    _unread: int = field(default=0, init=False, repr=False, compare=False)

    def add(self, figures: Figures, count: int) -> None:
        """Take in a step.

        Args:
            figures: mean loss and hits.
            count: of its images.

        Raises:
            LossError: the loss is known, and not finite.
        """
        self.seen += count
        if isinstance(figures, Tensor):
            self._waiting.append((figures, count))
            self._unread += count
        else:
            self._count(*figures, count, steps_ago=0)

    def read(self) -> None:
        """Wait for the figures of all steps.

        Raises:
            LossError: a loss is not finite.
        """
        waiting, self._waiting, self._unread = self._waiting, [], 0
        if not waiting:
            return
        rows = on_host(torch.stack([figures for figures, _ in waiting]))
        for number, ((loss, hits), (_, count)) in enumerate(zip(rows, waiting, strict=True)):
            self._count(loss, hits, count, steps_ago=len(rows) - 1 - number)

    def _count(self, loss: float, hits: float, count: int, steps_ago: int) -> None:
        if not math.isfinite(loss):
            raise LossError(loss, steps_ago)
        self.loss, self.correct = self.loss + loss * count, self.correct + int(hits)

    @property
    def all_read(self) -> bool:
        """Whether no figures are waiting."""
        return not self._waiting

    @property
    def mean_loss(self) -> float:
        """Over the images whose figures are read; nan if there are none."""
        return self.loss / self._read if self._read else math.nan

    @property
    def accuracy(self) -> float:
        """Percent of the same images; nan if there are none."""
        return 100 * self.correct / self._read if self._read else math.nan

    @property
    def _read(self) -> int:
        return self.seen - self._unread


def on_host(rows: Tensor) -> list[list[float]]:
    """The numbers of a table [rows, columns]: here training waits for a GPU, and nowhere else within an epoch."""
    numbers: list[list[float]] = rows.tolist()
    return numbers
