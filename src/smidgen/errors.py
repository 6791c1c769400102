"""Usage errors.

Everything that a user can get wrong (a flag, a file, a setting, a full disk) raises a
`SmidgenError` whose text is one line: what is wrong, and what to do. The command line prints
that line and exits with status 2; anything else that escapes is a defect of smidgen.
"""

from __future__ import annotations

from typing import Any


class SmidgenError(Exception):
    """A usage error, or a failure that the user can fix; its text is one line that says how."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class SettingError(SmidgenError):
    """A setting with a value that is not allowed.

    Attributes:
        path: the setting, as in `optimizer.lr`.
        value: what was given.
        allowed: what would have been allowed, in words.
    """

    def __init__(self, path: str, value: object, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{path} is {shown}; allowed: {allowed}")
        self.path = path
        self.value = value
        self.allowed = allowed


class TrialError(SmidgenError):
    """A trial that cannot be found, read or trained."""


class DataError(SmidgenError):
    """A data set that is missing, damaged or not what it claims to be."""


class ImageError(SmidgenError):
    """An image file that cannot be read within bounds."""


class RunError(SmidgenError):
    """A run directory that cannot be written or read."""


class TrainingError(SmidgenError):
    """Training cannot continue, for example because the loss is no longer finite."""


class SmidgenInterruptedError(KeyboardInterrupt):
    """Ctrl-C or a termination signal during a command; its text says how far it came and how to resume."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it; what is not known is None."""
        return {"interrupted": True, "run_dir": None, "epochs": None, "resume": None}


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return str(error).strip().partition("\n")[0]
