"""The run directory: what a run leaves on disk, and reading it back."""

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

TRIAL = "trial.json"
ENVIRONMENT = "environment.json"
EPOCHS = "epochs.jsonl"
CHECKPOINT = "checkpoint.safetensors"
PREVIOUS_CHECKPOINT = "checkpoint-previous.safetensors"
WEIGHTS = "weights.safetensors"
RESULT = "result.json"
LOG = "log.txt"

DEFAULT_ROOT = Path("runs")
MOST_JSON_BYTES = 2**20
MOST_EPOCHS_BYTES = 64 * 2**20
MOST_EPOCHS = 100_000
MOST_LINE_BYTES = 2**16


class RunDirectory:
    """The directory of one run.

    `trial.json` is there once the run has begun, and can be resumed; `result.json` is written last:
    with it the run is finished.

    Attributes:
        path: of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Lock | None = None

    @classmethod
    def create(cls, out: Path | None, trial: str, seed: int) -> RunDirectory:
        """Make the directory of a new run, or take one in which none has begun, and lock it.

        Args:
            out: where. None chooses a new one, `runs/<trial>-seed<seed>`, with a number added if
                that is taken.
            trial: the trial's name.
            seed: the run's.

        Returns:
            The directory, locked. Between a look at it and this call another process may have run
            there: ask whether a run has `begun`.

        Raises:
            RunError: it cannot be made, holds something else, or is in use.
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
        """This directory, reserved for this process until `release` or its end, without a killed one's leavings.

        Raises:
            RunError: another process is at work there.
        """
        self._lock = Lock(self.path)
        remove_temporaries(self.path)
        return self

    def tidy(self) -> None:
        """Remove what a process killed at the very end has left, if nobody is at work and that can be done."""
        if (self.path / Lock.NAME).exists():
            with contextlib.suppress(RunError):
                self.locked().release()

    def release(self) -> None:
        """Let other processes have the directory."""
        if self._lock:
            self._lock.release()

    @property
    def begun(self) -> bool:
        """Whether a run was begun here."""
        with looked_up(self.path):
            return (self.path / TRIAL).exists()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        with looked_up(self.path):
            return (self.path / RESULT).exists()

    @property
    def resume_command(self) -> str:
        """What to type to go on."""
        return f"smidgen run --resume {shlex.quote(str(self.path))}"

    def _refuse_other_files(self) -> None:
        """A process killed while it began a run leaves at most its lock and the environment."""
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose another place with --out")
        left = {Lock.NAME, ENVIRONMENT}
        with looked_up(self.path):
            there = list(self.path.iterdir())
        if any(p.name not in left and p.suffix != TEMPORARY for p in there):
            raise RunError(f"{self.path} already holds other files; choose another place with --out, or remove it")

    @staticmethod
    def _make(path: Path) -> bool:
        """Make a new directory; False if there is something of that name."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            sync_directory(path.parent)
        except FileExistsError:
            if path.exists():
                return False
            raise RunError(f"{path} cannot be made: a part of its path is a file") from None
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
        write_atomic(self.path / CHECKPOINT, content, previous=self.path / PREVIOUS_CHECKPOINT)

    def put_aside(self, name: str) -> None:
        """Rename a damaged file of the run, so that it is neither read nor lost."""
        path = self.path / name
        try:
            path.replace(path.with_name(f"damaged-{name}"))
        except OSError as error:
            raise cannot_write(path, error) from None

    def append_epoch(self, record: dict[str, Any]) -> None:
        """Add a finished epoch."""
        append_line(self.path / EPOCHS, _line(record))

    def write_epochs(self, records: Sequence[dict[str, Any]]) -> None:
        """Write all finished epochs anew, unless that is what is there; atomically."""
        content = "".join(_line(record) + "\n" for record in records).encode()
        try:
            there = read_bounded(self.path / EPOCHS, MOST_EPOCHS_BYTES, follow=False)
        except OSError:
            there = b""
        if there != content:
            self.write(EPOCHS, content)

    def log(self, text: str) -> None:
        """Add lines to the log."""
        append_line(self.path / LOG, text)

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
        if not (self.path / EPOCHS).exists():
            return []
        lines = self._read(EPOCHS, MOST_EPOCHS_BYTES).splitlines()
        if len(lines) > MOST_EPOCHS:
            raise RunError(f"{self.path / EPOCHS} is damaged: it has {len(lines):,} lines")
        return [self._parse(EPOCHS, line) for line in lines]

    def _read(self, name: str, most: int) -> bytes:
        path = self.path / name
        try:
            return read_bounded(path, most, follow=False)
        except FileNotFoundError:
            if not self.begun or name == ENVIRONMENT:
                raise RunError(f"{self.path} has no {name}: it is not a run directory") from None
            raise RunError(
                f"{self.path} has no {name}: the run is unfinished; {self.resume_command} goes on with it"
            ) from None
        except OSError as error:
            raise RunError(cannot_read(path, error)) from None

    def _parse(self, name: str, text: bytes) -> Any:
        try:
            if name == EPOCHS and len(text) > MOST_LINE_BYTES:
                raise ValueError("a line is too long")
            return json.loads(text.decode(errors="replace"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name} is damaged: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not JSON")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False)
