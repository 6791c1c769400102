"""Decoded images on disk, so that a set of files is decoded once.

A block of images is kept under the hash of everything that it follows from: the files' contents, the
shape and the version of the rule. It is sealed by a hash of its own, which is checked when it is
read; what is damaged counts as missing. The folder holds nothing that cannot be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.files import write_atomic
from smidgen.tensorfile import TensorFileError, read_header, read_tensors, sealed_bytes

RULE = 2
"""Version of the rule in `smidgen.data.decode`: another number leaves what is in the cache unused."""
VARIABLE = "SMIDGEN_CACHE"
"""Environment variable that names another folder; empty turns the cache off."""
FOLDER = Path("runs") / ".smidgen-cache"
"""Beside the runs."""


def cache_folder() -> Path | None:
    """The folder of decoded images; None if the cache is disabled."""
    named = os.environ.get(VARIABLE)
    if named is None:
        return FOLDER
    return Path(named) if named else None


def key_of(shape: tuple[int, int, int], contents: Sequence[str]) -> str:
    """The cache key of a block of images.

    Args:
        shape: channels, height, width.
        contents: SHA-256 (hex) of each file.
    """
    described = " ".join([str(RULE), *map(str, shape), *contents])
    return hashlib.sha256(described.encode()).hexdigest()


def cached(key: str, shape: tuple[int, int, int], count: int) -> tuple[Tensor, Tensor] | None:
    """Images uint8 [count, *shape] and the status of each, uint8 [count]; None if there is no complete block."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / f"{key}.safetensors"
    with contextlib.suppress(OSError, TensorFileError):
        header = read_header(path, follow=False)
        found = {name: size for name, (_, size) in header.tensors.items()}
        if (
            header.sealed
            and header.about == {**header.about, "key": key}
            and found
            == {
                "images": (count, *shape),
                "status": (count,),
            }
        ):
            tensors = read_tensors(path, header, follow=False)
            return tensors["images"], tensors["status"]
    return None


def keep(key: str, images: Tensor, status: Tensor) -> bool:
    """Keep a block; whether it could be written, which nothing depends on."""
    folder = cache_folder()
    if folder is None:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{key}.safetensors", sealed_bytes({"images": images, "status": status}, {"key": key}))
    except (OSError, SmidgenError):
        return False
    return True
