"""Decoding image files into pixels of the trained shape, within bounds.

One rule for every picture: turned upright as its EXIF data say, transparency put on white, 16 bits
brought to 8, CMYK and palettes to colours, colour to grey (ITU-R 601 luma) or grey to colour as the
channels ask; then scaled to fit the height and width with its proportions kept (a triangle filter as
wide as the reduction), centred, and the rest filled with black. A picture that has the size already
keeps its pixels as they are.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from smidgen.errors import ImageError
from smidgen.files import cannot_read, read_bounded

PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""Those whose pictures can be trained on."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
"""How the names of such files end, in small letters."""

MOST_BYTES = 64 * 2**20
MOST_PIXELS = {"PNG": 36_000_000, "JPEG": 50_000_000}
"""The largest images that are decoded: a page at 600 dots an inch, and what a phone's camera makes.
Other formats as PNG."""
MOST_SIDE = 20_000

MOST_SCANS = 50
"""In a JPEG file: each goes over the whole image, and a small file can hold millions. Cameras write 1 to 10."""

_START_OF_SCAN = b"\xff\xda"
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Orientations in which height and width change places."""
_PLAIN = {"1": "L", "L": "L", "RGB": "RGB"}
"""Modes that need nothing but Pillow's own conversion, and what they are read as."""


class AnimatedError(ImageError):
    """An image file with more than one frame."""


class TooLargeError(ImageError):
    """An image file with more bytes, pixels or scans than are decoded."""


class MissingError(ImageError):
    """An image file that does not exist."""


class BrokenError(ImageError):
    """An image file with a header, but with a body that cannot be decoded."""


@dataclass(frozen=True)
class Glance:
    """The size and colour of a picture, from its header.

    Attributes:
        height: upright, pixels.
        width: upright, pixels.
        grey: whether it has no colours, by its mode or its palette.
    """

    height: int
    width: int
    grey: bool


def read_content(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it is missing, too large or cannot be read.
    """
    try:
        return read_bounded(path, MOST_BYTES)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist") from None
    except OSError as error:
        raise ImageError(cannot_read(path, error)) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Pillow's warnings: its limit is far above the one checked here, and other problems are counted.

    For all threads at once, so not to be entered by several.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def opened(content: bytes, name: object, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The image in a file's bytes, its size checked before anything is decoded.

    Args:
        content: the file's bytes.
        name: of the file, for messages.
        formats: that are allowed, by Pillow's names.

    Raises:
        ImageError: it is none of the formats, too large, or whatever the body raises.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            _check(image, content, name)
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise TooLargeError(f"{name} has too many pixels; scale it down") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a {_listed(formats)} image") from None
    except Exception as error:  # a hostile file can make a decoder raise anything; all mean the same
        raise BrokenError(f"{name} cannot be decoded: {error or type(error).__name__}") from None


def _check(image: Image.Image, content: bytes, name: object) -> None:
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO is JPEG with more pictures after the first
    most = MOST_PIXELS.get(kind, MOST_PIXELS["PNG"])
    if image.width * image.height > most or max(image.size) > MOST_SIDE:
        raise TooLargeError(
            f"{name} is {image.width:,} x {image.height:,} pixels; at most {most:,} in total and "
            f"{MOST_SIDE:,} a side are decoded; scale it down"
        )
    if kind == "JPEG" and content.count(_START_OF_SCAN) > MOST_SCANS:
        raise TooLargeError(f"{name} has more than {MOST_SCANS} scans; save it again as a new file")


def _listed(formats: tuple[str, ...]) -> str:
    return ", ".join(formats[:-1]) + " or " + formats[-1]


def glance(content: bytes, name: object) -> Glance:
    """Read the header of a picture without decoding its pixels.

    Raises:
        AnimatedError: it has more than one frame.
        ImageError: it is not a picture that can be trained on.
    """
    with opened(content, name, PICTURE_FORMATS) as image:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise AnimatedError(f"{name} is animated; keep one frame of it")
        height, width = image.height, image.width
        if "exif" in image.info and image.getexif().get(_ORIENTATION) in _TURNED:
            height, width = width, height
        return Glance(height, width, _is_grey(image))


def decode(content: bytes, name: object, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """A picture by the rule at the top of this module.

    Args:
        content: the file's bytes.
        name: of the file, for messages.
        shape: channels (1 or 3), height, width of the result.

    Returns:
        uint8 [channels, height, width].

    Raises:
        ImageError: it cannot be decoded.
    """
    channels, height, width = shape
    with opened(content, name, PICTURE_FORMATS) as image:
        # JPEG decodes to an eighth, a quarter or half for next to nothing; twice the size is left for the filter.
        image.draft(None, (2 * max(height, width), 2 * max(height, width)))
        image.load()
        return fitted(_plain(image), channels, height, width)


def read_picture(path: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Read a picture to be classified, by the rule at the top of this module.

    Args:
        path: of the file.
        shape: channels (1 or 3), height, width of the result.

    Returns:
        uint8 [channels, height, width].

    Raises:
        ImageError: the file is missing, animated, too large, or no picture.
    """
    content = read_content(path)
    with quiet():
        glance(content, path)
        return decode(content, path, shape)


def fitted(image: Image.Image, channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """An image of mode L or RGB scaled to fit, centred on black.

    Returns:
        uint8 [channels, height, width].
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        factor = min(width / image.width, height / image.height)
        sides = [
            max(1, min(most, round(side * factor))) for side, most in zip(image.size, (width, height), strict=True)
        ]
        image = image.resize((sides[0], sides[1]), Image.Resampling.BILINEAR, reducing_gap=3.0)
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape[1:] == (height, width):
        return np.ascontiguousarray(pixels)
    result = np.zeros((channels, height, width), dtype=np.uint8)
    top, left = (height - pixels.shape[1]) // 2, (width - pixels.shape[2]) // 2
    result[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return result


def narrowed(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, its EXIF data kept; Pillow would clip it to 255 instead of scaling it."""
    wide: npt.NDArray[Any] = np.asarray(image)
    narrow = np.empty(wide.shape, dtype=np.uint8)
    for row, values in enumerate(wide):  # so that the floats take next to no memory
        narrow[row] = np.clip(values / np.float32(257), 0, 255)
        if isinstance(image.info.get("transparency"), int):  # the value that is transparent: white, as for others
            narrow[row][values == image.info["transparency"]] = 255
    made = Image.fromarray(narrow)
    made.info |= {key: image.info[key] for key in ("exif",) if key in image.info}
    return made


def is_wide(image: Image.Image) -> bool:
    """Whether a grey image has more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        mode, values = image.palette.mode, np.frombuffer(bytes(image.palette.palette), dtype=np.uint8)
        step = len(mode)
        colours = values[: len(values) // step * step].reshape(-1, step)[:, :3]
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA") or is_wide(image)


def _plain(image: Image.Image) -> Image.Image:
    """An image of any mode as L or RGB, upright."""
    if is_wide(image):
        image = narrowed(image)
    grey = _is_grey(image)
    if image.mode not in _PLAIN or "transparency" in image.info:
        image = _opaque(image, grey)
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    return image.convert("L" if grey else "RGB")


def _opaque(image: Image.Image, grey: bool) -> Image.Image:
    """On white where it is transparent, as most viewers show it."""
    exif = image.info.get("exif")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        whole = image.convert("RGBA")
        image = Image.new("RGBA", whole.size, "white")
        image.alpha_composite(whole)
    image = image.convert("L" if grey else "RGB")
    if exif is not None:
        image.info["exif"] = exif
    return image
