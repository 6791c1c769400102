"""Classifying image files with a trained network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from smidgen.errors import RunError, SmidgenError
from smidgen.files import looked_up
from smidgen.images import read_image
from smidgen.runs.record import Run, load_run
from smidgen.runs.weights import TrainedNetwork, read_weights
from smidgen.training.evaluation import scores


@dataclass(frozen=True)
class Prediction:
    """What the network makes of one image.

    Attributes:
        file: the image file.
        label: the class with the highest score, counted from 0.
        probability: that the network gives it, 0 to 1.
    """

    file: str
    label: int
    probability: float


def predict(run: Run | str | Path, files: Iterable[str | Path]) -> list[Prediction]:
    """Classify PNG and JPEG files, each brought to the form of the images that were trained on.

    Args:
        run: a finished run, its directory, or a safetensors file that `smidgen export` wrote.
        files: image files of any size, dark on light or light on dark.

    Raises:
        ImageError: a file is missing, no image, damaged, too large or blank.
        RunError: the run cannot be read, or was not trained on grey images.
    """
    trained, called = _trained(run)
    channels, height, width = trained.input_shape
    if channels != 1:
        raise RunError(f"{called} was trained on images of {channels} channels; only grey ones are predicted")
    paths = [Path(file) for file in files]
    images = [read_image(path, height, width) for path in paths]
    if not images:
        return []
    batch = torch.from_numpy(np.stack(images)).unsqueeze(1)
    try:
        logits = scores(trained.network, batch, trained.mean, trained.std)
    except SmidgenError as error:
        raise RunError(f"{called}: {error}") from None
    probabilities, labels = logits.double().softmax(1).max(1)
    return [
        Prediction(str(path), int(label), float(probability))
        for path, label, probability in zip(paths, labels, probabilities, strict=True)
    ]


def _trained(run: Run | str | Path) -> tuple[TrainedNetwork, Path]:
    """The network of a run or of a file, and what to call it."""
    if isinstance(run, Run):
        return run.trained, run.directory
    path = Path(run)
    with looked_up(path):
        is_file = path.is_file()
    if is_file:
        return read_weights(path), path
    return load_run(path).trained, path
