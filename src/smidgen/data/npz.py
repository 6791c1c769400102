"""A strict reader for `.npz` files: a zip of arrays, read without pickle and without trusting what it promises.

The names are Keras's (x_train, y_train, x_test, y_test, x_val, y_val), MedMNIST's (train_images, train_labels, ...),
or images and labels, which are then split by the hash of each image; class_names may name the classes.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy

from smidgen.data.hashes import examples_sha256
from smidgen.data.memory import check_room
from smidgen.data.parts import Examples, NoTestImagesError, Parts, Survey
from smidgen.data.splits import TEST_SHARE, block_at_end, by_content, is_test
from smidgen.data.tree import LONGEST_NAME, MOST_CLASSES, brief, natural, shown
from smidgen.errors import DataError
from smidgen.files import cannot_read, open_to_read

MOST_BYTES = 16 * 2**30
_CHUNK = 2**20
_RATIO = 1_100
"""Deflate packs at most 1,032 to 1; an entry that promises more is not what it says."""

_MOST_SIDES = 4
_Pair = tuple[str, str]
_TRAIN: tuple[_Pair, ...] = (("x_train", "y_train"), ("train_images", "train_labels"))
_TEST: tuple[_Pair, ...] = (("x_test", "y_test"), ("test_images", "test_labels"))
_VALIDATION: tuple[_Pair, ...] = (
    *((f"x_{name}", f"y_{name}") for name in ("val", "valid", "validation")),
    *((f"{name}_images", f"{name}_labels") for name in ("val", "valid", "validation")),
)
_SINGLE: _Pair = ("images", "labels")
_Array = npt.NDArray[Any]


def load_npz(path: Path, *, validation: int | None, fold: int) -> Parts:
    """Load the arrays of a file.

    They are `x_train`, `y_train`, `x_test`, `y_test` and, if wanted, `x_val`, `y_val`, as Keras names them;
    `train_images`, `train_labels` and so on, as MedMNIST does; or `images` and `labels`.

    Images are uint8 [count, height, width], [count, height, width, channels] or [count, channels, height,
    width] with 1 or 3 channels; labels whole numbers or names.

    Args:
        path: of the file.
        validation: how many training images to hold out: the validation part where the file has one; the last ones
            where it has a test part, whose arrays are then not read; otherwise by the order of their hashes.
        fold: which block of so many.

    Raises:
        DataError: the file is not an .npz file, damaged, or its arrays do not match.
    """
    try:
        with open_to_read(path) as raw, zipfile.ZipFile(raw) as archive:
            return _load(path, archive, validation, fold)
    # ValueError: names in the archive that are not the UTF-8 that they are marked as.
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is damaged or not an .npz file ({error}); get a fresh copy") from None
    except MemoryError:
        raise DataError(f"{path} does not fit in the free memory") from None
    except OSError as error:
        raise DataError(cannot_read(path, error)) from None


def _load(path: Path, archive: zipfile.ZipFile, validation: int | None, fold: int) -> Parts:
    there = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    train, test, val = (
        next((pair for pair in pairs if set(pair) <= set(there)), None) for pairs in (_TRAIN, _TEST, _VALIDATION)
    )
    single = train is None and set(_SINGLE) <= set(there)
    if train is None and not single:
        raise DataError(
            f"{path} has the arrays {_list(there)}; expected are {', '.join((*_TRAIN[0], *_TEST[0]))}, or "
            f"{' and '.join(_SINGLE)}"
        )
    if train is not None and test is None and (validation is None or val is None):
        if val is None:
            raise DataError(f"{path} has {train[0]}, but no {_TEST[0][0]} and {_TEST[0][1]} to test on; add them")
        raise NoTestImagesError(
            f"{path} has images for training and validation, but no test images; add {_TEST[0][0]} and {_TEST[0][1]}, "
            f"or evaluate on the validation images with data.evaluate=validation"
        )
    if validation is not None and val is not None and fold and not single:
        raise DataError(f"{path} has validation images of its own, so data.fold must be 0")
    held_out_by = test if validation is None else val
    pairs = [train or _SINGLE, *([held_out_by] if held_out_by and not single else [])]
    _check_counts(path, archive, there, pairs)
    arrays = {name: _read(path, archive, there[name]) for pair in pairs for name in pair}
    images = [_images(path, name, arrays[name]) for name, _ in pairs]
    labels = [_labels(path, name, arrays[name]) for _, name in pairs]
    if labels[0].dtype.kind == "U" and any(more.dtype.kind != "U" for more in labels):
        raise DataError(
            f"{path}: {pairs[0][1]} holds names and {pairs[1][1]} numbers, so which is which is not known; "
            "label both alike"
        )
    names = _names(path, archive, there, labels)
    examples = [Examples(i, _numbers(path, g, names)) for i, g in zip(images, labels, strict=True)]
    notes: list[str] = []
    if single:
        if validation is None:
            notes.append(f"no test part: {TEST_SHARE:.0%} of the images are tested on, chosen by the hash of each")
        trained, held_out, normal = _divided(path, examples[0], validation, fold)
    elif len(examples) == 1:
        assert validation is not None
        start, stop = block_at_end(len(examples[0]), validation, fold, path)
        trained, held_out = examples[0].without(start, stop), examples[0].part(start, stop)
        normal = examples[0].images
    else:
        trained, held_out = examples
        normal = trained.images
    known = {name for pair in (*pairs, train, test, None if single else val) if pair for name in pair} | {"class_names"}
    unused = [name for name in there if name not in known]
    if unused:
        notes.append(f"arrays that are not used: {_list(unused)}")
    part = "validation" if validation is not None else "test"
    sides = (trained.images.shape[2], trained.images.shape[3])
    return Parts(
        trained, held_out, normal, names, {**examples_sha256("train", trained), **examples_sha256(part, held_out)},
        "picture",
        Survey(
            "npz file", sizes=Counter({sides: len(trained) + len(held_out)}), notes=tuple(notes),
            own_validation=val is not None and not single,
        ),
    )  # fmt: skip


def _list(names: Iterable[str]) -> str:
    shown_names = [brief(name) for name in names]
    more = f" and {len(shown_names) - 8:,} more" if len(shown_names) > 8 else ""
    return (", ".join(shown_names[:8]) or "none") + more


def _check_counts(
    path: Path, archive: zipfile.ZipFile, there: dict[str, zipfile.ZipInfo], pairs: Sequence[_Pair]
) -> None:
    """Compare the counts and shapes that the headers declare, before any array is read."""
    sides = set()
    for name, labels in pairs:
        counts = []
        for one in (name, labels):
            with archive.open(there[one]) as file:
                shape, _, dtype = _header(path, file, there[one])
            counts.append(shape[0] if shape else 0)
            if one == name:
                _check_images(path, name, dtype, shape)
                sides.add(shape[1:])
        if counts[0] != counts[1]:
            raise DataError(f"{path}: {counts[0]:,} {name} but {counts[1]:,} labels; they do not match")
    if len(sides) > 1:
        raise DataError(f"{path}: {pairs[0][0]} and {pairs[1][0]} hold images of different shapes")


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Array:
    """One array; memory is taken only for what the entry can hold."""
    with archive.open(info) as file:
        shape, fortran, dtype = _header(path, file, info)
        if dtype.hasobject or dtype.kind not in "iubU" or not dtype.itemsize:
            raise DataError(
                f"{path}: {shown(info.filename)} is of type {brief(str(dtype))}; images must be uint8, 0 to "
                f"255, and labels whole numbers or names"
            )
        size = math.prod(shape) * dtype.itemsize
        if size > MOST_BYTES or size > info.file_size or info.file_size > _RATIO * max(info.compress_size, 1):
            raise DataError(f"{path}: {shown(info.filename)} declares more than it can hold; get a fresh copy")
        if len(shape) == 4 or len(shape) == 3:
            check_room(shape[0], (1, 1, size // max(shape[0], 1)), path)
        content = bytearray(size)
        view, filled = memoryview(content), 0
        while filled < size:
            got = file.read(min(_CHUNK, size - filled))
            if not got:
                raise DataError(f"{path}: {shown(info.filename)} is truncated; get a fresh copy")
            view[filled : filled + len(got)] = got
            filled += len(got)
        if file.read(1):
            raise DataError(f"{path}: {shown(info.filename)} continues after the data that its header declares")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _header(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of an array, as the beginning of its entry says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
        raise  # the archive is at fault
    except Exception as error:  # the header is Python's literals, and numpy lets through what their parser raises
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: {shown(info.filename)} is not an array: {shown(reason)}") from None
    if len(shape) > _MOST_SIDES or any(side < 0 for side in shape):
        raise DataError(f"{path}: {shown(info.filename)} is not an array: invalid shape")
    return shape, fortran, dtype


def _check_images(path: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape:
        raise DataError(
            f"{path}: {name} is {dtype} {list(shape)}; images are uint8 [count, height, width] or [count, height, "
            f"width, channels]"
        )


def _images(path: Path, name: str, values: _Array) -> torch.Tensor:
    if values.ndim == 3:
        values = values[:, None]
    elif values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    elif values.shape[1] not in (1, 3):
        raise DataError(f"{path}: {name} is {list(values.shape)}; images have 1 or 3 channels")
    return torch.from_numpy(np.ascontiguousarray(values))


def _labels(path: Path, name: str, values: _Array) -> _Array:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise DataError(f"{path}: {name} is {values.dtype} {list(values.shape)}; labels are whole numbers or names")
    return values


def _names(
    path: Path, archive: zipfile.ZipFile, there: dict[str, zipfile.ZipInfo], labels: list[_Array]
) -> tuple[str, ...]:
    """The classes' names; none where labels are numbers and nothing names them."""
    if labels[0].dtype.kind == "U":
        found = sorted({shown(str(label)) for label in np.unique(labels[0])}, key=natural)
    elif "class_names" not in there:
        return ()
    else:
        names = _read(path, archive, there["class_names"])
        if names.dtype.kind != "U" or names.ndim != 1 or not 2 <= len(names) <= MOST_CLASSES:
            raise DataError(f"{path}: class_names must be a list of at least two names")
        found = [shown(str(name)) for name in names]
    if len(found) > MOST_CLASSES:
        raise DataError(f"{path} has {len(found):,} classes; at most {MOST_CLASSES:,} are supported")
    for name in found:
        if len(name) > LONGEST_NAME:
            raise DataError(f"{path}: the class name {name[:40]!r}... is longer than {LONGEST_NAME} characters")
    if len(set(found)) < len(found):
        raise DataError(f"{path}: class_names must name each class once")
    return tuple(found)


