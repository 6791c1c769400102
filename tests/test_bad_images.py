"""Folders as users have them: each case is handled and counted in one line, or is one clear error."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from conftest import Command
from images import CLASSES, picture, write_images
from smidgen.data import decode as decoding
from smidgen.data.dataset import Dataset, load_dataset
from smidgen.data.decode import SUFFIXES, decode, glance, read_picture
from smidgen.errors import DataError, ImageError
from smidgen.images import read_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "d", 20)


def count(data: Dataset) -> int:
    return len(data.train) + len(data.held_out)


def save(path: Path, image: Image.Image, **options: Any) -> bytes:
    image.save(path, **options)
    return path.read_bytes()


def animated(path: Path, kind: str) -> None:
    frames = [picture(0, n) for n in range(3)]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=100)


def test_empty_folders_and_single_classes_are_errors(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no images to train on; give a folder with a subfolder"):
        load_dataset(empty)
    (empty / "cats").mkdir()
    (empty / "cats" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no images to train on \(1 files are no image by its name, as cats/"):
        load_dataset(empty)
    with pytest.raises(DataError, match="has a single class, 'a'; at least two"):
        load_dataset(write_images(tmp_path / "one", 5, classes=("a",)))
    root = write_images(tmp_path / "two", 5)
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="class 'empty' has no usable image for training; add some, or remove"):
        load_dataset(root)
    picture(0, 0).save(root / "empty" / "a.tif")
    with pytest.raises(DataError, match=r"class 'empty' .* \(1 no image by its name, as empty/a.tif\)"):
        load_dataset(root)
    (root / "empty" / "a.tif").unlink()
    (root / "empty").rmdir()
    for path in (root / "c").iterdir():
        path.write_bytes(b"broken")
    (root / "a" / "broken.png").write_bytes(b"broken")  # the file that is named is one of the class
    with pytest.raises(DataError, match=r"class 'c' has no usable image for training \(5 unreadable, as c/"):
        load_dataset(root)
    for path in (root / "c").iterdir():
        path.write_bytes((root / "b" / "b000.png").read_bytes()[:-60])
    with pytest.raises(DataError, match=r"class 'c' .* \(5 truncated or damaged, as c/"):
        load_dataset(root)
    split = write_images(tmp_path / "split" / "train", 5).parent
    write_images(split / "test", 2)
    (split / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="class 'empty' has no usable image"):
        load_dataset(split)
    (split / "train" / "empty").rmdir()
    (split / "test" / "empty").mkdir()
    assert load_dataset(split).class_names == ("a", "b", "c")


def test_what_cannot_be_used_is_left_out_and_counted_in_one_line(folder: Path) -> None:
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "a" / "empty.jpg").touch()
    (folder / "b" / "page.png").write_text("<html>")
    cut = save(folder / "b" / "cut.png", picture(1, 1))
    (folder / "b" / "cut.png").write_bytes(cut[: len(cut) // 2])
    animated(folder / "c" / "moving.gif", "GIF")
    animated(folder / "c" / "moving.png", "PNG")
    animated(folder / "c" / "moving.webp", "WEBP")
    (folder / "c" / "list.txt").write_text("x")
    (folder / "c" / ".DS_Store").write_text("x")
    picture(0, 0).save(folder / "lost.png")
    data = load_dataset(folder)
    assert count(data) == 60
    assert data.survey.skipped == {
        "unreadable": 3, "truncated or damaged": 1, "animated": 3, "no image by its name": 1, "outside a class folder": 1,
    }  # fmt: skip
    line = data.survey.skipped_line
    assert line.startswith("left out 9 files: ")
    assert "3 animated (c/moving.gif)" in line
    assert line.isprintable()


def test_one_frame_of_an_animated_format_is_a_picture(folder: Path) -> None:
    picture(0, 7).quantize(256).save(folder / "a" / "still.gif")
    picture(0, 8).save(folder / "a" / "still.webp", lossless=True)
    picture(0, 9).save(folder / "a" / "old.bmp")
    assert count(load_dataset(folder)) == 63


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def wide_png(values: np.ndarray[Any, Any]) -> bytes:
    """A 16-bit PNG; Pillow writes none with colours."""
    height, width = values.shape[:2]
    colour = 2 if values.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


RED = np.zeros((6, 6, 3), np.uint8)
RED[..., 0] = 200


def rgba(alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([RED, np.full((6, 6), alpha, np.uint8)]))


def palette_with_transparency() -> Image.Image:
    image = Image.fromarray(np.zeros((6, 6), np.uint8)).convert("P")
    image.putpalette([200, 0, 0] * 256)
    image.info["transparency"] = 0
    return image


MODES: dict[str, tuple[Any, list[int], bool]] = {
    "grey": (Image.new("L", (6, 6), 90), [90, 90, 90], True),
    "16-bit grey": (wide_png(np.full((6, 6), 90 * 257)), [90, 90, 90], True),
    "16-bit colours": (wide_png(np.broadcast_to([51_400, 0, 25_700], (6, 6, 3))), [200, 0, 100], False),
    "bilevel": (Image.new("1", (6, 6), 1), [255, 255, 255], True),
    "palette": (Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE), [200, 0, 0], False),
    "grey palette": (Image.new("L", (6, 6), 90).convert("P"), [90, 90, 90], True),
    "palette, transparent": (palette_with_transparency(), [255, 255, 255], False),
    "opaque": (rgba(255), [200, 0, 0], False),
    "transparent": (rgba(0), [255, 255, 255], False),
    "half transparent": (rgba(128), [227, 127, 127], False),
    "grey with alpha": (Image.merge("LA", [Image.new("L", (6, 6), 90), Image.new("L", (6, 6), 0)]), [255] * 3, True),
}


@pytest.mark.parametrize("name", MODES)
def test_every_kind_of_pixel_is_read_as_a_viewer_shows_it(name: str, tmp_path: Path) -> None:
    image, colour, grey = MODES[name]
    content = image if isinstance(image, bytes) else save(tmp_path / "x.png", image)
    assert glance(content, "x").grey is grey
    pixels = decode(content, "x", (3, 6, 6))
    assert np.abs(pixels[:, 3, 3].astype(int) - colour).max() <= 1
    single = decode(content, "x", (1, 6, 6))
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    assert abs(int(single[0, 3, 3]) - luma) <= 1.5


def test_cmyk_and_exif_rotation(tmp_path: Path) -> None:
    content = save(tmp_path / "x.jpg", Image.fromarray(RED).convert("CMYK"), quality=95)
    assert not glance(content, "x").grey
    assert np.abs(decode(content, "x", (3, 6, 6))[:, 3, 3].astype(int) - [200, 0, 0]).max() < 12
    values = np.zeros((8, 24), np.uint8)
    values[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    content = save(tmp_path / "y.jpg", Image.fromarray(values), exif=exif, quality=95)
    assert (glance(content, "y").height, glance(content, "y").width) == (24, 8)
    upright = decode(content, "y", (1, 24, 8))[0]
    assert upright[:7].min() > 200
    assert upright[9:].max() < 60
    content = save(tmp_path / "z.png", Image.fromarray(values), exif=exif)
    assert np.array_equal(decode(content, "z", (1, 24, 8))[0], np.rot90(values, -1))


def test_unusual_names_survive_to_the_end(tmp_path: Path) -> None:
    root = write_images(tmp_path / "d", 12, classes=CLASSES)
    (root / CLASSES[0] / "a b\nç.png").write_bytes((root / CLASSES[0] / "c001.png").read_bytes())
    data = load_dataset(root)
    assert data.class_names == ("circle ring", "naïve\\nsquare", "三角")
    assert count(data) == 37
    assert all("\n" not in line for line in data.survey.lines)
    raw = os.fsencode(root / "bad") + b"\xff"
    Path(os.fsdecode(raw)).mkdir()
    for number in range(12):
        picture(1, 100 + number).save(Path(os.fsdecode(raw)) / f"{number}.png")
    names = load_dataset(root).class_names
    assert names[0].startswith("bad")
    assert all(name.isprintable() for name in names)
    "".join(names).encode()


def test_links_stay_within_the_folder_and_never_lead_in_a_circle(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    picture(0, 99).save(outside)
    (folder / "a" / "out.png").symlink_to(outside)
    (folder / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "d").symlink_to(tmp_path)
    (folder / "b" / "in.png").symlink_to(folder / "b" / "b000.png")
    (folder / "c" / "self.png").symlink_to(folder / "c" / "self.png")
    (folder / "e").symlink_to(folder / "e")
    data = load_dataset(folder)
    assert count(data) == 61
    assert data.survey.skipped == {"links out of the folder": 1, "links to folders or to nothing": 5}
    assert data.survey.duplicates.total() == 1
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert count(load_dataset(link)) == 61


def test_a_pipe_among_the_images_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "a" / "pipe.png")
    assert load_dataset(folder).survey.skipped == {"unreadable": 1}


def test_labels_that_are_not_in_the_list_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"c/c000.png has the label 'c', which is not in classes.txt"):
        load_dataset(folder)
    (folder / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="at least two classes, each once"):
        load_dataset(folder)
    root = tmp_path / "split"
    write_images(root / "train", 5)
    write_images(root / "test", 5, classes=("a", "b", "zebra"))
    with pytest.raises(DataError, match=r"'zebra', which does not occur in training"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/a000.png\n", "line 1: a path and a label are needed"),
        ("path,label\na/a000.png,a\nb/b000.png\n", "line 3: a path and a label"),
        ("path,label,split\na/a000.png,a,holdout\n", "the split is 'holdout'; allowed: train, val, test"),
        ("path,label,split\na/a000.png,a,train\nb/b000.png,b,\n", "lines without a split"),
        ("../../etc/passwd,a\n", "is outside"),
        ("/etc/passwd,a\n", "is outside"),
        ("", "holds no images to train on"),
        ("name,kind\na/a000.png,a\n", "columns name, kind, but none that is known as path and label; name the columns"),
        ("path,cat,dog\na/a000.png,1,0\n", "columns path, cat, dog, but none that is known as label"),
        ("id,label\n1,a\n", "columns id, label, but none that is known as path"),
        ("path,label,set\na/a000.png,a,first\n", "the split is 'first'; .* rename or remove it"),
        ("path,label\n" + "".join(f"a/no{n}.png,a\nb/no{n}.png,b\n" for n in range(9)), r"class 'a' \(and 1 more\) .* \(9 missing, as a/no0.png\)"),
        ("\xff\xfe", "is not a CSV file in UTF-8"),
    ],
)  # fmt: skip
def test_csv_files_that_cannot_be_are_named(folder: Path, text: str, words: str) -> None:
    (folder / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=words):
        load_dataset(folder / "list.csv")


def test_files_that_a_csv_file_names_in_vain_are_counted(folder: Path) -> None:
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    (folder / "list.csv").write_text("\n".join([*rows, "a/gone.png,a"]))
    data = load_dataset(folder / "list.csv")
    assert count(data) == 60
    assert data.survey.skipped_line == "left out 1 file: 1 missing (a/gone.png)"
    for name in ("self.png", "other.png"):
        (folder / "a" / name).symlink_to(folder / "a" / {"self.png": "other.png", "other.png": "self.png"}[name])
    (folder / "list.csv").write_text("\n".join([*rows, "a/self.png,a", "a/other.png,a"]))
    assert load_dataset(folder / "list.csv").survey.skipped_line == "left out 2 files: 2 unreadable (a/other.png)"
    (folder / "out").symlink_to("/etc")
    (folder / "list.csv").write_text("\n".join([*rows, "out/passwd,a"]))
    with pytest.raises(DataError, match="out/passwd is outside"):
        load_dataset(folder / "list.csv")


@pytest.mark.parametrize(
    "path_column", ["path", "file", "File Name", "filename", "filepath", "file_path", "image", "image_path", "img"]
)
@pytest.mark.parametrize("label_column", ["label", "class", "Target", "category", "class_name"])
def test_usual_names_of_columns_are_taken_and_said(folder: Path, path_column: str, label_column: str) -> None:
    rows = [f"0,{p.parent.name},{p.relative_to(folder)}" for p in sorted(folder.rglob("*.png"))]
    (folder / "list.csv").write_text("\n".join([f"fold,{label_column},{path_column}", *rows]))
    data = load_dataset(folder / "list.csv")
    assert count(data) == 60
    notes = "\n".join(data.survey.notes)
    assert "columns that are not used: fold" in notes
    assert (f"{path_column} as path" in notes) == (path_column != "path")
    assert (f"{label_column} as label" in notes) == (label_column != "label")


@pytest.mark.parametrize("column", ["split", "subset", "Set", "partition"])
def test_a_column_of_splits_by_any_usual_name_keeps_test_pictures_out_of_training(folder: Path, column: str) -> None:
    rows = [
        f"{p.relative_to(folder)},{p.parent.name},{'test' if n % 4 == 0 else 'Training'}"
        for n, p in enumerate(sorted(folder.rglob("*.png")))
    ]
    (folder / "list.csv").write_text("\n".join([f"path,label,{column}", *rows]))
    data = load_dataset(folder / "list.csv")
    assert (len(data.train), len(data.held_out)) == (45, 15)
    assert any("as split" in note for note in data.survey.notes) == (column.lower() != "split")


def test_the_plain_name_of_a_column_goes_before_others(folder: Path) -> None:
    rows = [f"x,{p.relative_to(folder)},other,{p.parent.name},train" for p in sorted(folder.rglob("*.png"))]
    (folder / "list.csv").write_text("\n".join(["image,path,class,label,split", *rows, "x,a/a000.png,other,a,test"]))
    data = load_dataset(folder / "list.csv")
    assert (len(data.train), len(data.held_out), data.class_names) == (60, 1, ("a", "b", "c"))
    assert "columns that are not used: image, class" in data.survey.notes


def test_an_empty_folder_that_the_list_of_classes_lacks_is_named(folder: Path) -> None:
    (folder / "classes.txt").write_text("a\nb\nc\n")
    (folder / "d").mkdir()
    with pytest.raises(DataError, match="the folder 'd' is not in classes.txt; add it there, or remove it"):
        load_dataset(folder)


def test_backslashes_between_folders_are_taken_where_no_file_has_them(folder: Path) -> None:
    rows = [f"{p.parent.name}\\{p.name},{p.parent.name}" for p in sorted(folder.rglob("*.png"))]
    (folder / "a" / "a000.png").rename(folder / "a\\a000.png")
    (folder / "list.csv").write_text("\n".join(rows))
    data = load_dataset(folder / "list.csv")
    assert count(data) == 60
    assert not data.survey.skipped
    (folder / "list.csv").write_text("\n".join([*rows, "..\\..\\etc\\passwd,a"]))
    with pytest.raises(DataError, match="is outside"):
        load_dataset(folder / "list.csv")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["16-bit", "grey", "colour", "palette"])
def test_pictures_of_all_kinds_are_turned_as_exif_says(kind: str, orientation: int, tmp_path: Path) -> None:
    pixels = np.zeros((8, 6), np.uint8)
    pixels[0], pixels[:, 0] = 255, 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = Image.fromarray(pixels)
    image, suffix = {
        "16-bit": (Image.fromarray(pixels.astype(np.uint16) * 257), "png"),
        "grey": (grey, "png"),
        "colour": (grey.convert("RGB"), "webp"),
        "palette": (grey.convert("P"), "png"),
    }[kind]
    path = tmp_path / f"x.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    image.save(path, exif=exif.tobytes(), **options)
    plain = tmp_path / "plain.png"
    grey.save(plain, exif=exif.tobytes())
    seen = glance(path.read_bytes(), path)
    assert (seen.height, seen.width) == ((8, 6) if orientation < 5 else (6, 8))
    found = read_picture(path, (1, seen.height, seen.width))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(plain)))
    assert np.abs(found[0].astype(int) - expected).max() <= 1
    if suffix == "png":
        assert np.array_equal(read_image(path), read_image(plain))


def test_names_with_newlines_and_quotation_marks_in_a_csv_file(folder: Path) -> None:
    strange = 'a "new"\nline, \x85\u2028.png'
    (folder / "a" / "a000.png").rename(folder / "a" / strange)
    quoted = strange.replace('"', '""')
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("[abc][0-9]*.png"))]
    (folder / "list.csv").write_text("\r\n".join(["path,label", f'"a/{quoted}","line\nfeed, 三"', *rows]), newline="")
    data = load_dataset(folder / "list.csv")
    assert count(data) == 60
    assert data.survey.skipped_line == ""
    assert data.class_names == ("a", "b", "c", "line\\nfeed, 三")


def test_duplicates_across_splits_and_labels_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_images(root / "train", 6)
    write_images(root / "test", 3, first=5)  # number 5 of each class is in both
    (root / "train" / "b" / "wrong.png").write_bytes((root / "train" / "a" / "a000.png").read_bytes())
    data = load_dataset(root)
    assert data.survey.duplicates == {
        "within the training images": 1,
        "with different labels": 1,
        "of the test images are among the training images too": 3,
    }
    assert data.survey.duplicates_line.startswith("duplicates: 1 within the training images; ")


def test_splits_beside_classes_are_refused(folder: Path) -> None:
    (folder / "a").rename(folder / "train")
    with pytest.raises(DataError, match="has train and also b: put every class folder into train"):
        load_dataset(folder)


def test_pictures_too_large_to_decode_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 300)).save(folder / "a" / "large.png")
    monkeypatch.setitem(decoding.MOST_PIXELS, "PNG", 299 * 299)
    data = load_dataset(folder)
    assert data.survey.skipped == {"too large to decode": 1}
    assert data.input_shape == (3, 12, 12)


def test_twenty_thousand_files_with_one_broken(tmp_path: Path) -> None:
    """Small files: the point is that one of them does not stop the rest."""
    contents = [save(tmp_path / "x.png", Image.new("L", (4, 4), value)) for value in range(0, 250, 5)]
    for label in ("dark", "light"):
        (tmp_path / "d" / label).mkdir(parents=True)
        half = contents[:25] if label == "dark" else contents[25:]
        for number in range(10_000):
            (tmp_path / "d" / label / f"{number}.png").write_bytes(half[number % 25])
    (tmp_path / "d" / "dark" / "777.png").write_bytes(contents[0][:40])
    data = load_dataset(tmp_path / "d", shape=(1, 4, 4))
    assert count(data) == 19_999
    assert data.survey.skipped_line == "left out 1 file: 1 unreadable (dark/777.png)"
    assert torch.equal(data.train.labels, (data.train.images[:, 0, 0, 0] >= 125).long())


def test_a_picture_to_classify_is_preprocessed_alike(folder: Path) -> None:
    path = folder / "a" / "a003.png"
    assert np.array_equal(read_picture(path, (3, 12, 12)), decode(path.read_bytes(), "x", (3, 12, 12)))
    animated(folder / "moving.gif", "GIF")
    for name, words in (("moving.gif", "animated; keep one frame"), ("no.png", "does not exist")):
        with pytest.raises(ImageError, match=words):
            read_picture(folder / name, (3, 12, 12))
    assert ".tif" not in SUFFIXES


def test_mistakes_are_one_line_of_the_command(smidgen: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert smidgen("data", tmp_path / "empty").is_mistake("holds no images")
    assert smidgen("run", "--data", tmp_path / "empty", "--out", tmp_path / "r").is_mistake("holds no images")
    assert smidgen("run", "--data", folder, "--set", "data.shape=[2,3,4]").is_mistake("data.shape", "channels")


def mutations(content: bytes, count: int, seed: int) -> list[bytes]:
    """The content with some bytes changed, and often cut."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(generator.randint(1, 6)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        made.append(bytes(changed[: generator.randint(1, len(changed))] if generator.random() < 0.3 else changed))
    return made


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP"])
def test_damaged_pictures_end_in_pixels_or_in_one_line(kind: str, tmp_path: Path) -> None:
    image = picture(1, 3, side=16)
    content = save(tmp_path / f"x.{kind.lower()}", image.quantize(64) if kind == "GIF" else image)
    with decoding.quiet():
        for changed in mutations(content, 150, 5):
            try:
                found = glance(changed, "x")
                assert min(found.height, found.width) > 0
                assert decode(changed, "x", (3, 8, 8)).shape == (3, 8, 8)
            except ImageError as error:
                assert "\n" not in str(error)


def test_damaged_tables_and_arrays_end_in_data_or_in_one_line(folder: Path) -> None:
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    np.savez_compressed(
        folder / "d.npz", images=np.arange(60 * 36, dtype=np.uint8).reshape(60, 6, 6), labels=np.arange(60) % 3
    )
    for name, content in (("d.csv", "\n".join(rows).encode()), ("d.npz", (folder / "d.npz").read_bytes())):
        for changed in mutations(content, 60, 7):
            (folder / name).write_bytes(changed)
            try:
                assert count(load_dataset(folder / name)) <= 60
            except DataError as error:
                assert "\n" not in str(error)
