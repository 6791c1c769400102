"""`smidgen data`: what data sets are at hand, or what is at a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.data.dataset import BUNDLED, MNIST_SHA256, Dataset, load_dataset


@dataclass(frozen=True)
class Description:
    """A data set as it was found; reading it has checked it.

    Attributes:
        dataset: with its test images held out.
    """

    dataset: Dataset

    @property
    def known(self) -> dict[str, bool]:
        """For each file whether it is MNIST's, by its hash."""
        return {name: MNIST_SHA256[name] == sha256 for name, sha256 in self.dataset.sha256.items()}

    def to_json(self) -> dict[str, Any]:
        """The description as JSON data."""
        d = self.dataset
        return {
            "name": d.name,
            "train_images": len(d.train),
            "test_images": len(d.held_out),
            "shape": list(d.input_shape),
            "classes": d.classes,
            "mean": d.mean,
            "std": d.std,
            "train_images_per_class": d.train.labels.bincount(minlength=d.classes).tolist(),
            "test_images_per_class": d.held_out.labels.bincount(minlength=d.classes).tolist(),
            "sha256": d.sha256,
            "is_mnist": all(self.known.values()),
        }

    def text(self, hashes: bool = False) -> str:
        """A few lines for people, with the files' hashes if wanted."""
        d = self.dataset
        lines = [
            f"{d.name}: {len(d.train):,} training and {len(d.held_out):,} test images of "
            f"{'x'.join(map(str, d.input_shape))}, {d.classes} classes, mean {d.mean:.4f}, std {d.std:.4f}"
        ]
        if hashes:
            for name, sha256 in d.sha256.items():
                verdict = "MNIST's own" if self.known[name] else "not MNIST's"
                lines.append(f"  {name:<12}  sha256 {sha256}  {verdict}")
        return "\n".join(lines)


def describe(path: str | Path | None = None) -> list[Description]:
    """Describe the data set at a path, or all bundled ones.

    Raises:
        DataError: a file is missing or damaged.
    """
    return [Description(load_dataset(source)) for source in ([path] if path is not None else BUNDLED)]
