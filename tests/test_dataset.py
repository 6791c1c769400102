from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Command, idx_bytes, write_folder
from smidgen.data import dataset as module
from smidgen.data.dataset import FILES, MNIST_SHA256, Dataset, load_dataset
from smidgen.data.known import KNOWN
from smidgen.errors import DataError


def test_mnist_is_what_was_published(mnist: Dataset) -> None:
    assert mnist.train.images.shape == (60_000, 1, 28, 28)
    assert mnist.held_out.images.shape == (10_000, 1, 28, 28)
    assert mnist.train.images.dtype == torch.uint8
    assert mnist.input_shape == (1, 28, 28)
    assert mnist.classes == 10
    assert (mnist.mean, mnist.std) == (0.1307, 0.3081)
    assert mnist.sha256 == MNIST_SHA256
    # The counts of each digit, as published with MNIST's training labels.
    assert mnist.train.labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_doubtful_labels_are_those_of_mnists_test_images_alone(mnist: Dataset, small_folder: Path) -> None:
    assert len(mnist.doubtful_labels) == 15
    assert mnist.doubtful_labels == load_dataset(KNOWN["mnist"].folder).doubtful_labels  # whatever the folder's name
    # The labels in the raters' file, of images that they take for 9, 4, 9, 3 and 6.
    assert mnist.held_out.labels[[947, 1901, 2130, 5937, 9729]].tolist() == [8, 9, 4, 5, 5]
    assert load_dataset(validation=6_000).doubtful_labels == ()
    assert load_dataset(small_folder).doubtful_labels == ()


def test_grey_images_are_brought_to_another_shape(small_folder: Path) -> None:
    assert load_dataset(small_folder, shape=(1, 14, 14)).train.images.shape == (600, 1, 14, 14)


def test_mean_and_std_are_those_of_the_pixels(mnist: Dataset) -> None:
    pixels = mnist.train.images.double() / 255
    assert abs(float(pixels.mean()) - mnist.mean) < 5e-5
    assert abs(float(pixels.std(correction=0)) - mnist.std) < 5e-5


def test_the_validation_split_is_the_end_of_the_training_set(mnist: Dataset) -> None:
    split = load_dataset(validation=6_000)
    assert (len(split.train), len(split.held_out)) == (54_000, 6_000)
    assert split.held_out_name == "validation"
    assert torch.equal(split.held_out.images, mnist.train.images[54_000:])
    assert torch.equal(split.train.labels, mnist.train.labels[:54_000])


