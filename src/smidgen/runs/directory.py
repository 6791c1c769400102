"""The run directory: what a run leaves on disk, and reading it back."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from smidgen.errors import RunError
from smidgen.runs.files import append_line, cannot_write, write_atomic

TRIAL = "trial.json"
ENVIRONMENT = "environment.json"
EPOCHS = "epochs.jsonl"
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
RESULT = "result.json"
LOG = "log.txt"

DEFAULT_ROOT = Path("runs")
MOST_JSON_BYTES = 64 * 2**20


class RunDirectory:
    """The directory of one run. `result.json` is written last: with it the run is finished.

    Attributes:
        path: of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: Path | None, trial: str, seed: int) -> RunDirectory:
        """Make the directory of a new run.

        Args:
            out: where; it must not exist yet or be empty. None chooses a new one,
                `runs/<trial>-seed<seed>`, with a number added if that is taken.
            trial: the trial's name.
            seed: the run's.

        Raises:
            RunError: it cannot be made, or holds something already.
        """
        if out is None:
            base = DEFAULT_ROOT / f"{trial}-seed{seed}"
            for number in itertools.count(1):
                path = base if number == 1 else base.with_name(f"{base.name}-{number}")
                if cls._make(path):
                    return cls(path)
        assert out is not None
        if cls._make(out) or (out.is_dir() and not any(out.iterdir())):
            return cls(out)
        if not out.is_dir():
            raise RunError(f"{out} is a file; choose another place with --out")
        held = "another run" if (out / TRIAL).exists() else "other files"
        raise RunError(f"{out} already holds {held}; choose another place with --out, or remove it")

    @staticmethod
    def _make(path: Path) -> bool:
        """Make a new directory; False if there is something of that name."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
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

    def append_epoch(self, record: dict[str, Any]) -> None:
        """Add a finished epoch."""
        append_line(self.path / EPOCHS, json.dumps(record, allow_nan=False))

    def log(self, text: str) -> None:
        """Add lines to the log."""
        append_line(self.path / LOG, text)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            RunError: it is missing, too large or not a JSON object.
        """
        data = self._parse(name, self._read(name).decode(errors="replace"))
        if not isinstance(data, dict):
            raise RunError(f"{self.path / name} is not a JSON object")
        return data

    def read_epochs(self) -> list[dict[str, Any]]:
        """The finished epochs, in order.

        Raises:
            RunError: the file is missing, too large or damaged.
        """
        if not (self.path / EPOCHS).exists():
            return []
        lines = self._read(EPOCHS).decode(errors="replace").splitlines()
        return [self._parse(EPOCHS, line) for line in lines]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / RESULT).is_file()

    def _read(self, name: str) -> bytes:
        path = self.path / name
        try:
            with path.open("rb") as file:
                content = file.read(MOST_JSON_BYTES + 1)
        except FileNotFoundError:
            what = "the run is unfinished" if (self.path / TRIAL).exists() else "it is not a run directory"
            raise RunError(f"{self.path} has no {name}: {what}") from None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(content) > MOST_JSON_BYTES:
            raise RunError(f"{path} is larger than {MOST_JSON_BYTES:,} bytes, so it is not a run's")
        return content

    def _parse(self, name: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path / name} is damaged: {error}") from None
