"""Places in memory for buffers that are needed at different times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Buffer:
    """Something that needs a place.

    Attributes:
        name: of it.
        size: bytes.
        first: the event that writes it first.
        last: the last event that reads it.
    """

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether there is an event in which both are needed."""
        return self.first <= other.last and other.first <= self.last


def place(buffers: Sequence[Buffer]) -> tuple[dict[str, int], int]:
    """Offsets for all buffers, and how many bytes they take together.

    Greedy, the longest-lived and largest first: each is placed as low as possible.
    """
    placed: list[tuple[Buffer, int]] = []
    for buffer in sorted(buffers, key=lambda b: (b.first - b.last, -b.size)):
        others = sorted((at, at + other.size) for other, at in placed if buffer.meets(other))
        offset = 0
        for begin, end in others:
            if offset + buffer.size <= begin:
                break
            offset = max(offset, end)
        placed.append((buffer, offset))
    return {buffer.name: at for buffer, at in placed}, max((at + b.size for b, at in placed), default=0)
