"""The common result of all data readers: images with labels, and notes on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from smidgen.errors import DataError

Form = Literal["drawing", "picture"]
"""How an image file is brought to the form of the images: as a drawing in MNIST's manner, or as a picture."""


def label_name(class_names: Sequence[str], label: int) -> str:
    """A class for people: its name, or its number where classes have no names."""
    return class_names[label] if class_names else str(label)


class NoTestImagesError(DataError):
    """Data with training and validation images, but none to test on."""


@dataclass(frozen=True)
class Examples:
    """Images with their labels.

    Attributes:
        images: uint8 [count, channels, height, width].
        labels: int64 [count], 0 to classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Examples:
        """The same examples on another device."""
        return Examples(self.images.to(device), self.labels.to(device))

    def part(self, start: int, stop: int) -> Examples:
        """The examples from `start` up to `stop`."""
        return Examples(self.images[start:stop], self.labels[start:stop])

    def without(self, start: int, stop: int) -> Examples:
        """The examples but those from `start` up to `stop`."""
        if stop == len(self):
            return self.part(0, start)
        return Examples(
            torch.cat([self.images[:start], self.images[stop:]]), torch.cat([self.labels[:start], self.labels[stop:]])
        )


@dataclass(frozen=True)
class Survey:
    """Findings about a data set: sizes, skipped files, duplicates, notes.

    Attributes:
        kind: of the data: `IDX files`, `image folder`, ...
        sizes: how many images there were of each (height, width), as they were before any resizing.
        skipped: how many files were left out, by the reason.
        first_skipped: the first of them for each reason.
        duplicates: images that are there more than once, by what they have in common.
        notes: one line each, for the header of a run.
        own_validation: whether the data have a validation split of their own.
    """

    kind: str
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)
    duplicates: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()
    own_validation: bool = False

    @property
    def skipped_line(self) -> str:
        """Skipped files and reasons, in one line; empty if there are none."""
        if not self.skipped:
            return ""
        parts = [f"{count:,} {reason} ({self.first_skipped[reason]})" for reason, count in self.skipped.items()]
        total = self.skipped.total()
        return f"left out {total:,} file{'' if total == 1 else 's'}: " + "; ".join(parts)

    @property
    def duplicates_line(self) -> str:
        """Duplicate images, in one line; empty if there are none."""
        if not self.duplicates:
            return ""
        return "duplicates: " + "; ".join(f"{count:,} {what}" for what, count in self.duplicates.items())

    @property
    def lines(self) -> list[str]:
        """All notes, one line each."""
        return [line for line in (*self.notes, self.skipped_line, self.duplicates_line) if line]


@dataclass(frozen=True)
class Parts:
    """The parts of a data set as a reader gives them.

    Attributes:
        train: what is trained on.
        held_out: images to evaluate on.
        normal: uint8, what mean and standard deviation are taken of: the training images, those held out for
            validation from among them included.
        class_names: in the order of the labels; none where classes are plain numbers.
        sha256: of what was read, by name.
        form: how an image file is brought to the form of these.
        survey: what was found on the way.
    """

    train: Examples
    held_out: Examples
    normal: Tensor
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    form: Form
    survey: Survey
