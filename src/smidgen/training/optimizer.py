"""From a trial's optimizer, a value, to a PyTorch optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smidgen.engines.native.vectors import FlatSGD
from smidgen.trial import SGD, Adam, AdamW, Optimizer


def make_optimizer(
    settings: Optimizer, weights: Sequence[Tensor], vectors: Sequence[Tensor], *, fused: bool = True, flat: bool = False
) -> torch.optim.Optimizer | FlatSGD:
    """The optimizer over a network's parameters: PyTorch's, or one that does as it does.

    Args:
        settings: the trial's optimizer.
        weights: of convolutions and linear layers; only on these weight decay acts.
        vectors: biases, BatchNorm's scale and shift.
        fused: use PyTorch's fused step, one kernel over all parameters.
        flat: the parameters are flat vectors on the CPU and the native engine is there: where it has
            the optimizer, use that.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.numel()], "weight_decay": settings.weight_decay},
        {"params": [p for p in vectors if p.numel()], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match settings:
        case SGD(lr=lr, momentum=momentum, nesterov=nesterov):
            if flat:
                return FlatSGD([{**g, "lr": lr, "momentum": momentum, "nesterov": nesterov} for g in groups])
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case AdamW(lr=lr, beta1=beta1, beta2=beta2):
            return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=fused)
        case Adam(lr=lr, beta1=beta1, beta2=beta2):
            return torch.optim.Adam(groups, lr=lr, betas=(beta1, beta2), fused=fused)
