"""Charts as SVG that takes its text colour from the page, so that it reads in light and dark."""

from __future__ import annotations

import io
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from smidgen.reports.collect import TrialRuns
from smidgen.reports.pictures import data_uri, small
from smidgen.training.loop import EpochRecord

TRAIN, HELD_OUT, RATE, GOAL = "#2f8f83", "#d1603d", "#8a6fc2", "#7a7a7a"
"""Colours of a middle lightness, told apart in light and dark and by the colour-blind."""
TRIAL_COLOURS = ["#d1603d", "#2f8f83", "#8a6fc2", "#b8860b", "#4682b4", "#a0527d"]

_INK = "#010203"
"""Stands for the page's text colour until the SVG is finished."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "smidgen",
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Point:
    """A network in the plane of size and accuracy.

    Attributes:
        parameters: trainable.
        accuracy: percent.
        label: written beside it, if any.
        marked: whether it stands out.
    """

    parameters: int
    accuracy: float
    label: str = ""
    marked: bool = False


def curves(group: TrialRuns) -> str:
    """Loss and accuracy against the epoch, training and held out, with the learning rate.

    Every seed is a thin line, their mean a thick one; the target is drawn across.
    """
    histories = [run.history for run in group.runs]
    split = group.held_out
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 6.8))
        panels = figure.subplots(2, 2)
        _panel(panels[0, 0], histories, lambda r: r.train_loss, TRAIN, "training loss (nats)")
        _panel(panels[0, 1], histories, lambda r: r.train_accuracy, TRAIN, "training accuracy (%)")
        _panel(panels[1, 0], histories, lambda r: r.test_loss, HELD_OUT, f"{split} loss (nats)")
        _panel(panels[1, 1], histories, lambda r: r.test_accuracy, HELD_OUT, f"{split} accuracy (%)")
        goal = group.trial.goal.accuracy
        panels[1, 1].axhline(goal, color=GOAL, linestyle="--", linewidth=1.2)
        panels[1, 1].annotate(
            f"target {goal:g} %",
            (1, goal),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=GOAL,
        )
        for panel in (panels[0, 1], panels[1, 1]):
            _focus(panel, [goal] if panel is panels[1, 1] else [])
        rates = panels[0, 0].twinx()
        rates.plot(
            [r.epoch for r in histories[0]],
            [r.learning_rate for r in histories[0]],
            color=RATE,
            linewidth=1.2,
        )
        rates.set_yscale("log")
        rates.set_ylabel("learning rate, end of epoch", color=RATE)
        rates.grid(visible=False)
        return _svg(figure, f"curves-{group.label}")


def distribution(groups: Sequence[TrialRuns]) -> str:
    """Last-epoch accuracy of every run, a row a trial, with the mean and the targets."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 1.1 + 0.6 * len(groups)))
        panel = figure.subplots()
        for row, group in enumerate(groups):
            colour = TRIAL_COLOURS[row % len(TRIAL_COLOURS)]
            panel.plot(group.last, [row] * len(group.last), "o", color=colour, alpha=0.55, markersize=6)
            panel.plot([statistics.mean(group.last)], [row], "|", color=colour, markersize=26, markeredgewidth=3)
        for goal in sorted({group.trial.goal.accuracy for group in groups}):
            panel.axvline(goal, color=GOAL, linestyle="--", linewidth=1.2)
        panel.set_yticks(range(len(groups)), [group.label for group in groups])
        panel.set_ylim(len(groups) - 0.5, -0.5)
        panel.set_xlabel(
            f"{groups[0].held_out} accuracy after the last epoch (%); dots: runs, bars: means, dashed: targets"
        )
        return _svg(figure, "distribution")


def front(points: Sequence[Point], what: str, name: str) -> str:
    """Accuracy against parameters, with the Pareto front: what no other point beats in both.

    Args:
        points: at least one.
        what: the accuracy is of, for the axis.
        name: of the chart, for ids within a page.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.parameters, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 5.0))
        panel = figure.subplots()
        for marked, colour, size in ((False, RATE, 6), (True, HELD_OUT, 9)):
            chosen = [p for p in points if p.marked == marked]
            panel.plot(
                [p.parameters for p in chosen],
                [p.accuracy for p in chosen],
                "o",
                color=colour,
                alpha=0.7,
                markersize=size,
            )
        panel.step([p.parameters for p in best], [p.accuracy for p in best], where="post", color=TRAIN, linewidth=1.8)
        for point in points:
            panel.annotate(
                point.label,
                (point.parameters, point.accuracy),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
        _focus(panel, [])
        panel.set_xlabel("trainable parameters")
        panel.set_ylabel(what)
        return _svg(figure, name)


def confusion(matrix: npt.NDArray[np.float64], class_names: Sequence[str], split: str, name: str) -> str:
    """Confusion matrix without its diagonal: images per run, by label (rows) and prediction (columns)."""
    classes = len(matrix)
    errors = matrix * (1 - np.eye(classes))
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        side = 2.0 + 0.46 * classes
        figure = Figure(figsize=(side, side))
        panel = figure.subplots()
        highest = max(float(errors.max()), 1e-9)
        for row in range(classes):
            for column in range(classes):
                share = errors[row, column] / highest
                if share > 0:
                    square = Rectangle(
                        (column - 0.5, row - 0.5),
                        1,
                        1,
                        color=HELD_OUT,
                        alpha=0.12 + 0.68 * share,
                        linewidth=0,
                    )
                    panel.add_patch(square)
                if row != column and errors[row, column] >= 0.05:
                    panel.text(column, row, f"{errors[row, column]:.1f}", ha="center", va="center", fontsize=11)
        panel.plot([-0.5, classes - 0.5], [-0.5, classes - 0.5], color=GOAL, linewidth=0.8, alpha=0.6)
        panel.set_xlim(-0.5, classes - 0.5)
        panel.set_ylim(classes - 0.5, -0.5)
        ticks = [_tick(label) for label in class_names]
        panel.set_xticks(range(classes), ticks)
        if max(map(len, ticks)) > 3:
            for text in panel.get_xticklabels():
                text.set(rotation=45, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(classes), ticks)
        panel.set_xlabel("prediction")
        panel.set_ylabel(f"label ({split} images per run)")
        return _svg(figure, name)


def _tick(label: str) -> str:
    """A class's name on an axis: short, and nothing in it taken for mathematics."""
    return _short(label).replace("$", r"\$")


