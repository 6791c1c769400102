"""The part of a report on the networks' answers for the held-out images: mistakes, confusion, calibration."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from smidgen.reports import charts
from smidgen.reports.calibration import EQUAL_BINS, FINE_EDGES, binned, expected_calibration_error
from smidgen.reports.class_maps import CellPlace, ClassMaps, NoClassMapsError, class_maps
from smidgen.reports.collect import TrialRuns
from smidgen.reports.document import Block, Chart, Heading, Paragraph, Table, counted
from smidgen.reports.sheet import MapOverlay, SheetImage, class_line, contact_sheet

MOST_MISCLASSIFIED = 48
"""Misclassified images shown for a trial."""


def answers(group: TrialRuns) -> list[Block]:
    """The blocks on the answers of a trial's runs, whose data is available."""
    return [*_misclassified(group), *_over_runs(group), *_confusion(group), *_reliability(group)]


def _misclassified(group: TrialRuns) -> list[Block]:
    """A contact sheet of the images that the typical run classifies wrongly, the most confident errors first."""
    typical, dataset = group.typical, group.dataset
    assert dataset is not None
    index_of_run = group.runs.index(typical)
    predictions = group.predictions[index_of_run]
    wrong = np.flatnonzero(~group.correct[index_of_run])
    heading = Heading("Misclassified images", 3)
    if not len(wrong):
        return [heading, Paragraph("None.")]
    shown = wrong[np.argsort(-predictions.probabilities[wrong], kind="stable")][:MOST_MISCLASSIFIED]
    pairs = np.stack([predictions.classes[shown], group.labels[shown]], axis=1)
    try:
        maps = class_maps(typical.trained, dataset.held_out.images[shown], torch.from_numpy(pairs))
        about_maps = _about_maps(maps)
    except NoClassMapsError as error:
        maps, about_maps = None, f"No class activation maps: {error}."
    images = []
    for number, index in enumerate(shown):
        guess, label = (typical.trained.label_name(int(c)) for c in pairs[number])
        sure = f"{100 * predictions.probabilities[index]:.1f} %"
        doubtful = int(index) in dataset.doubtful_labels
        alt = f"image {index}: {label} classified as {guess}, {sure}{', label in doubt' if doubtful else ''}"
        overlays: list[MapOverlay] = []
        if maps is not None:
            overlays = _overlays(maps, number)
            alt += f"; the map for {guess} is highest {_peak(maps, number, 0)}, for {label} {_peak(maps, number, 1)}"
        lines = [class_line(label, guess), sure]
        mark = "label in doubt" if doubtful else ""
        images.append(SheetImage(dataset.held_out.images[index].numpy(), lines, f"{alt}.", mark, overlays))
    most = f"the {len(shown)} most confident errors" if len(shown) < len(wrong) else "the most confident errors first"
    caption = (
        f"{len(wrong)} {group.held_out} images are misclassified by the run nearest to the mean (seed {typical.seed}); "
        f"{most}, with true class → predicted class and confidence"
    )
    blocks: list[Block] = [heading]
    if dataset.doubtful_labels:
        blocks.append(Paragraph(_about_doubt(group, shown)))
    return [*blocks, Paragraph(about_maps), contact_sheet(f"misclassified-{group.label}", images, caption)]


def _about_doubt(group: TrialRuns, shown: npt.NDArray[np.int64]) -> str:
    assert group.dataset is not None
    doubtful = list(group.dataset.doubtful_labels)
    errors, on_doubtful = int((~group.correct).sum()), int((~group.correct[:, doubtful]).sum())
    return (
        f"Labels in doubt: for {len(doubtful)} test images, at most 2 of 5 human raters chose the given label "
        f"(Northcutt et al. 2021, who had 100 of the {len(group.labels):,} rated). {np.isin(shown, doubtful).sum()} of "
        f"the {len(shown)} errors below are on such images, and {on_doubtful:,} of all {counted(errors, 'error')} of "
        f"{counted(len(group.runs), 'run')}. All count as errors."
    )


def _about_maps(maps: ClassMaps) -> str:
    rows, columns = maps.rows, maps.columns
    height, width = maps.maps.shape[2:]
    return (
        f"Beside each image are its class activation maps (Zhou et al. 2016), for the prediction and for the true "
        f"class: orange cells raise the class's score, blue ones lower it, both on one scale for an image. They are "
        f"exact: the mean of a map plus the class's bias is the score. Each of the {height} × {width} cells is drawn "
        f"at the centre of the {rows.receptive_field} × {columns.receptive_field} pixels that it sees."
    )


def _overlays(maps: ClassMaps, number: int) -> list[MapOverlay]:
    """The maps of one image, scaled by the largest cell of all."""
    cells = maps.maps[number].numpy()
    height, width = cells.shape[1:]
    box = (maps.columns.edge, maps.rows.edge, width * maps.columns.jump, height * maps.rows.jump)
    scaled = cells / max(float(np.abs(cells).max()), 1e-30)
    return [MapOverlay(one, box, title) for one, title in zip(scaled, ("prediction", "true class"), strict=True)]


