"""Listing the image files of a folder or CSV file with labels and splits; nothing is decoded here."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from smidgen.data.decode import SUFFIXES
from smidgen.errors import DataError
from smidgen.files import cannot_read, read_bounded

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits, as folders and in CSV files."""
CLASSES_FILE = "classes.txt"
"""Beside the class folders or the CSV file: the names of the classes, a line each, in the order of their labels."""
MOST_FILES = 2_000_000
MOST_CLASSES = 4_096
MOST_TABLE_BYTES = 2**28
LONGEST_NAME = 100
"""Of a class, characters."""
_LONGEST_SHOWN = 300

_PATH_COLUMNS = """
    path file filename filepath image imagepath imagefile imagefilename imagename img imgpath picture relativepath
"""
_LABEL_COLUMNS = "label labels class classname classlabel labelname target category categoryname"
_SPLIT_COLUMNS = "split subset set partition datasplit"
"""Names of columns in small letters, without what separates words."""


@dataclass(frozen=True)
class Entry:
    """An image file that was named.

    Attributes:
        path: where it is.
        name: relative to the folder, shown in messages.
        label: name of its class.
        split: train, val, test, or nothing where the data have no splits.
    """

    path: Path
    name: str
    label: str
    split: str = ""


@dataclass
class Listing:
    """The image files of a folder or CSV file.

    Attributes:
        kind: `image folder` or `CSV file`.
        entries: sorted by file name, so that files numbered as in an IDX file come in its order.
        classes: their names in order, where a file says so.
        labels: of the class folders, with images or without.
        skipped: how many files were left out, by the reason.
        first_skipped: the first of each.
        skipped_of: names of those left out, by the label and the reason.
        notes: one line each, of what else is worth saying.
    """

    kind: str
    entries: list[Entry] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    labels: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)

    skipped_of: defaultdict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def skip(self, reason: str, name: str, label: str = "") -> None:
        """Count a file that is left out."""
        self.skipped[reason] += 1
        self.skipped_of[label, reason].append(name)
        self.first_skipped.setdefault(reason, brief(name))

    @property
    def has_splits(self) -> bool:
        """Whether the data say themselves what is trained on."""
        return any(entry.split for entry in self.entries)


def shown(name: str) -> str:
    """A name for people, in one line, whatever is in it."""
    text = unicodedata.normalize("NFC", name)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) if text.strip() else ascii(text)


def brief(name: str) -> str:
    """A name for people, as in `shown`, and no longer than a message can be."""
    text = shown(name)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def natural(name: str) -> tuple[object, ...]:
    """Sorts names with numbers in them by the numbers: 2 before 10."""
    pieces = re.split(r"(\d+)", name)
    return tuple((int(p[:LONGEST_NAME]), p) if i % 2 else p for i, p in enumerate(pieces))


def list_folder(root: Path) -> Listing:
    """The image files below a folder: a subfolder a class, or train, val and test with those in them.

    Links are followed only to files within the folder; links to folders never, so that none leads out or
    in a circle.

    Raises:
        DataError: it has no images in class folders, or splits and class folders side by side.
    """
    listing = Listing("image folder", classes=_read_classes(root))
    top = [item for item in _scan(root, listing) if item.is_dir(follow_symlinks=False)]
    splits = [item.name for item in top if item.name.lower() in SPLITS]
    if "train" in {SPLITS[name.lower()] for name in splits}:
        others = [item.name for item in top if item.name not in splits]
        if others:
            raise DataError(
                f"{root} has {splits[0]} and also {shown(others[0])}: put every class folder into train, val or "
                f"test, or none"
            )
        for name in sorted(splits):
            for item in _scan(root / name, listing):
                if item.is_dir(follow_symlinks=False):
                    _walk(root, Path(item.path), item.name, SPLITS[name.lower()], listing)
                else:
                    listing.skip("outside a class folder", f"{name}/{item.name}")
    else:
        for item in top:
            _walk(root, Path(item.path), item.name, "", listing)
        for item in _scan(root, Listing("")):
            if not item.is_dir(follow_symlinks=False) and Path(item.name).suffix.lower() in SUFFIXES:
                listing.skip("outside a class folder", item.name)
    listing.entries.sort(key=lambda e: (natural(Path(e.name).name), natural(e.name)))
    return listing


