"""Data from a path: image folders, CSV and .npz files, EMNIST, and all of them alike."""

from __future__ import annotations

import io
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ENGINES, idx_bytes, write_folder
from images import picture, write_images
from smidgen.data import cache, memory, pictures
from smidgen.data.dataset import FILES, MNIST_SHA256, Dataset, load_dataset
from smidgen.data.decode import Glance
from smidgen.data.idxfiles import EMNIST_CLASSES
from smidgen.data.pictures import own_shape
from smidgen.errors import DataError
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import run
from smidgen.trial import Data, Trial
from smidgen.trials.find import find_trial


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pictures", 40)


def paths(root: Path) -> list[Path]:
    return sorted(root.rglob("*.png"), key=lambda path: path.name)


def as_images(mnist: Dataset, root: Path, train: int, test: int) -> Path:
    """MNIST's first images as PNG files, train/3/00042.png and so on."""
    for part, examples, count in (("train", mnist.train, train), ("test", mnist.held_out, test)):
        for index in range(count):
            folder = root / part / str(int(examples.labels[index]))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(examples.images[index, 0].numpy()).save(folder / f"{index:05}.png")
    return root


def test_an_image_folder_gives_colour_names_and_a_split_by_content(folder: Path) -> None:
    data = load_dataset(folder)
    assert data.input_shape == (3, 12, 12)
    assert data.class_names == ("a", "b", "c")
    assert len(data.train) + len(data.held_out) == 120
    assert 6 <= len(data.held_out) <= 36
    assert data.form == "picture"
    assert any("chosen by the hash" in note for note in data.survey.notes)
    pixels = data.train.images.double() / 255
    assert abs(float(pixels.mean()) - data.mean) < 5e-5
    assert abs(float(pixels.std(correction=0)) - data.std) < 5e-5
    for part in (data.train, data.held_out):
        for image, label in zip(part.images, part.labels, strict=True):
            assert any(
                np.array_equal(np.asarray(picture(int(label), n)).transpose(2, 0, 1), image.numpy()) for n in range(40)
            )


def kept(data: Dataset) -> tuple[set[bytes], set[bytes]]:
    return tuple({image.numpy().tobytes() for image in part.images} for part in (data.train, data.held_out))  # type: ignore[return-value]


def test_adding_files_moves_none_of_the_others(folder: Path) -> None:
    train, test = kept(load_dataset(folder))
    write_images(folder, 30, first=40)
    more_train, more_test = kept(load_dataset(folder))
    assert train < more_train
    assert test < more_test


def test_validation_is_held_out_by_content_and_folds_cover_all(folder: Path) -> None:
    whole = load_dataset(folder)
    folds = [load_dataset(folder, validation=30, fold=fold) for fold in range(3)]
    seen = [kept(split) for split in folds]
    for split, (train, held_out) in zip(folds, seen, strict=True):
        assert split.held_out_name == "validation"
        assert len(held_out) == 30
        assert train | held_out == kept(whole)[0]
        assert len(set(split.held_out.labels.tolist())) == 3
        assert split.mean == whole.mean
    assert not seen[0][1] & seen[1][1]
    with pytest.raises(DataError, match="set data.validation lower"):
        load_dataset(folder, validation=6_000)


def test_splits_of_its_own_are_kept(tmp_path: Path) -> None:
    for split, count, first in (("train", 12, 0), ("val", 5, 50), ("test", 4, 80)):
        write_images(tmp_path / "d" / split, count, first=first)
    data = load_dataset(tmp_path / "d")
    assert (len(data.train), len(data.held_out)) == (36, 12)
    tuning = load_dataset(tmp_path / "d", validation=6_000)
    assert (len(tuning.train), len(tuning.held_out), tuning.held_out_name) == (36, 15, "validation")
    for path in (tmp_path / "d" / "test").rglob("*.png"):
        path.write_bytes(b"not to be opened")
    assert len(load_dataset(tmp_path / "d", validation=1).held_out) == 15
    shutil.rmtree(tmp_path / "d" / "test")
    with pytest.raises(DataError, match=r"no test images; add a test split, or evaluate on"):
        load_dataset(tmp_path / "d")


