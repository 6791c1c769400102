"""On the real MNIST: one epoch of the flagship, and what it makes of image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from smidgen.data.dataset import Dataset
from smidgen.runs.predict import predict
from smidgen.runs.record import Run


def test_one_epoch_of_the_flagship(flagship_run: Run) -> None:
    """A one-epoch cycle gave 99.0 to 99.2 %; a mistake in the data, the loop or the schedule costs far more than 0.4."""
    assert flagship_run.accuracy >= 98.7
    assert flagship_run.history[0].test_total == 10_000
    assert flagship_run.result.parameters <= 7_999
    assert flagship_run.goal_met is (flagship_run.accuracy >= 99.4)


FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda x: x,
    "enlarged, dark on light": lambda x: Image.eval(x.resize((300, 300), Image.Resampling.BICUBIC), lambda v: 255 - v),
    "small on a large page": lambda x: page(x),
}


def page(image: Image.Image) -> Image.Image:
    sheet = Image.new("L", (400, 300), 30)
    sheet.paste(Image.eval(image.resize((70, 70)), lambda v: 30 + v * 220 // 255), (40, 200))
    return sheet


@pytest.mark.parametrize("form", FORMS)
def test_image_files_are_recognized_nearly_as_well_as_mnists_own(
    flagship_run: Run, mnist: Dataset, tmp_path: Path, form: str
) -> None:
    paths = []
    for index in range(300):
        path = tmp_path / f"{index}.png"
        FORMS[form](Image.fromarray(mnist.held_out.images[index, 0].numpy())).save(path)
        paths.append(path)
    labels = [prediction.label for prediction in predict(flagship_run, paths)]
    right = sum(a == b for a, b in zip(labels, mnist.held_out.labels.tolist(), strict=False))
    assert right >= 0.96 * 300
