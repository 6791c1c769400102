"""Python files of the user's own, and the networks that are defined in them.

A file is run only where its user has named it: as `FILE.py:NAME`, with `--code`, by `trust`, or in
`SMIDGEN_CODE`. A trial names a module by its file's name and SHA-256, never by a path to be followed,
so a trial or a run from elsewhere makes nothing run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from torch import nn

from smidgen.errors import SmidgenError, TrialError
from smidgen.files import cannot_read, read_bounded
from smidgen.nets.source import changed_since_import
from smidgen.trial import Module

VARIABLE = "SMIDGEN_CODE"
"""Environment variable with the files that may be run, so that a sweep's workers have them too."""
MOST_BYTES = 2**24

_LIBRARIES = (Path(__file__).parents[1], Path(nn.__file__).parents[1])

_trusted: dict[str, Any] = {}
"""Imported modules by the SHA-256 of their files."""
_imported: dict[int, tuple[Any, str]] = {}
"""Specs of imported modules, by their identity, and the SHA-256 of the sources."""


class _Loader(SourceFileLoader):
    """Runs the source that was hashed, and nothing older from Python's cache."""

    def __init__(self, name: str, path: Path, content: bytes) -> None:
        super().__init__(name, str(path.resolve()))
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        """The compiled source."""
        code: CodeType = self.source_to_code(self._content, self.get_filename(fullname))
        return code


def trust(path: str | Path) -> Any:
    """Import a Python file, and let trials use the networks that are defined in it.

    Its folder can be imported from, as when Python runs it.

    Args:
        path: of the file, which is run.

    Returns:
        The module.

    Raises:
        TrialError: it is missing, or fails.
    """
    path = Path(path)
    content = _content(path)
    name = f"smidgen_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve(), loader=_Loader(name, path, content))
    if spec is None or spec.loader is None:
        raise TrialError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    digest = hashlib.sha256(content).hexdigest()
    _imported[id(spec)] = (spec, digest)
    try:
        spec.loader.exec_module(module)
    except SmidgenError as error:
        raise TrialError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:  # the user's own code: anything can happen in it
        raise TrialError(f"{path} fails to import: {where(error, path)}") from None
    finally:
        sys.path.remove(folder)
    _remember(digest, module, path)
    return module


def where(error: BaseException, path: Path | None = None) -> str:
    """An error in a user's code with its place: `NameError: name 'x' is not defined (line 3)`.

    Args:
        error: that was raised.
        path: of the user's file; None finds the file in the traceback, and names it.
    """
    own = user_lines(error)
    lines = [number for file, number in own if path is None or file == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    file = f"{own[-1][0].name}, " if path is None and own else ""
    return f"{type(error).__name__}: {message}" + (f" ({file}line {line})" if line else "")


def user_lines(error: BaseException) -> list[tuple[Path, int]]:
    """Files and lines that an error passed, outermost first, those of PyTorch and smidgen left out."""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    return [
        (file, line)
        for file, line in places
        if line and not str(file).startswith("<") and not any(file.is_relative_to(folder) for folder in _LIBRARIES)
    ]


def from_module(factory: Callable[..., nn.Module]) -> Module:
    """A network for a trial, made of an `nn.Module` class or a function that returns one.

    It is called with `input_shape` (channels, height, width) and `classes`, as far as it takes them, and
    must give float32 scores [count, classes] of images [count, channels, height, width].

    Args:
        factory: defined at the top of a Python file.

    Raises:
        TrialError: it is not, as in a notebook's cell; or the file has changed since it was imported.
    """
    name = getattr(factory, "__qualname__", "")
    home = sys.modules.get(getattr(factory, "__module__", ""))
    file = getattr(home, "__file__", None)
    if home is None or file is None or not name.isidentifier():
        raise TrialError(f"{name or factory!r} must be defined at the top of a Python file to be a trial's network")
    path = Path(file)
    digest = _imported_sha256(home, path)
    if digest not in _trusted:
        _remember(digest, home, path)
    return Module(file=path.name, name=name, sha256=digest)


def module_network(network: Module, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The module that a trial names.

    Raises:
        TrialError: its file was not named or has changed, or calling it fails.
    """
    home = _trusted.get(network.sha256) or _from_environment(network.sha256)
    if home is None:
        others = [digest for digest, module in _trusted.items() if Path(module.__file__).name == network.file]
        if others:
            raise TrialError(
                f"the network is {network} as it was with SHA-256 {network.sha256[:12]}..., and the {network.file} "
                f"that was named has {others[-1][:12]}...: it is another file, or was edited since; name the file as "
                "it was"
            )
        raise TrialError(
            f"the network is {network}, in a Python file that is run only if you name it: add --code {network.file}, "
            f"the file with SHA-256 {network.sha256[:12]}..., if you trust it"
        )
    factory = getattr(home, network.name, None)
    if not callable(factory):
        raise TrialError(f"{network.file} defines no {network.name!r} that can be called")
    try:
        made = call_with(factory, input_shape=input_shape, classes=classes)
    except SmidgenError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function raises becomes one line that says where
        raise TrialError(f"{network} failed: {where(error, Path(home.__file__))}") from None
    if not isinstance(made, nn.Module):
        raise TrialError(f"{network} gives a {type(made).__name__}; it must give an nn.Module")
    return made


def call_with(function: Callable[..., Any], **given: object) -> Any:
    """Call a user's function with those arguments that it takes."""
    takes = inspect.signature(function).parameters
    return function(**{name: value for name, value in given.items() if name in takes})


def _remember(digest: str, module: Any, path: Path) -> None:
    _trusted[digest] = module
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    if str(path.resolve()) not in named:
        os.environ[VARIABLE] = os.pathsep.join([name for name in named if name] + [str(path.resolve())])


def _from_environment(digest: str) -> Any:
    """The module with this hash among the files that the environment names, if any."""
    for name in os.environ.get(VARIABLE, "").split(os.pathsep):
        if name and Path(name).is_file() and _sha256(Path(name)) == digest:
            return trust(name)
    return None


def _imported_sha256(home: Any, path: Path) -> str:
    """The hash of the source that a module was imported from.

    Raises:
        TrialError: its file has changed since, or the module was changed after it was imported.
    """
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    spec = home.__spec__  # a new one after each reload
    known = _imported.get(id(spec))
    if known is None and changed_since_import(home, content, path):
        known = (spec, "")
    if known is not None and known[1] != digest:
        raise TrialError(
            f"{path.name} and the module imported from it differ: the file was edited after the import, or the module "
            f"was changed; reload it (importlib.reload) or restart Python"
        )
    if spec is not None:
        _imported[id(spec)] = (spec, digest)
    return digest


def _sha256(path: Path) -> str:
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return read_bounded(path, MOST_BYTES)
    except FileNotFoundError:
        raise TrialError(f"{path} does not exist") from None
    except OSError as error:
        raise TrialError(cannot_read(path, error)) from None
