"""Charts as SVG that takes its text colour from the page, so that it reads in light and dark."""

from __future__ import annotations

import io
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from smidgen.reports.calibration import Bins
from smidgen.reports.collect import TrialRuns
from smidgen.training.loop import EpochRecord

TRAIN, HELD_OUT, RATE, GOAL = "#2f8f83", "#d1603d", "#8a6fc2", "#7a7a7a"
"""Colours of a middle lightness, told apart in light and dark and by the colour-blind."""
TRIAL_COLOURS = ["#d1603d", "#2f8f83", "#8a6fc2", "#b8860b", "#4682b4", "#a0527d"]

MOST_LINES = 8
"""Runs up to which each is drawn as a line of its own."""
_LEAST_RATE = 1e-6
"""The lowest error rate on an axis; float32 probabilities tell no smaller ones from 0."""
_INK = "#010203"
"""Stands for the page's text colour until the SVG is finished."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "smidgen",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; every text in the SVG names the whole list
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

    The mean over the runs is a thick line in a band from the lowest to the highest run; few runs are thin lines too.
    The target is drawn across.
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
            va="top" if statistics.mean(group.last) >= goal else "bottom",  # where the end of the curve is not
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
    return short(label).replace("$", r"\$")


def short(label: str) -> str:
    """A class's name where there is little room."""
    return label if len(label) <= 16 else label[:15] + "…"


def reliability(bins: Bins, runs: int, name: str) -> str:
    """Reliability diagram for few errors: error rate, observed and expected, and images of each bin of confidence.

    Args:
        bins: at least one.
        runs: of which the predictions are.
        name: of the chart, for ids within a page.
    """
    expected, observed = 1 - bins.confidence, 1 - bins.accuracy
    low, high = bins.error_intervals(runs).T
    floor = max(min(*expected, *observed[observed > 0], 1e-3) / 2, _LEAST_RATE)
    positions, some = np.arange(len(expected)), observed > 0
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 5.6))
        panel, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        panel.vlines(positions, np.maximum(low, floor), high, color=HELD_OUT, linewidth=1.4)
        panel.plot(positions[some], observed[some], "o", color=HELD_OUT, label="observed, with its 95 % interval")
        if not some.all():
            panel.plot(positions[~some], high[~some], "v", color=HELD_OUT, label="none observed: end of the interval")
        panel.plot(
            positions, np.maximum(expected, floor), "_", color=TRAIN, markersize=22, markeredgewidth=3,
            label="expected: 1 - mean confidence",
        )  # fmt: skip
        panel.set_yscale("log")
        panel.set_ylim(floor / 1.5, 1.5)
        panel.yaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}")
        panel.set_ylabel("error rate (%)")
        panel.legend(loc="lower left")
        shown = bins.count / runs
        counts.bar(positions, shown, color=RATE, alpha=0.6)
        for position, number in zip(positions, shown, strict=True):
            text = f"{number:,.0f}" if number >= 1 else f"{number:.1g}"
            counts.annotate(text, (position, number), (0, 2), textcoords="offset points", ha="center", fontsize=10)
        counts.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        counts.set_ylim(0, 1.25 * float(shown.max()))
        counts.set_ylabel("images\nper run")
        counts.set_xticks(positions, bins.labels, rotation=40, ha="right", rotation_mode="anchor")
        counts.set_xlabel("confidence (%)")
        for lower in (panel, counts):
            lower.grid(visible=False, axis="x")
        return _svg(figure, name)


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
    epochs = range(1, 1 + min(map(len, histories)))
    values = np.array([[value(history[epoch - 1]) for epoch in epochs] for history in histories])
    if 1 < len(values) <= MOST_LINES:
        panel.plot(epochs, values.T, color=colour, linewidth=0.8, alpha=0.45)
    if len(values) > 1:
        panel.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
    panel.plot(epochs, values.mean(0), color=colour, linewidth=2.6, marker="o" if len(epochs) == 1 else None)
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
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # A hundredth of a point is enough, and half the bytes.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", " ".join(tag[0].split())), svg)
    svg = re.sub(r">\s+<", "><", svg)
    svg = svg.replace(_INK, "currentColor")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    return re.sub(r"<svg [^>]*>", opening(float(width), float(height)), svg, count=1, flags=re.DOTALL).strip()


def opening(width: float, height: float) -> str:
    """The opening tag of an SVG element, whose size can be changed by a style."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
