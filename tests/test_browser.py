"""The report in a real browser, where there is a chromium: CI installs one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from smidgen.reports.report import report
from smidgen.runs.options import RunOptions
from smidgen.runs.progress import Silent
from smidgen.runs.run import run
from smidgen.trial import Trial

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needed = bool(os.environ.get("CI"))
pytestmark = pytest.mark.skipif(CHROMIUM is None and not needed, reason="no chromium is installed")

CONTRAST = """
() => {
  const luminance = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => {
      const c = v / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  let least = 99;
  for (const e of document.querySelectorAll('h1, h2, h3, p, li, td, th, caption, figcaption, pre, summary')) {
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(paper(e))].sort();
    least = Math.min(least, (b + 0.05) / (a + 0.05));
  }
  return least;
}
"""
"""The least contrast between a text and what is behind it, by the formula of WCAG 2."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(small_trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    for seed in (0, 1):
        run(small_trial, seed=seed, out=root / f"r{seed}", options=RunOptions(threads=1), progress=Silent())
    return report([root / "r0", root / "r1"], root / "report.html").path


def opened(browser: Browser, file: Path, width: int, scheme: str) -> tuple[Page, list[str], list[str]]:
    """The page, and what it wrote to the console and asked of anyone while it loaded."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri(), wait_until="networkidle")
    return page, complaints, requests


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_report_in_a_browser(browser: Browser, file: Path, width: int, scheme: str) -> None:
    page, complaints, requests = opened(browser, file, width, scheme)
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    sizes = page.eval_on_selector_all("img", "images => images.map(i => [i.complete, i.naturalWidth])")
    assert len(sizes) == 3  # samples before and after augmentation, and the first layer
    assert all(complete and natural > 0 for complete, natural in sizes)
    assert page.locator("table").count() == 7
    assert page.locator(".scroll > svg").count() == 4
    tiles = page.locator(".sheet > li > svg")
    assert tiles.count() > 20  # misclassified images
    assert page.locator(".sheet svg image").count() == 3 * tiles.count()  # each with two maps
    unnamed = "images => images.filter(i => !(i.getAttribute('alt') || i.getAttribute('aria-label'))).length"
    assert page.eval_on_selector_all("img, svg:not(svg svg)", unnamed) == 0
    # Nothing is wider than the window; wide tables scroll within their own frame.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for box in page.locator(".scroll > svg").all():
        found = box.bounding_box()
        assert found is not None
        assert 100 < found["width"] <= max(width, 480)
    # Tiles do not scroll: they are all in view, and so is what is in them.
    edges = (
        "e => Math.max(...e.flatMap(s => [s, ...s.querySelectorAll('*')].map(x => x.getBoundingClientRect().right)))"
    )
    assert tiles.evaluate_all(edges) <= width
    overlaps = """
    tiles => tiles.filter(tile => {
      const boxes = [...tile.querySelectorAll('text')].map(text => text.getBoundingClientRect());
      return boxes.some((a, i) => boxes.slice(i + 1).some(b =>
        a.width && b.width && a.left < b.right && b.left < a.right && a.top + 1 < b.bottom && b.top + 1 < a.bottom));
    }).length
    """
    assert tiles.evaluate_all(overlaps) == 0
    assert page.evaluate(CONTRAST) >= 4.5
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 250)"
    assert light == (scheme == "light")
    ink = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert ink == page.evaluate("getComputedStyle(document.body).color")
    page.close()


def test_folded_parts_open_and_links_lead_somewhere(browser: Browser, file: Path) -> None:
    page, _, _ = opened(browser, file, 1000, "light")
    first = page.locator("details").first
    assert not first.locator("pre").is_visible()
    first.locator("summary").click()
    assert "epoch 2/2" in first.locator("pre").inner_text()
    page.locator("nav a").last.click()
    assert page.url.endswith("#chapter-1")
    page.close()


def test_it_prints(browser: Browser, file: Path) -> None:
    page, _, _ = opened(browser, file, 1000, "light")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page") >= 3
    page.close()
