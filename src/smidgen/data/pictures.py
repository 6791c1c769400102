"""Image files into memory: looked at, split, brought to one shape, decoded once and in parallel."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from smidgen.data.cache import cached, keep, key_of
from smidgen.data.decode import (
    AnimatedError,
    BrokenError,
    Glance,
    MissingError,
    TooLargeError,
    decode,
    glance,
    quiet,
    read_content,
)
from smidgen.data.hashes import examples_sha256
from smidgen.data.memory import check_room
from smidgen.data.parts import Examples, NoTestImagesError, Parts, Survey
from smidgen.data.splits import TEST_SHARE, by_content, is_test
from smidgen.data.tree import Entry, Listing, brief, class_names, list_folder, list_table, shown
from smidgen.errors import DataError, ImageError
from smidgen.machine import usable_cores

Show = Callable[[str], None]
"""Receives progress messages."""

MOST_SIDE = 128
"""Pictures whose shape no trial states are brought to at most so many pixels a side."""
LEAST_CACHED = 1_000
"""Fewer images than this are decoded in less time than it takes to keep them."""

_BLOCK_BYTES = 64 * 2**20
_BIG = 4 * 2**20
"""Files of more bytes than this are decoded one at a time: each may take 150 MB."""
_USABLE, _UNREADABLE, _ANIMATED, _TOO_LARGE, _MISSING, _BROKEN = range(6)
_REASONS = {
    _UNREADABLE: "unreadable",
    _ANIMATED: "animated",
    _TOO_LARGE: "too large to decode",
    _MISSING: "missing",
    _BROKEN: "truncated or damaged",
}
_STEPS = 2_000
"""Items between two reports of how far it is."""
_LARGE_BYTES, _LARGE_PIXELS = 2**16, 2**16
"""From these means on, of a file or a picture, several threads are worth it."""
_one_at_a_time = threading.Lock()

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class _Seen:
    """An image file after a look at it."""

    entry: Entry
    sha256: str
    glance: Glance


def load_pictures(path: Path, *, validation: int | None, fold: int, shape: Sequence[int] | None, show: Show) -> Parts:
    """Load the image files of a folder or a CSV file.

    Args:
        path: of the folder or the CSV file.
        validation: how many training images to hold out by the order of their hashes; data with a `val`
            split of their own hold that out instead. None evaluates on the test images.
        fold: which block of so many.
        shape: channels, height, width; None takes the data's own.
        show: receives progress messages.

    Raises:
        DataError: there is too little to learn from, labels do not fit, or memory would not do.
    """
    listing = list_folder(path) if path.is_dir() else list_table(path)
    classes = class_names(listing, path)
    tuning = validation is not None
    entries = [e for e in listing.entries if e.split != ("test" if tuning else "val")]
    with quiet():
        seen = _look(entries, listing, show)
        train, held_out = _split(path, listing, seen, validation, fold)
        labels = {name: number for number, name in enumerate(classes)}
        _check_classes(path, train, classes, listing)
        shape = tuple(shape) if shape else own_shape([s.glance for s in train])
        channels, height, width = shape
        check_room(len(train) + len(held_out), (channels, height, width), path)
        images, usable = _decoded([*train, *held_out], (channels, height, width), listing, show)
    kept = [s for s, good in zip([*train, *held_out], usable, strict=True) if good]
    trained = sum(usable[: len(train)])
    _check_classes(path, kept[:trained], classes, listing)
    everything = Examples(images, torch.tensor([labels[s.entry.label] for s in kept], dtype=torch.int64))
    parts = everything.part(0, trained), everything.part(trained, len(kept))
    if not len(parts[1]):
        raise DataError(f"{path}: no images are left for evaluation{_reason(listing)}; add some")
    own_validation = any(e.split == "val" for e in listing.entries)
    survey = Survey(
        kind=listing.kind,
        sizes=Counter((s.glance.height, s.glance.width) for s in kept),
        skipped=listing.skipped,
        first_skipped=listing.first_skipped,
        duplicates=_duplicates(kept[:trained], kept[trained:], "validation" if tuning else "test"),
        notes=_notes(listing, kept, (channels, height, width), tuning=tuning),
        own_validation=own_validation,
    )
    return Parts(
        train=parts[0],
        held_out=parts[1],
        normal=images[:trained] if own_validation or not tuning else images,
        class_names=classes,
        sha256={**examples_sha256("train", parts[0]), **examples_sha256("validation" if tuning else "test", parts[1])},
        form="picture",
        survey=survey,
    )


def own_shape(glances: Sequence[Glance]) -> tuple[int, int, int]:
    """The shape of pictures if none is given: channels, height, width.

    Grey where all are. Where all are of one size, that size; otherwise a square with the median of
    their longer sides. At most `MOST_SIDE` a side.
    """
    channels = 1 if all(g.grey for g in glances) else 3
    sizes = {(g.height, g.width) for g in glances}
    if len(sizes) == 1:
        height, width = next(iter(sizes))
    else:
        height = width = int(statistics.median_high(max(g.height, g.width) for g in glances))
    factor = min(1.0, MOST_SIDE / max(height, width))
    return channels, max(1, round(height * factor)), max(1, round(width * factor))


def _look(entries: Sequence[Entry], listing: Listing, show: Show) -> list[_Seen]:
    """Hash every file and read its header; unusable files are counted and left out."""

    def look(entry: Entry) -> _Seen | tuple[Entry, int]:
        try:
            content = read_content(entry.path)
            return _Seen(entry, hashlib.sha256(content).hexdigest(), glance(content, entry.name))
        except ImageError as error:
            return entry, _status(error)

    seen = []
    for found in _mapped(look, entries, "looked at", show, large=_mean_bytes(entries) >= _LARGE_BYTES):
        if isinstance(found, _Seen):
            seen.append(found)
        else:
            listing.skip(_REASONS[found[1]], found[0].name, found[0].label)
    return seen


def _status(error: ImageError) -> int:
    kinds = {AnimatedError: _ANIMATED, TooLargeError: _TOO_LARGE, MissingError: _MISSING, BrokenError: _BROKEN}
    return kinds.get(type(error), _UNREADABLE)


def _split(
    path: Path, listing: Listing, seen: Sequence[_Seen], validation: int | None, fold: int
) -> tuple[list[_Seen], list[_Seen]]:
    """The images for training and those for evaluation."""
    named = {entry.split for entry in listing.entries}
    if "test" in named:
        train, test = [s for s in seen if s.entry.split == "train"], [s for s in seen if s.entry.split == "test"]
    elif "val" in named and validation is None:
        raise NoTestImagesError(
            f"{path} has images for training and validation, but no test images; add a test split, or evaluate on the "
            f"validation images with data.evaluate=validation"
        )
    elif "val" in named:
        train, test = [s for s in seen if s.entry.split == "train"], []
    else:
        train = [s for s in seen if not is_test(s.sha256)]
        test = [s for s in seen if is_test(s.sha256)]
    if validation is None:
        return train, test
    if "val" in named:
        if fold:
            raise DataError(f"{path} has validation images of its own, so data.fold must be 0")
        return train, [s for s in seen if s.entry.split == "val"]
    kept, held_out = by_content([s.sha256 for s in train], validation, fold, path)
    return [train[i] for i in kept], [train[i] for i in held_out]


def _check_classes(path: Path, train: Sequence[_Seen], classes: Sequence[str], listing: Listing) -> None:
    there = {s.entry.label for s in train}
    missing = [name for name in classes if name not in there]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        why = "; ".join(
            f"{len(names):,} {reason}, as {brief(names[0])}"
            for (label, reason), names in listing.skipped_of.items()
            if label == missing[0]
        )
        raise DataError(
            f"{path}: class {missing[0]!r}{more} has no usable image for training{f' ({why})' if why else ''}; add "
            f"some, or remove the class"
        )


def _decoded(
    seen: Sequence[_Seen], shape: tuple[int, int, int], listing: Listing, show: Show
) -> tuple[Tensor, list[bool]]:
    """The decoded images, uint8 [usable, *shape], in order, and for each listed one whether it is usable."""
    images = torch.zeros((len(seen), *shape), dtype=torch.uint8)
    usable: list[bool] = []
    size = max(1, _BLOCK_BYTES // (shape[0] * shape[1] * shape[2]))
    place = 0
    for start in range(0, len(seen), size):
        block = seen[start : start + size]
        key = key_of(shape, [s.sha256 for s in block])
        found = cached(key, shape, len(block)) if len(seen) >= LEAST_CACHED else None
        if found is None:
            found = _decode_block(block, shape, f"of {len(seen):,} decoded", start, show)
            if len(seen) >= LEAST_CACHED:
                keep(key, *found)
        pixels, status = found
        good = status == _USABLE
        count = int(good.sum())
        images[place : place + count] = pixels[good] if count < len(block) else pixels
        place += count
        usable += good.tolist()
        for one, code in zip(block, status.tolist(), strict=True):
            if code != _USABLE:
                listing.skip(_REASONS.get(code, _REASONS[_UNREADABLE]), one.entry.name, one.entry.label)
    return images[:place], usable


def _decode_block(
    block: Sequence[_Seen], shape: tuple[int, int, int], what: str, start: int, show: Show
) -> tuple[Tensor, Tensor]:
    pixels = np.zeros((len(block), *shape), dtype=np.uint8)
    status = np.zeros(len(block), dtype=np.uint8)

    def one(index: int) -> None:
        seen = block[index]
        big = seen.glance.height * seen.glance.width > _BIG
        with _one_at_a_time if big else contextlib.nullcontext():
            try:
                content = read_content(seen.entry.path)
                if hashlib.sha256(content).hexdigest() != seen.sha256:
                    raise DataError(f"{shown(seen.entry.name)} changed while the data was being read; try again")
                pixels[index] = decode(content, seen.entry.name, shape)
            except ImageError as error:
                status[index] = _status(error)

    pixels_each = statistics.fmean(s.glance.height * s.glance.width for s in block)
    for _ in _mapped(one, range(len(block)), what, show, large=pixels_each >= _LARGE_PIXELS, before=start):
        pass
    return torch.from_numpy(pixels), torch.from_numpy(status)


def _mapped(
    function: Callable[[_In], _Out], items: Sequence[_In], what: str, show: Show, *, large: bool, before: int = 0
) -> Iterator[_Out]:
    """The results of a function for each item, in order.

    Large pictures go through several threads, as Pillow's decoders let others run. For small ones
    Python itself is most of the work, and two threads that wait for it take longer than one does
    (docs/results.md).
    """
    with ThreadPoolExecutor(min(8, usable_cores()) if large else 1) as pool:
        for start in range(0, len(items), _STEPS):
            part = items[start : start + _STEPS]
            yield from pool.map(function, part) if large else map(function, part)
            if start + _STEPS < len(items):
                show(f"{before + start + _STEPS:,} images {what}")


def _mean_bytes(entries: Sequence[Entry]) -> float:
    """Mean size of a sample of the files."""
    sizes = []
    for entry in entries[:: max(1, len(entries) // 50)]:
        with contextlib.suppress(OSError, ValueError):
            sizes.append(entry.path.stat().st_size)
    return statistics.fmean(sizes) if sizes else 0.0


def _duplicates(train: Sequence[_Seen], held_out: Sequence[_Seen], split: str) -> Counter[str]:
    """Files with the same content: within the training images, across splits, and with different labels."""
    found: Counter[str] = Counter()
    first: dict[str, str] = {}
    for s in train:
        if s.sha256 in first:
            found["within the training images"] += 1
        if first.setdefault(s.sha256, s.entry.label) != s.entry.label:
            found["with different labels"] += 1
    for s in held_out:
        if s.sha256 in first:
            found[f"of the {split} images are among the training images too"] += 1
            if first[s.sha256] != s.entry.label:
                found["with different labels"] += 1
    return found


def _notes(listing: Listing, kept: Sequence[_Seen], shape: tuple[int, int, int], *, tuning: bool) -> tuple[str, ...]:
    channels, height, width = shape
    notes = [*listing.notes]
    other = [s for s in kept if (s.glance.height, s.glance.width) != (height, width)]
    if other:
        notes.append(
            f"{len(other):,} of {len(kept):,} pictures are of another size than {height}x{width}: scaled to fit, with "
            f"their proportions kept, and centred on black"
        )
    if channels == 1 and any(not s.glance.grey for s in kept):
        notes.append("colours are brought to grey")
    named = {entry.split for entry in listing.entries}
    if "test" not in named and not tuning:
        notes.append(f"no test split: {TEST_SHARE:.0%} of the images are tested on, chosen by the hash of each file")
    return tuple(notes)


def _reason(listing: Listing) -> str:
    unusable = [r for r in itertools.chain(_REASONS.values()) if listing.skipped[r]]
    return f" ({', '.join(f'{listing.skipped[r]:,} {r}' for r in unusable)})" if unusable else ""
