"""Splits for data that has none: test images, and images held out for tuning."""

from __future__ import annotations

from collections.abc import Sequence

from smidgen.errors import DataError

TEST_SHARE = 0.15
"""Of the images, where the data have no test images of their own."""


def is_test(sha256: str) -> bool:
    """Whether an image is tested on: decided by its content alone.

    So every class gives about the same share, copies of an image come to the same side, and adding
    images moves none of the others.

    Args:
        sha256: of the file or, where there is none, of the pixels; hex.
    """
    return int(sha256[:12], 16) / 16**12 < TEST_SHARE


def block_at_end(count: int, validation: int, fold: int, name: object) -> tuple[int, int]:
    """The block that is held out for tuning: start and stop, counted back from the end of the training images.

    Raises:
        DataError: too few images would be left to train on, or the block does not exist.
    """
    if count - validation < 2:
        raise DataError(
            f"{name} has {count:,} training images, so {validation:,} cannot be held out for "
            f"validation; set data.validation lower"
        )
    if (fold + 1) * validation > count:
        raise DataError(
            f"{name} has {count:,} training images, which is {count // validation} blocks of "
            f"{validation:,}; set a lower data.fold"
        )
    stop = count - fold * validation
    return stop - validation, stop


def by_content(sha256: Sequence[str], validation: int, fold: int, name: object) -> tuple[list[int], list[int]]:
    """Indices for training and for tuning, each in order: a block in the order of the hashes is held out.

    File names often contain the class, so the last files would be of one class; the order of hashes is as good as
    random.

    Raises:
        DataError: as `block_at_end`.
    """
    start, stop = block_at_end(len(sha256), validation, fold, name)
    ranked = sorted(range(len(sha256)), key=lambda i: (sha256[i], i))
    held_out = set(ranked[start:stop])
    return [i for i in range(len(sha256)) if i not in held_out], sorted(held_out)
