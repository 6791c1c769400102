"""Compiling the exported files and running the exported program over images, in a folder of its own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.machine import usable_cores

STRICT = shlex.split(
    "-std=c99 -O2 -Wall -Wextra -Wpedantic -Wconversion -Wdouble-promotion -Wshadow -Wstrict-prototypes -Werror"
)
"""What the exported files are compiled with: any warning is an error."""
ARM = {
    "cortex_m0plus": ["-mcpu=cortex-m0plus", "-mthumb"],
    "cortex_m4": ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"],
}
"""Flags of GCC for the processors that sizes are shown for, where `arm-none-eabi-gcc` is installed."""
SECONDS = 300
"""How long the compiler or the program may take."""


def find_compiler() -> list[str] | None:
    """The command of a C compiler: what CC says, or cc, gcc or clang; None if there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


def require_compiler() -> list[str]:
    """`find_compiler`.

    Raises:
        SmidgenError: there is none.
    """
    found = find_compiler()
    if found is None:
        raise SmidgenError(
            "no C compiler was found, so the export could not be checked; install gcc or clang, name one in the "
            "variable CC, or leave the check out with --no-check"
        )
    return found


@contextmanager
def compiled(directory: Path, prefix: str, flags: Sequence[str] = STRICT) -> Iterator[Path]:
    """The exported program, compiled into a folder that is gone afterwards.

    Raises:
        SmidgenError: there is no compiler, or it refuses the files.
    """
    command = require_compiler()
    with tempfile.TemporaryDirectory(prefix="smidgen-") as folder:
        program = Path(folder) / "classify"
        sources = [find_source(directory, name) for name in ("main.c", f"{prefix}.c")]
        include = f"-I{sources[1].parent}"
        done = _run([*command, *flags, include, "-o", str(program), *map(str, sources), "-lm"], "the C compiler")
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise SmidgenError(f"{shlex.join(command)} does not compile the files in {directory}: {first}")
        yield program


def find_source(directory: Path, name: str) -> Path:
    """An exported file, in whatever folder its package has it."""
    return min(directory.resolve().rglob(name), key=lambda path: len(path.parts), default=directory.resolve() / name)


def code_bytes(source: Path, command: Sequence[str], flags: Sequence[str], size: str = "size") -> int | None:
    """Bytes of machine code, without constants, of a source file that is compiled for size.

    Args:
        source: the exported `.c`.
        command: of the compiler.
        flags: for the processor.
        size: the program that reads section sizes; it comes with the compiler.

    Returns:
        None where one of the programs is missing or does not know the flags.
    """
    if not shutil.which(command[0]) or not shutil.which(size):
        return None
    with tempfile.TemporaryDirectory(prefix="smidgen-") as folder:
        made = Path(folder) / "made.o"
        done = _run([*command, "-std=c99", "-Os", *flags, "-c", "-o", str(made), str(source)], "the C compiler")
        listed = _run([size, "-A", str(made)], size) if done.returncode == 0 else done
    sections = re.findall(r"^\.text\S*\s+(\d+)", listed.stdout, re.MULTILINE)
    return sum(map(int, sections)) if sections and listed.returncode == 0 else None


@dataclass(frozen=True)
class Classified:
    """The output of the program for a set of images.

    Attributes:
        labels: int64 [count].
        scores: float64 [count, classes], exactly as the program has them.
        seconds: from its start to its end.
        microseconds: of computing for an image, as the program measured it.
    """

    labels: Tensor
    scores: Tensor
    seconds: float
    microseconds: float


def classify(program: Path, images: Tensor) -> Classified:
    """Run the program over images, as many copies at a time as there are cores.

    Args:
        program: compiled.
        images: uint8 [count, channels, height, width].

    Raises:
        SmidgenError: it failed.
    """
    workers = usable_cores()
    parts = [part for part in images.chunk(workers) if len(part)]
    files = [program.with_name(f"images{i}") for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        file.write_bytes(idx_bytes(part))
    began = time.perf_counter()
    with ThreadPoolExecutor(len(parts)) as pool:
        outcomes = list(pool.map(lambda file: _run([str(program), "--scores", str(file)], "the program"), files))
    seconds = time.perf_counter() - began
    rows, spent = [], 0.0
    for outcome, part in zip(outcomes, parts, strict=True):
        if outcome.returncode:
            raise SmidgenError(f"the exported program failed ({outcome.returncode}): {outcome.stderr.strip()[:200]}")
        rows += [line.split() for line in outcome.stdout.splitlines()]
        found = re.search(r"([\d.]+) us each", outcome.stderr)
        spent += float(found[1]) * len(part) if found else 0.0
    if len(rows) != len(images):
        raise SmidgenError(f"the exported program printed {len(rows):,} lines for {len(images):,} images")
    labels = torch.tensor([int(row[0]) for row in rows])
    scores = torch.from_numpy(np.array([[_number(x) for x in row[1:]] for row in rows], dtype=np.float64))
    return Classified(labels, scores, seconds, spent / len(images))


def idx_bytes(images: Tensor) -> bytes:
    """An IDX file of uint8 images [count, channels, height, width]: without the channels where there is one."""
    last = images.permute(0, 2, 3, 1).contiguous()
    shape = last.shape if last.shape[3] > 1 else last.shape[:3]
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + last.numpy().tobytes()


def _number(text: str) -> float:
    return float.fromhex(text) if "x" in text else float(text)


def _run(command: list[str], what: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise SmidgenError(f"{what} did not finish within {SECONDS} s: {shlex.join(command)}") from None
    except OSError as error:
        raise SmidgenError(f"{what} cannot be started: {error.strerror or error}") from None
