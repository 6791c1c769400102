"""The page of a network of pictures in a real browser: files of every kind are seen as `smidgen predict` sees them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from conftest import Command
from images import picture, with_metadata
from smidgen.data.decode import decode
from smidgen.exports.export import export
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.trial import Data, Trial
from test_bad_images import animated, wide_png
from test_browser import browser, pytestmark  # noqa: F401 - a fixture, and a mark for this file too
from test_browser_page import EVERY_TEXT, HANDED_OVER, Opened, content, opening
from test_named_exports import HOSTILE, hostile_run  # noqa: F401 - a fixture

SHAPE = (3, 12, 12)
SMOOTH = Image.fromarray(np.random.default_rng(8).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with some edges, as a camera's."""
    bands = [
        SMOOTH.rotate(angle).resize((width, height), Image.Resampling.BICUBIC).convert("L") for angle in (0, 90, 180)
    ]
    image = Image.merge("RGB", bands)
    image.paste((250, 20, 90), (width // 3, height // 4, width // 2, height - height // 5))
    return image


def with_alpha(image: Image.Image) -> Image.Image:
    alpha = Image.linear_gradient("L").resize(image.size)
    return Image.merge("RGBA", (*image.split(), alpha))


TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be seen upright, by 90 degrees


def wide(channels: int) -> bytes:
    values = np.random.default_rng(3).integers(0, 65536, (20, 31, channels))
    return wide_png(values if channels == 3 else values[..., 0])


KINDS: dict[str, tuple[bytes, int]] = {
    "png": (content(photo(97, 60)), 0),
    "png, large and tall": (content(photo(700, 1900)), 0),
    "png, of the right size": (content(photo(12, 12)), 0),
    "png, tiny": (content(photo(3, 2)), 0),
    "png, palette": (content(photo(50, 40).quantize(200)), 0),
    "png, grey": (content(photo(64, 64).convert("L")), 0),
    "png, bilevel": (content(photo(64, 64).convert("1")), 0),
    "png, alpha": (content(with_alpha(photo(80, 60))), 1),
    "png, grey and alpha": (content(with_alpha(photo(80, 60)).convert("LA")), 1),
    "png, 16-bit grey": (wide(1), 1),
    "png, 16-bit colours": (wide(3), 1),
    "png, to be turned": (content(photo(40, 90), exif=TURNED), 0),
    "bmp": (content(photo(33, 70), "BMP"), 0),
    "gif": (content(photo(60, 60).quantize(64), "GIF"), 0),
    "webp, lossless": (content(photo(60, 90), "WEBP", lossless=True), 0),
    "webp": (content(photo(60, 90), "WEBP", quality=80), 1),
    "jpeg": (content(photo(40, 23), "JPEG", quality=90), 1),
    "jpeg, to be turned": (content(photo(23, 40), "JPEG", quality=90, exif=TURNED), 1),
    "jpeg, grey": (content(photo(40, 23).convert("L"), "JPEG"), 1),
    "jpeg, large": (content(photo(1200, 900), "JPEG"), 2),
    "jpeg, odd and large": (content(photo(1211, 333), "JPEG"), 2),
    "jpeg, metadata": (with_metadata(content(photo(40, 23), "JPEG", quality=90)), 1),
    "jpeg, cmyk": (content(photo(40, 40).convert("CMYK"), "JPEG", quality=95), 1),
}
"""Files, and by how many of 255 shades a pixel may differ from what Pillow makes of it."""


@pytest.fixture(scope="module")
def file(colour_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = export(colour_run, "page", tmp_path_factory.mktemp("page"))
    assert made.passed
    return next(made.directory.glob("*.html"))


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Opened]:  # noqa: F811
    with opening(browser, file) as one:
        yield one


def give(opened: Opened, data: bytes, name: str = "x.png") -> None:
    """Open a file, and wait until it is shown or refused."""
    opened.page.evaluate("() => { document.getElementById('best').textContent = ''; tell(''); }")
    opened.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
    opened.page.wait_for_function(
        "() => document.getElementById('best').textContent || document.getElementById('message').textContent"
    )


def seen(opened: Opened, shape: tuple[int, int, int] = SHAPE) -> np.ndarray[Any, Any]:
    """The image that the network gets, uint8 of a shape, read off the canvas that shows it."""
    values = opened.page.evaluate(
        "() => { const c = document.getElementById('seen'); "
        "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); }"
    )
    pixels = np.array(values, np.uint8).reshape(*shape[1:], 4)[..., :3].transpose(2, 0, 1)
    assert shape[0] == 3 or (pixels == pixels[:1]).all()
    return pixels[: shape[0]]


def differs(opened: Opened, data: bytes, shape: tuple[int, int, int] = SHAPE) -> int:
    """By how many shades at most from what Pillow makes of the file."""
    return int(np.abs(seen(opened, shape).astype(int) - decode(data, "x", shape)).max())


def test_files_are_seen_as_predict_sees_them(opened: Opened, colour_run: Run, smidgen: Command, tmp_path: Path) -> None:
    for kind, (data, most) in KINDS.items():
        give(opened, data)
        assert opened.message == "", kind
        assert differs(opened, data) <= most, kind
    paths = []
    for label in range(3):
        paths.append(tmp_path / f"{label}.png")
        picture(label, 500).save(paths[-1])
    found = smidgen("predict", colour_run.directory, *paths, "--json").json["predictions"]
    assert [one["label"] for one in found] == [0, 1, 2]
    for path, one in zip(paths, found, strict=True):
        give(opened, path.read_bytes())
        assert opened.best == one["name"]
        share = float(opened.page.locator("#share").inner_text().rstrip(" %"))
        assert abs(share - 100 * one["probability"]) < 0.2
        assert opened.page.locator("#bars tr.top th").inner_text() == one["name"]


def test_a_network_of_grey_pictures(
    browser: Browser,  # noqa: F811
    colour_folder: Path,
    small_trial: Trial,
    tmp_path: Path,
) -> None:
    trial = replace(small_trial, epochs=1, batch_size=20, data=Data(source=str(colour_folder), shape=(1, 20, 31)))
    export(run(trial, out=tmp_path / "run", progress=Silent()), "page", tmp_path / "out")
    with opening(browser, tmp_path / "out" / "small.html") as one:
        for kind in ("png", "png, alpha", "png, tiny", "png, large and tall", "jpeg, large"):
            data, most = KINDS[kind]
            give(one, data)
            assert differs(one, data, (1, 20, 31)) <= most, kind


def saved(path: Path, kind: str) -> bytes:
    animated(path, kind)
    return path.read_bytes()


def test_a_bad_file_is_one_line_and_leaves_what_is_shown(opened: Opened, tmp_path: Path) -> None:
    good = content(picture(2, 7))
    give(opened, good)
    best, before = opened.best, seen(opened)
    bmp, webp = content(photo(60, 60), "BMP"), content(photo(60, 60), "WEBP")
    bad = {
        "text.png": (b"hello", "text.png is not a PNG, JPEG, BMP, GIF or WebP image."),
        "empty.png": (b"", "empty.png is not a PNG"),
        "cut.png": (good[:90], "cut.png cannot be decoded: the file is damaged."),
        "cut.webp": (webp[:60], "cut.webp cannot be decoded"),
        "bomb.bmp": (bmp[:18] + (60_000).to_bytes(4, "little") * 2 + bmp[26:], "60000 × 60000 pixels, too many to"),
        "bomb.gif": (b"GIF89a" + b"\xff\xff" * 2 + bytes(30), "65535 × 65535 pixels"),
        "moving.gif": (saved(tmp_path / "x.gif", "GIF"), "moving.gif is animated; keep one frame of it."),
        "moving.png": (saved(tmp_path / "x.png", "PNG"), "moving.png is animated"),
        "moving.webp": (saved(tmp_path / "x.webp", "WEBP"), "moving.webp is animated"),
        "<img src=x>.png": (b"x", "<img src=x>.png is not a PNG"),
    }
    for name, (data, words) in bad.items():
        opened.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
        opened.page.wait_for_function(
            "text => document.getElementById('message').textContent.includes(text)", arg=words
        )
        assert "\n" not in opened.message
        assert opened.best == best
        assert np.array_equal(seen(opened), before)
    give(opened, good)
    assert opened.message == ""


def test_sizes_are_found_in_every_header(opened: Opened) -> None:
    """Before anything is decoded; the three forms of WebP, and BMP with rows from the top, each have one of their own."""
    image = photo(300, 77)
    webp = [content(image, "WEBP"), content(image, "WEBP", lossless=True), content(image, "WEBP", exif=TURNED)]
    assert [data[12:16] for data in webp] == [b"VP8 ", b"VP8L", b"VP8X"]
    bmp = content(image, "BMP")
    old = b"BM" + bytes(12) + (12).to_bytes(4, "little") + (300).to_bytes(2, "little") + (77).to_bytes(2, "little")
    upside = bmp[:22] + (-77).to_bytes(4, "little", signed=True) + bmp[26:]
    for data in [*webp, bmp, upside, old + bytes(30), content(image.quantize(9), "GIF"), content(image)]:
        found = opened.page.evaluate(
            "(text) => { const b = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)); "
            "return Object.values(FORMATS).map((size) => size(b)).filter(Boolean); }",
            base64.b64encode(data).decode(),
        )
        assert found == [{"width": 300, "height": 77}]


def test_images_are_dropped_and_pasted_and_the_last_one_counts(opened: Opened, colour_run: Run) -> None:
    names = colour_run.trained.class_names
    for kind, label in (("paste", 1), ("drop", 2)):
        data = base64.b64encode(content(picture(label, 600))).decode()
        if kind == "drop":
            assert not opened.page.evaluate(HANDED_OVER, ["dragover", "x.png", data])
        opened.page.evaluate(HANDED_OVER, [kind, "x.png", data])
        opened.page.wait_for_function("text => document.getElementById('best').textContent === text", arg=names[label])
    opened.page.evaluate(HANDED_OVER, ["paste", "", ""])
    assert opened.message == "There is no image on the clipboard."
    large = base64.b64encode(content(picture(0, 1).resize((2500, 2500)))).decode()
    opened.page.evaluate(HANDED_OVER, ["drop", "large.png", large])
    opened.page.evaluate(HANDED_OVER, ["drop", "small.png", base64.b64encode(content(picture(1, 601))).decode()])
    opened.page.wait_for_function("text => document.getElementById('best').textContent === text", arg=names[1])
    opened.page.wait_for_timeout(500)
    assert opened.best == names[1]


def test_by_keyboard_and_by_ear(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    # Early: chromium is told in the background that someone listens, and cancels choosers until it knows.
    page.on("filechooser", lambda _: None)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "open"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    path = tmp_path / "a picture.png"
    picture(1, 700).save(path)
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(path)
    name = page.get_by_role("img", name="The picture a picture.png")
    name.wait_for()
    page.wait_for_function(
        "() => document.getElementById('status').textContent.startsWith('It says naïve\\\\nsquare, ')"
    )
    assert page.get_by_role("img", name="The picture as the network sees it").count() == 1
    assert page.get_by_role("rowheader", name="circle ring").count() == 1
    assert page.get_by_role("table", name="Probabilities").get_by_role("row").count() == 3
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1100])
def test_hostile_names_in_a_window(
    browser: Browser,  # noqa: F811
    hostile_run: Run,  # noqa: F811
    tmp_path: Path,
    width: int,
    scheme: str,
) -> None:
    export(hostile_run, "page", tmp_path, check=False)
    with opening(browser, tmp_path / "hostile.html", width, color_scheme=scheme) as one:
        names = list(hostile_run.trained.class_names)
        assert len(names) == len(HOSTILE)
        for label in (0, 7):
            give(one, content(picture(label, 900)))
            assert one.best in names
        assert one.page.locator("#bars th").all_inner_texts() == names
        assert one.page.locator("#layers details").last.locator("bdi").all_text_contents() == names
        assert one.page.locator("dd bdi").all_inner_texts() == names
        assert one.page.locator("script").count() == 3
        assert one.page.locator("img").count() == 0
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        assert one.page.evaluate(EVERY_TEXT) >= 4.5
        for name in ("#best", "#bars th"):
            assert one.page.locator(name).first.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
