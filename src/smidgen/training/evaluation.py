"""How good a network is on held-out images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smidgen.data.dataset import Examples
from smidgen.engines.batches import evaluation_batch
from smidgen.errors import SmidgenError, TrainingError

BATCH = 500


@dataclass(frozen=True)
class Evaluation:
    """What a network makes of a set of images.

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


def scores(network: nn.Module, images: Tensor, mean: float, std: float) -> Tensor:
    """Scores (logits) of a network in evaluation mode.

    Args:
        network: takes float32 [count, channels, height, width], normalized.
        images: uint8, of the same shape.
        mean: the training set's, 0 to 1.
        std: the training set's.

    Returns:
        float32 [count, classes].

    Raises:
        TrainingError: a score is not a finite number.
        SmidgenError: there is not enough memory.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            parts = [network(evaluation_batch(network, part, mean, std)) for part in images.split(BATCH)]
            joined = torch.cat(parts)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise SmidgenError(f"there is not enough memory to classify {BATCH} images at once") from None
    finally:
        network.train(was_training)
    if not bool(torch.isfinite(joined).all()):
        raise TrainingError("the network's scores are not all finite numbers")
    return joined


def evaluate(network: nn.Module, examples: Examples, mean: float, std: float) -> Evaluation:
    """Loss and accuracy of a network over all the examples."""
    logits = scores(network, examples.images, mean, std)
    # In double precision, so that the mean does not depend on how the sum is cut into pieces.
    loss = F.cross_entropy(logits.double(), examples.labels)
    correct = (logits.argmax(1) == examples.labels).sum()
    return Evaluation(float(loss), int(correct), len(examples), logits)
