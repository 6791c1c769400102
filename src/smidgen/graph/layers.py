"""Layers that PyTorch has, made faster on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits a value instead of a float: several times faster on a CPU.

    The rate is kept to the nearest 1/65,536. The bits come from PyTorch's own generator, so they
    follow `torch.manual_seed`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero each value with probability `p` and scale the rest by 1/(1 - p), in training only."""
        if not self.training or self.p == 0:
            return input
        dropped = round(self.p * 2**16)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64, device=input.device)
        words.random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()]
        # Lay the bits out like the input, so that the product runs straight through memory.
        strides = torch.empty_like(input, device="meta").stride()
        keep = (
            (bits.as_strided(input.shape, strides) >= dropped - 2**15).to(input.dtype).mul_(2**16 / (2**16 - dropped))
        )
        return input * keep