def test_a_csv_file_says_the_same_as_the_folder(folder: Path) -> None:
    data = load_dataset(folder)
    lines = ["label,path"] + [f"{path.parent.name},{path.relative_to(folder.parent)}" for path in paths(folder)]
    table = folder.parent / "list.csv"
    table.write_text("\n".join(lines))
    same = load_dataset(table)
    assert same.sha256 == data.sha256
    assert same.class_names == data.class_names
    rows = [
        f"{path.relative_to(folder.parent)},{path.parent.name},{'test' if path.stem.endswith('7') else 'train'}"
        for path in paths(folder)
    ]
    table.write_text("\n".join(rows))
    assert len(load_dataset(table).held_out) == 12
    (folder.parent / "classes.txt").write_text("c\nb\na\n")
    assert load_dataset(table).class_names == ("c", "b", "a")


def test_an_npz_file_is_read_without_pickle(mnist: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "keras.npz"
    train, test = mnist.train.part(0, 80), mnist.held_out.part(0, 30)
    np.savez_compressed(
        path,
        x_train=train.images[:, 0].numpy(), y_train=train.labels.numpy(),
        x_test=test.images[:, 0].numpy(), y_test=test.labels.numpy().astype(np.uint8)[:, None],
    )  # fmt: skip
    data = load_dataset(path)
    idx = load_dataset(write_folder(tmp_path / "idx", mnist, 80, 30))
    assert torch.equal(data.train.images, idx.train.images)
    assert torch.equal(data.held_out.labels, idx.held_out.labels)
    assert (data.sha256, data.mean) == (idx.sha256, idx.mean)
    tuning = load_dataset(path, validation=20)
    assert torch.equal(tuning.held_out.images, idx.train.images[60:])
    colours = np.stack([np.asarray(picture(n % 3, n)) for n in range(60)])
    np.savez(path, images=colours, labels=np.array(["x", "y", "z"])[np.arange(60) % 3])
    named = load_dataset(path)
    assert named.class_names == ("x", "y", "z")
    assert named.input_shape == (3, 12, 12)
    assert len(named.train) + len(named.held_out) == 60


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"),
        ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
        ("x_train", "y_train", "x_test", "y_test", "x_validation", "y_validation"),
    ],
)
def test_a_validation_part_of_an_npz_file_is_held_out_for_tuning(
    names: tuple[str, ...], mnist: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "d.npz"
    parts = [mnist.train.part(0, 80), mnist.held_out.part(0, 30), mnist.train.part(200, 230)]
    values = [array for part in parts for array in (part.images[:, 0].numpy(), part.labels.numpy())]
    arrays: dict[str, Any] = dict(zip(names, values, strict=True))
    np.savez(path, **arrays, extra=np.zeros(3), fold=np.zeros(3, int))
    final, tuning = load_dataset(path), load_dataset(path, validation=10)
    assert torch.equal(final.held_out.images, parts[1].images)
    assert torch.equal(tuning.held_out.images, parts[2].images)
    assert torch.equal(final.train.images, tuning.train.images)
    assert final.mean == tuning.mean
    for data in (final, tuning):
        assert "arrays that are not used: extra, fold" in data.survey.lines
    with pytest.raises(DataError, match="validation images of its own, so data.fold must be 0"):
        load_dataset(path, validation=10, fold=1)
    without: dict[str, Any] = {name: array for name, array in arrays.items() if "test" not in name}
    np.savez(path, **without)
    assert len(load_dataset(path, validation=10).held_out) == 30
    with pytest.raises(DataError, match="but no test images; add .*, or evaluate on the validation images"):
        load_dataset(path)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((300_000, 28, 28), np.uint8), 40, "300,000 x_train but 40 labels; they do not match"),
        (np.zeros((90_000, 28, 28), np.uint8), 90_000, "images of different shapes"),
        (np.zeros((40_000, 28, 28), np.float16), 40_000, "x_train is float16"),
    ],
    ids=["counts", "shapes", "type"],
)
def test_what_headers_of_an_npz_file_declare_is_compared_before_arrays_are_read(
    images: Any, labels: int, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.npz"
    counts = {"y_train": np.zeros(labels, int), "y_test": np.zeros(4, int)}
    np.savez_compressed(path, x_train=images, x_test=GOOD, y_train=counts["y_train"], y_test=counts["y_test"])
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(DataError, match=words):
        load_dataset(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # bytes; the images have 63 million and more


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


GOOD = np.zeros((4, 5, 5), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\3\4 no zip", "damaged or not an .npz"),
        (npz(a=GOOD), "has the arrays a; expected are x_train"),
        (npz(images=GOOD, labels=np.array([None, "x", 1, 2])), "labels.npy is of type object"),
        (npz(images=GOOD / 2, labels=np.arange(4)), r"images is float64 \[4, 5, 5\]; images are uint8"),
        (npz(images=GOOD, labels=np.arange(3)), "4 images but 3 labels"),
        (npz(images=GOOD, labels=np.arange(4) - 1), "labels go from -1"),
        (npz(images=np.zeros((4, 5, 5, 4), np.uint8), labels=np.arange(4)), "1 or 3 channels"),
        (npz(images=GOOD, labels=np.array(["a", "b", "a", "c" * 101])), "'c{40}'... is longer than 100 characters"),
        (npz(images=GOOD, labels=np.arange(4) % 2, class_names=np.array(["a", "a"])), "name each class once"),
        (npz(images=GOOD, labels=np.arange(4), class_names=np.array(["a", "b"])), "go from 0 to 3; allowed: 0 to 1"),
        (npz(images=GOOD, labels=np.arange(4), class_names=np.array(["a"])), "at least two names"),
        (npz(images=GOOD[:0], labels=np.arange(0)), "images is uint8 .0, 5, 5."),
        (npz(images=np.arange(2000, dtype=np.uint8).reshape(80, 5, 5), labels=np.zeros(80, int)), "a single class"),
        (npz(images=np.arange(2000, dtype=np.uint8).reshape(80, 5, 5), labels=np.array(["a"] * 80)), "a single class"),
    ],
    ids=[
        "no zip",
        "names",
        "object",
        "float",
        "counts",
        "negative",
        "channels",
        "long name",
        "same names",
        "no such class",
        "one name",
        "empty",
        "single class",
        "single name",
    ],
)
def test_npz_files_that_cannot_be_used_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path / "d.npz")


