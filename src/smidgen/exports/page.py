"""The web page as an export target: one HTML file that classifies what it is given, checked by its script in node."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch

from smidgen.errors import SmidgenError
from smidgen.exports.page_file import page_html
from smidgen.exports.target import Check, Source, compared
from smidgen.files import cannot_read, read_bounded
from smidgen.machine import usable_cores

_CHECK = files("smidgen.exports") / "web" / "check.cjs"
_MOST_BYTES = 2**30


class PageTarget:
    """One HTML file, named after the trial: draw or show a picture, and see the network at work, without a connection.

    Args:
        check: whether the file will be checked, which needs node.
    """

    def __init__(self, check: bool = True) -> None:
        self._to_be_checked = check

    def files(self, source: Source) -> dict[str, bytes]:
        """The page by its name.

        Raises:
            RunError: the network has a layer that no export can express.
            SmidgenError: node is missing.
        """
        if self._to_be_checked:
            _node()
        return {_name(source): page_html(source).encode()}

    def usage(self, source: Source) -> str:
        """In a browser."""
        return f"Open `{_name(source)}` in a browser; it makes no network requests. Draw, or drop an image file on it."

    def check(self, source: Source, directory: Path) -> Check:
        """Classify all test images with the script and the weights of the file that was written.

        Raises:
            SmidgenError: node is missing, or the file cannot be read or run.
        """
        path = directory / _name(source)
        try:
            size = len(read_bounded(path, _MOST_BYTES))
        except OSError as error:
            raise SmidgenError(cannot_read(path, error)) from None
        found, seconds = _run(path, source)
        return compared(source, torch.from_numpy(found), seconds, details={"bytes": size})


def _name(source: Source) -> str:
    return f"{source.run.trial.name}.html"


def _node() -> str:
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        raise SmidgenError(
            "checking a page needs node, which is not installed; install it (Debian: nodejs), or add --no-check"
        )
    return node


def _run(path: Path, source: Source) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], float]:
    """Scores [count, classes] of the test images by the page's script in node, and the seconds that they took.

    As many copies run as there are cores; the seconds are added.
    """
    node = _node()
    parts = [part for part in source.images.chunk(usable_cores()) if len(part)]

    def classify(images: torch.Tensor) -> bytes:
        done = subprocess.run(  # noqa: S603 - the project's own script
            [node, str(script), str(path)], input=images.numpy().tobytes(), capture_output=True, check=False
        )
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            raise SmidgenError(f"{path} cannot be run in node: {reason[-1]}; export it again")
        if len(done.stdout) != 8 + 4 * len(images) * source.graph.classes:
            raise SmidgenError(f"{path} returns a different number of scores than the run's network; export it again")
        return done.stdout

    with as_file(_CHECK) as script, ThreadPoolExecutor(len(parts)) as pool:
        outcomes = list(pool.map(classify, parts))
    scores = np.concatenate([np.frombuffer(outcome, "<f4", offset=8) for outcome in outcomes]).astype(np.float32)
    seconds = sum(float(np.frombuffer(outcome, "<f8", count=1)[0]) for outcome in outcomes)
    return scores.reshape(len(source.images), source.graph.classes), seconds
