"""Recomputing BatchNorm's running statistics on images without augmentation, as in evaluation.

Augmented images are blurred by resampling and shifted, so statistics gathered from them are slightly off for the
images of the evaluation. Recomputing them at the end, with the weights fixed, is known as precise BatchNorm (Wu and
Johnson, "Rethinking Batch in BatchNorm", arXiv 2105.07576).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[object]) -> None:
    """Replace the running statistics of every BatchNorm in a network by their means over some batches.

    Everything else, dropout too, works as in evaluation; weights and counters stay as they are.

    Args:
        network: on its engine; its statistics are changed in place.
        batches: normalized images as the network takes them; each counts alike, and is valid only until the
            next.

    Raises:
        TrainingError: a value is not finite.
    """
    probe = copy.deepcopy(network).eval()
    measured = norms(probe)
    for module in measured:
        module.momentum = 1.0  # what is running is then of the last batch alone
        module.train()
    buffers = [buffer for module in measured for buffer in _statistics(module)]
    sums = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in buffers]
    count = 0
    for images in batches:
        for buffer in buffers:
            buffer.zero_()  # an engine may work with the difference, and round it
        probe(images)
        count += 1
        for total, buffer in zip(sums, buffers, strict=True):
            total += buffer
    kept = [buffer for module in norms(network) for buffer in _statistics(module)]
    for buffer, total in zip(kept, sums, strict=True):
        buffer.copy_(total / count)


def norms(network: nn.Module) -> list[_BatchNorm]:
    """The network's BatchNorm layers that have running statistics."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _statistics(module: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert module.running_mean is not None
    assert module.running_var is not None
    return module.running_mean, module.running_var
