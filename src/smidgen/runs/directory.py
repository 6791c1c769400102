"""The run directory: the files of a run on disk, written and read."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smidgen.errors import RunError
from smidgen.files import (
    TEMPORARY,
    append_line,
    cannot_read,
    cannot_write,
    looked_up,
    read_bounded,
    remove_temporaries,
    sync_directory,
    write_atomic,
)
from smidgen.runs.lock import Lock

DEFAULT_ROOT = Path("runs")
MOST_JSON_BYTES = 2**20
MOST_EPOCHS_BYTES = 64 * 2**20
MOST_EPOCHS = 100_000
MOST_LINE_BYTES = 2**16


class RunFiles:
    """Names of the files in a run directory."""

    TRIAL = "trial.json"
    ENVIRONMENT = "environment.json"
    EPOCHS = "epochs.jsonl"
    CHECKPOINT = "checkpoint.safetensors"
    PREVIOUS_CHECKPOINT = "checkpoint-previous.safetensors"
    WEIGHTS = "weights.safetensors"
    PREDICTIONS = "predictions.safetensors"
    RESULT = "result.json"
    LOG = "log.txt"


class RunDirectory:
    """The directory of one run.

    A run that has `trial.json` has started and can be resumed. `result.json` is written last: a run that
    has it is finished.

    Attributes:
        path: of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Lock | None = None

    @classmethod
    def create(cls, out: Path | None, trial: str, seed: int) -> RunDirectory:
        """Make the directory of a new run, or reuse one in which no run has started, and lock it.

        Args:
            out: the directory. None chooses a new one, `runs/<trial>-seed<seed>`, with a number added if
                that exists.
            trial: the trial's name.
            seed: the random seed.

        Returns:
            The directory, locked. Another process may have run there in the meantime: check `begun` again.

        Raises:
            RunError: it cannot be made, holds other files, or is in use.
        """
        if out is None:
            base = DEFAULT_ROOT / f"{trial}-seed{seed}"
            for number in itertools.count(1):
                path = base if number == 1 else base.with_name(f"{base.name}-{number}")
                if cls._make(path):
                    return cls(path).locked()
        assert out is not None
        directory = cls(out)
        if not cls._make(out) and not directory.begun:
            directory._refuse_other_files()
        return directory.locked()

    def locked(self) -> RunDirectory:
        """Lock this directory until `release` or the end of this process, and remove a killed process's leftovers.

        Raises:
            RunError: another process is using it.
        """
        self._lock = Lock(self.path)
        remove_temporaries(self.path)
        return self

    def tidy(self) -> None:
        """Remove the lock file that a process killed at the very end left, if the directory is not in use."""
        if (self.path / Lock.NAME).exists():
            with contextlib.suppress(RunError):
                self.locked().release()

    def release(self) -> None:
        """Unlock the directory."""
        if self._lock:
            self._lock.release()

    @property
    def begun(self) -> bool:
        """Whether a run has started here."""
        with looked_up(self.path):
            return (self.path / RunFiles.TRIAL).exists()

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        with looked_up(self.path):
            return (self.path / RunFiles.RESULT).exists()

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        return f"smidgen run --resume {shlex.quote(str(self.path))}"

    def _refuse_other_files(self) -> None:
        """Raise if there are files that no run leaves: one killed at its start leaves a lock and an environment."""
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose another place with --out")
        left = {Lock.NAME, RunFiles.ENVIRONMENT}
        with looked_up(self.path):
            there = list(self.path.iterdir())
        if any(p.name not in left and p.suffix != TEMPORARY for p in there):
            raise RunError(f"{self.path} already holds other files; choose another place with --out, or remove it")

    @staticmethod
    def _make(path: Path) -> bool:
        """Make a new directory; False if the path exists."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            sync_directory(path.parent)
        except FileExistsError:
            if path.exists():
                return False
            raise RunError(f"{path} cannot be created: a part of its path is a file") from None
        except OSError as error:
            raise cannot_write(path, error) from None
        return True

    def write_json(self, name: str, data: object) -> None:
        """Write a file of the run as JSON, atomically."""
        self.write(name, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run, atomically."""
        write_atomic(self.path / name, content)

    def write_checkpoint(self, content: bytes) -> None:
        """Write the checkpoint, atomically; the one before it is kept."""
        write_atomic(self.path / RunFiles.CHECKPOINT, content, previous=self.path / RunFiles.PREVIOUS_CHECKPOINT)

    def remove(self, name: str) -> None:
        """Delete a file of the run, if it is there."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.path / name, error) from None

    def put_aside(self, name: str) -> None:
        """Rename a damaged file of the run, so that it is neither read nor deleted."""
        path = self.path / name
        try:
            path.replace(path.with_name(f"damaged-{name}"))
        except OSError as error:
            raise cannot_write(path, error) from None

    def append_epoch(self, record: dict[str, Any]) -> None:
        """Append a finished epoch."""
        append_line(self.path / RunFiles.EPOCHS, _line(record))

    def write_epochs(self, records: Sequence[dict[str, Any]]) -> None:
        """Rewrite the file of finished epochs if its content differs, atomically."""
        content = "".join(_line(record) + "\n" for record in records).encode()
        try:
            there = read_bounded(self.path / RunFiles.EPOCHS, MOST_EPOCHS_BYTES, follow=False)
        except OSError:
            there = b""
        if there != content:
            self.write(RunFiles.EPOCHS, content)

    def log(self, text: str) -> None:
        """Append lines to the log."""
        append_line(self.path / RunFiles.LOG, text)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            RunError: it is missing, too large or not a JSON object.
        """
        data = self._parse(name, self._read(name, MOST_JSON_BYTES))
        if not isinstance(data, dict):
            raise RunError(f"{self.path / name} is not a JSON object")
        return data

    def read_epochs(self) -> list[dict[str, Any]]:
        """The finished epochs, in order.

        Raises:
            RunError: the file is too large or damaged.
        """
        if not (self.path / RunFiles.EPOCHS).exists():
            return []
        lines = self._read(RunFiles.EPOCHS, MOST_EPOCHS_BYTES).splitlines()
        if len(lines) > MOST_EPOCHS:
            raise RunError(f"{self.path / RunFiles.EPOCHS} is damaged: it has {len(lines):,} lines")
        return [self._parse(RunFiles.EPOCHS, line) for line in lines]

    def _read(self, name: str, most: int) -> bytes:
        path = self.path / name
        try:
            return read_bounded(path, most, follow=False)
        except FileNotFoundError:
            if not self.begun or name == RunFiles.ENVIRONMENT:
                raise RunError(f"{self.path} has no {name}: it is not a run directory") from None
            raise RunError(
                f"{self.path} has no {name}: the run is unfinished; resume with: {self.resume_command}"
            ) from None
        except OSError as error:
            raise RunError(cannot_read(path, error)) from None

    def _parse(self, name: str, text: bytes) -> Any:
        try:
            if name == RunFiles.EPOCHS and len(text) > MOST_LINE_BYTES:
                raise ValueError("a line is too long")
            return json.loads(text.decode(errors="replace"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name} is damaged: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not JSON")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False)
