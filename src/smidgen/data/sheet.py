"""A contact sheet: some images of each class, to see at a glance what the data are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from smidgen.data.dataset import Dataset

MOST_ROWS = 40
COLUMNS = 12
_GAP = 2
_GREY = 90
_LEAST_SIDE = 48


def contact_sheet(dataset: Dataset) -> bytes:
    """The first training images of each class, a row a class in the order of the labels, as PNG.

    Images are shown as they are trained on, small ones enlarged without smoothing; at most `MOST_ROWS` classes.
    """
    channels, height, width = dataset.input_shape
    rows = min(dataset.classes, MOST_ROWS)
    sheet = np.full((channels, rows * (height + _GAP) - _GAP, COLUMNS * (width + _GAP) - _GAP), _GREY, np.uint8)
    for label in range(rows):
        chosen = (dataset.train.labels == label).nonzero()[:COLUMNS, 0]
        for column, index in enumerate(chosen.tolist()):
            top, left = label * (height + _GAP), column * (width + _GAP)
            sheet[:, top : top + height, left : left + width] = dataset.train.images[index].numpy()
    image = Image.fromarray(sheet[0] if channels == 1 else np.ascontiguousarray(sheet.transpose(1, 2, 0)))
    factor = max(1, _LEAST_SIDE // max(height, width))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
