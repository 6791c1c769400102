"""Digits as strokes, drawn on the page's drawing area as a person would with a mouse; in shares of its side."""

from __future__ import annotations

import math

from playwright.sync_api import Page

Point = tuple[float, float]


def arc(x: float, y: float, across: float, down: float, start: float, end: float, steps: int = 32) -> list[Point]:
    """Points on an ellipse, angles in degrees, clockwise from the right."""
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(x + across * math.cos(a), y + down * math.sin(a)) for a in angles]


DIGITS: dict[str, list[list[Point]]] = {
    "0": [arc(0.5, 0.5, 0.2, 0.3, -90, 270)],
    "1": [[(0.54, 0.2), (0.48, 0.8)]],
    "2": [[*arc(0.5, 0.36, 0.19, 0.17, -170, 30), (0.33, 0.8), (0.72, 0.8)]],
    "3": [[*arc(0.48, 0.34, 0.18, 0.15, -150, 90), *arc(0.48, 0.65, 0.21, 0.16, -90, 150)]],
    "4": [[(0.42, 0.2), (0.3, 0.55), (0.72, 0.55)], [(0.6, 0.25), (0.6, 0.82)]],
    "5": [[(0.68, 0.2), (0.38, 0.2), (0.36, 0.46), *arc(0.48, 0.62, 0.2, 0.18, -120, 140)]],
    "6": [[(0.6, 0.18), (0.42, 0.4), *arc(0.5, 0.64, 0.17, 0.17, 200, 560)]],
    "7": [[(0.3, 0.22), (0.7, 0.22), (0.45, 0.82)]],
    "8": [[*arc(0.5, 0.35, 0.15, 0.15, 90, 450), *arc(0.5, 0.66, 0.18, 0.16, -90, 270)]],
    "9": [[*arc(0.52, 0.36, 0.17, 0.16, 0, 360), (0.69, 0.36), (0.62, 0.82)]],
}


def draw(page: Page, strokes: list[list[Point]]) -> None:
    """Draw strokes by mouse."""
    box = page.locator("#pad").bounding_box()
    assert box is not None
    places = [[(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke] for stroke in strokes]
    for first, *others in places:
        page.mouse.move(*first)
        page.mouse.down()
        for place in others:
            page.mouse.move(*place)
        page.mouse.up()