@pytest.mark.parametrize("kind", ["number between", "number above", "name"])
def test_a_test_class_that_never_occurs_in_training_is_named(tmp_path: Path, kind: str) -> None:
    images = np.arange(60 * 36, dtype=np.uint8).reshape(60, 6, 6)
    labels: Any = np.arange(60) % 3 * 2
    strange: Any = np.array([0, 2, 4, 1 if kind == "number between" else 5])
    if kind == "name":
        labels, strange = np.array(["x", "y", "z"])[labels // 2], np.array(["x", "y", "z", "1"])
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=strange)
    with pytest.raises(DataError, match=rf"label '{strange[3]}',? .*does not occur in training"):
        load_dataset(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=strange[:3])
    data = load_dataset(tmp_path / "d.npz")
    notes = () if kind == "name" else ("of 5 classes, 2 never occur in training: 1, 3",)
    assert data.survey.notes == notes
    assert load_dataset(tmp_path / "d.npz", validation=3).survey.notes == notes


@pytest.mark.parametrize("swapped", [False, True])
def test_labels_that_are_names_here_and_numbers_there_are_refused(tmp_path: Path, swapped: bool) -> None:
    """Sorted names have other numbers than the author's."""
    images, numbers = np.arange(60 * 36, dtype=np.uint8).reshape(60, 6, 6), np.arange(60) % 3
    names = np.array(["cat", "dog", "10"])[numbers]
    train, test = (numbers, names) if swapped else (names, numbers)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=train, x_test=images[:9], y_test=test[:9])
    words = "does not occur in training" if swapped else "y_train holds names and y_test numbers"
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path / "d.npz")


def test_names_in_an_npz_file_that_are_not_text_are_damage(tmp_path: Path) -> None:
    content = npz(images=GOOD, labels=np.arange(4) % 2, é=GOOD)
    broken = content.replace("é".encode(), b"\xc3\x29")
    assert broken != content
    (tmp_path / "d.npz").write_bytes(broken)
    with pytest.raises(DataError, match=r"d\.npz is damaged"):
        load_dataset(tmp_path / "d.npz")


def test_an_npz_file_that_promises_endless_memory_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 28, 28)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(DataError, match="declares more than it can hold"):
        load_dataset(tmp_path / "d.npz")


