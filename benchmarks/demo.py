"""Makes docs/demo.html, the flagship as a web page, and the pictures of it: `make demo`.

Takes a finished run, or trains the flagship. The page is checked over all test images before
anything is written here; the pictures need an installed chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import smidgen
from common import DOCS
from smidgen.data.dataset import load_dataset
from smidgen.exports.page import PageTarget
from smidgen.exports.target import Source
from smidgen.files import write_atomic

sys.path.insert(0, str(DOCS.parent / "tests"))
from strokes import DIGITS, draw

WIDTH, HEIGHT = 1120, 900
LAYERS = 2


def main() -> None:
    """Write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="directory of a finished run; without it, the flagship is trained")
    parser.add_argument("--digit", choices=list(DIGITS), default="3", help="that is drawn in the picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        finished = smidgen.load_run(options.run) if options.run else smidgen.run(out=Path(scratch) / "run")
        page = _checked_page(finished, Path(scratch))
        write_atomic(DOCS / "demo.html", page.read_bytes())
        write_atomic(DOCS / "demo.png", _picture(page, options.digit))


def _checked_page(finished: smidgen.Run, directory: Path) -> Path:
    examples = load_dataset().held_out
    source, target = Source(finished, examples.images, examples.labels), PageTarget()
    ((name, content),) = target.files(source).items()
    path = directory / name
    path.write_bytes(content)
    check = target.check(source, directory)
    print(
        f"{len(content):,} bytes; {len(check.mismatches)} mismatches in {check.images:,} images, "
        f"{check.accuracy:.2f} %, largest difference {check.largest_difference:.2g}, "
        f"{1000 * check.seconds / check.images:.2f} ms an image"
    )
    if check.mismatches:
        raise SystemExit(f"the page differs from its network: images {check.mismatches[:10]}")
    return path


def _picture(page: Path, digit: str) -> bytes:
    """The page down to its first layers, with a digit drawn, as PNG."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("the picture needs chromium, which is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce"
        )
        tab.goto(page.as_uri())
        draw(tab, DIGITS[digit])
        tab.wait_for_function("digit => document.getElementById('best').textContent === digit", arg=digit)
        tab.mouse.move(0, 0)
        end = tab.locator("#layers details").nth(LAYERS - 1).bounding_box()
        assert end is not None
        shown = {"x": 0, "y": 0, "width": WIDTH, "height": int(end["y"] + end["height"])}
        picture = tab.screenshot(full_page=True, clip=shown)  # type: ignore[arg-type]
        browser.close()
    return picture


if __name__ == "__main__":
    main()
