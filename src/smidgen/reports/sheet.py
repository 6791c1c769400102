"""Contact sheets: small images with texts below and maps beside them, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from smidgen.reports.charts import opening, short
from smidgen.reports.document import Sheet, Tile
from smidgen.reports.pictures import data_uri, png, small
from smidgen.statistics import Floats

FOR, AGAINST = (255, 122, 24), (60, 150, 255)
"""Colours of what speaks for a class and against it, red, green and blue: told apart by the colour-blind."""
_OPACITY = 0.9
"""Of the largest cells."""
_GAMMA = 0.7
"""Exponent of the others' opacity, so that weak cells are seen too."""
_DIMMED = 0.5
"""Brightness of the image under a map."""
_SIDE, _WIDE_SIDE = 64.0, 72.0
"""The longer side of an image, where it is alone and where maps are beside it."""
_FONT, _WIDE_FONT = 11.0, 13.0
_GAP, _TILE_GAP = 3.0, 12.0
"""Between an image and its maps, and between tiles."""
_SHEET_WIDTH = 930.0


@dataclass(frozen=True, eq=False)
class MapOverlay:
    """A map that is drawn over an image.

    Attributes:
        cells: float64 [height, width], from -1 (against) to 1 (for).
        box: left, top, width and height in pixels of the image; what is outside of the image is not drawn.
        title: written below it.
    """

    cells: Floats
    box: tuple[float, float, float, float]
    title: str


@dataclass(frozen=True, eq=False)
class SheetImage:
    """An image of a contact sheet.

    Attributes:
        image: uint8 [channels, height, width].
        lines: below it, or beside each other where there are maps.
        alt: what is shown, in words.
        mark: a remark below it.
        overlays: copies of the image with a map over each.
    """

    image: npt.NDArray[np.uint8]
    lines: Sequence[str]
    alt: str
    mark: str = ""
    overlays: Sequence[MapOverlay] = ()


def contact_sheet(name: str, images: Sequence[SheetImage], caption: str) -> Sheet:
    """Images as tiles of the same size.

    Args:
        name: of the sheet, for ids within a page.
        images: at least one, each with the same number of maps.
        caption: below the sheet.
    """
    _, rows, columns = images[0].image.shape
    copies = 1 + len(images[0].overlays)
    side, font = (_WIDE_SIDE, _WIDE_FONT) if copies > 1 else (_SIDE, _FONT)
    scale, line = side / max(rows, columns), round(1.3 * font)
    width, height = scale * columns, scale * rows
    row = copies * width + (copies - 1) * _GAP
    texts = [[", ".join(i.lines)] if copies > 1 else [*i.lines, *([i.mark] if i.mark else [])] for i in images]
    tile_width = max(row, 72.0, 0.6 * font * max(len(text) for lines in texts for text in lines) + 8)
    top = height + (line if copies > 1 else 0)
    size = (tile_width, top + line * max(map(len, texts)) + 6)
    left = (tile_width - row) / 2
    box = f'width="{width:g}" height="{height:g}"'

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x:g}" y="{y:g}"{more}>{escape(words)}</text>'

    tiles = []
    for index, image in enumerate(images):
        identity = f"{name}-{index}"
        parts = [f'<image id="{identity}" x="{left:g}" {box} xlink:href="{data_uri(small(image.image))}"/>']
        for number, overlay in enumerate(image.overlays, start=1):
            x = number * (width + _GAP)
            # Without colours of its own, which would be mistaken for the map's.
            parts.append(f'<use xlink:href="#{identity}" x="{x:g}" style="filter:grayscale(1) brightness({_DIMMED})"/>')
            parts.append(f'<svg x="{left + x:g}" {box} viewBox="0 0 {columns} {rows}">{_overlay(overlay)}</svg>')
        if image.overlays:
            titles = [image.mark, *(overlay.title for overlay in image.overlays)]
            for number, title in enumerate(titles):
                x = left + number * (width + _GAP) + width / 2
                parts.append(text(x, height + 0.8 * line, title, f' font-size="{0.8 * font:g}"'))
        parts += [text(tile_width / 2, top + line * row - 2, words) for row, words in enumerate(texts[index], start=1)]
        style = f'font-family="sans-serif" font-size="{font:g}" text-anchor="middle" fill="currentColor"'
        tiles.append(Tile(f'<g style="image-rendering:pixelated" {style}>{"".join(parts)}</g>', image.alt))
    return Sheet(name, tiles, size, caption)


def sheet_svg(sheet: Sheet) -> str:
    """A sheet's tiles in rows, as one SVG."""
    width, height = sheet.size
    columns = min(len(sheet.tiles), max(1, int((_SHEET_WIDTH + _TILE_GAP) / (width + _TILE_GAP))))
    rows = -(-len(sheet.tiles) // columns)
    parts = []
    for index, tile in enumerate(sheet.tiles):
        left, top = (width + _TILE_GAP) * (index % columns), height * (index // columns)
        parts.append(f'<g transform="translate({left:g} {top:g})">{tile.svg}</g>')
    whole = columns * (width + _TILE_GAP) - _TILE_GAP
    return f"{opening(whole, rows * height)}{''.join(parts)}</svg>"


def tile_svg(sheet: Sheet, tile: Tile) -> str:
    """A single tile of a sheet, as SVG within HTML, where namespaces need not be named."""
    width, height = sheet.size
    return f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">{tile.svg}</svg>'


def class_line(label: str, guess: str) -> str:
    """The true and the predicted class, for the line below an image."""
    return f"{short(label)} → {short(guess)}"


def _overlay(overlay: MapOverlay) -> str:
    left, top, width, height = overlay.box
    colours = np.where((overlay.cells > 0)[..., None], FOR, AGAINST)
    opacity = np.rint(255 * _OPACITY * np.abs(overlay.cells) ** _GAMMA)[..., None]
    uri = data_uri(png(np.concatenate([colours, opacity], 2).astype(np.uint8)))
    place = f'x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"'
    return f'<image {place} preserveAspectRatio="none" xlink:href="{uri}"/>'
