from __future__ import annotations

import gzip
import hashlib
import resource
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import idx_bytes
from smidgen.data.idx import read_idx
from smidgen.errors import DataError

images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("values", [images, np.array([3, 0, 9], dtype=np.uint8)])
def test_values_are_read_back_with_the_hash_of_the_unpacked_file(
    tmp_path: Path, values: np.ndarray, zipped: bool
) -> None:
    content = idx_bytes(values)
    path = tmp_path / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(content) if zipped else content)
    read = read_idx(path, dimensions=values.ndim)
    assert np.array_equal(read.values, values)
    assert read.values.dtype == np.uint8
    assert read.sha256 == hashlib.sha256(content).hexdigest()


good = idx_bytes(images)
BROKEN = {
    "empty": (b"", "truncated"),
    "header cut": (good[:7], "truncated"),
    "values cut": (good[:-1], "declares|truncated"),
    "too long": (good + b"x", "declares|continues"),
    "wrong magic": (b"\x01" + good[1:], "not an IDX file"),
    "floats": (b"\0\0\x0d\x03" + good[4:], "type 0x0d"),
    "labels for images": (idx_bytes(images.reshape(-1)), "1 dimension"),
    "too many dimensions": (struct.pack(">HBB", 0, 8, 200) + b"\0" * 800, "200 dimension"),
    "no images": (struct.pack(">HBBIII", 0, 8, 3, 0, 28, 28), "empty"),
    "absurd size": (struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "declares"),
    "size beyond the file": (
        struct.pack(">HBBIII", 0, 8, 3, 60_000, 28, 28) + b"\0" * 100,
        "declares|truncated",
    ),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, name: str, zipped: bool) -> None:
    content, words = BROKEN[name]
    path = tmp_path / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=words) as caught:
        read_idx(path, dimensions=3)
    assert str(path) in str(caught.value)


def test_damaged_compression_is_named(tmp_path: Path) -> None:
    zipped = gzip.compress(idx_bytes(np.zeros((50, 28, 28), np.uint8) + np.arange(28, dtype=np.uint8)))
    path = tmp_path / "x.gz"
    for content in (
        b"not gzip at all",
        zipped[: len(zipped) // 2],
        zipped[:-4] + b"abcd",
        zipped[:-8] + b"abcdefgh",
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged|truncated"):
            read_idx(path, dimensions=3)


def test_paths_that_are_not_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_idx(tmp_path / "nothing", dimensions=3)
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path, dimensions=3)
    with pytest.raises(DataError, match="is not a regular file"):
        read_idx(Path("/dev/zero"), dimensions=3)


def test_a_bomb_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    """A gzip file that unpacks to a thousand times its size, with a header that declares less, and one that lies."""
    path = tmp_path / "bomb.gz"
    zeros = gzip.compress(b"\0" * 200_000_000, 9)
    for header in (struct.pack(">HBBI", 0, 8, 1, 10), struct.pack(">HBBI", 0, 8, 1, 2**32 - 1)):
        path.write_bytes(gzip.compress(header) + zeros)
        tracemalloc.start()
        with pytest.raises(DataError, match="continues after|declares"):
            read_idx(path, dimensions=1)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()


def test_the_largest_promise_is_refused_under_a_memory_limit(tmp_path: Path) -> None:
    """In a process that may take 400 MB, a small file that declares 4 GB ends in one line."""
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 2**32 - 1) + b"\0" * 10_000))
    code = f"""
import resource
from pathlib import Path
from smidgen.data.idx import read_idx
from smidgen.errors import DataError
resource.setrlimit(resource.RLIMIT_AS, ({400 * 2**20}, {400 * 2**20}))
try:
    read_idx(Path({str(path)!r}), dimensions=1)
except DataError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:"), done
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 400 * 2**20


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject, zipped: bool) -> None:
    content = bytearray(data.draw(st.sampled_from([good, idx_bytes(images.reshape(-1)), b""])))
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=9))
    path = tmp_path / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(bytes(content)) if zipped and data.draw(st.booleans()) else bytes(content))
    try:
        read = read_idx(path, dimensions=3)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert idx_bytes(read.values) == bytes(content)
