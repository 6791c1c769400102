"""Data sets that have a name: MNIST, which comes with the package, and Fashion-MNIST, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Known:
    """A data set that can be named.

    Attributes:
        title: as people call it.
        folder: of its four IDX files.
        sha256: of the unpacked files, by the names of `FILES`.
        shape: channels, height, width.
        classes: number of classes.
        remedy: what to do where it is not there or not itself.
        licence: as the Hugging Face Hub abbreviates it.
        licence_title: as people call it.
        hub: its name there.
        class_names: of the labels; none where they are plain numbers.
        doubtful_labels: indices of test images whose given label most human raters reject.
    """

    title: str
    folder: Path
    sha256: dict[str, str]
    shape: tuple[int, int, int]
    classes: int
    remedy: str
    licence: str
    licence_title: str
    hub: str
    class_names: tuple[str, ...] = ()
    doubtful_labels: tuple[int, ...] = ()


MNIST_SHA256 = {
    "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of MNIST's unpacked files, as published."""

MNIST_SHAPE = (1, 28, 28)
MNIST_CLASSES = 10
MNIST_DOUBTFUL = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
"""MNIST's test images for which at most 2 of 5 raters chose the given label.

The raters saw 100 candidates; the other 9,900 labels were not rated. From `mturk/mnist_mturk.json` of
cleanlab/label-errors (Northcutt, Athalye and Mueller, "Pervasive Label Errors in Test Sets", NeurIPS 2021).
"""

KNOWN = {
    "mnist": Known(
        "MNIST",
        Path(__file__).parent / "mnist",
        MNIST_SHA256,
        MNIST_SHAPE,
        MNIST_CLASSES,
        "reinstall smidgen",
        "cc-by-sa-3.0",
        "CC BY-SA 3.0 (Yann LeCun, Corinna Cortes and Christopher J.C. Burges)",
        "ylecun/mnist",
        doubtful_labels=MNIST_DOUBTFUL,
    ),
    "fashion-mnist": Known(
        "Fashion-MNIST",
        Path("/usr/share/datasets/fashion-mnist"),
        {
            "train_images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train_labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "test_images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "test_labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        (1, 28, 28),
        10,
        "install Debian's package dataset-fashion-mnist, or give the folder of its four files with --data",
        "mit",
        "MIT (Zalando SE)",
        "zalando-datasets/fashion_mnist",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}
"""By name. Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT licence) is 30 MB, so it is not bundled."""


def doubtful_labels(sha256: Mapping[str, str]) -> tuple[int, ...]:
    """Indices of the test images whose labels are known to be in doubt; empty for all but published test sets.

    Args:
        sha256: of what was read, by the names of `FILES`, as in `Dataset.sha256`; without the test images for a
            validation split.
    """
    for known in KNOWN.values():
        if all(sha256.get(part) == known.sha256[part] for part in ("test_images", "test_labels")):
            return known.doubtful_labels
    return ()
