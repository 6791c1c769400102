"""Evaluation of networks on held-out images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smidgen.data.dataset import Examples
from smidgen.engines.choose import choose_to_classify
from smidgen.engines.engine import Batch, Engine
from smidgen.errors import SmidgenError, TrainingError
from smidgen.machine import is_out_of_memory
from smidgen.training.sums import on_host

BATCH = 500
"""Images that are classified at once."""
KEPT_BYTES = 2**28
"""Images that take no more than this as float32 are normalized and laid out once, not in each evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """Loss, accuracy and logits of a network on a set of images.

    Attributes:
        loss: cross-entropy, averaged over the images, nats.
        correct: images whose highest score is their label's.
        total: images.
        logits: float32 [images, classes], on the device of the images.
    """

    loss: float
    correct: int
    total: int
    logits: Tensor = field(repr=False, compare=False)

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * self.correct / self.total


class HeldOut:
    """Held-out images as an engine's networks take them.

    Args:
        engine: that evaluates.
        examples: images and labels, on any device.
        mean: the training set's, 0 to 1.
        std: the training set's.

    Attributes:
        labels: int64 [images], on the engine's device.
    """

    def __init__(self, engine: Engine, examples: Examples, mean: float, std: float) -> None:
        examples = examples.to(engine.device)
        self.labels = examples.labels
        self._images, self._engine, self._mean, self._std = examples.images, engine, mean, std
        self._kept = list(self._batches()) if 4 * self._images.numel() <= KEPT_BYTES else None

    def __iter__(self) -> Iterator[Batch]:
        """The images, in batches."""
        return self._batches() if self._kept is None else iter(self._kept)

    def _batches(self) -> Iterator[Batch]:
        for part in self._images.split(BATCH):
            yield self._engine.batch(part, self._mean, self._std)


def evaluate(network: nn.Module, held_out: HeldOut) -> Evaluation:
    """Loss and accuracy of a network over all the held-out images.

    Args:
        network: on the engine that the images are for.
        held_out: the images.

    Raises:
        TrainingError: a score is not a finite number.
        SmidgenError: there is not enough memory.
    """
    logits = _scores(network, held_out)
    # In double precision, so that the mean does not depend on how the sum is cut into pieces.
    mean = F.cross_entropy(logits.double(), held_out.labels)
    correct = (logits.argmax(1) == held_out.labels).sum()
    [(loss, hits, finite)] = on_host(torch.stack((mean, correct.double(), torch.isfinite(logits).all().double()))[None])
    _check_finite(bool(finite))
    return Evaluation(loss, int(hits), len(logits), logits)


def scores(network: nn.Module, images: Tensor, mean: float, std: float) -> Tensor:
    """Scores (logits) of a network in evaluation mode, by the fastest engine that can run it.

    Args:
        network: a PyTorch module on the CPU that takes float32 [count, channels, height, width], normalized.
        images: uint8, of the same shape.
        mean: the training set's, 0 to 1.
        std: the training set's.

    Returns:
        float32 [count, classes].

    Raises:
        TrainingError: a score is not a finite number.
        SmidgenError: there is not enough memory.
    """
    _, channels, height, width = images.shape
    engine = choose_to_classify(network, (channels, height, width))
    prepared = engine.prepare(network)
    try:
        found = _scores(prepared, (engine.batch(part, mean, std) for part in images.split(BATCH)))
        _check_finite(bool(torch.isfinite(found).all()))
        return found
    finally:
        engine.plain(prepared)  # leaves the network as it was


def _scores(network: nn.Module, batches: Iterable[Batch]) -> Tensor:
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            joined = torch.cat([network(batch) for batch in batches])
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SmidgenError(f"there is not enough memory to classify {BATCH} images at once") from None
    finally:
        network.train(was_training)
    return joined


def _check_finite(finite: bool) -> None:
    if not finite:
        raise TrainingError("the network's scores are not all finite numbers")
