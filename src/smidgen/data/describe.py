"""`smidgen data`: what data sets are at hand, or what is at a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.data.dataset import BUNDLED, Dataset, load_dataset
from smidgen.data.known import KNOWN
from smidgen.data.parts import Examples, NoTestImagesError, label_name
from smidgen.data.sheet import contact_sheet
from smidgen.errors import RunError
from smidgen.files import write_atomic
from smidgen.tables import render

_MOST_SIZES = 6
"""Lines of the size histogram; the rest is added up."""


@dataclass(frozen=True)
class Description:
    """A data set as it was found; reading it has checked it.

    Attributes:
        dataset: with its test images held out, or its own validation images where it has no others.
        validation: images for tuning that the data have besides.
    """

    dataset: Dataset
    validation: Examples | None = None

    @property
    def published(self) -> dict[str, str]:
        """For each file, the published data set that contains a file of that name with the same SHA-256, if any."""
        return {
            name: next((known.title for known in KNOWN.values() if known.sha256.get(name) == sha256), "")
            for name, sha256 in self.dataset.sha256.items()
        }

    @property
    def parts(self) -> dict[str, Examples]:
        """The examples of each split."""
        parts = {"train": self.dataset.train}
        if self.validation is not None:
            parts["validation"] = self.validation
        return {**parts, self.dataset.held_out_name: self.dataset.held_out}

    def to_json(self) -> dict[str, Any]:
        """The description as JSON data."""
        d = self.dataset
        return {
            "name": d.name,
            "kind": d.survey.kind,
            **{f"{part}_images": len(examples) for part, examples in self.parts.items()},
            "shape": list(d.input_shape),
            "classes": d.classes,
            "class_names": list(d.class_names),
            "mean": d.mean,
            "std": d.std,
            **{f"{part}_images_per_class": self._per_class(examples) for part, examples in self.parts.items()},
            "sizes": [[height, width, count] for (height, width), count in d.survey.sizes.most_common()],
            "left_out": dict(d.survey.skipped),
            "duplicates": dict(d.survey.duplicates),
            "notes": list(d.survey.notes),
            "sha256": d.sha256,
            "published": self.published,
            "is_mnist": set(self.published.values()) == {KNOWN["mnist"].title},
        }

    def text(self, hashes: bool = False) -> str:
        """A line of text; for data that is not bundled also classes, sizes and skipped files; hashes on request."""
        d = self.dataset
        counts = " and ".join(f"{len(e):,} {'training' if p == 'train' else p}" for p, e in self.parts.items())
        lines = [
            f"{d.name}: {counts} images of "
            f"{'x'.join(map(str, d.input_shape))}, {d.classes} classes, mean {d.mean:.4f}, std {d.std:.4f}"
        ]
        if hashes:
            for name, sha256 in d.sha256.items():
                title = self.published[name]
                verdict = f"as published: {title}" if title else "not a published file"
                lines.append(f"  {name:<12}  sha256 {sha256}  {verdict}")
        if d.name not in BUNDLED:
            lines += ["", self._classes(), "", self._sizes(), *d.survey.lines]
        return "\n".join(lines)

    def _per_class(self, examples: Examples) -> list[int]:
        return [int(n) for n in examples.labels.bincount(minlength=self.dataset.classes)]

    def _classes(self) -> str:
        columns = [self._per_class(examples) for examples in self.parts.values()]
        names = [label_name(self.dataset.class_names, label) for label in range(self.dataset.classes)]
        rows = [list(row) for row in zip(names, *columns, strict=True)]
        return render(["class", *self.parts], rows)

    def _sizes(self) -> str:
        sizes = self.dataset.survey.sizes
        total = sizes.total()
        shown = [(f"{height} x {width}", count) for (height, width), count in sizes.most_common(_MOST_SIZES)]
        rest = total - sum(count for _, count in shown)
        if rest:
            shown.append((f"{len(sizes) - _MOST_SIZES:,} others", rest))
        rows = [(size, count, "#" * max(1, round(40 * count / total))) for size, count in shown]
        wide = max(len(row[0]) for row in rows)
        return "\n".join(
            ["height x width, pixels", *(f"{size:>{wide}}  {count:>9,}  {bar}" for size, count, bar in rows)]
        )


def describe(path: str | Path | None = None, *, sheet: str | Path | None = None) -> list[Description]:
    """Describe the data set at a path, or all bundled ones.

    Args:
        path: of the data, as `load_dataset` takes it.
        sheet: where to write a contact sheet, a PNG file with a row of training images for each class.

    Raises:
        DataError: a file is missing or damaged.
        RunError: the sheet cannot be written.
    """
    found = [_described(source) for source in ([path] if path is not None else BUNDLED)]
    if sheet is not None:
        target = Path(sheet)
        if target.suffix.lower() != ".png" or target.is_dir():
            raise RunError(f"--sheet {sheet} must be a file whose name ends in .png")
        write_atomic(target, contact_sheet(found[0].dataset), flag="--sheet")
    return found


def _described(source: str | Path) -> Description:
    try:
        dataset = load_dataset(source)
    except NoTestImagesError:
        return Description(load_dataset(source, validation=1))
    if not dataset.survey.own_validation:
        return Description(dataset)
    tuning = load_dataset(source, validation=1, shape=dataset.input_shape)
    return Description(dataset, tuning.held_out)