def test_emnist_is_known_by_its_names_and_turned_upright(mnist: Dataset, tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain", mnist, 50, 20)
    letters = tmp_path / "emnist"
    letters.mkdir()
    for part, examples, count in (("train", mnist.train, 50), ("test", mnist.held_out, 20)):
        for kind in ("letters", "digits"):
            turned = examples.images[:count, 0].transpose(1, 2).numpy()
            (letters / f"emnist-{kind}-{part}-images-idx3-ubyte").write_bytes(idx_bytes(turned))
            first = 1 if kind == "letters" else 0  # the letters alone are counted from 1
            (letters / f"emnist-{kind}-{part}-labels-idx1-ubyte").write_bytes(
                idx_bytes(examples.labels[:count].numpy() + first)
            )
    with pytest.raises(DataError, match=r"several sets, emnist-digits, emnist-letters: say which"):
        load_dataset(letters)
    data = load_dataset(letters / "emnist-letters")
    assert torch.equal(data.train.images, load_dataset(plain).train.images)
    assert "EMNIST by its file names (emnist-letters)" in data.survey.lines[0]
    assert data.classes == 26
    assert data.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert torch.equal(data.train.labels, load_dataset(plain).train.labels)
    assert "of 26 classes, 16 never occur in training: K, L, M, N, O, ..." in data.survey.lines[1]
    assert load_dataset(letters / "emnist-digits").class_names == ()
    for path in letters.glob("emnist-digits*"):
        path.unlink()
    assert torch.equal(load_dataset(letters).held_out.images, data.held_out.images)
    (letters / "emnist-letters-test-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(20)))
    with pytest.raises(DataError, match=r"test labels go from 0 to 19, but those of emnist-letters go from 1 to 26"):
        load_dataset(letters)


def test_emnists_classes_are_those_of_its_sets() -> None:
    counts = {name: len(names) for name, names in EMNIST_CLASSES.items()}
    assert counts == {"emnist-letters": 26, "emnist-balanced": 47, "emnist-bymerge": 47, "emnist-byclass": 62}
    assert all(len(set(names)) == len(names) for names in EMNIST_CLASSES.values())


def test_pictures_of_any_size_are_fitted_by_one_rule(tmp_path: Path) -> None:
    root = write_images(tmp_path / "d", 10)
    Image.new("RGB", (40, 20), "white").save(root / "a" / "wide.png")
    Image.new("RGB", (5, 10), "red").save(root / "b" / "tall.png")
    data = load_dataset(root, shape=(3, 12, 12))
    assert data.survey.sizes == {(12, 12): 30, (20, 40): 1, (10, 5): 1}
    assert any(note.startswith("2 of 32 pictures are of another size than 12x12") for note in data.survey.notes)
    images = torch.cat([data.train.images, data.held_out.images])
    wide = next(image for image in images if image[:, 5, 5].tolist() == [255, 255, 255])
    assert wide[0].bool().sum(0).tolist() == [6] * 12
    assert wide[0, 3:9].min() == 255
    tall = next(image for image in images if image[:, 6, 6].tolist() == [255, 0, 0])
    assert tall[0].bool().any(0).tolist() == [False] * 3 + [True] * 6 + [False] * 3
    assert load_dataset(root, shape=(1, 6, 6)).input_shape == (1, 6, 6)
    assert load_dataset(root).input_shape == (3, 12, 12)  # the median of the longer sides


def test_the_shape_comes_from_the_data() -> None:
    grey, colour = Glance(20, 30, True), Glance(20, 30, False)
    assert own_shape([grey, grey]) == (1, 20, 30)
    assert own_shape([grey, colour]) == (3, 20, 30)
    assert own_shape([grey, grey, Glance(50, 10, True)]) == (1, 30, 30)
    assert own_shape([Glance(480, 640, True)]) == (1, 96, 128)


def test_idx_and_npz_are_brought_to_another_shape_too(mnist: Dataset, tmp_path: Path) -> None:
    idx = write_folder(tmp_path / "idx", mnist, 50, 20)
    data = load_dataset(idx, shape=(3, 14, 14))
    assert data.train.images.shape == (50, 3, 14, 14)
    assert data.form == "picture"
    again = load_dataset(as_images(mnist, tmp_path / "png", 50, 20), shape=(3, 14, 14))
    assert torch.equal(data.held_out.images, again.held_out.images)
    assert data.sha256 == again.sha256


@pytest.mark.parametrize("engine", ENGINES)
def test_image_folder_and_idx_files_of_the_same_pictures_give_the_same_weights(
    mnist: Dataset, small_trial: Trial, tmp_path: Path, engine: Any
) -> None:
    folders = [
        write_folder(tmp_path / "idx", mnist, 200, 40),
        as_images(mnist, tmp_path / "png", 200, 40),
    ]
    results = [
        run(
            small_trial, data=folder, epochs=1, options=RunOptions(engine=engine, threads=1), out=tmp_path / f"run-{folder.name}",
            progress=Silent(),
        ).result
        for folder in folders
    ]  # fmt: skip
    assert results[0].weights_sha256 == results[1].weights_sha256
    assert results[0].data_sha256 == results[1].data_sha256
    assert results[1].class_names == tuple("0123456789")


def test_mnists_digests_and_those_of_older_trials_stay(mnist: Dataset) -> None:
    assert mnist.sha256 == MNIST_SHA256
    assert mnist.digest == "8947a6b9201858464eddcf840419e99bbb89eed03f95f8048b1343ad149606e9"
    augmented = "f39a9b9ca1cde7f3aa0faa9de251fcaf876f2b23f4486656243b98b6b88812b2"
    assert find_trial("mnist-3-augmented").recipe_digest == augmented
    assert Data().digest() == Data(shape=None, form="auto").digest() != Data(shape=(1, 14, 14)).digest()


def test_decoded_images_are_kept_by_content_and_damage_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    monkeypatch.setenv(cache.VARIABLE, str(place))
    monkeypatch.setattr(pictures, "LEAST_CACHED", 1)
    (folder / "a" / "broken.png").write_bytes(paths(folder)[0].read_bytes()[:-30])
    first = load_dataset(folder)
    (block,) = place.iterdir()

    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as context:
        context.setattr(pictures, "decode", never)
        again = load_dataset(folder)
    assert again.sha256 == first.sha256
    assert again.survey == first.survey
    assert again.survey.skipped == {"truncated or damaged": 1}
    content = bytearray(block.read_bytes())
    content[-5] ^= 1
    block.write_bytes(bytes(content))
    assert load_dataset(folder).sha256 == first.sha256
    assert block.read_bytes() != bytes(content)
    write_images(folder, 1, first=90)
    assert len(load_dataset(folder).train) + len(load_dataset(folder).held_out) == 123
    assert len(list(place.iterdir())) == 2
    shutil.rmtree(place)
    place.write_text("in the way")
    assert load_dataset(folder).input_shape == (3, 12, 12)


def test_what_does_not_fit_in_memory_is_refused_before_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**20)
    monkeypatch.setattr(pictures, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"120 images of 3x512x512 need 90 MiB, but at most 80% of the free 1 MiB"):
        load_dataset(folder, shape=(3, 512, 512))
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.check_room(10**9, (3, 512, 512), "anything")


def test_large_pictures_go_through_several_threads_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_dataset(folder, shape=(3, 9, 9))
    monkeypatch.setattr(pictures, "_LARGE_BYTES", 1)
    monkeypatch.setattr(pictures, "_LARGE_PIXELS", 1)
    monkeypatch.setattr(pictures, "_BIG", 1)
    monkeypatch.setattr(pictures, "_STEPS", 50)
    told: list[str] = []
    several = load_dataset(folder, shape=(3, 9, 9), show=told.append)
    assert several.sha256 == one.sha256
    assert told[:2] == ["50 images looked at", "100 images looked at"]


def test_free_memory_is_known_here() -> None:
    free = memory.available_bytes()
    assert free is None or 2**20 < free < 2**50


def test_shapes_that_cannot_be_are_named(folder: Path) -> None:
    for shape in ((2, 5, 5), (3, 5), (1, 0, 5), (1, 5, 9_999)):
        with pytest.raises(DataError, match="allowed: channels"):
            load_dataset(folder, shape=shape)
    with pytest.raises(DataError, match="drawings are grey"):
        load_dataset(folder, form="drawing")
    with pytest.raises(DataError, match=FILES["train_images"]):
        load_dataset(Path(__file__))
