"""Data sets as values: all images resident as uint8, labels, classes and normalization."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smidgen.data.idx import Idx, read_idx
from smidgen.errors import DataError
from smidgen.files import looked_up
from smidgen.settings import suggestion

BUNDLED = {"mnist": Path(__file__).parent / "mnist"}
"""The data sets that come with the package."""

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""The four files of a data set, by MNIST's names; each may have `.gz` added, or `.` for the last `-`."""

MNIST_SHA256 = {
    "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of MNIST's unpacked files, as published."""


MNIST_SHAPE = (1, 28, 28)
MNIST_CLASSES = 10


@dataclass(frozen=True)
class Examples:
    """Images with their labels.

    Attributes:
        images: uint8 [count, channels, height, width].
        labels: int64 [count], 0 to classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Examples:
        """The same examples on another device."""
        return Examples(self.images.to(device), self.labels.to(device))

    def part(self, start: int, stop: int) -> Examples:
        """The examples from `start` up to `stop`."""
        return Examples(self.images[start:stop], self.labels[start:stop])

    def without(self, start: int, stop: int) -> Examples:
        """The examples but those from `start` up to `stop`."""
        if stop == len(self):
            return self.part(0, start)
        return Examples(
            torch.cat([self.images[:start], self.images[stop:]]), torch.cat([self.labels[:start], self.labels[stop:]])
        )


@dataclass(frozen=True)
class Dataset:
    """A data set, resident in memory.

    Attributes:
        name: a bundled name, or the folder it came from.
        train: what is trained on.
        held_out: what accuracy is measured on.
        held_out_name: "test", or "validation" where the test images were never opened.
        classes: number of classes.
        mean: of the training images, 0 to 1, rounded to four decimals as is customary.
        std: standard deviation of the same, rounded likewise; never 0.
        sha256: of each unpacked file that was read, by the names of `FILES`.
    """

    name: str
    train: Examples
    held_out: Examples
    held_out_name: str
    classes: int
    mean: float
    std: float
    sha256: dict[str, str]

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

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        return (
            f"Dataset({self.name!r}: {len(self.train):,} training and {len(self.held_out):,} "
            f"{self.held_out_name} images of {shape}, {self.classes} classes)"
        )


def load_dataset(source: str | Path = "mnist", *, validation: int | None = None, fold: int = 0) -> Dataset:
    """Load a bundled data set by name, or a folder of four IDX files.

    Args:
        source: a name in `BUNDLED`, or a folder with the files of `FILES`, gzipped or plain.
        validation: hold out this many images at the end of the training set to be judged on
            instead of the test images, whose files are then not even opened.
        fold: which block of so many images is held out, counted back from the end of the training set.

    Raises:
        DataError: a file is missing, damaged or has the wrong hash (bundled data), counts or
            shapes do not match, labels are out of range, or too few images are left to train on.
    """
    with looked_up(Path(source), DataError):
        folder = _folder(source)
    wanted = list(FILES) if validation is None else ["train_images", "train_labels"]
    files: dict[str, Idx] = {}
    for name in wanted:
        with looked_up(folder, DataError):
            path = _find(folder, FILES[name])
        files[name] = read_idx(path, dimensions=3 if name.endswith("images") else 1)
        if str(source) in BUNDLED and files[name].sha256 != MNIST_SHA256[name]:
            raise DataError(f"{path} is not MNIST's file: its sha256 is {files[name].sha256}; reinstall smidgen")
    train = _examples(files, "train", folder)
    classes = int(train.labels.max()) + 1
    if classes < 2:
        raise DataError(f"{folder}: the training labels hold a single class; at least two are needed")
    mean, std = _mean_and_std(files["train_images"].values)
    if std == 0:
        raise DataError(f"{folder}: all training pixels have the same value, so there is nothing to learn")
    sha256 = {name: file.sha256 for name, file in files.items()}
    name = str(source) if str(source) in BUNDLED else str(folder)
    whole = Dataset(name, train, train, "validation", classes, mean, std, sha256)
    if validation is not None:
        if len(train) - validation < 2:
            raise DataError(
                f"{folder} has {len(train):,} training images, so {validation:,} cannot be held out for "
                f"validation; set data.validation lower"
            )
        if (fold + 1) * validation > len(train):
            raise DataError(
                f"{folder} has {len(train):,} training images, which is {len(train) // validation} blocks of "
                f"{validation:,}; set data.fold lower than that"
            )
        stop = len(train) - fold * validation
        held_out = train.part(stop - validation, stop)
        return replace(whole, train=train.without(stop - validation, stop), held_out=held_out)
    test = _examples(files, "test", folder)
    if test.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"{folder}: training images are {_sides(train)}, but test images are {_sides(test)}; "
            f"they must be of one size"
        )
    if int(test.labels.max()) >= classes:
        raise DataError(
            f"{folder}: a test label is {int(test.labels.max())}, but the training labels end at {classes - 1}"
        )
    return replace(whole, held_out=test, held_out_name="test")


def _folder(source: str | Path) -> Path:
    bundled = BUNDLED.get(str(source))
    if bundled is not None:
        return bundled
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(f"{folder} is a file; give the folder that holds {FILES['train_images']} and the rest")
    hint = suggestion(str(source), BUNDLED)
    raise DataError(f"no data at {str(source)!r}; {hint}bundled: {', '.join(BUNDLED)}; or give a folder of IDX files")


def _find(folder: Path, name: str) -> Path:
    dotted = name.replace("-idx", ".idx")
    for candidate in (name + ".gz", name, dotted + ".gz", dotted):
        if (folder / candidate).exists():
            return folder / candidate
    raise DataError(f"{folder} has no {name} or {name}.gz; a data set needs {', '.join(FILES.values())}")


def _examples(files: dict[str, Idx], part: str, folder: Path) -> Examples:
    images, labels = files[f"{part}_images"].values, files[f"{part}_labels"].values
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {len(images):,} {part} images but {len(labels):,} {part} labels; "
            f"the files do not belong together"
        )
    return Examples(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def _sides(examples: Examples) -> str:
    return "x".join(str(side) for side in examples.images.shape[2:])


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