def _short(label: str) -> str:
    return label if len(label) <= 16 else label[:15] + "…"


def reliability(
    confidence: npt.NDArray[np.float64], share: npt.NDArray[np.float64], count: npt.NDArray[np.int64], name: str
) -> str:
    """Reliability diagram: accuracy against confidence.

    Args:
        confidence: mean probability of the predicted class in each bin, 0 to 1.
        share: accuracy of each bin, 0 to 1.
        count: images in each bin; empty ones are left out.
        name: of the chart, for ids within a page.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, 4.4))
        panel = figure.subplots()
        panel.plot([0, 1], [0, 1], color=GOAL, linestyle="--", linewidth=1.2)
        error = np.sqrt(np.maximum(share * (1 - share), 1e-12) / np.maximum(count, 1))
        panel.errorbar(
            confidence,
            share,
            yerr=1.96 * error,
            color=HELD_OUT,
            marker="o",
            linewidth=1.6,
            capsize=3,
            elinewidth=1,
        )
        panel.set_xlim(0, 1.02)
        panel.set_ylim(0, 1.05)
        panel.set_xlabel("probability given to the prediction")
        panel.set_ylabel("accuracy")
        return _svg(figure, name)


def contact_sheet(images: Sequence[npt.NDArray[np.uint8]], captions: Sequence[tuple[str, str, str]]) -> str:
    """Misclassified images in rows, each with its true class, predicted class and confidence below it.

    Args:
        images: at least one, each uint8 [channels, height, width].
        captions: the texts below each image.
    """
    lines = [(f"{_short(true)} → {_short(guess)}", sure) for true, guess, sure in captions]
    cell = max(72.0, 6.5 * max(len(text) for text, _ in lines) + 8)
    columns = min(len(images), max(1, int(900 / cell)))
    rows = -(-len(images) // columns)
    longest = max(images[0].shape[1:])
    height, width = (64 * side / longest for side in images[0].shape[1:])
    parts = []
    for index, (image, texts) in enumerate(zip(images, lines, strict=True)):
        x, y = cell * (index % columns), (height + 40) * (index // columns)
        place = f'x="{x + (cell - width) / 2:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        uri = data_uri(small(image))
        parts.append(f'<image {place} style="image-rendering:pixelated" xlink:href="{uri}"/>')
        parts += [
            f'<text x="{x + cell / 2:g}" y="{y + height + 14 * line:g}">{escape(text)}</text>'
            for line, text in enumerate(texts, start=1)
        ]
    font = 'font-family="sans-serif" font-size="11" text-anchor="middle" fill="currentColor"'
    return f"{_opening(columns * cell, rows * (height + 40))}<g {font}>{''.join(parts)}</g></svg>"


def for_file(svg: str) -> str:
    """A chart as a separate file, on white, since there is no page to inherit the text colour from."""
    return svg.replace("currentColor", "#222222").replace("<svg ", '<svg style="background:#ffffff" ', 1)


def _panel(
    panel: Axes,
    histories: Sequence[Sequence[EpochRecord]],
    value: Callable[[EpochRecord], float],
    colour: str,
    label: str,
) -> None:
    for history in histories:
        panel.plot([r.epoch for r in history], [value(r) for r in history], color=colour, linewidth=0.8, alpha=0.45)
    epochs = [r.epoch for r in histories[0]]
    if all(len(history) == len(epochs) for history in histories):
        means = [statistics.mean(value(history[i]) for history in histories) for i in range(len(epochs))]
        panel.plot(epochs, means, color=colour, linewidth=2.6, marker="o" if len(epochs) == 1 else None)
    panel.set_xlabel("epoch")
    panel.set_ylabel(label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _focus(panel: Axes, also: Sequence[float]) -> None:
    """Leave a first epoch that is far below the rest out of view: what matters is near the top."""
    values = [float(y) for line in panel.get_lines() for y in np.atleast_1d(line.get_ydata())] + list(also)
    high, low = max(values), min(values)
    floor = float(np.quantile(values, 0.1))
    if low < floor - 2 * (high - floor):
        low = floor - 0.3 * (high - floor)
    room = max(0.02, 0.08 * (high - low))
    panel.set_ylim(low - room, high + room)


def _svg(figure: Figure, name: str) -> str:
    """The figure as SVG with the page's text colour, a scalable size, and ids of its own."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # Names are text in the SVG, and the browser has the letters that the font measured with lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    return re.sub(r"<svg [^>]*>", _opening(float(width), float(height)), svg, count=1, flags=re.DOTALL).strip()


def _opening(width: float, height: float) -> str:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
