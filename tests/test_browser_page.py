"""The exported page in a real browser: drawn by mouse, finger and keyboard, fed with files, seen on small screens."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import Browser, Page

from images import with_metadata
from smidgen.data.dataset import Dataset
from smidgen.exports.page import PageTarget
from smidgen.exports.target import Source
from smidgen.images import read_image
from smidgen.runs.record import Run
from strokes import DIGITS, draw
from test_browser import CONTRAST, browser, pytestmark  # noqa: F401 - a fixture, and a mark for this file too
from test_export_page import HOSTILE

EVERY_TEXT = CONTRAST.replace("'h1, ", "'button, dt, dd, b, span:not(.ramp), ")


@dataclass
class Opened:
    """A page, and what it wrote to the console and asked of anyone."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def best(self) -> str:
        """What it reads, once it has had a frame to read it."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.page.locator("#best").inner_text()

    @property
    def seen(self) -> np.ndarray[Any, Any]:
        """The image that the network gets, uint8 [28, 28], read off the canvas that shows it."""
        assert self.best
        values = self.page.evaluate(
            "() => { const c = document.getElementById('seen'); "
            "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); }"
        )
        return np.array(values, np.uint8).reshape(28, 28, 4)[..., 0]

    @property
    def message(self) -> str:
        """The line about what went wrong; empty if nothing did."""
        return self.page.locator("#message").inner_text()


Open = Callable[..., Any]


@pytest.fixture(scope="module")
def source(flagship_run: Run, mnist: Dataset) -> Source:
    return Source(flagship_run, mnist.held_out.images[:300], mnist.held_out.labels[:300])


@pytest.fixture(scope="module")
def file(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ((name, content),) = PageTarget().files(source).items()
    path = tmp_path_factory.mktemp("page") / name
    path.write_bytes(content)
    return path


@contextmanager
def opening(browser: Browser, file: Path, width: int = 1100, **options: Any) -> Iterator[Opened]:  # noqa: F811
    """The page in a window of its own, which must stay silent and ask for nothing but itself."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.complaints.append(message.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
    context.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(file.as_uri())
    yield opened
    assert opened.complaints == []
    assert opened.requests == [file.as_uri()]
    context.close()


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Opened]:  # noqa: F811
    with opening(browser, file) as one:
        yield one


def test_drawn_digits_are_read(opened: Opened, tmp_path: Path) -> None:
    assert opened.best == "–"
    for digit, strokes in DIGITS.items():
        draw(opened.page, strokes)
        assert opened.best == digit
        shares = opened.page.locator("#bars td:last-child").all_inner_texts()
        top = opened.page.locator("#bars tr.top")
        assert top.locator("th").inner_text() == digit
        assert top.locator("td").last.inner_text() == max(shares, key=lambda text: float(text.rstrip(" %")))
        assert sum(float(text.rstrip(" %")) for text in shares) == pytest.approx(100, abs=1.0)  # each is cut
        # The same as a file would give: the drawing, saved, is read by `smidgen predict`'s rule.
        url = opened.page.evaluate("pad.raster.toDataURL()")
        path = tmp_path / f"{digit}.png"
        path.write_bytes(base64.b64decode(url.partition(",")[2]))
        assert np.array_equal(opened.seen, read_image(path))
        opened.page.click("#clear")
        assert opened.best == "–"
        assert not opened.seen.any()


def test_a_drawing_is_called_by_its_class(browser: Browser, source: Source, tmp_path: Path) -> None:  # noqa: F811
    names = ("zero", "one", "two", "three", "four <b>", "five", "six", "seven", "eight", "nine")
    named = replace(source, run=replace(source.run, trained=replace(source.run.trained, class_names=names)))
    ((name, data),) = PageTarget().files(named).items()
    (tmp_path / name).write_bytes(data)
    with opening(browser, tmp_path / name) as one:
        for digit in "34":
            draw(one.page, DIGITS[digit])
            assert one.best == names[int(digit)]
            assert one.page.locator("#bars tr.top th").inner_text() == names[int(digit)]
            one.page.click("#clear")


