"""Data sets as values: all images resident as uint8, labels, classes and normalization."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from smidgen.data.decode import fitted
from smidgen.data.hashes import examples_sha256
from smidgen.data.idxfiles import FILES as FILES
from smidgen.data.idxfiles import find_idx, load_idx
from smidgen.data.known import KNOWN, doubtful_labels
from smidgen.data.known import MNIST_CLASSES as MNIST_CLASSES
from smidgen.data.known import MNIST_SHA256 as MNIST_SHA256
from smidgen.data.known import MNIST_SHAPE as MNIST_SHAPE
from smidgen.data.memory import check_room
from smidgen.data.npz import load_npz
from smidgen.data.parts import Examples as Examples
from smidgen.data.parts import Form, Parts, Survey, label_name
from smidgen.data.pictures import Show, load_pictures
from smidgen.errors import DataError
from smidgen.files import looked_up
from smidgen.settings import suggestion

BUNDLED = {"mnist": KNOWN["mnist"].folder}
"""The data sets that come with the package."""

MOST_SIDE = 2**12
"""Of the shape that images are brought to."""


@dataclass(frozen=True)
class Dataset:
    """A data set, resident in memory.

    Attributes:
        name: a bundled name, or where it came from.
        train: what is trained on.
        held_out: what accuracy is measured on.
        held_out_name: "test", or "validation" where the test images were never opened.
        classes: number of classes.
        mean: of the training images, all channels together, 0 to 1, rounded to four decimals as is customary.
        std: standard deviation of the same, rounded likewise; never 0.
        sha256: of each unpacked file that was read, by the names of `FILES`; for other sources of what
            such files of the same images would have.
        class_names: of each label; none where the data have plain numbers.
        form: how an image file is brought to the form of these images when it is to be classified.
        survey: what was found on the way: sizes, what was left out, duplicates.
    """

    name: str
    train: Examples
    held_out: Examples
    held_out_name: str
    classes: int
    mean: float
    std: float
    sha256: dict[str, str]
    class_names: tuple[str, ...] = ()
    form: Form = "drawing"
    survey: Survey = field(default_factory=lambda: Survey("images"), compare=False)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the files that were read."""
        lines = "".join(f"{name} {value}\n" for name, value in sorted(self.sha256.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def doubtful_labels(self) -> tuple[int, ...]:
        """Indices of the held-out images whose labels most human raters reject; known for MNIST's test images only."""
        return doubtful_labels(self.sha256)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        return (
            f"Dataset({self.name!r}: {len(self.train):,} training and {len(self.held_out):,} "
            f"{self.held_out_name} images of {shape}, {self.classes} classes)"
        )


def load_dataset(
    source: str | Path = "mnist",
    *,
    validation: int | None = None,
    fold: int = 0,
    shape: Sequence[int] | None = None,
    form: Literal["auto"] | Form = "auto",
    show: Show | None = None,
) -> Dataset:
    """Load a bundled data set by name, or what is at a path.

    A path is a folder of four IDX files, gzipped or plain; a folder of images, a subfolder a class, with
    train, val and test above them if wanted; an `.npz` file; or a `.csv` file of paths and labels.
    Images of other sizes than the shape are scaled to fit, centred on black.

    Args:
        source: a name in `BUNDLED`, or a path.
        validation: hold out this many training images for evaluation instead of the test images, which
            are then not even opened: the last ones of IDX files, else by the order of their hashes. Data
            with a validation split of their own hold out that.
        fold: which block of so many images is held out, counted back from the end.
        shape: channels, height, width to bring the images to; None takes the data's own.
        form: how image files to be classified are brought to the form of these images; `auto` takes
            MNIST's manner for IDX files of grey images and the rule for pictures otherwise.
        show: receives the progress of reading many files; None prints it on standard error.

    Raises:
        DataError: a file is missing, damaged or has the wrong hash (bundled data), counts or
            shapes do not match, labels are out of range, or too few images are left to train on.
    """
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3) or not all(1 <= n <= MOST_SIDE for n in shape)):
        raise DataError(
            f"data.shape is {list(shape)}; allowed: channels (1 or 3), height and width (1 to {MOST_SIDE:,})"
        )
    parts, name = _read(source, validation, fold, shape, show or _shown_now_and_then())
    if shape is not None and tuple(shape) != tuple(parts.train.images.shape[1:]):
        parts = _brought_to(parts, (shape[0], shape[1], shape[2]), "test" if validation is None else "validation", name)
    train, held_out = parts.train, parts.held_out
    if not len(train) or not len(held_out):
        raise DataError(f"{name}: no images are left for {'training' if not len(train) else 'evaluation'}; add some")
    # The labels held out for validation are training labels.
    highest = int(train.labels.max()) if validation is None else max(int(p.labels.max()) for p in (train, held_out))
    classes = len(parts.class_names) or highest + 1
    if classes < 2:
        raise DataError(f"{name}: the training labels hold a single class; at least two are needed")
    survey = _with_classes_checked(parts, classes, name, tuning=validation is not None)
    if form == "drawing" and train.images.shape[1] != 1:
        raise DataError(f"{name}: data.form is drawing, but drawings are greyscale and the images have colour")
    colour = train.images.shape[1] != 1
    mean, std = _mean_and_std(parts.normal.numpy())
    if std == 0:
        raise DataError(f"{name}: all training pixels have the same value, so nothing can be learned")
    return Dataset(
        name=name,
        train=train,
        held_out=held_out,
        held_out_name="test" if validation is None else "validation",
        classes=classes,
        mean=mean,
        std=std,
        sha256=parts.sha256,
        class_names=parts.class_names,
        form=form if form != "auto" else "picture" if colour else parts.form,
        survey=survey,
    )


