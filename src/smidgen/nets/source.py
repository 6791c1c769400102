"""Whether a module in memory is what its file says now: files are edited after they were imported, as in notebooks."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

_PYC_HEADER_BYTES = 16


def changed_since_import(module: ModuleType, content: bytes, path: Path) -> bool:
    """Whether a module shows that it comes from another source than its file has now.

    It does if a function or method has other code, a constant another value, or if Python's cache was made from
    another version of the file. Modules that were rewritten during import, as pytest does, are not compared.

    Args:
        module: that was imported, or is being imported.
        content: of its file now.
        path: of the file.
    """
    if type(getattr(module, "__loader__", None)) is not SourceFileLoader:
        return False
    try:
        tree = ast.parse(content)
        code = compile(tree, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return True
    if _cache_is_older(module, path):
        return True
    expected: dict[str, list[CodeType]] = {}
    for function in _nested(code):
        expected.setdefault(function.co_qualname, []).append(function)
    for name, found in _functions(vars(module), module.__name__, path.name, ""):
        if _meaning(found) not in [_meaning(function) for function in expected.get(name, [])]:
            return True
    live = vars(module)
    return any(name in live and (type(live[name]), live[name]) != (type(x), x) for name, x in _constants(tree))


def _cache_is_older(module: ModuleType, path: Path) -> bool:
    """Whether Python's cache, which every import brings up to date, is of another version of the file."""
    cached = getattr(module.__spec__, "cached", None)
    if cached is None or sys.dont_write_bytecode or not os.access(Path(cached).parent, os.W_OK):
        return False
    try:
        with Path(cached).open("rb") as file:
            header = file.read(_PYC_HEADER_BYTES)
        now = path.stat()
    except OSError:
        return False
    flags, modified, size = (int.from_bytes(header[at : at + 4], "little") for at in (4, 8, 12))
    by_time = len(header) == _PYC_HEADER_BYTES and flags == 0  # others are compared by a hash of the source
    return by_time and (modified, size) != (int(now.st_mtime) & 0xFFFFFFFF, now.st_size & 0xFFFFFFFF)


def _functions(namespace: Mapping[str, object], module: str, file: str, prefix: str) -> Iterator[tuple[str, CodeType]]:
    """The code of the functions and methods that a module defines in its file, by qualified name."""
    for name, value in namespace.items():
        own = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        own = own.fget if isinstance(own, property) else own
        if getattr(own, "__module__", None) != module or getattr(own, "__qualname__", None) != prefix + name:
            continue
        if isinstance(own, type):
            yield from _functions(vars(own), module, file, f"{prefix}{name}.")
        elif callable(own) and isinstance(function := inspect.unwrap(own), FunctionType):
            yield from [(prefix + name, function.__code__)] if Path(function.__code__.co_filename).name == file else []


def _nested(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


def _meaning(code: CodeType) -> tuple[object, ...]:
    """The parts of a code object that matter, independent of its position in the file."""
    constants = tuple(_meaning(c) if isinstance(c, CodeType) else (type(c), c) for c in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants


def _constants(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """Names that a file assigns in one place only, at its top, and there to an immutable literal."""
    stores = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and stores[target.id] == 1:
                try:
                    literal = ast.literal_eval(value)
                    hash(literal)
                except (ValueError, TypeError):
                    continue
                yield target.id, literal
