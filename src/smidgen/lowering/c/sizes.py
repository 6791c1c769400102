"""What a network will need on a microcontroller, before it is trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from smidgen.errors import SmidgenError
from smidgen.graph.ops import Shape
from smidgen.graph.trace import TraceError
from smidgen.lowering.c.int8 import int8_code
from smidgen.lowering.fused import fuse
from smidgen.lowering.memory import plan
from smidgen.lowering.quantize import quantize
from smidgen.training.recalibration import norms

MOST_PIXELS = 2**18
"""Of an image: beyond that, nobody thinks of a microcontroller, and working it out takes long."""
_IMAGES = 4


@dataclass(frozen=True)
class Sizes:
    """Bytes of the C export with integer arithmetic, as `smidgen export` then says.

    Attributes:
        flash: tables, without code and shapes.
        ram: memory of a call beside the image.
        flash_4_bits: tables with `--bits 4`.
        ram_lean: memory with `--lean`.
    """

    flash: int
    ram: int
    flash_4_bits: int
    ram_lean: int


def int8_sizes(network: nn.Module, input_shape: Shape) -> Sizes:
    """What a network will need, whatever its weights.

    Args:
        network: as it is built, on the CPU; it is not changed.
        input_shape: channels, height, width.

    Raises:
        SmidgenError: it cannot be exported so; says why in words that follow a name.
    """
    if input_shape[1] * input_shape[2] > MOST_PIXELS:
        raise SmidgenError(f"its images have more than {MOST_PIXELS:,} pixels")
    try:
        probe = copy.deepcopy(network)
    except Exception as error:  # whatever a user's module raises when it is copied
        raise SmidgenError(f"it cannot be copied ({type(error).__name__})") from None
    try:
        probe = probe.cpu().eval().float()
        generator = torch.Generator().manual_seed(0)
        for norm in norms(probe):  # what is 0 before training is not left out afterwards
            assert norm.running_mean is not None
            norm.running_mean.uniform_(0.1, 0.2, generator=generator)
        graph = fuse(probe, input_shape, 0.5, 0.25)
    except TraceError as error:
        raise SmidgenError(str(error)) from None
    images = torch.randint(0, 256, (_IMAGES, *input_shape), dtype=torch.uint8, generator=generator)
    whole, lean = plan(graph), plan(graph, lean=True)
    flash = [int8_code(graph, quantize(graph, images, bits), whole).weight_bytes for bits in (8, 4)]
    return Sizes(flash[0], whole.bytes, flash[1], lean.bytes)
