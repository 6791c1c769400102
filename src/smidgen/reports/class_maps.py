"""Class activation maps: what each position of the last feature map adds to a class's score.

Zhou, Khosla, Lapedriza, Oliva and Torralba, "Learning Deep Features for Discriminative Localization", CVPR 2016. Behind
a global average pooling, a linear layer takes the mean over positions of what it would answer at each, so its score is
the mean of that map plus the bias: an identity, not an approximation. Other networks have no such map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.data.augment import normalize
from smidgen.errors import SmidgenError
from smidgen.graph.fold import fold, run
from smidgen.graph.ops import Affine, Convolution, Graph, Operation, Pool
from smidgen.graph.trace import TraceError, trace
from smidgen.runs.weights import TrainedNetwork


class NoClassMapsError(SmidgenError):
    """A network that has no class activation maps; says why."""


@dataclass(frozen=True)
class CellPlace:
    """Where the cells of a map lie in the image, along one axis.

    A cell is drawn at the centre of its receptive field, as wide as the step to the next.

    Attributes:
        edge: of the first cell, pixels from the edge of the image.
        jump: pixels from one cell to the next.
        receptive_field: pixels that a cell sees, the edges of the image not counted.
    """

    edge: float
    jump: int
    receptive_field: int


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Class activation maps of some images.

    Attributes:
        maps: float64 [images, maps, height, width]; the mean of a map plus its bias is the network's score.
        bias: float64 [images, maps].
        rows: where the cells lie along the height.
        columns: where they lie along the width.
    """

    maps: Tensor
    bias: Tensor
    rows: CellPlace
    columns: CellPlace

    @property
    def scores(self) -> Tensor:
        """The network's scores (logits), float64 [images, maps]."""
        return self.maps.mean((2, 3)) + self.bias


def class_maps(trained: TrainedNetwork, images: Tensor, classes: Tensor) -> ClassMaps:
    """Class activation maps of a network in evaluation mode, BatchNorm folded, in double precision.

    Args:
        trained: the network.
        images: uint8 [images, channels, height, width].
        classes: which maps of each image, int64 [images, maps].

    Raises:
        NoClassMapsError: the network does not end in global average pooling and linear layers, or cannot be traced.
    """
    try:
        graph = fold(trace(trained.network, trained.input_shape))
    except TraceError as error:
        raise NoClassMapsError(f"the network cannot be traced: {error}") from None
    weight, bias, features = _linear_end(graph)
    rows, columns = (_place(graph, features, axis) for axis in (0, 1))
    values = run(graph, normalize(images.double() / 255, trained.mean, trained.std))
    maps = torch.einsum("nmc,nchw->nmhw", weight[classes], values[features])
    return ClassMaps(maps, bias[classes], rows, columns)


def _linear_end(graph: Graph) -> tuple[Tensor, Tensor, int]:
    """What follows the global average pooling as one linear layer.

    Returns:
        Weight [classes, channels], bias [classes], both float64, and the value that is pooled.
    """
    writers: dict[int, Operation] = {operation.output: operation for operation in graph.operations}
    classes = graph.shapes[graph.output][0]
    weight, bias = torch.eye(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    value = graph.output
    while (operation := writers.get(value)) is not None:
        value = operation.inputs[0]
        _, height, width = graph.shapes[value]
        match operation:
            case Pool(kind="average", padding=(0, 0)) if operation.kernel == (height, width):
                return weight, bias, value
            case Convolution(kernel=(1, 1), padding=(0, 0), groups=1) if (height, width) == (1, 1):
                if operation.bias is not None:
                    bias = bias + weight @ operation.bias.double()
                weight = weight @ operation.weight.double().flatten(1)
            case Affine() if (height, width) == (1, 1):
                bias = bias + weight @ operation.shift.double()
                weight = weight * operation.scale.double()
            case _:
                break
    has = "no pooling" if operation is None else f"the layer {operation.name}"
    raise NoClassMapsError(f"the network's end is not global average pooling and a linear layer, but has {has}")


def _place(graph: Graph, value: int, axis: int) -> CellPlace:
    """Where a value's cells lie in the image, by the arithmetic of Araujo, Norris and Sim, Distill 2019."""
    fields = {0: (0, 1, 1)}  # first and last pixel (exclusive) that the first unit sees, and the jump
    for operation in graph.operations:
        starts, stops, jumps = zip(*(fields[source] for source in operation.inputs), strict=True)
        start, stop, jump = min(starts), max(stops), jumps[0]
        if len(set(jumps)) > 1:
            raise NoClassMapsError(
                f"{operation.name} joins maps of different scales, so its cells have no single place"
            )
        if isinstance(operation, Convolution | Pool):
            dilation = operation.dilation[axis] if isinstance(operation, Convolution) else 1
            start -= operation.padding[axis] * jump
            stop += ((operation.kernel[axis] - 1) * dilation - operation.padding[axis]) * jump
            jump *= operation.stride[axis]
        fields[operation.output] = (start, stop, jump)
        if operation.output == value:
            break
    start, stop, jump = fields[value]
    return CellPlace((start + stop - jump) / 2, jump, stop - start)