def _peak(maps: ClassMaps, number: int, which: int) -> str:
    """The pixel at the centre of a map's highest cell."""
    cells = maps.maps[number, which].numpy()
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)

    def pixel(place: CellPlace, cell: int) -> int:
        return round(place.edge + (cell + 0.5) * place.jump)

    return f"at row {pixel(maps.rows, int(row))}, column {pixel(maps.columns, int(column))}"


def _over_runs(group: TrialRuns) -> list[Block]:
    """How many images are misclassified in any, most and all runs."""
    assert group.dataset is not None
    runs, wrong = len(group.runs), (~group.correct).sum(0)
    if runs == 1:
        return []
    doubtful = np.isin(np.arange(len(wrong)), group.dataset.doubtful_labels)
    rows = []
    for title, least in (("any run", 1), ("more than half of the runs", runs // 2 + 1), ("all runs", runs)):
        chosen = wrong >= least
        rows.append([title, f"{chosen.sum():,}", *([f"{(chosen & doubtful).sum():,}"] if doubtful.any() else [])])
    columns = ["misclassified in", "images", *(["label in doubt"] if doubtful.any() else [])]
    return [Table(f"Misclassified {group.held_out} images over {counted(runs, 'run')}", columns, rows)]


def _confusion(group: TrialRuns) -> list[Block]:
    assert group.dataset is not None
    classes = group.dataset.classes
    matrix = np.zeros((classes, classes))
    for predictions in group.predictions:
        np.add.at(matrix, (group.labels, predictions.classes), 1 / len(group.runs))
    names = [group.typical.trained.label_name(label) for label in range(classes)]
    rows = [
        [f"label {names[row]}", *(f"{matrix[row, column]:.1f}" for column in range(classes))] for row in range(classes)
    ]
    columns = ["images per run", *(f"as {name}" for name in names)]
    blocks: list[Block] = [Heading("Confusion", 3)]
    if classes <= 20:
        errors = matrix * (1 - np.eye(classes))
        worst = np.unravel_index(int(errors.argmax()), errors.shape)
        alt = (
            f"Confusion matrix without its diagonal; the largest entry is label {names[worst[0]]} classified as "
            f"{names[worst[1]]}, {errors[worst]:.1f} images per run. The table below has every entry."
        )
        caption = f"Misclassified images per run, mean of {counted(len(group.runs), 'run')}"
        name = f"confusion-{group.label}"
        blocks.append(Chart(name, charts.confusion(matrix, names, group.held_out, name), alt, caption))
    return [*blocks, Table("Confusion matrix", columns, rows)]


def _reliability(group: TrialRuns) -> list[Block]:
    assert group.predictions
    each = [p.probabilities.astype(np.float64) for p in group.predictions]
    confidence, correct, runs = np.concatenate(each), group.correct.ravel(), len(group.runs)
    errors = [100 * expected_calibration_error(*one) for one in zip(each, group.correct, strict=True)]
    bins = binned(confidence, correct, FINE_EDGES)
    name = f"reliability-{group.label}"
    caption = (
        f"Error rate against confidence over {counted(runs, 'run')}; intervals are for as many images as one run has. "
        f"The bins narrow towards 100 %: {(confidence > 0.99).mean():.0%} of the predictions are above 99 %"
    )
    rows = [
        [label, f"{n / runs:,.1f}", f"{100 * c:.3f}", f"{100 * a:.3f}"]
        for label, n, c, a in zip(bins.labels, bins.count, bins.confidence, bins.accuracy, strict=True)
    ]
    return [
        Heading("Reliability", 3),
        Paragraph(_about_calibration(errors, 100 * float(confidence.mean()), 100 * float(correct.mean()))),
        Chart(
            name,
            charts.reliability(bins, runs, name),
            f"Reliability diagram. {caption}. The table below has every figure.",
            caption,
        ),
        Table("Reliability", ["confidence (%)", "images per run", "mean confidence (%)", "accuracy (%)"], rows),
    ]


def _about_calibration(errors: Sequence[float], confidence: float, accuracy: float) -> str:
    """The calibration error of each run, and whether they are too sure; all in percent or points."""
    spread = f" ± {statistics.stdev(errors):.3f} (mean ± s.d. of {len(errors)} runs)" if len(errors) > 1 else ""
    side = "over" if confidence > accuracy else "under"
    return (
        f"Expected calibration error: {statistics.mean(errors):.3f}{spread} points, which is |accuracy - mean "
        f"confidence| weighted over {EQUAL_BINS} bins of equal width (Naeini et al. 2015, Guo et al. 2017). The mean "
        f"confidence is {confidence:.3f} %, the accuracy {accuracy:.3f} %: {side}confident by "
        f"{abs(confidence - accuracy):.3f} points."
    )
