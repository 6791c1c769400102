"""From a trial's optimizer, a value, to a PyTorch optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smidgen.trial import SGD, Adam, AdamW, Optimizer


def make_optimizer(
    settings: Optimizer, weights: Sequence[Tensor], vectors: Sequence[Tensor], *, fused: bool = True
) -> torch.optim.Optimizer:
    """PyTorch's optimizer over a network's parameters.

    Args:
        settings: the trial's optimizer.
        weights: of convolutions and linear layers; only on these weight decay acts.
        vectors: biases, BatchNorm's scale and shift.
        fused: use PyTorch's fused step, one kernel over all parameters.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.numel()], "weight_decay": settings.weight_decay},
        {"params": [p for p in vectors if p.numel()], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match settings:
        case SGD(lr=lr, momentum=momentum, nesterov=nesterov):
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case AdamW(lr=lr, beta1=beta1, beta2=beta2):
            return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=fused)
        case Adam(lr=lr, beta1=beta1, beta2=beta2):
            return torch.optim.Adam(groups, lr=lr, betas=(beta1, beta2), fused=fused)
