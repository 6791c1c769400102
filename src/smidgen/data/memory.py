"""Free memory, to refuse data that does not fit before loading it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from smidgen.errors import DataError

SHARE = 0.8
"""Of the free memory that images may take."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Memory still available to this process; None if the system does not report it."""
    known = []
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        known.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # a container's own limit, "max" where there is none
        limit, used = ((_CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        known.append(int(limit) - int(used))
    return min(known) if known else None


def check_room(count: int, shape: tuple[int, int, int], name: object) -> None:
    """Refuse images that would not stay resident.

    Args:
        count: how many.
        shape: channels, height, width of each.
        name: of the data.

    Raises:
        DataError: they need more than `SHARE` of the free memory; says how much.
    """
    channels, height, width = shape
    needed, free = count * channels * height * width, available_bytes()
    if free is not None and needed > SHARE * free:
        raise DataError(
            f"{name}: {count:,} images of {channels}x{height}x{width} need {_shown(needed)}, but at most {SHARE:.0%} "
            f"of the free {_shown(free)} may be taken; set a smaller data.shape, as in "
            f"data.shape=[{channels},{max(1, height // 2)},{max(1, width // 2)}]"
        )


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{max(size, 0) / 2**20:,.0f} MiB"
