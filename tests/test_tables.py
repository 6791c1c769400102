"""Tables in LaTeX, read back by a parser; the other formats are in tests/golden."""

from __future__ import annotations

import re

import pytest
from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker

from conftest import Command
from smidgen.tables import render

HOSTILE = ["a & b", "50 %", "$x_1^2$", r"\\input{/etc/passwd}", "#{}~", "<|>", "[2pt]", "* star", "two\nlines", "naïve"]


def rows_of(table: str) -> list[list[str]]:
    """The cells of a tabular environment as text, without its rules; the parser has another circumflex."""
    nodes, _, _ = LatexWalker(table, tolerant_parsing=False).get_latex_nodes()
    (environment,) = [node for node in nodes if isinstance(node, LatexEnvironmentNode)]
    assert environment.environmentname == "tabular"
    body = re.sub(r"\\(toprule|midrule|bottomrule)\b", "", table.split("\n", 1)[1].rpartition("\n")[0])
    plain = LatexNodes2Text(strict_latex_spaces=True)
    lines = re.split(r"(?<!\\)\\\\\s*\n", body)
    return [
        [str(plain.latex_to_text(cell.strip())).replace("\u02c6", "^") for cell in re.split(r"(?<!\\)&", line)]
        for line in lines
        if line.strip()
    ]


def test_any_text_is_a_cell() -> None:
    table = render(["name", "count"], [[text, 1_234] for text in HOSTILE], "latex")
    head, *rows = rows_of(table)
    assert head == ["name", "count"]
    assert rows == [[text.replace("\n", " "), "1,234"] for text in HOSTILE]
    assert table.startswith("\\begin{tabular}{lr}\n\\toprule\n")
    assert not re.search(r"^[\[*]", table, re.MULTILINE)  # would be read as an argument of the line's end above


@pytest.mark.parametrize("trial", ["mnist-tiny-99", "mnist-4-strict"])
def test_an_inspection_in_latex_is_the_table(smidgen: Command, trial: str) -> None:
    text = smidgen("inspect", trial, "--format", "latex").out
    comments, tabular = text.split("\\begin", 1)
    assert all(line.startswith("% ") for line in comments.splitlines())
    layers = smidgen("inspect", trial, "--json").json["layers"]
    head, *rows = rows_of("\\begin" + tabular.rstrip())
    assert head[5:8] == ["parameters", "trainable", "MACs"]
    assert [[row[0], *row[5:8]] for row in rows] == [
        [layer["name"], *(f"{layer[key]:,}" for key in ("parameters", "trainable", "macs"))] for layer in layers
    ]
