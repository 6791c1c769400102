"""Tables for a terminal, Markdown, CSV, HTML or LaTeX, from the same rows."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from typing import Literal

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {character: f"${character}$" for character in "<>|"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
TableFormat = Literal["table", "markdown", "csv", "html", "latex"]


def render(
    columns: Sequence[str], rows: Sequence[Sequence[object]], format: TableFormat = "table", left: int = 1
) -> str:
    """A table as text, without a newline at the end.

    Args:
        columns: their names.
        rows: cells; whole numbers are written with thousands separators, except in CSV.
        format: `table` is aligned for a terminal; `latex` is a tabular environment for the package booktabs.
        left: how many of the first columns are text, aligned left; the others right.
    """
    if format == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([columns, *rows])
        return out.getvalue().rstrip("\n")
    head, cells = list(columns), [[_cell(value) for value in row] for row in rows]
    if format == "markdown":
        rule = ["---" if i < left else "---:" for i in range(len(head))]
        lines = [head, rule, *([cell.replace("|", "\\|") for cell in row] for row in cells)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if format == "html":
        header = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
        return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
    if format == "latex":
        parts = [r"\toprule", _latex_row(head), r"\midrule", *map(_latex_row, cells), r"\bottomrule"]
        sides = "l" * left + "r" * (len(head) - left)
        return "\n".join([rf"\begin{{tabular}}{{{sides}}}", *parts, r"\end{tabular}"])
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]

    def aligned(row: list[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    line = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([aligned(head), line, *map(aligned, cells), line])


def _latex_row(cells: Sequence[str]) -> str:
    # A bracket at the beginning of a row would be an argument of the `\\` before it.
    return " & ".join(f"{{{text}}}" if text[:1] in ("[", "*") else text for text in map(latex, cells)) + r" \\"


def latex(text: str) -> str:
    """Any text as LaTeX prints it, on one line."""
    return "".join(c if c.isprintable() else " " for c in text).translate(_LATEX)


def markdown(text: str) -> str:
    """Any text as Markdown shows it: no markup, no HTML, on one line."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def paragraph(*lines: str) -> str:
    """Lines of text as an HTML paragraph."""
    return f"<p>{'<br>'.join(map(html.escape, lines))}</p>"


def preformatted(text: str) -> str:
    """Text whose spaces and line breaks count, as HTML."""
    return f"<pre>{html.escape(text)}</pre>"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