def _scan(folder: Path, listing: Listing) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, without hidden ones; links to folders are counted and skipped."""
    try:
        with os.scandir(folder) as found:
            items = sorted((i for i in found if not i.name.startswith((".", "__MACOSX"))), key=lambda i: i.name)
    except OSError as error:
        raise DataError(cannot_read(folder, error)) from None
    kept = []
    for item in items:
        if item.is_symlink() and not _leads_to_file(item):
            listing.skip("links to folders or to nothing", item.name)
        else:
            kept.append(item)
    return kept


def _leads_to_file(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_file()
    except OSError:  # it leads back to itself
        return False


def _walk(root: Path, folder: Path, label: str, split: str, listing: Listing) -> None:
    """Add the images of a class, those in folders within its folder included."""
    waiting, label, inside = [folder], shown(label), root.resolve()
    if split in ("", "train"):
        listing.labels.add(label)
    while waiting:
        current = waiting.pop()
        for item in _scan(current, listing):
            path = Path(item.path)
            name = path.relative_to(root).as_posix()
            if item.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif Path(item.name).suffix.lower() not in SUFFIXES:
                listing.skip("no image by its name", name, label)
            elif item.is_symlink() and not path.resolve().is_relative_to(inside):
                listing.skip("links out of the folder", name, label)
            elif len(listing.entries) >= MOST_FILES:
                raise DataError(f"{root} holds more than {MOST_FILES:,} images; that is more than is supported")
            else:
                listing.entries.append(Entry(path, name, label, split))


def list_table(path: Path) -> Listing:
    """The image files that a CSV file names: a column of paths, one of labels and, if wanted, one of splits.

    The first line may name the columns, as path, label and split or by other usual names. Paths start at the CSV
    file's folder and stay within it; a backslash separates folders where no file has one in its name.

    Raises:
        DataError: it is not a CSV file, or a path, split or line in it is invalid.
    """
    listing, inside = Listing("CSV file", classes=_read_classes(path.parent)), path.parent.resolve()
    try:
        for number, row in _rows(path, read_bounded(path, MOST_TABLE_BYTES), listing):
            listing.entries.append(_entry(path, inside, number, row))
            if len(listing.entries) > MOST_FILES:
                raise DataError(f"{path} names more than {MOST_FILES:,} images; that is more than is supported")
    except OSError as error:
        raise DataError(cannot_read(path, error)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if listing.has_splits and not all(entry.split for entry in listing.entries):
        raise DataError(
            f"{path} has lines without a split; set one of train, val, test everywhere, or remove the column"
        )
    listing.entries.sort(key=lambda e: (natural(Path(e.name).name), natural(e.name)))
    return listing


def _rows(path: Path, content: bytes, listing: Listing) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """The number of each line with anything in it, and its path, label and split, empty where there is no such column.

    One at a time: all cells of a large table would take many times its size. A name in quotation marks may hold a
    newline.
    """
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""))
    columns: list[int] = []
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not cells:
            continue
        if not columns:
            columns, is_head = _columns(path, cells, listing)
            if is_head:
                continue
        name, label, *split = [cells[place] if place < len(cells) else "" for place in columns]
        yield reader.line_num, (name, label, "".join(split).lower())


def _entry(table: Path, inside: Path, number: int, cells: tuple[str, str, str]) -> Entry:
    """A line of a table as the file that it names, which must be inside a folder, given without links."""
    name, label, split = cells
    if not name or not label:
        raise DataError(f"{table}, line {number}: a path and a label are needed, and in the same columns everywhere")
    if split and split not in SPLITS:
        raise DataError(
            f"{table}, line {number}: the split is {brief(split)!r}; allowed: train, val, test; if the column says "
            f"something else, rename or remove it"
        )
    if len(label) > LONGEST_NAME:
        raise DataError(f"{table}, line {number}: the label {brief(label)} is longer than {LONGEST_NAME} characters")
    if "\\" in name and "\0" not in name and not os.path.lexists(table.parent / name):
        name = name.replace("\\", "/")
    file = table.parent / name
    # Not `Path.resolve`, which has no answer where links go in a circle.
    if "\0" in name or not Path(os.path.realpath(file)).is_relative_to(inside):
        raise DataError(
            f"{table}, line {number}: {brief(name)} is outside {table.parent}; put the CSV file above its images"
        )
    return Entry(file, name, shown(label), SPLITS.get(split, ""))


def _columns(path: Path, first: list[str], listing: Listing) -> tuple[list[int], bool]:
    """The places of path, label and split, and whether the first line is a header.

    Raises:
        DataError: the first line names columns, but not those that are needed.
    """
    head = [re.sub(r"[\s_.-]+", "", cell.lower()) for cell in first]
    kinds = [("path", _PATH_COLUMNS.split()), ("label", _LABEL_COLUMNS.split()), ("split", _SPLIT_COLUMNS.split())]
    found = [next((head.index(name) for name in known if name in head), None) for _, known in kinds]
    names_a_file = "/" in first[0] or "\\" in first[0] or Path(first[0]).suffix.lower() in SUFFIXES
    if not names_a_file and (found[0] is None or found[1] is None):
        missing = " and ".join(kind for (kind, _), place in zip(kinds[:2], found, strict=False) if place is None)
        raise DataError(
            f"{path}: the first line has the columns {brief(', '.join(first))}, but none that is known as {missing}; "
            f"name the columns path and label, and split if there is one"
        )
    if names_a_file or found[0] is None or found[1] is None:
        places, is_head = list(range(min(len(first), 3))), False
    else:
        places, is_head = [place for place in found if place is not None], True
        taken = [
            f"{brief(first[place])} as {kind}"
            for (kind, _), place in zip(kinds, found, strict=True)
            if place is not None and head[place] != kind
        ]
        if taken:
            listing.notes.append(f"columns: {', '.join(taken)}")
    unused = [brief(name) if is_head else str(i + 1) for i, name in enumerate(first) if i not in places]
    if unused:
        listing.notes.append(f"columns that are not used: {', '.join(unused)}")
    return places if len(places) > 1 else [0, 1], is_head


def _read_classes(root: Path) -> tuple[str, ...] | None:
    path = root / CLASSES_FILE
    try:
        text = read_bounded(path, 2**20).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(cannot_read(path, error)) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8") from None
    classes = tuple(shown(line.strip()) for line in text.splitlines() if line.strip())
    if len(classes) != len(set(classes)) or len(classes) < 2:
        raise DataError(f"{path} must name at least two classes, each once, a line each")
    return classes


def class_names(listing: Listing, name: object) -> tuple[str, ...]:
    """The classes in the order of their labels: as `classes.txt` says, or sorted by name, numbers by size.

    Only what is trained on gives classes.

    Raises:
        DataError: there are fewer than two or too many, or a file has a label that is not among them.
    """
    trained = {entry.label for entry in listing.entries if entry.split in ("", "train")}
    if trained:  # a class folder without images is a class that lacks them
        trained |= listing.labels
    classes = listing.classes or tuple(sorted(trained, key=natural))
    if not trained:
        what = ", ".join(sorted(SUFFIXES))
        raise DataError(
            f"{name} holds no images to train on{_left_out(listing)}; give a folder with a subfolder of images "
            f"({what}) for each class, four IDX files, an .npz or a .csv file"
        )
    if len(trained) < 2:
        raise DataError(f"{name} has a single class, {next(iter(trained))!r}; at least two are needed")
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{name} has {len(classes):,} classes; at most {MOST_CLASSES:,} are supported")
    for label in classes:
        if len(label) > LONGEST_NAME:
            raise DataError(f"{name}: the class name {label[:40]!r}... is longer than {LONGEST_NAME} characters")
    known = set(classes)
    unlisted = sorted(listing.labels - known - {entry.label for entry in listing.entries})
    if unlisted:
        raise DataError(f"{name}: the folder {unlisted[0]!r} is not in {CLASSES_FILE}; add it there, or remove it")
    for entry in listing.entries:
        if entry.label not in known or entry.label not in trained:
            where = (
                "does not occur in training"
                if entry.label in known or not listing.classes
                else f"is not in {CLASSES_FILE}"
            )
            raise DataError(
                f"{name}: {brief(entry.name)} has the label {entry.label!r}, which {where}; add it there, or leave "
                f"the file out"
            )
    return classes


def _left_out(listing: Listing) -> str:
    if not listing.skipped:
        return ""
    reason, count = listing.skipped.most_common(1)[0]
    return f" ({count:,} files are {reason}, as {listing.first_skipped[reason]})"
