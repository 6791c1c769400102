"""Finding what a user names: a built-in trial, `FILE.py:NAME`, or the `trial.json` of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from smidgen.errors import SmidgenError, TrialError
from smidgen.files import cannot_read, looked_up, read_bounded
from smidgen.nets.code import call_with, trust, where
from smidgen.settings import suggestion
from smidgen.trial import Trial
from smidgen.trials.builtin import BUILTIN

MOST_JSON_BYTES = 2**20


def find_trial(name: str | Path) -> Trial:
    """The trial that a user names.

    Args:
        name: a built-in name; `FILE.py:NAME`, where NAME is a function without arguments that
            returns a `Trial`, or a `Trial`; a `trial.json`; or a run directory that holds one.

    Raises:
        TrialError: nothing of that name, or it is not a trial.
    """
    found = find_trial_or_network(name)
    if isinstance(found, Trial):
        return found
    raise TrialError(f"{name} is a {type(found).__name__}; a Trial is needed here")


def find_trial_or_network(name: str | Path, **given: object) -> Trial | nn.Module:
    """As `find_trial`, but NAME may also be an `nn.Module`, its class, or a function that returns one.

    Args:
        name: as `find_trial` takes it.
        given: arguments for the class or function, as far as it takes them.

    Raises:
        TrialError: nothing of that name, or it is neither a trial nor a module.
    """
    text = str(name)
    if text in BUILTIN:
        return BUILTIN[text].make()
    file, colon, member = text.rpartition(":")
    if colon and file.endswith(".py"):
        return _from_python(Path(file), member, given)
    path = Path(text)
    with looked_up(path, TrialError):
        if path.is_dir():
            path = path / "trial.json"
            if not path.is_file():
                raise TrialError(f"{text} is a folder without a trial.json, so it is not a run")
    if path.suffix == ".json":
        return read_trial(path)
    if path.suffix == ".py":
        raise TrialError(f"{text}: say which trial of the file is meant, as in {text}:NAME")
    raise TrialError(
        f"there is no trial {text!r}; {suggestion(text, BUILTIN)}built in: {', '.join(BUILTIN)}; "
        f"or give FILE.py:NAME or a trial.json"
    )


def read_trial(path: Path, *, follow: bool = True) -> Trial:
    """Read a trial from JSON, as data; nothing in it is executed.

    Args:
        path: of the file.
        follow: whether it may be a symbolic link.

    Raises:
        TrialError: the file is missing, too large or not JSON.
        SmidgenError: a setting that is unknown or not allowed.
    """
    try:
        data = json.loads(read_bounded(path, MOST_JSON_BYTES, follow=follow))
    except OSError as error:
        raise TrialError(cannot_read(path, error)) from None
    except (ValueError, RecursionError) as error:
        raise TrialError(f"{path} is not JSON: {error}") from None
    try:
        return Trial.from_json(data)
    except SmidgenError as error:
        raise TrialError(f"{path}: {error}") from None
    except RecursionError:
        raise TrialError(f"{path} is nested too deeply") from None


def _from_python(path: Path, member: str, given: dict[str, object]) -> Trial | nn.Module:
    with looked_up(path, TrialError):
        if not path.is_file():
            raise TrialError(f"{path} does not exist")
    module = trust(path)
    try:
        value: Any = getattr(module, member)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise TrialError(f"{path} defines no {member!r}; {suggestion(member, public)}".rstrip("; ")) from None
    if callable(value) and not isinstance(value, Trial | nn.Module):
        try:
            value = call_with(value, **given)
        except SmidgenError as error:
            raise TrialError(f"{path}:{member}: {error}") from None
        except (Exception, SystemExit) as error:  # whatever a user's function raises becomes one line that says where
            raise TrialError(f"{path}:{member}() failed: {where(error, path)}") from None
    if isinstance(value, Trial | nn.Module):
        return value
    raise TrialError(
        f"{path}:{member} is of type {type(value).__name__}; it must be a Trial or an nn.Module, or a function "
        f"without arguments that returns one"
    )
