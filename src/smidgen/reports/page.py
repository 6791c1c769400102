"""The report as one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

from html import escape

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
from smidgen.reports.pictures import data_uri
from smidgen.reports.sheet import tile_svg

_STYLE = """
:root { color-scheme: light dark;
  --paper: #fcfcfa; --ink: #1d2125; --faint: #5d666f; --line: #d4d8dc; --shade: #f1f2f0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181b; --ink: #e4e7ea; --faint: #a3acb5; --line: #3a4148; --shade: #1e2226; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 .25rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 46rem; }
.verdict { font-size: 1.1rem; color: var(--faint); margin-top: 0; }
nav ul { columns: 18rem; padding-left: 1.1rem; }
a { color: inherit; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--faint); padding-bottom: .3rem; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; text-align: right; }
th { font-weight: 600; background: var(--shade); }
td { white-space: nowrap; }
.text { text-align: left; white-space: normal; }
figure { margin: .75rem 0; max-width: 100%; }
figcaption { color: var(--faint); font-size: .88rem; }
.scroll > svg, .sheet > li > svg { max-width: 100%; height: auto; display: block; }
@media (max-width: 520px) { .scroll > svg { max-width: none; width: 30rem; } }
.sheet { display: grid; gap: .25rem .5rem; max-width: none; margin: .5rem 0; padding: 0; list-style: none; }
img { image-rendering: pixelated; max-width: 100%; height: auto; background: #000; }
.gallery { display: flex; flex-wrap: wrap; gap: .75rem; }
.gallery figure { margin: 0; }
pre { background: var(--shade); padding: .75rem; overflow-x: auto; font-size: .8rem; line-height: 1.45; }
summary { cursor: pointer; padding: .2rem 0; }
@media print {
  body { max-width: none; font-size: 11px; }
  h2 { break-before: page; }
  figure, tr, li { break-inside: avoid; }
  figure:has(.sheet) { break-inside: auto; }
}
"""


def to_html(document: Document) -> str:
    """The document as an HTML page."""
    title = escape(document.title)
    chapters = [block for block in document.blocks if isinstance(block, Heading) and block.level == 2]
    anchors = {id(block): f"chapter-{number}" for number, block in enumerate(chapters)}
    links = "".join(f'<li><a href="#{anchors[id(c)]}">{escape(c.text)}</a></li>' for c in chapters)
    body = "\n".join(_block(block, anchors.get(id(block), "")) for block in document.blocks)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n'
        f'<p class="verdict">{escape(document.verdict)}</p>\n'
        f'<nav aria-label="Chapters"><ul>{links}</ul></nav>\n</header>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _block(block: Block, anchor: str) -> str:
    match block:
        case Heading(text=text, level=level):
            return f"<h{level}" + (f' id="{anchor}"' if anchor else "") + f">{escape(text)}</h{level}>"
        case Paragraph(text=text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items=items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _table(block)
        case Chart(svg=svg, alt=alt, caption=caption):
            frame = f'<div class="scroll" tabindex="0">{_labelled(svg, alt)}</div>'
            return f"<figure>{frame}<figcaption>{escape(caption)}</figcaption></figure>"
        case Picture():
            return _picture(block)
        case Gallery(pictures=pictures):
            return '<div class="gallery">' + "".join(map(_picture, pictures)) + "</div>"
        case Sheet(tiles=tiles, size=(width, _), caption=caption):
            items = "".join(f"<li>{_labelled(tile_svg(block, tile), tile.alt)}</li>" for tile in tiles)
            columns = f"grid-template-columns:repeat(auto-fill,minmax(min({width:g}px,calc(50% - .25rem)),1fr))"
            listed = f'<ul class="sheet" style="{columns}">{items}</ul>'
            return f"<figure>{listed}<figcaption>{escape(caption)}</figcaption></figure>"
        case Code(text=text, title=title, folded=folded):
            code = f'<pre tabindex="0">{escape(text)}</pre>'
            if not title:
                return code
            opened = "" if folded else " open"
            return f"<details{opened}><summary>{escape(title)}</summary>{code}</details>"


def _labelled(svg: str, alt: str) -> str:
    """An SVG element with what it shows in words."""
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def _picture(picture: Picture) -> str:
    return (
        f'<figure style="width:{picture.width}px"><img src="{data_uri(picture.content)}" width="{picture.width}" '
        f'alt="{escape(picture.alt)}"><figcaption>{escape(picture.caption)}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    def cell(tag: str, index: int, text: str, scope: str = "") -> str:
        kind = ' class="text"' if index < table.left else ""
        return f"<{tag}{scope}{kind}>{escape(text)}</{tag}>"

    head = "".join(cell("th", i, name, ' scope="col"') for i, name in enumerate(table.columns))
    rows = []
    for row in table.rows:
        cells = [
            cell("th", i, text, ' scope="row"') if i == 0 and table.left else cell("td", i, text)
            for i, text in enumerate(row)
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.caption)}"><table>'
        f"<caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
