"""The notebooks, executed with few images and epochs, and their stored outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
import pytest

from notebooks import MOST_BYTES, NOTEBOOKS, executed

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert [path.stem for path in PATHS] == ["trials", "your-own-data"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path) -> None:
    made = executed(path, tmp_path, short=True)
    cells = [cell for cell in made.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert list(tmp_path.rglob("result.json"))
    text = nbformat.writes(made)
    assert "goal met" in text or "goal missed" in text


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_those_of_a_whole_run(path: Path) -> None:
    content = path.read_text()
    assert len(content.encode()) <= MOST_BYTES
    here = (tempfile.gettempdir(), Path.home(), path.parents[1])
    assert all(f"{place}/" not in content for place in here)
    for cell in nbformat.reads(content, nbformat.NO_CONVERT).cells:
        if cell.cell_type == "code":
            assert cell.execution_count, "run: make notebooks"
            assert not any(output.output_type == "error" for output in cell.outputs)
            assert not any(output.get("name") == "stderr" for output in cell.outputs)
