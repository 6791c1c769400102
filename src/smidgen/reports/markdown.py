"""The report as Markdown, with its charts and pictures as files beside it."""

from __future__ import annotations

import re

from smidgen.reports.charts import for_file
from smidgen.reports.document import (
    Block,
    Bullets,
    Chart,
    Code,
    Document,
    Gallery,
    Heading,
    Paragraph,
    Picture,
    Sheet,
    Table,
)
from smidgen.reports.sheet import sheet_svg
from smidgen.tables import markdown as _text
from smidgen.tables import render


def to_markdown(document: Document, folder: str) -> tuple[str, dict[str, bytes]]:
    """The document as Markdown, and the files that it shows.

    Args:
        document: the report.
        folder: where the files will lie, relative to the Markdown file.

    Returns:
        The text, and the files' contents by name within the folder.
    """
    files: dict[str, bytes] = {}
    parts = [f"# {_text(document.title)}", _text(document.verdict)]
    parts += [_block(block, folder, files) for block in document.blocks]
    return "\n\n".join(parts) + "\n", files


def _block(block: Block, folder: str, files: dict[str, bytes]) -> str:
    match block:
        case Heading(text=text, level=level):
            return f"{'#' * level} {_text(text)}"
        case Paragraph(text=text):
            return _text(text)
        case Bullets(items=items):
            return "\n".join(f"- {_text(item)}" for item in items)
        case Table(caption=caption, columns=columns, rows=rows, left=left):
            cells = [[_text(cell) for cell in row] for row in rows]
            names = [_text(name) for name in columns]
            return f"*{_text(caption)}*\n\n{render(names, cells, 'markdown', left)}"
        case Chart(name=name, svg=svg, alt=alt, caption=caption):
            files[f"{name}.svg"] = for_file(svg).encode()
            return f"![{_text(alt)}]({folder}/{name}.svg)\n\n*{_text(caption)}*"
        case Sheet(name=name, tiles=tiles, caption=caption):
            alt = f"Contact sheet. {' '.join(tile.alt for tile in tiles)}"
            return _block(Chart(name, sheet_svg(block), alt, caption), folder, files)
        case Picture():
            return _picture(block, folder, files)
        case Gallery(pictures=pictures):
            return "\n\n".join(_picture(p, folder, files) for p in pictures)
        case Code(text=text, title=title):
            fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
            return (f"{_text(title)}:\n\n" if title else "") + f"{fence}text\n{text}\n{fence}"


def _picture(picture: Picture, folder: str, files: dict[str, bytes]) -> str:
    files[f"{picture.name}.png"] = picture.content
    attributes = f'width="{picture.width}" alt="{_attribute(picture.alt)}" title="{_attribute(picture.caption)}"'
    return f'<img src="{folder}/{picture.name}.png" {attributes}>\n\n*{_text(picture.caption)}*'


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
