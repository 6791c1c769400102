"""Predictions of a run for the held-out images, stored so that reports need not classify them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smidgen.errors import RunError
from smidgen.files import cannot_read
from smidgen.tensorfile import read_header, read_tensors, sealed_bytes
from smidgen.training.loop import EpochRecord

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Predictions:
    """A network's answer for each held-out image, in order.

    Attributes:
        classes: with the highest score, int64 [images].
        probabilities: of those classes, 0 to 1, float32 [images].
    """

    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @classmethod
    def from_logits(cls, logits: Tensor) -> Predictions:
        """The answers of a network.

        Args:
            logits: float32 [images, classes].
        """
        classes = logits.argmax(1)
        probabilities = logits.double().softmax(1).gather(1, classes[:, None])[:, 0].float()
        return cls(classes.cpu().numpy(), probabilities.cpu().numpy())

    def to_bytes(self, weights_sha256: str, correct: int) -> bytes:
        """The predictions as a sealed file's bytes.

        Args:
            weights_sha256: of the network that made them.
            correct: how many are right.
        """
        classes = torch.from_numpy(self.classes)
        tensors = {
            # A byte each, unless there are more classes than it can tell apart.
            "classes": classes.to(torch.uint8) if not len(classes) or int(classes.max()) < 256 else classes,
            "probabilities": torch.from_numpy(self.probabilities),
        }
        return sealed_bytes(tensors, {"format": _FORMAT, "weights_sha256": weights_sha256, "correct": correct})


def read_predictions(path: Path, weights_sha256: str, last: EpochRecord, classes: int) -> Predictions | None:
    """Read a run's predictions; None for a run that kept none, as those of older versions.

    Args:
        path: of the file.
        weights_sha256: of the run's network.
        last: the run's last epoch, with which the predictions must agree.
        classes: number of classes.

    Raises:
        RunError: the file is damaged, or is not of this run.
    """
    remedy = "remove it, and reports will classify the images again"
    try:
        header = read_header(path, follow=False)
        about, images = header.about, (last.test_total,)
        if not header.sealed or about.get("format") != _FORMAT or set(header.tensors) != {"classes", "probabilities"}:
            raise RunError(f"{path} does not hold predictions that this version of smidgen can read; {remedy}")
        if (about.get("weights_sha256"), about.get("correct")) != (weights_sha256, last.test_correct):
            raise RunError(f"{path} is not of this run; {remedy}")
        kinds = {name: dtype for name, (dtype, shape) in header.tensors.items() if shape == images}
        if kinds.get("classes") not in (torch.uint8, torch.int64) or kinds.get("probabilities") != torch.float32:
            raise ValueError("its tensors have the wrong type or shape")
        tensors = read_tensors(path, header, follow=False)
        answers, probabilities = tensors["classes"].long(), tensors["probabilities"]
        if not bool(((answers >= 0) & (answers < classes)).all()):
            raise ValueError("it has a class that does not exist")
        if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
            raise ValueError("it has a probability outside 0 to 1")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{cannot_read(path, error)}; {remedy}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path} is damaged: {error}; {remedy}") from None
    return Predictions(answers.numpy(), probabilities.numpy())