def _with_classes_checked(parts: Parts, classes: int, name: str, *, tuning: bool) -> Survey:
    """The survey with a note on classes without training images.

    Raises:
        DataError: a test image is of such a class.
    """
    judged = set(parts.held_out.labels.unique().tolist())
    # What is held out for validation was held out from the training images.
    trained = set(parts.train.labels.unique().tolist()) | (judged if tuning else set())
    strange = sorted(judged - trained)
    if strange:
        called = label_name(parts.class_names, strange[0])
        raise DataError(
            f"{name}: a test image has the label {called!r}, which does not occur in training; add such images there, "
            f"or leave those out"
        )
    missing = [label for label in range(classes) if label not in trained]
    if not missing:
        return parts.survey
    called = ", ".join(label_name(parts.class_names, label) for label in missing[:5])
    note = f"of {classes} classes, {len(missing)} never occur in training: {called}{', ...' if missing[5:] else ''}"
    return replace(parts.survey, notes=(*parts.survey.notes, note))


def _read(
    source: str | Path, validation: int | None, fold: int, shape: Sequence[int] | None, show: Show
) -> tuple[Parts, str]:
    """The parts of a source as its reader gives them, and the name of the data."""
    known = KNOWN.get(str(source))
    path = Path(source) if known is None else BUNDLED.get(str(source), known.folder)
    name = str(path) if known is None else str(source)
    with looked_up(path, DataError):
        found = find_idx(path)
        if known is not None and found is None:
            raise DataError(f"{known.title} is not at {path}; {known.remedy}")
        if found is not None:
            return load_idx(found, validation=validation, fold=fold, known=known), name
        if path.suffix.lower() == ".npz" and path.is_file():
            return load_npz(path, validation=validation, fold=fold), name
        if path.is_dir() or (path.suffix.lower() == ".csv" and path.is_file()):
            return load_pictures(path, validation=validation, fold=fold, shape=shape, show=show), name
        if path.exists():
            raise DataError(
                f"{path} is not a supported file; give a folder of images, an .npz or .csv file, or the folder that "
                f"holds {FILES['train_images']} and the rest"
            )
    hint = suggestion(str(source), KNOWN)
    raise DataError(
        f"no data at {str(source)!r}; {hint}known: {', '.join(KNOWN)}; or give a folder of images or IDX files, an "
        f".npz or a .csv file"
    )


def _brought_to(parts: Parts, shape: tuple[int, int, int], part: str, name: str) -> Parts:
    """Images that were read in another shape, by the rule for pictures; hashes are of the result."""
    check_room(len(parts.train) + len(parts.held_out), shape, name)
    train, held_out = (Examples(_fitted(p.images, shape), p.labels) for p in (parts.train, parts.held_out))
    same = parts.normal is parts.train.images
    return Parts(
        train=train,
        held_out=held_out,
        normal=train.images if same or part == "test" else torch.cat([train.images, held_out.images]),
        class_names=parts.class_names,
        sha256={**examples_sha256("train", train), **examples_sha256(part, held_out)},
        form=parts.form,
        survey=parts.survey,
    )


def _fitted(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    result = torch.empty((len(images), *shape), dtype=torch.uint8)
    for index, image in enumerate(images.numpy()):
        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        result.numpy()[index] = fitted(picture, *shape)
    return result


def _shown_now_and_then(seconds: float = 5.0) -> Show:
    """Prints progress to standard error every few seconds."""
    last = time.monotonic()

    def show(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    return show


def _mean_and_std(images: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Exact over all pixels, by counting each of the 256 values; scaled to 0 to 1."""
    counts = np.zeros(256, dtype=np.int64)
    pixels = images.reshape(-1)
    for start in range(0, len(pixels), 2**22):  # bincount makes them eight times as large
        counts += np.bincount(pixels[start : start + 2**22], minlength=256)
    levels = np.arange(256) / 255
    mean = float((counts * levels).sum() / counts.sum())
    variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
    return round(mean, 4), round(variance**0.5, 4)
