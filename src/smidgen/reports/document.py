"""A report as a plain value: headings, paragraphs, tables and figures, before HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """A heading; `level` is 2 for a chapter, 3 within one."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of plain texts; the first `left` columns are text, the others figures."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Chart:
    """A chart as SVG, with what it shows in words."""

    name: str
    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A small image as PNG, shown enlarged with hard pixels."""

    name: str
    content: bytes
    alt: str
    caption: str
    width: int


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: what is inside of its SVG element, and what it shows in words."""

    svg: str
    alt: str


@dataclass(frozen=True)
class Sheet:
    """Small pictures of one size, in rows as long as there is room for.

    Attributes:
        name: for ids and files.
        tiles: the pictures.
        size: width and height of each, pixels.
        caption: below all.
    """

    name: str
    tiles: Sequence[Tile]
    size: tuple[float, float]
    caption: str


@dataclass(frozen=True)
class Code:
    """Text to be shown as it stands; `folded` hides it until it is asked for."""

    text: str
    title: str = ""
    folded: bool = False


Block = Heading | Paragraph | Bullets | Table | Chart | Picture | Gallery | Sheet | Code


@dataclass
class Document:
    """A report.

    Attributes:
        title: its name.
        verdict: one line below it.
        blocks: what follows.
    """

    title: str
    verdict: str
    blocks: list[Block] = field(default_factory=list)


def counted(number: int, what: str) -> str:
    """A number with its noun, as in "1 run" and "2 runs"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
