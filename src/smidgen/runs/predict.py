"""Classifies image files with a trained network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smidgen.data.decode import read_picture
from smidgen.errors import RunError, SmidgenError
from smidgen.files import looked_up
from smidgen.images import read_image
from smidgen.machine import exclusive
from smidgen.runs.record import Run, load_run
from smidgen.runs.weights import TrainedNetwork, read_weights
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


@exclusive()
def predict(run: Run | str | Path, files: Iterable[str | Path]) -> list[Prediction]:
    """Classify image files, each brought to the form of the images that were trained on.

    For a network of drawings, such as MNIST's digits, a file may be dark on light or light on dark; for
    one of pictures it goes the same way as those that were trained on (`smidgen.data.decode`).

    Args:
        run: a finished run, its directory, or a safetensors file that `smidgen export` wrote.
        files: image files of any size; PNG and JPEG, for pictures also BMP, GIF and WebP.

    Raises:
        ImageError: a file is missing, no image, damaged, animated, too large or blank.
        RunError: the run cannot be read.
    """
    trained, called = _trained(run)
    channels, height, width = trained.input_shape
    paths = [Path(file) for file in files]
    if trained.form == "picture":
        images = [read_picture(path, (channels, height, width)) for path in paths]
    elif channels == 1:
        images = [read_image(path, height, width)[None] for path in paths]
    else:
        raise RunError(f"{called} was trained on drawings of {channels} channels; only greyscale is supported")
    if not images:
        return []
    batch = torch.from_numpy(np.stack(images))
    try:
        logits = scores(trained.network, batch, trained.mean, trained.std)
    except SmidgenError as error:
        raise RunError(f"{called}: {error}") from None
    probabilities, labels = logits.double().softmax(1).max(1)
    return [
        Prediction(str(path), int(label), float(probability), trained.label_name(int(label)))
        for path, label, probability in zip(paths, labels, probabilities, strict=True)
    ]


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
