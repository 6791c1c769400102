"""From a trial's optimizer, a value, to a PyTorch optimizer."""

from __future__ import annotations

import torch
from torch import nn

from smidgen.trial import SGD, Adam, AdamW, Optimizer


def make_optimizer(settings: Optimizer, network: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
    """PyTorch's optimizer over the network's parameters.

    Weight decay acts on weights of convolutions and linear layers only: parameters with one
    dimension (biases, BatchNorm's scale and shift) form a group without it.

    Args:
        settings: the trial's optimizer.
        network: whose parameters are trained.
        fused: use PyTorch's fused step, one kernel over all parameters.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match settings:
        case SGD(lr=lr, momentum=momentum, nesterov=nesterov):
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case AdamW(lr=lr, beta1=beta1, beta2=beta2):
            return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), fused=fused)
        case Adam(lr=lr, beta1=beta1, beta2=beta2):
            return torch.optim.Adam(groups, lr=lr, betas=(beta1, beta2), fused=fused)
