"""Image folders for the tests, made of small pictures that can be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("circle ring", "naïve\nsquare", "三角")
"""With a space, a newline and letters that are not Latin."""


def picture(label: int, number: int, side: int = 12) -> Image.Image:
    """A colour picture of a class: one channel is strong, the rest noise; each number another picture."""
    noise = np.random.default_rng([label, number]).integers(0, 60, (side, side, 3), dtype=np.uint8)
    noise[2:-2, 2 : 4 + 2 * label, label % 3] += 180
    return Image.fromarray(noise)


def with_metadata(jpeg: bytes, segments: int = 20) -> bytes:
    """A JPEG file with as many 65 kB of XMP before its size, as phones write depth maps."""
    text = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 65_000
    return jpeg[:2] + (b"\xff\xe1" + (len(text) + 2).to_bytes(2) + text) * segments + jpeg[2:]


def write_images(root: Path, count: int, *, classes: tuple[str, ...] = ("a", "b", "c"), first: int = 0) -> Path:
    """A folder of classes, each of so many PNG files."""
    for label, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            picture(label, number).save(folder / f"{name[:1]}{number:03}.png")
    return root
