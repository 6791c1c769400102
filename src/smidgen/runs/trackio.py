"""`--log trackio`: a run in trackio's local database."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from smidgen.errors import DataError, SmidgenError
from smidgen.files import write_atomic
from smidgen.runs.callback import Callback, RunStart
from smidgen.runs.logged import IMAGES, hyperparameters, scalars
from smidgen.training.loop import EpochRecord

if TYPE_CHECKING:
    from smidgen.runs.record import Run

PROJECT = "smidgen"
_FOLDER = "TRACKIO_DIR"
_REMOTE = ("TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID")
_COLUMNS = 8


class Trackio(Callback):
    """Writes scalars by epoch, a grid of augmented images, hyper-parameters and the last accuracy.

    Each epoch is in the database when it is finished. trackio's storage class writes it, not `trackio.init`, which
    asks the Hub for the user's name if there is a token, follows the environment to a server, and writes from a thread
    that turns errors into warnings.

    Args:
        root: trackio's folder, with a database for each project; None takes `TRACKIO_DIR` or trackio's default.
        sweep_folder: of the run directory within its sweep. It is named after all that determines the result except
            the seed, so with the seed it identifies the run; elsewhere the path of the run directory does.

    Raises:
        SmidgenError: the package trackio is not installed, would use the network, or cannot write to that folder.
    """

    def __init__(self, root: str | Path | None = None, sweep_folder: Path | None = None) -> None:
        for name in _REMOTE:
            if name in os.environ:
                raise SmidgenError(f"{name} is set, so trackio would download runs; unset it to use --log trackio")
        folder = None if root is None else Path(root).absolute()
        try:
            with _environment(folder):
                self._trackio: Any = importlib.import_module("trackio")
        except ImportError:
            raise SmidgenError("--log trackio needs trackio; install it with: pip install 'smidgen[trackio]'") from None
        there = self._trackio.TRACKIO_DIR.absolute()
        if folder not in (None, there):
            raise SmidgenError(
                f"--log-dir is {root}, but trackio already uses {there} in this process, and only one folder; use that "
                f"or a new process"
            )
        if self._trackio.utils.is_network_filesystem(there):
            raise SmidgenError(
                f"{there} is on a network file system, where SQLite databases get damaged; use --log-dir with a folder "
                f"on a local disk"
            )
        self._sweep_folder = sweep_folder
        self._start: RunStart | None = None
        self._name = self._id = ""
        self._connection: sqlite3.Connection | None = None

    def begin(self, start: RunStart) -> None:
        """Replace what the database holds of this run."""
        directory = start.directory.resolve()
        self._start = start
        if self._sweep_folder is None:
            self._name, self._id = directory.name, hashlib.sha256(os.fsencode(directory)).hexdigest()[:32]
        else:
            self._name = self._id = "-".join((*self._sweep_folder.parts, directory.name))
        self._trackio.SQLiteStorage.delete_run(PROJECT, self._name, run_id=self._id)
        with contextlib.suppress(DataError):  # of a run that was finished before, the data need not be there
            self._log({"training images": self._image(start.augmented(IMAGES))}, 0)

    def epoch(self, record: EpochRecord) -> None:
        """Write the scalars of an epoch."""
        assert self._start
        self._log(scalars(record, self._start.held_out), record.epoch)

    def end(self, finished: Run | None) -> None:
        """Write the last accuracy, unless the run is unfinished."""
        if finished is not None:
            last = finished.history[-1]
            self._log({f"{finished.result.held_out}_accuracy_last": last.test_accuracy}, last.epoch)
        self._disconnect()

    def _log(self, values: Mapping[str, object], step: int) -> None:
        assert self._start
        trial = self._start.trial
        # Under this key, trackio.init stores its argument `group`.
        config = {**hyperparameters(trial, self._start.seed), "_Group": trial.name}
        storage = self._trackio.SQLiteStorage
        try:
            storage.bulk_log(PROJECT, self._name, [dict(values)], steps=[step], config=config, run_id=self._id)
            if self._connection is None:
                self._connection = _connected(storage.get_project_db_path(PROJECT))
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _image(self, images: Tensor) -> dict[str, object]:
        """The images in a file, and a reference to it as trackio's `Image` has it in the database."""
        content = io.BytesIO()
        sheet(images).save(content, "PNG")
        path = self._trackio.get_project_media_path(PROJECT, self._name) / f"{self._id}.png"
        write_atomic(path, content.getvalue(), flag="--log-dir")
        file = path.relative_to(self._trackio.utils.MEDIA_DIR)
        return {"_type": self._trackio.Image.TYPE, "file_path": str(file), "caption": "augmented training images"}


def sheet(images: Tensor) -> Image.Image:
    """Images side by side, eight in a row.

    Args:
        images: float32 [N, channels, height, width], 0 to 1; 1 or 3 channels.
    """
    count, channels, height, width = images.shape
    rows = -(-count // _COLUMNS)
    tiles = torch.zeros(rows * _COLUMNS, channels, height, width)
    tiles[:count] = images
    grid = tiles.view(rows, _COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = (grid.reshape(rows * height, _COLUMNS * width, channels) * 255).round().byte().numpy()
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _connected(database: Path) -> sqlite3.Connection:
    """A connection that is kept open during the run, so that writing takes 1 ms instead of 40 ms.

    Trackio opens and closes a connection for each write. When the last connection is closed, SQLite copies its log to
    the database and syncs it to disk: https://www.sqlite.org/wal.html. Workers of a sweep would wait for each other
    longer than trackio's lock does.
    """
    connection = sqlite3.connect(database)
    connection.execute("SELECT 1 FROM metrics LIMIT 1").close()  # it counts from the first query
    return connection


@contextlib.contextmanager
def _environment(folder: Path | None) -> Iterator[None]:
    """Set the folder in the environment, from which trackio takes it once, when it is imported."""
    before = os.environ.get(_FOLDER)
    if folder is not None:
        os.environ[_FOLDER] = str(folder)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_FOLDER] = before
        elif folder is not None:
            del os.environ[_FOLDER]
