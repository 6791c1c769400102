"""How networks do on test images that nobody tuned on, mildly spoilt: `make corruptions`.

Takes the runs of `make results`, as many seeds of each trial as are there, and prints the accuracy on the test
images as they are and on four spoilt copies of them, as Markdown. The kinds are those of MNIST-C (Mu and Gilmer,
"MNIST-C: A Robustness Benchmark for Computer Vision", 2019) in spirit, and milder; the copies are the same for every
network and at every call.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import smidgen
from smidgen.data.dataset import Examples, load_dataset
from smidgen.engines.choose import choose
from smidgen.tables import render
from smidgen.training.evaluation import HeldOut, evaluate

TRIALS = ["mnist-3-augmented", "mnist-4-strict", "mnist-tiny", "mnist-tiny-99", "mnist-sprint"]


def noise(images: Tensor) -> Tensor:
    """Gaussian noise of a tenth of the range."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images + 0.1 * drawn


def blur(images: Tensor) -> Tensor:
    """A Gaussian blur with a standard deviation of a pixel."""
    places = torch.arange(-3.0, 4.0)
    line = torch.exp(-(places**2) / 2)
    line /= line.sum()
    rows = F.conv2d(images, line.view(1, 1, 1, 7), padding=(0, 3))
    return F.conv2d(rows, line.view(1, 1, 7, 1), padding=(3, 0))


def shift(images: Tensor) -> Tensor:
    """Each image moved by two pixels in one of the eight directions; black comes in."""
    count = len(images)
    directions = torch.tensor([(r, c) for r in (-2, 0, 2) for c in (-2, 0, 2) if (r, c) != (0, 0)])
    drawn = directions[torch.randint(8, (count,), generator=torch.Generator().manual_seed(0))]
    wide = F.pad(images, (2, 2, 2, 2))
    side = images.shape[-1]
    cuts = [x[:, 2 - r : 2 - r + side, 2 - c : 2 - c + side] for x, (r, c) in zip(wide, drawn.tolist(), strict=True)]
    return torch.stack(cuts)


def contrast(images: Tensor) -> Tensor:
    """Half the contrast: each image moved half the way to a grey of its own mean, which lifts black as well."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) / 2


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "noise": noise,
    "blur": blur,
    "shift": shift,
    "contrast": contrast,
}


def spoilt(examples: Examples, kind: Callable[[Tensor], Tensor]) -> Examples:
    """The examples with their images changed: worked out on 0 to 1, cut off there, rounded to 256 levels."""
    changed = kind(examples.images.float() / 255).clamp(0, 1)
    return Examples((255 * changed).round().to(torch.uint8), examples.labels)


def main() -> None:
    """Judge what is there and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where the runs of make results are")
    options = parser.parse_args()
    engine, held_out = choose(), load_dataset().held_out
    copies = {name: spoilt(held_out, kind) for name, kind in KINDS.items()}
    rows: list[list[object]] = []
    for trial in TRIALS:
        found: dict[str, list[float]] = {name: [] for name in copies}
        folder = options.root / ("results-sprint" if trial == "mnist-sprint" else "results")
        for directory in sorted(folder.glob(f"{trial}-seed*")):
            if not (directory / "result.json").exists():
                continue
            run = smidgen.load_run(directory)
            network = engine.prepare(run.network)
            for name, copy in copies.items():
                images = HeldOut(engine, copy, run.trained.mean, run.trained.std)
                found[name].append(evaluate(network, images).accuracy)
        seeds = len(found["noise"])
        if seeds:
            rows.append([trial, seeds, *map(_mean, found.values())])
    print(render(["trial", "seeds", *KINDS], rows, "markdown"))


def _mean(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


if __name__ == "__main__":
    main()
