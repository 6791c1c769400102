"""Networks as they are after training."""

from __future__ import annotations

from torch import nn


def unsettled(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts as after training, some scales negative."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            if module.weight is not None:  # network.scale=false
                nn.init.normal_(module.weight, 0.8, 0.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network
