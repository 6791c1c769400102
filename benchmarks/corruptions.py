"""Accuracy on corrupted test images, which were not used for tuning: `make corruptions`.

Takes the runs of `make results`, trains what is missing of them, and prints the accuracy on the test images as they
are and on four corrupted copies of them, as Markdown. The kinds are those of MNIST-C (Mu and Gilmer,
"MNIST-C: A Robustness Benchmark for Computer Vision", 2019) in spirit, and milder; the copies are the same for every
network and at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import smidgen
from common import RESULTS, accuracy, parser
from smidgen.data.dataset import Examples
from smidgen.tables import render

SETS = (
    replace(RESULTS["reference"], trials=("mnist-3-augmented",)),
    RESULTS["float32"],
    RESULTS["sprint"],
)


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


def corrupted(examples: Examples, kind: Callable[[Tensor], Tensor]) -> Examples:
    """The examples with their images changed: computed on 0 to 1, clipped, and rounded to 256 levels."""
    changed = kind(examples.images.float() / 255).clamp(0, 1)
    return Examples((255 * changed).round().to(torch.uint8), examples.labels)


def main() -> None:
    """Make what is missing, evaluate, print the table."""
    arguments = parser(__doc__).parse_args()
    held_out = smidgen.load_dataset().held_out
    copies = [corrupted(held_out, kind) for kind in KINDS.values()]
    rows: list[list[object]] = []
    for result in (result for one in SETS for result in one.runs(arguments)):
        cells = [_mean_sd([accuracy(run, copy) for run in result.runs]) for copy in copies]
        rows.append([result.trial.name, len(result.runs), *cells])
    print(render(["trial", "n", *KINDS], rows, "markdown"))


def _mean_sd(values: list[float]) -> str:
    summary = smidgen.summarize(values, 0)
    return f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ± {summary.sd:.2f}")


if __name__ == "__main__":
    main()
