"""The compiled part of the native engine, where it is installed, and the instruction level it runs at."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from types import ModuleType

from smidgen.errors import SmidgenError, first_line

LEVEL_VARIABLE = "SMIDGEN_ISA"
CACHE_VARIABLE = "SMIDGEN_CORE_CACHE"
CORE_VARIABLE = "SMIDGEN_NATIVE_CORE"
"""Path of another build of the compiled part to use instead, as the sanitizer tests do."""
_MODULE = "smidgen.engines.native._core"

NOT_BUILT = (
    "the native engine is not installed, as no C++ compiler was found when smidgen was; install g++ or clang and "
    "smidgen again"
)


class BrokenCoreError(SmidgenError):
    """The compiled part is there, but cannot be loaded."""


@functools.cache
def find_core() -> ModuleType | None:
    """The compiled part, or None where smidgen was installed without it.

    Raises:
        BrokenCoreError: it was built, but does not load here.
    """
    other = os.environ.get(CORE_VARIABLE)
    try:
        if other:
            spec = importlib.util.spec_from_file_location(_MODULE, other)
            if spec is None or spec.loader is None:
                raise BrokenCoreError(f"{CORE_VARIABLE} is {other}, which is not an extension module; unset it")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module
        if importlib.util.find_spec(_MODULE) is None:
            return None
        return importlib.import_module(_MODULE)
    except (ImportError, OSError) as error:
        where = f"{CORE_VARIABLE} is {other}, which" if other else "the native engine was built, but"
        raise BrokenCoreError(f"{where} cannot be loaded ({first_line(error)}); install smidgen again") from None


def why_missing() -> str:
    """Why the compiled part is missing, in one line; empty if it is available."""
    try:
        return "" if find_core() else NOT_BUILT
    except BrokenCoreError as error:
        return str(error)


def level() -> str:
    """The instruction level to run at: the best there is, or what `SMIDGEN_ISA` says.

    Raises:
        SmidgenError: `SMIDGEN_ISA` names a level that this machine or build lacks.
    """
    core = find_core()
    assert core is not None
    there: list[str] = [name for name, _ in core.levels()]
    wanted = os.environ.get(LEVEL_VARIABLE)
    if not wanted:
        return there[-1]
    if wanted not in there:
        raise SmidgenError(f"{LEVEL_VARIABLE} is {wanted!r}; this machine has: {', '.join(there)}")
    return wanted


def cache_bytes() -> int:
    """Bytes of a core's own cache that the kernels reckon with: what `SMIDGEN_CORE_CACHE` says, or 0 to ask the system.

    It decides how many rows of an image are worked on together; results do not depend on it.

    Raises:
        SmidgenError: `SMIDGEN_CORE_CACHE` is not a whole number above 0.
    """
    wanted = os.environ.get(CACHE_VARIABLE)
    if not wanted:
        return 0
    if not wanted.isascii() or not wanted.isdigit() or not 0 < int(wanted) < 2**40:
        raise SmidgenError(f"{CACHE_VARIABLE} is {wanted!r}; it must be a number of bytes above 0, or unset")
    return int(wanted)


def has_bfloat16() -> bool:
    """Whether the level to run at has bfloat16 products."""
    core = None if why_missing() else find_core()
    return core is not None and bool(dict(core.levels())[level()])
