"""The one kind of error that is the user's to mend.

Everything that a user can get wrong (a flag, a file, a setting, a full disk) raises a
`SmidgenError` whose text is one line: what is wrong, and what to do. The command line prints
that line and exits with status 2; anything else that escapes is a defect of smidgen.
"""

from __future__ import annotations


class SmidgenError(Exception):
    """A mistake or mishap that the user can mend; its text is one line that says how."""

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
    """A training that cannot go on, as when the loss is no longer a number."""
