"""A strict reader for IDX files, gzipped or plain, that takes no memory on a file's word alone.

The format (from the MNIST page of LeCun, Cortes and Burges): two zero bytes, a byte for the type
(0x08 is uint8), a byte for the number of dimensions, a big-endian uint32 for each dimension, then
the values, last dimension fastest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from smidgen.errors import DataError
from smidgen.files import cannot_read, open_to_read

MOST_BYTES = 4 * 2**30
"""The largest file of values that is read, unpacked."""

_UINT8 = 0x08
_ROOM = 64 * 2**20
_RATIO = 100
"""Compressed files may unpack to `_ROOM` bytes, or to this many times their size: images and labels that
are of use are far from as regular as deflate's limit of 1,032 times needs."""
_CHUNK = 2**20


@dataclass(frozen=True)
class Idx:
    """The contents of an IDX file.

    Attributes:
        values: uint8, of the shape that the file's header states.
        sha256: hex digest of the unpacked file, header included.
    """

    values: npt.NDArray[np.uint8]
    sha256: str


def read_idx(path: Path, dimensions: int, most_bytes: int = MOST_BYTES) -> Idx:
    """Read one IDX file of uint8 values.

    The header is checked against the size of the file before memory is taken for the values, and
    decompression stops one byte after what the header promises.

    Args:
        path: the file; a name that ends in `.gz` is read as gzip.
        dimensions: how many dimensions it must have: 3 for images, 1 for labels.
        most_bytes: refuse more values than this.

    Raises:
        DataError: the file is missing, unreadable, of another type or rank, too large, truncated,
            longer than it says, or its compressed data is damaged.
    """
    try:
        with open_to_read(path) as raw:
            size = os.fstat(raw.fileno()).st_size
            if path.suffix != ".gz":
                return _read(raw, path, dimensions, most_bytes, plain_size=size)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                room = min(most_bytes, max(_ROOM, size * _RATIO))
                return _read(unpacked, path, dimensions, room, plain_size=None)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); get a fresh copy") from None
    except MemoryError:
        raise DataError(f"{path} does not fit in the free memory") from None
    except OSError as error:
        raise DataError(cannot_read(path, error)) from None


def _read(
    file: io.BufferedReader | gzip.GzipFile, path: Path, dimensions: int, most_bytes: int, plain_size: int | None
) -> Idx:
    header = _exactly(file, 4, path)
    zeros, kind, rank = struct.unpack(">HBB", header)
    if zeros != 0:
        raise DataError(f"{path} is not an IDX file: it starts with bytes {header.hex(' ')}, not 00 00")
    if kind != _UINT8:
        raise DataError(f"{path} holds values of type 0x{kind:02x}; only uint8 (0x08) is read")
    if rank != dimensions:
        words = {1: "labels (1 dimension)", 3: "images (3 dimensions)"}
        wanted = words.get(dimensions, f"{dimensions} dimensions")
        raise DataError(f"{path} has {rank} dimension(s), but {wanted} are expected here")
    sizes = _exactly(file, 4 * rank, path)
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise DataError(f"{path} says that it has {' x '.join(map(str, shape))} values, so it is empty")
    count = 1
    for size in shape:
        count *= size
    start = 4 + 4 * rank
    if plain_size is not None and plain_size != start + count:
        raise DataError(f"{path} is {plain_size:,} bytes, but its header declares {start + count:,}; get a fresh copy")
    if count > most_bytes:
        raise DataError(
            f"{path} declares {count:,} values, more than a file of this size can hold or than is read "
            f"({most_bytes:,}); get a fresh copy"
        )
    values = np.empty(count, dtype=np.uint8)
    view, filled = values.data, 0
    while filled < count:
        got = file.readinto(view[filled : filled + _CHUNK])
        if not got:
            raise DataError(f"{path} is truncated: {filled:,} of {count:,} values are there; get a fresh copy")
        filled += got
    if file.read(1):
        raise DataError(f"{path} continues after the {count:,} values that its header declares")
    digest = hashlib.sha256(header + sizes)
    digest.update(view)
    return Idx(values.reshape(shape), digest.hexdigest())


def _exactly(file: io.BufferedReader | gzip.GzipFile, count: int, path: Path) -> bytes:
    got = file.read(count)
    if len(got) != count:
        raise DataError(f"{path} is truncated: its header is cut short; get a fresh copy")
    return got
