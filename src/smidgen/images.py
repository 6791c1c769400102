"""Preprocessing of drawings of any size and either polarity into MNIST's form.

MNIST's own form (from its page): the digit scaled to fit a box of 20 × 20 pixels with its
proportions kept, then placed so that its centre of mass is the centre of 28 × 28 pixels; light
ink on black. Other sizes of input use a box in the same proportion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from smidgen.data.decode import is_wide, narrowed, opened, quiet, read_content
from smidgen.errors import ImageError

FORMATS = ("PNG", "JPEG")

_WORKING_SIDE = 512
_LEAST_CONTRAST = 12
"""Of 255: less than this between ink and paper is noise."""
_INK = 0.1
"""Of the strongest ink: what is weaker does not count towards the drawing's extent."""

_Floats = npt.NDArray[np.float32]


def read_image(path: Path, height: int = 28, width: int = 28) -> npt.NDArray[np.uint8]:
    """Read a PNG or JPEG file and bring it to MNIST's form.

    The size is read from the header and checked before anything is decoded. Whether ink is dark
    or light is told by the image's border, which is assumed to be paper.

    Args:
        path: the file.
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        uint8 [height, width], ink light on black.

    Raises:
        ImageError: the file is missing, no PNG or JPEG, damaged, too large, or blank.
    """
    ink = _ink(_decode(path), path)
    rows, columns = np.flatnonzero(ink.max(1) > _INK), np.flatnonzero(ink.max(0) > _INK)
    drawing = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _centred(drawing, height, width)


def _decode(path: Path) -> Image.Image:
    """The image as 8-bit grey, at most `_WORKING_SIDE` pixels a side, upright, without transparency."""
    with quiet(), opened(read_content(path), path, FORMATS) as image:
        image.draft("L", (_WORKING_SIDE, _WORKING_SIDE))
        image.load()
        return _grey(image)


def _grey(image: Image.Image) -> Image.Image:
    if is_wide(image):
        image = narrowed(image)
    factor = max(1, max(image.size) // _WORKING_SIDE)
    if image.mode == "P" or (factor > 1 and image.mode not in ("L", "RGB", "RGBA", "LA")):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if factor > 1:
        image = image.reduce(factor)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = _on_paper(image.convert("LA"))
    image = image.convert("L")
    image.thumbnail((_WORKING_SIDE, _WORKING_SIDE), Image.Resampling.BOX)
    return image


def _on_paper(image: Image.Image) -> Image.Image:
    """Put a drawing with transparency on white paper, or on black if it is drawn in light ink."""
    grey, alpha = (np.asarray(band, dtype=np.float64) for band in image.split())
    light_ink = alpha.sum() > 0 and (grey * alpha).sum() / alpha.sum() > 127
    paper = 0.0 if light_ink else 255.0
    return Image.fromarray((paper + (grey - paper) * alpha / 255).astype(np.uint8))


def _ink(image: Image.Image, path: Path) -> _Floats:
    """Ink of each pixel, 0 to 1, whether ink is darker or lighter than the paper."""
    grey = np.asarray(image, dtype=np.float32)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = np.float32(np.median(border))
    darker, lighter = paper - grey, grey - paper
    ink = darker if darker.sum() > lighter.sum() else lighter
    strongest = float(ink.max())
    if strongest < _LEAST_CONTRAST:
        raise ImageError(f"{path} is blank: nothing stands out from its border")
    # Grain of paper or compression, as strong as what the border shows, is not ink.
    grain = min(0.5 * strongest, 2 * float(np.quantile(np.abs(border - paper), 0.9)))
    ink = np.where(ink > grain, ink, 0)
    shares: _Floats = np.clip(ink / strongest, 0, 1).astype(np.float32)
    return shares


def _centred(drawing: _Floats, height: int, width: int) -> npt.NDArray[np.uint8]:
    box = round(min(height, width) * 20 / 28)
    factor = box / max(drawing.shape)
    sides = [max(1, round(side * factor)) for side in drawing.shape]
    scaled = Image.fromarray(drawing).resize((sides[1], sides[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    small = np.clip(np.asarray(scaled), 0, 1)
    mass = max(float(small.sum()), 1e-9)
    # In MNIST's own images the centre of mass lies within half a pixel of row 14 and column 14.
    centre_y = float((small.sum(1) * np.arange(sides[0])).sum()) / mass
    centre_x = float((small.sum(0) * np.arange(sides[1])).sum()) / mass
    top = min(max(round(height // 2 - centre_y), 0), height - sides[0])
    left = min(max(round(width // 2 - centre_x), 0), width - sides[1])
    result = np.zeros((height, width), dtype=np.uint8)
    result[top : top + sides[0], left : left + sides[1]] = np.rint(small * 255)
    return result
