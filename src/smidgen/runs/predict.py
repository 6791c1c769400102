"""Classifies image files with a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smidgen.data.decode import read_picture
from smidgen.errors import ImageError, RunError, SmidgenError
from smidgen.files import looked_up
from smidgen.images import read_image
from smidgen.machine import exclusive
from smidgen.runs.record import Run, load_run
from smidgen.runs.weights import TrainedNetwork, read_weights
from smidgen.tables import TableFormat, render
from smidgen.training.evaluation import scores


@dataclass(frozen=True)
class Prediction:
    """The network's answer for one image.

    Attributes:
        file: the image file.
        label: the class with the highest score, counted from 0.
        probability: of that class, 0 to 1.
        name: of the class; its number as text where classes have no names.
    """

    file: str
    label: int
    probability: float
    name: str


class PredictionList(list[Prediction]):
    """Predictions in the order of the files; a table as text and in a notebook."""

    def __str__(self) -> str:
        return self._table("table")

    def _repr_html_(self) -> str:
        return self._table("html")

    def _table(self, format: TableFormat) -> str:
        rows = [[p.file, p.name, f"{100 * p.probability:.2f} %"] for p in self]
        return render(["file", "label", "probability"], rows, format)


@exclusive()
def predict(
    run: Run | str | Path,
    files: Iterable[str | Path],
    on_error: Callable[[Path, ImageError], None] | None = None,
) -> PredictionList:
    """Classify image files, each brought to the form of the images that were trained on.

    For a network of drawings, such as MNIST's digits, a file may be dark on light or light on dark; for
    one of pictures it is preprocessed like the training images (`smidgen.data.decode`).

    Args:
        run: a finished run, its directory, or a safetensors file that `smidgen export` wrote.
        files: image files of any size; PNG and JPEG, for pictures also BMP, GIF and WebP.
        on_error: called with each file that cannot be classified, which is then left out; None raises.

    Raises:
        ImageError: a file is missing, no image, damaged, animated, too large or blank.
        RunError: the run cannot be read, or its network cannot classify an image by itself.
    """
    trained, called = _trained(run)
    channels, height, width = trained.input_shape
    if trained.form != "picture" and channels != 1:
        raise RunError(f"{called} was trained on drawings of {channels} channels; only greyscale is supported")
    paths, images = [], []
    for path in map(Path, files):
        try:
            if trained.form == "picture":
                images.append(read_picture(path, (channels, height, width)))
            else:
                images.append(read_image(path, height, width)[None])
            paths.append(path)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(path, error)
    if not images:
        return PredictionList()
    batch = torch.from_numpy(np.stack(images))
    try:
        logits = scores(trained.network, batch, trained.mean, trained.std)
        other = scores(trained.network, torch.cat([batch[:1], 255 - batch[:1]]), trained.mean, trained.std)
    except SmidgenError as error:
        raise RunError(f"{called}: {error}") from None
    if not torch.allclose(logits[0], other[0], rtol=1e-3, atol=1e-3):
        raise RunError(
            f"{called}: the scores of an image depend on the others in its batch, as with a BatchNorm without running "
            f"statistics, so images cannot be classified one by one"
        )
    probabilities, labels = logits.double().softmax(1).max(1)
    return PredictionList(
        Prediction(str(path), int(label), float(probability), trained.label_name(int(label)))
        for path, label, probability in zip(paths, labels, probabilities, strict=True)
    )


def _trained(run: Run | str | Path) -> tuple[TrainedNetwork, Path]:
    """The network of a run or of a file, and its path for messages."""
    if isinstance(run, Run):
        return run.trained, run.directory
    path = Path(run)
    with looked_up(path):
        is_file = path.is_file()
    if is_file:
        return read_weights(path), path
    return load_run(path).trained, path
