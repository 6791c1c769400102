"""Small images of the data and the network, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import nn

from smidgen.data.augment import augment, to_float
from smidgen.data.dataset import Dataset
from smidgen.randomness import Purpose, Stream
from smidgen.trial import Trial

_GAP = 2


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An image as PNG: grey [height, width], or colour [height, width, 3]."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


def data_uri(content: bytes) -> str:
    """PNG bytes as a URI that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def small(image: npt.NDArray[np.uint8]) -> bytes:
    """One image [channels, height, width]; the first channel if it is neither grey nor colour."""
    return png(image.transpose(1, 2, 0) if len(image) == 3 else image[0])


def contact_sheet(dataset: Dataset, trial: Trial, seed: int, count: int = 24) -> tuple[bytes, bytes]:
    """The first images of epoch 1 before and after augmentation, just as the network saw them.

    Returns:
        Two PNG sheets of the same arrangement.
    """
    count = min(count, trial.batch_size, len(dataset.train))
    order = Stream(seed, Purpose.ORDER, 1).permutation(len(dataset.train))[: trial.batch_size]
    images = dataset.train.images[order]
    augmented = augment(to_float(images), trial.augmentation, Stream(seed, Purpose.AUGMENTATION, 1, 0))
    after = (augmented * 255).round().clamp(0, 255).byte()
    return _sheet(list(images[:count].numpy())), _sheet(list(after[:count].numpy()))


def filters(network: nn.Module) -> tuple[bytes, int] | None:
    """The kernels of the first convolution, each scaled to its own largest weight; grey is 0.

    Returns:
        A PNG sheet and the number of kernels; None if there is no convolution.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        return None
    weights = first.weight.detach().numpy()
    kernels = weights if weights.shape[1] == 3 else weights[:, :1]
    scaled = [127.5 * (1 + kernel / max(float(np.abs(kernel).max()), 1e-12)) for kernel in kernels]
    return _sheet([np.rint(kernel).astype(np.uint8) for kernel in scaled], gap_value=127), len(kernels)


def _sheet(images: Sequence[npt.NDArray[np.uint8]], columns: int = 12, gap_value: int = 90) -> bytes:
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    channels, height, width = images[0].shape
    gap = _GAP if height > 8 else 1
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.full((3, *shape) if channels == 3 else (1, *shape), gap_value, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image if channels == 3 else image[:1]
    return small(sheet)