def test_it_reads_while_the_pen_is_down_and_beyond_the_edge(opened: Opened) -> None:
    box = opened.page.locator("#pad").bounding_box()
    assert box
    opened.page.mouse.move(box["x"] + 0.54 * box["width"], box["y"] + 0.3 * box["height"])
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    assert opened.best == "1"
    before = opened.seen
    opened.page.mouse.move(box["x"] + 2 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    opened.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    assert not np.array_equal(opened.seen, before)
    opened.page.mouse.up()
    after = opened.seen
    opened.page.mouse.move(box["x"] + 10, box["y"] + 10, steps=3)
    assert np.array_equal(opened.seen, after)  # the pen is up


def test_undo_and_clear(opened: Opened) -> None:
    draw(opened.page, DIGITS["1"])
    one = opened.seen
    draw(opened.page, [[(0.2, 0.5), (0.8, 0.5)]])
    both = opened.seen
    assert not np.array_equal(one, both)
    opened.page.click("#undo")
    assert np.array_equal(opened.seen, one)
    opened.page.click("#clear")
    assert opened.best == "–"
    opened.page.keyboard.press("Control+z")  # a drawing cleared by mistake comes back
    assert np.array_equal(opened.seen, one)
    for _ in range(5):
        opened.page.click("#undo")
    assert opened.best == "–"


def test_scores_in_the_browser_are_the_network_s(opened: Opened, source: Source) -> None:
    found = opened.page.evaluate(
        """(text) => {
          const pixels = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const size = inputChannels * inputHeight * inputWidth;
          return Array.from({ length: pixels.length / size }, (_, i) =>
            Array.from(network.run(pixels.subarray(i * size, (i + 1) * size))));
        }""",
        base64.b64encode(source.images.numpy().tobytes()).decode(),
    )
    scores = torch.tensor(found)
    assert scores.shape == (300, 10)
    assert torch.equal(scores.argmax(1), source.predictions)
    assert float((scores - source.scores).abs().max()) < 1e-5 * float(source.scores.abs().max())


def test_layers_show_what_the_network_has(opened: Opened, source: Source) -> None:
    draw(opened.page, DIGITS["3"])
    seen = torch.from_numpy(opened.seen.copy())[None, None]
    nodes, values = source.graph.operations, source.graph.values(seen)
    summaries = opened.page.locator("#layers summary b").all_inner_texts()
    assert summaries == [node.name for node in nodes]
    for index, node in enumerate(nodes):
        maps = opened.page.locator("#layers details").nth(index).locator("canvas")
        expected = values[node.output][0]
        assert maps.count() == len(expected)
        pixels = maps.first.evaluate("c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)")
        red = np.array(pixels).reshape(-1, 4)[:, 0].astype(float)
        strength = (expected[0] / expected.abs().max()).flatten().numpy()
        # From white towards a darker blue or brown.
        assert np.all(red[np.abs(strength) < 0.002] == 255)
        assert np.allclose(red, 255 - np.where(strength > 0, (255 - 0x1A) * strength, -(255 - 0xB4) * strength), atol=2)
    first = opened.page.locator("#layers details").first
    first.locator("summary").click()
    assert not first.locator("canvas").first.is_visible()


def drawn(digit: str, side: int = 300, ink: int = 0, paper: int = 255) -> Image.Image:
    picture = Image.new("L", (side, side), paper)
    for stroke in DIGITS[digit]:
        points = [(x * side, y * side) for x, y in stroke]
        ImageDraw.Draw(picture).line(points, fill=ink, width=side // 14, joint="curve")
    return picture.filter(ImageFilter.GaussianBlur(side / 300))


def transparent(picture: Image.Image, ink: int) -> Image.Image:
    return Image.merge("LA", (Image.new("L", picture.size, ink), picture))


def content(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


FORMS = {
    "dark on light": ("3", content(drawn("3"))),
    "light on dark": ("2", content(drawn("2", ink=255, paper=0))),
    "grey on grey": ("7", content(drawn("7", ink=120, paper=180))),
    "colour, oblong": ("0", content(drawn("0").crop((60, 30, 250, 270)).convert("RGB"))),
    "tiny": ("1", content(drawn("1", side=24))),
    "black ink on transparency": ("3", content(transparent(drawn("3", ink=255, paper=0), 0))),
    "white ink on transparency": ("3", content(transparent(drawn("3", ink=255, paper=0), 255))),
}


def test_image_files_are_read_as_predict_reads_them(opened: Opened, tmp_path: Path) -> None:
    for name, (digit, data) in FORMS.items():
        opened.page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": data})
        opened.page.wait_for_function("text => document.getElementById('best').textContent === text", arg=digit)
        path = tmp_path / "x.png"
        path.write_bytes(data)
        assert np.abs(opened.seen.astype(int) - read_image(path)).max() <= 1, name
        opened.page.click("#clear")
        assert opened.best == "–"


def test_large_pictures_and_photos(opened: Opened, tmp_path: Path) -> None:
    """These are scaled and decoded by other means than Pillow's, so they are alike, not the same."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    turned = drawn("7").transpose(Image.Transpose.ROTATE_90)
    for kind, digit, data in (
        ("png", "3", content(drawn("3", side=2400))),
        ("jpeg", "2", content(drawn("2", side=900), "JPEG", quality=80)),
        ("jpeg", "3", with_metadata(content(drawn("3", side=900), "JPEG", quality=80))),
        ("jpeg", "7", content(turned, "JPEG", exif=exif, quality=95)),
    ):
        opened.page.set_input_files("#file", {"name": "x", "mimeType": f"image/{kind}", "buffer": data})
        opened.page.wait_for_function("text => document.getElementById('best').textContent === text", arg=digit)
        path = tmp_path / "x"
        path.write_bytes(data)
        assert np.abs(opened.seen.astype(int) - read_image(path)).mean() < 4


BAD = {
    "text.png": (b"hello", "text.png is not a PNG or JPEG image."),
    "empty.png": (b"", "empty.png is not a PNG or JPEG image."),
    "cut.png": (content(drawn("3"))[:200], "cut.png cannot be decoded: the file is damaged."),
    "cut.jpg": (content(drawn("3"), "JPEG")[:400], "cut.jpg cannot be decoded"),
    "bomb.png": (
        content(drawn("3")).replace((300).to_bytes(4) * 2, (60_000).to_bytes(4) * 2, 1),
        "bomb.png has 60000 × 60000 pixels, too many to decode; scale it down.",
    ),
    "blank.png": (content(Image.new("L", (50, 50), 200)), "No ink stands out"),
    "<img src=x>.png": (b"x", "<img src=x>.png is not a PNG or JPEG image."),
    "huge.png": (content(drawn("3")) + b"\0" * (64 * 2**20 + 1 - 200), "huge.png is too large"),
}


def test_a_bad_file_is_one_line(opened: Opened, tmp_path: Path) -> None:
    for name, (data, words) in BAD.items():
        if len(data) > 2**20:
            path = tmp_path / name
            path.write_bytes(data)
            opened.page.set_input_files("#file", path)
        else:
            opened.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
        opened.page.wait_for_function(
            "text => document.getElementById('message').textContent.includes(text)", arg=words
        )
        assert "\n" not in opened.message
    draw(opened.page, DIGITS["1"])  # goes on
    assert opened.message == ""
    assert opened.best == "1"


HANDED_OVER = """([kind, name, text]) => {
  const data = new DataTransfer();
  if (name) data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
  else data.setData('text/plain', 'words');
  const event = kind === 'paste'
    ? new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  return document.body.dispatchEvent(event);
}"""


def test_images_are_dropped_and_pasted(opened: Opened) -> None:
    for kind, digit in (("paste", "3"), ("drop", "2")):
        data = base64.b64encode(content(drawn(digit))).decode()
        if kind == "drop":
            assert not opened.page.evaluate(HANDED_OVER, ["dragover", "x.png", data])  # it says that it takes files
        opened.page.evaluate(HANDED_OVER, [kind, "x.png", data])
        opened.page.wait_for_function("text => document.getElementById('best').textContent === text", arg=digit)
    opened.page.evaluate(HANDED_OVER, ["paste", "", ""])
    assert opened.message == "There is no image on the clipboard."
    draw(opened.page, DIGITS["7"])  # begins anew, not on top of the image
    assert opened.best == "7"
    opened.page.click("#undo")
    assert opened.best == "2"


def test_drawing_by_finger(browser: Browser, file: Path) -> None:  # noqa: F811
    options = {"has_touch": True, "is_mobile": True, "device_scale_factor": 3}
    with opening(browser, file, 360, **options) as phone:
        client = phone.page.context.new_cdp_session(phone.page)
        box = phone.page.locator("#pad").bounding_box()
        assert box
        for stroke in DIGITS["4"]:
            for index, (x, y) in enumerate(stroke):
                point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
                kind = "touchMove" if index else "touchStart"
                client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
            client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert phone.best == "4"
        assert phone.page.evaluate("scrollY") == 0  # the finger drew, and did not scroll
        canvas = phone.page.evaluate(
            "[document.getElementById('pad').width, document.getElementById('pad').clientWidth]"
        )
        assert canvas[0] == 3 * canvas[1]
        phone.page.set_viewport_size({"width": 800, "height": 360})  # turned: the drawing is still there
        assert phone.best == "4"


def test_all_by_keyboard(opened: Opened) -> None:
    keyboard = opened.page.keyboard
    focused = "document.activeElement.id || document.activeElement.tagName"
    keyboard.press("Tab")
    assert opened.page.evaluate(focused) == "pad"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert opened.page.evaluate(outline) == "solid"
    for _ in range(10):
        keyboard.press("ArrowUp")
    keyboard.press("Space")
    for _ in range(5):
        keyboard.press("Shift+ArrowDown")
    assert opened.best == "1"
    keyboard.press("Space")
    straight = opened.seen
    keyboard.press("ArrowLeft")  # the pen is up
    assert np.array_equal(opened.seen, straight)
    keyboard.press("Delete")
    assert opened.best == "–"
    keyboard.press("Control+z")
    assert np.array_equal(opened.seen, straight)
    for expected in ("undo", "clear", "open", "SUMMARY"):
        keyboard.press("Tab")
        assert opened.page.evaluate(focused) == expected
        assert opened.page.evaluate(outline) == "solid"
    keyboard.press("Enter")
    assert not opened.page.locator("#layers details").first.locator("canvas").first.is_visible()


def test_what_a_screen_reader_is_told(opened: Opened) -> None:
    pad = opened.page.get_by_role("application", name="Drawing area")
    assert "arrow keys move the pen" in str(
        pad.evaluate("e => document.getElementById(e.getAttribute('aria-describedby')).textContent")
    )
    for name in ("Undo", "Clear", "Open image…"):
        assert opened.page.get_by_role("button", name=name).count() == 1
    assert opened.page.get_by_role("table", name="Probabilities").get_by_role("row").count() == 10
    assert opened.page.get_by_role("img", name="What conv1 responds with: 16 channels of 26 × 26").count() == 1
    assert opened.page.get_by_role("status").get_attribute("aria-live") == "polite"
    draw(opened.page, DIGITS["3"])
    assert opened.best == "3"
    opened.page.wait_for_function("() => document.getElementById('status').textContent.startsWith('It reads 3, ')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 700, 1400])
def test_sizes_and_schemes(browser: Browser, file: Path, width: int, scheme: str) -> None:  # noqa: F811
    with opening(browser, file, width, color_scheme=scheme, reduced_motion="reduce") as one:
        draw(one.page, DIGITS["2"])
        assert one.best == "2"
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        assert one.page.evaluate(EVERY_TEXT) >= 4.5
        light = one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
        assert light == (scheme == "light")
        assert one.page.evaluate("getComputedStyle(document.querySelector('.bar i')).transitionDuration") == "0s"
        before = one.page.locator("#layers canvas").first.evaluate("c => c.toDataURL()")
        one.page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
        assert one.best == "2"
        assert one.page.locator("#layers canvas").first.evaluate("c => c.toDataURL()") != before


def test_nothing_can_be_run_or_asked_for(browser: Browser, small_run: Run, mnist: Dataset, tmp_path: Path) -> None:  # noqa: F811
    hostile = replace(small_run, trial=replace(small_run.trial, note=HOSTILE))
    ((_, data),) = PageTarget().files(Source(hostile, mnist.held_out.images[:5], mnist.held_out.labels[:5])).items()
    path = tmp_path / "hostile.html"
    path.write_bytes(data)
    with opening(browser, path) as one:
        assert HOSTILE in one.page.locator("dd").first.inner_text()
        assert one.page.locator("script").count() == 3
        assert one.page.locator("h1").inner_text() == "Draw something"  # the data set is a folder
        asked = one.page.evaluate("fetch('https://example.org/').then(() => 'answered', () => 'refused')")
        assert asked == "refused"
        one.page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'window.ran = true'; document.body.append(s); }"
        )
        assert one.page.evaluate("window.ran") is None
        assert all("Content Security Policy" in text for text in one.complaints)
        assert len(one.complaints) >= 2
        one.complaints.clear()
