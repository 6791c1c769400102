"""What a network will need on a microcontroller, before it is trained."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.errors import SmidgenError
from smidgen.graph.ops import Shape
from smidgen.graph.trace import TraceError
from smidgen.lowering.c.int8 import int8_code
from smidgen.lowering.c.rows import layer_name
from smidgen.lowering.c.source import Code
from smidgen.lowering.fused import FusedGraph, fuse
from smidgen.lowering.memory import Plan, nearest_plan, plan
from smidgen.lowering.quantize import quantize
from smidgen.training.recalibration import norms

MOST_PIXELS = 2**18
"""Of an image: beyond that, nobody thinks of a microcontroller, and working it out takes long."""
BITS = (8, 4)
"""Of a weight of the integer network."""
_IMAGES = 4


@dataclass(frozen=True)
class Needs:
    """Bytes of the C export with integer arithmetic, as `smidgen export` then says.

    Attributes:
        flash: tables, without code and shapes.
        ram: memory of a call beside the image.
        costliest: the layer that takes most of each, for people.
    """

    flash: int
    ram: int
    costliest: Mapping[str, str]


@dataclass(frozen=True)
class Sizes(Needs):
    """The same, and with other options.

    Attributes:
        flash_4_bits: tables with `--bits 4`.
        ram_lean: memory with `--lean`.
    """

    flash_4_bits: int
    ram_lean: int


def int8_needs(network: nn.Module, input_shape: Shape, *, bits: int = 8, most_ram: int | None = None) -> Needs:
    """What a network will need with the plan that an export takes under a budget of memory.

    Args:
        network: as it is built, on the CPU, whatever its weights; it is not changed.
        input_shape: channels, height, width.
        bits: of a weight.
        most_ram: the budget, bytes; where no plan is within it, the result is of the one with the least memory.

    Raises:
        SmidgenError: it cannot be exported so; says why in words that follow a name.
    """
    return _needs(*_probe(network, input_shape), bits, most_ram)


def int8_sizes(network: nn.Module, input_shape: Shape, *, bits: int = 8, most_ram: int | None = None) -> Sizes:
    """What a network will need, and with fewer bits and less memory; arguments and errors as of `int8_needs`."""
    graph, images = _probe(network, input_shape)
    found = _needs(graph, images, bits, most_ram)
    few = _needs(graph, images, min(BITS), most_ram)
    return Sizes(found.flash, found.ram, found.costliest, few.flash, plan(graph, lean=True).bytes)


def _needs(graph: FusedGraph, images: Tensor, bits: int, most_ram: int | None) -> Needs:
    chosen = nearest_plan(graph, most_ram)
    code = int8_code(graph, quantize(graph, images, bits), chosen)
    return Needs(code.weight_bytes, chosen.bytes, {"flash": _costliest(code, chosen), "ram": chosen.costliest})


def _costliest(code: Code, chosen: Plan) -> str:
    """The layer with the largest tables, for people."""
    starts = (0, chosen.bands.cut) if chosen.bands else (0,)
    names = {
        layer_name(before + stage.output): stage.names
        for before, part in zip(starts, chosen.pipelines, strict=True)
        for stage in part.stages
    }
    sizes: Counter[str] = Counter()
    for name, size in code.arrays.items():
        sizes[name.partition("_")[0]] += size
    return "; ".join(f"{names[layer]} ({size:,} bytes)" for layer, size in sizes.most_common(1))


def _probe(network: nn.Module, input_shape: Shape) -> tuple[FusedGraph, Tensor]:
    """The network as a graph, with values in place of what is 0 before training, and images to calibrate it.

    Raises:
        SmidgenError: it cannot be exported; says why in words that follow a name.
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
        with torch.no_grad():
            for parameter in probe.parameters():
                if not parameter.any():
                    parameter.uniform_(0.1, 0.2, generator=generator)
        graph = fuse(probe, input_shape, 0.5, 0.25)
    except TraceError as error:
        raise SmidgenError(str(error)) from None
    return graph, torch.randint(0, 256, (_IMAGES, *input_shape), dtype=torch.uint8, generator=generator)
