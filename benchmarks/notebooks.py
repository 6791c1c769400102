"""Executes the notebooks in notebooks/ and stores their outputs: `make notebooks`.

Each runs in an empty folder. Nothing is stored unless all cells succeed. Both together take about 23 minutes of
processor time on an AMD EPYC (2026-11-29).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from common import DOCS
from smidgen.errors import SmidgenError
from smidgen.files import write_atomic

NOTEBOOKS = DOCS.parent / "notebooks"
MOST_BYTES = 300_000
"""Of a notebook with its outputs: code hosts show larger ones late or not at all."""
SHORT = "SMIDGEN_SHORT"
"""Environment variable that makes the notebooks use a few images and epochs, as the tests do."""


def main() -> None:
    """Execute notebooks and write them with their outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of notebooks, without .ipynb; default: all")
    options = parser.parse_args()
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in [NOTEBOOKS / f"{name}.ipynb" for name in options.names] or paths:
        print(f"{path.name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            content = f"{nbformat.writes(executed(path, Path(folder)))}\n".encode()
            problems = [word for word in (folder, str(Path.home()), str(DOCS.parent)) if word.encode() in content]
        if problems:
            raise SmidgenError(f"{path.name} has a path of this machine in its outputs: {problems[0]}")
        if len(content) > MOST_BYTES:
            raise SmidgenError(f"{path.name} has {len(content):,} bytes with its outputs; at most {MOST_BYTES:,}")
        write_atomic(path, content)
        print(f"{path.name}: {len(content):,} bytes", file=sys.stderr)


def executed(path: Path, folder: Path, *, short: bool = False) -> Any:
    """A notebook with the outputs of its cells.

    Args:
        path: of the notebook, which is not changed.
        folder: working directory of its kernel.
        short: use a few images and epochs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    environment = {name: value for name, value in os.environ.items() if name != SHORT}
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**environment, **({SHORT: "1"} if short else {})})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    # The kernel's Python is not the reader's.
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


if __name__ == "__main__":
    main()