def _numbers(path: Path, labels: _Array, names: tuple[str, ...]) -> torch.Tensor:
    if labels.dtype.kind == "U":
        numbers = {name: number for number, name in enumerate(names)}
        strange = next((str(label) for label in labels if shown(str(label)) not in numbers), None)
        if strange is not None:
            raise DataError(f"{path}: the label {brief(strange)!r} does not occur in training; remove its images")
        return torch.tensor([numbers[shown(str(label))] for label in labels], dtype=torch.int64)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= (len(names) or MOST_CLASSES)):
        raise DataError(
            f"{path}: labels go from {labels.min()} to {labels.max()}; allowed: 0 to {(len(names) or MOST_CLASSES) - 1}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _divided(path: Path, whole: Examples, validation: int | None, fold: int) -> tuple[Examples, Examples, torch.Tensor]:
    """Training part, what is held out, and what is normalized by, by the hash of each image's pixels."""
    sha256 = [hashlib.sha256(image.numpy()).hexdigest() for image in whole.images]
    train = [i for i, value in enumerate(sha256) if not is_test(value)]
    if validation is None:
        chosen, normal = train, train
        held_out = [i for i, value in enumerate(sha256) if is_test(value)]
    else:
        kept, out = by_content([sha256[i] for i in train], validation, fold, path)
        chosen, held_out, normal = [train[i] for i in kept], [train[i] for i in out], train
    return _picked(whole, chosen), _picked(whole, held_out), whole.images[normal]


def _picked(whole: Examples, indices: list[int]) -> Examples:
    return Examples(whole.images[indices].contiguous(), whole.labels[indices].contiguous())
