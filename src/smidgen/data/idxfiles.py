"""Folders of four IDX files: MNIST and what is published in its form, EMNIST's transposed images included."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smidgen.data.idx import Idx, read_idx
from smidgen.data.known import Known
from smidgen.data.parts import Examples, Parts, Survey
from smidgen.data.splits import block_at_end
from smidgen.errors import DataError
from smidgen.files import looked_up

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""The four files of a data set, by MNIST's names; each may have `.gz` added, or `.` for the last `-`."""

_EMNIST = "emnist-"
_LETTERS = "emnist-letters"
_CAPITALS = tuple(string.ascii_uppercase)
_MERGED = (*string.digits, *_CAPITALS, *"abdefghnqrt")
EMNIST_CLASSES = {
    _LETTERS: _CAPITALS,
    "emnist-balanced": _MERGED,
    "emnist-bymerge": _MERGED,
    "emnist-byclass": (*string.digits, *_CAPITALS, *string.ascii_lowercase),
}
"""What the labels of EMNIST's sets mean, as the mapping files beside them say (Cohen et al. 2017); those of its sets of
digits are plain numbers. A capital stands for its small letter too where that looks alike (merged) and in the letters.
"""
_EMNIST_IMAGES = "-train-images-idx3-ubyte"


@dataclass(frozen=True)
class IdxFolder:
    """A folder that has IDX files.

    Attributes:
        folder: where they are.
        emnist: `emnist-letters` and the like where the files are EMNIST's, whose images are transposed; else empty.
    """

    folder: Path
    emnist: str = ""

    def file(self, name: str) -> Path:
        """The path of one of `FILES`, by its key.

        Raises:
            DataError: it is missing.
        """
        file = FILES[name]
        if self.emnist:
            file = f"{self.emnist}-{file.replace('t10k', 'test')}"
        dotted = file.replace("-idx", ".idx")
        with looked_up(self.folder, DataError):
            for candidate in (file + ".gz", file, dotted + ".gz", dotted):
                if (self.folder / candidate).exists():
                    return self.folder / candidate
        wanted = (
            ", ".join(FILES.values()) if not self.emnist else f"the four files whose names begin with {self.emnist}"
        )
        raise DataError(f"{self.folder} has no {file} or {file}.gz; a data set needs {wanted}")


def find_idx(source: Path) -> IdxFolder | None:
    """The IDX files that a path means: a folder of them, or `FOLDER/emnist-letters` for one of EMNIST's sets there.

    Raises:
        DataError: the folder has several of EMNIST's sets, so one has to be named.
    """
    with looked_up(source, DataError):
        if source.is_dir():
            names = {path.name.replace(".idx", "-idx").removesuffix(".gz") for path in source.glob("*idx*ubyte*")}
            if any(name in names for name in FILES.values()):
                return IdxFolder(source)
            sets = sorted(n.removesuffix(_EMNIST_IMAGES) for n in names if n.endswith(_EMNIST_IMAGES))
            sets = [name for name in sets if name.startswith(_EMNIST)]
            if len(sets) > 1:
                raise DataError(f"{source} has several sets, {', '.join(sets)}: say which, as in {source / sets[0]}")
            return IdxFolder(source, sets[0]) if sets else None
        if source.name.startswith(_EMNIST) and not source.exists() and source.parent.is_dir():
            start = source.name + _EMNIST_IMAGES.replace("-idx", "?idx")
            if any(source.parent.glob(start + "*")):
                return IdxFolder(source.parent, source.name)
    return None


def load_idx(found: IdxFolder, *, validation: int | None, fold: int, known: Known | None = None) -> Parts:
    """Load four IDX files, or only the training files where a part of those is held out.

    Args:
        found: where they are.
        validation: how many images at the end of the training set to hold out; the test files are then not opened.
        fold: which block of so many, counted from the end.
        known: the data set that the files must be.

    Raises:
        DataError: a file is missing, damaged or has the wrong hash, or the files do not belong together.
    """
    folder = found.folder
    wanted = list(FILES) if validation is None else ["train_images", "train_labels"]
    files: dict[str, Idx] = {}
    for name in wanted:
        path = found.file(name)
        files[name] = read_idx(path, dimensions=3 if name.endswith("images") else 1)
        if known is not None and files[name].sha256 != known.sha256[name]:
            raise DataError(f"{path} is not {known.title}'s file: its sha256 is {files[name].sha256}; {known.remedy}")
    names = known.class_names if known else EMNIST_CLASSES.get(found.emnist, ())
    train = held_out = _examples(files, "train", found, names)
    everything = train.images
    sizes = Counter({(train.images.shape[2], train.images.shape[3]): len(train)})
    if validation is not None:
        start, stop = block_at_end(len(train), validation, fold, folder)
        train, held_out = train.without(start, stop), train.part(start, stop)
    else:
        held_out = _examples(files, "test", found, names)
        if held_out.images.shape[1:] != train.images.shape[1:]:
            raise DataError(
                f"{folder}: training images are {_sides(train)}, but test images are {_sides(held_out)}; "
                f"they must have the same size"
            )
        sizes[held_out.images.shape[2], held_out.images.shape[3]] += len(held_out)
    notes = (f"EMNIST by its file names ({found.emnist}): its images are stored transposed and turned upright here",)
    return Parts(
        train=train,
        held_out=held_out,
        normal=everything,
        class_names=names,
        sha256={name: file.sha256 for name, file in files.items()},
        form="drawing",
        survey=Survey("IDX files", sizes=sizes, notes=notes if found.emnist else ()),
    )


def _examples(files: dict[str, Idx], part: str, found: IdxFolder, names: tuple[str, ...]) -> Examples:
    images, labels = files[f"{part}_images"].values, files[f"{part}_labels"].values.astype(np.int64)
    if len(images) != len(labels):
        raise DataError(
            f"{found.folder}: {len(images):,} {part} images but {len(labels):,} {part} labels; "
            f"the files do not belong together"
        )
    first = 1 if found.emnist == _LETTERS else 0  # the letters alone are counted from 1
    labels = labels - first
    if names and len(labels) and (labels.min() < 0 or labels.max() >= len(names)):
        raise DataError(
            f"{found.folder}: {part} labels go from {labels.min() + first} to {labels.max() + first}, but those of "
            f"{found.emnist or 'this set'} go from {first} to {len(names) - 1 + first}"
        )
    if found.emnist:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return Examples(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))


def _sides(examples: Examples) -> str:
    return "x".join(str(side) for side in examples.images.shape[2:])
