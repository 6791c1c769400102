"""`--log tensorboard`: a run as TensorBoard's event files."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smidgen.errors import DataError, SmidgenError
from smidgen.files import cannot_write
from smidgen.runs.callback import Callback, RunStart
from smidgen.runs.logged import IMAGES, hyperparameters, scalars
from smidgen.training.loop import EpochRecord

if TYPE_CHECKING:
    from smidgen.runs.record import Run

FOLDER = "tensorboard"


class TensorBoard(Callback):
    """Writes scalars by epoch, a grid of augmented images, the layer table, and hyper-parameters with the result.

    Each epoch is on disk when it is finished. PyTorch's functions make the summaries, and TensorBoard's record writer
    writes them, but not from the thread that `SummaryWriter` starts: in a thread, a full disk is a traceback.

    Args:
        root: folder in which each run gets a folder named after its own; None writes into the run's directory.

    Raises:
        SmidgenError: the package tensorboard is not installed.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        try:
            self._summary: Any = importlib.import_module("torch.utils.tensorboard.summary")
            self._events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
            self._records: Any = importlib.import_module("tensorboard.summary.writer.record_writer")
        except ImportError:
            raise SmidgenError(
                "--log tensorboard needs TensorBoard; install it with: pip install 'smidgen[tensorboard]'"
            ) from None
        self._root = root
        self._path: Path | None = None
        self._start: RunStart | None = None

    def begin(self, start: RunStart) -> None:
        """Start an event file; TensorBoard hides what earlier files of this run hold."""
        folder = start.directory / FOLDER if self._root is None else Path(self._root) / start.directory.name
        with _said(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self._start, self._path = start, folder / f"events.out.tfevents.{time.time_ns()}.smidgen"
        session = self._events.SessionLog
        table = f"{start.anatomy.table('markdown')}\n\n{start.anatomy.totals()}"
        self._append(
            self._event(file_version="brain.Event:2"),
            self._event(session_log=session(status=session.START)),
            self._event(summary=self._summary.text("layers", table)),
        )
        with contextlib.suppress(DataError):  # of a run that was finished before, the data need not be there
            images = start.augmented(IMAGES).numpy()
            self._append(self._event(summary=self._summary.image("training images", images)))

    def epoch(self, record: EpochRecord) -> None:
        """Write the scalars of an epoch."""
        assert self._start
        self._append(*(self._scalar(tag, v, record.epoch) for tag, v in scalars(record, self._start.held_out).items()))

    def end(self, finished: Run | None) -> None:
        """Write the hyper-parameters, unless the run is unfinished."""
        if finished is None:
            return
        last, tag = finished.history[-1], f"{finished.result.held_out}_accuracy_last"
        described = self._summary.hparams(hyperparameters(finished.trial, finished.seed), {tag: last.test_accuracy})
        self._append(
            self._scalar(tag, last.test_accuracy, last.epoch), *(self._event(summary=part) for part in described)
        )

    def _scalar(self, tag: str, value: float, step: int) -> Any:
        return self._event(step, summary=self._summary.scalar(tag, value))

    def _event(self, step: int = 0, **content: Any) -> Any:
        return self._events.Event(wall_time=time.time(), step=step, **content)

    def _append(self, *events: Any) -> None:
        assert self._path
        with _said(self._path), self._path.open("ab") as file:
            writer = self._records.RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one line that names the path and the option."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, "--log-dir") from None