def test_tuning_never_opens_the_test_images(small_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-test"
    folder.mkdir()
    for name in ("train_images", "train_labels"):
        shutil.copy(small_folder / FILES[name], folder)
    assert len(load_dataset(folder, validation=100).held_out) == 100
    with pytest.raises(DataError, match="t10k-images"):
        load_dataset(folder)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_gives_what_is_in_it(mnist: Dataset, tmp_path: Path, zipped: bool) -> None:
    data = load_dataset(write_folder(tmp_path / "d", mnist, 50, 20, zipped=zipped, step=2))
    assert data.input_shape == (1, 14, 14)
    assert torch.equal(data.train.images, mnist.train.images[:50, :, ::2, ::2])
    assert torch.equal(data.held_out.labels, mnist.held_out.labels[:20])
    assert data.name == str(tmp_path / "d")


def test_the_digest_is_of_the_contents(mnist: Dataset, tmp_path: Path) -> None:
    one = load_dataset(write_folder(tmp_path / "a", mnist, 50, 20))
    same = load_dataset(write_folder(tmp_path / "b", mnist, 50, 20, zipped=True))
    other = load_dataset(write_folder(tmp_path / "c", mnist, 51, 20))
    assert one.digest == same.digest != other.digest


def test_names_with_a_dot_are_found(mnist: Dataset, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d", mnist, 50, 20)
    for file in FILES.values():
        (folder / file).rename(folder / file.replace("-idx", ".idx"))
    assert len(load_dataset(folder).train) == 50


def changed(folder: Path, name: str, values: np.ndarray) -> None:
    (folder / FILES[name]).write_bytes(idx_bytes(values))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "fewer labels": (
        lambda f: changed(f, "train_labels", np.arange(49) % 10),
        "50 train images but 49 train labels",
    ),
    "fewer test labels": (
        lambda f: changed(f, "test_labels", np.arange(3)),
        "20 test images but 3 test labels",
    ),
    "unknown test label": (
        lambda f: changed(f, "test_labels", np.full(20, 77)),
        "a test image has the label '77', which does not occur in training",
    ),
    "one class": (lambda f: changed(f, "train_labels", np.zeros(50)), "a single class"),
    "other size": (
        lambda f: changed(f, "test_images", np.zeros((20, 9, 9))),
        "28x28, but test images are 9x9",
    ),
    "blank": (lambda f: changed(f, "train_images", np.full((50, 28, 28), 7)), "the same value"),
    "missing": (lambda f: (f / FILES["test_labels"]).unlink(), "no t10k-labels-idx1-ubyte"),
    "swapped": (lambda f: (f / FILES["train_labels"]).replace(f / FILES["train_images"]), "1 dimension"),
}


@pytest.mark.parametrize("name", CASES)
def test_files_that_do_not_fit_are_named(mnist: Dataset, tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "d", mnist, 50, 20)
    change, words = CASES[name]
    change(folder)
    with pytest.raises(DataError, match=words):
        load_dataset(folder)


def test_a_bundled_file_with_another_hash_is_refused(
    mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.BUNDLED, "mnist", write_folder(tmp_path / "d", mnist, 50, 20))
    with pytest.raises(DataError, match="is not MNIST's file"):
        load_dataset("mnist")


def test_a_place_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        load_dataset("mnits")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a supported file"):
        load_dataset(tmp_path / "file")
    with pytest.raises(DataError, match="holds no images to train on; give a folder"):
        load_dataset(tmp_path)


def test_folds_are_blocks_from_the_end(mnist: Dataset) -> None:
    folds = [load_dataset(validation=20_000, fold=fold) for fold in range(3)]
    for fold, split in enumerate(folds):
        first = 60_000 - 20_000 * (fold + 1)
        assert torch.equal(split.held_out.images, mnist.train.images[first : first + 20_000])
        assert torch.equal(
            split.train.labels, torch.cat([mnist.train.labels[:first], mnist.train.labels[first + 20_000 :]])
        )
    with pytest.raises(DataError, match=r"is 3 blocks of 20,000; set a lower data\.fold"):
        load_dataset(validation=20_000, fold=3)


def test_too_large_a_validation_split_is_named(small_folder: Path) -> None:
    assert len(load_dataset(small_folder, validation=598).train) == 2
    with pytest.raises(DataError, match="599 cannot be held out"):
        load_dataset(small_folder, validation=599)


def test_published_files_are_named_each_by_its_own_hash(
    small_folder: Path, smidgen: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of another set among them is seen."""
    hashes = load_dataset(small_folder).sha256
    monkeypatch.setitem(KNOWN, "small", replace(KNOWN["mnist"], title="Small Set", sha256=dict(hashes)))
    found = smidgen("data", small_folder, "--json").json["datasets"][0]
    assert set(found["published"].values()) == {"Small Set"}
    assert not found["is_mnist"]
    assert smidgen("data", small_folder, "--check").out.count("as published: Small Set") == 4
    odd = {**hashes, "test_labels": KNOWN["mnist"].sha256["test_labels"]}
    monkeypatch.setitem(KNOWN, "small", replace(KNOWN["mnist"], title="Small Set", sha256=odd))
    found = smidgen("data", small_folder, "--json").json["datasets"][0]
    assert [found["published"][name] for name in hashes].count("Small Set") == 3
    assert found["published"]["test_labels"] == ""


def test_the_data_command(smidgen: Command, small_folder: Path) -> None:
    bundled = smidgen("data", "--check", "--json").json["datasets"][0]
    assert (bundled["name"], bundled["train_images"], bundled["test_images"]) == ("mnist", 60_000, 10_000)
    assert bundled["is_mnist"]
    assert bundled["shape"] == [1, 28, 28]
    mine = smidgen("data", small_folder, "--json").json["datasets"][0]
    assert (mine["train_images"], mine["is_mnist"]) == (600, False)
    text = smidgen("data", small_folder, "--check").out
    assert "600 training and 200 test images" in text
    assert text.count("not a published file") == 4
    assert smidgen("data", small_folder / "nothing").is_mistake("nothing", "no data")
