"""Marks: which input pixels each single value of a tensor depends on.

The marks of a tensor are float32 [8, *shape of the tensor]: for each value the first row, minus the last row, the
first column and minus the last column that it depends on, as if the image extended beyond its edges; then the same
four over the pixels that exist. Whatever depends on several values depends on the union of their pixels, which is the
elementwise minimum. A value that depends on no pixel holds `NOTHING`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

MARKS = 8
NOTHING = 2.0**40
LARGEST = 2**22
"""Number of values in a storage up to which marks are kept value by value."""

Jump = tuple[Fraction | None, Fraction | None]
"""Input pixels between neighbouring positions along height and width; None where the distance varies."""


class UnknownFieldError(Exception):
    """Raised if the pixels that a value depends on are unknown."""


def image_marks(image: Tensor) -> Tensor:
    """The marks of an image batch [count, channels, height, width]: each pixel depends on itself."""
    height, width = image.shape[2:]
    rows = torch.arange(height, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 1, height, width)
    columns = torch.arange(width, dtype=torch.float32).view(1, 1, 1, -1).expand(1, 1, height, width)
    return torch.stack([rows, -rows, columns, -columns] * 2).expand(MARKS, *image.shape)


def nothing(shape: Sequence[int]) -> Tensor:
    """The marks of values that depend on no pixel."""
    return torch.full((), NOTHING, dtype=torch.float32).expand(MARKS, *shape)


def compact(marks: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """The marks with a length of 1 along each dimension that is only expanded.

    Args:
        marks: of a tensor.
        dims: of the marks, not of the tensor; None: all but the first.
    """
    for dim in range(1, marks.dim()) if dims is None else dims:
        if marks.shape[dim] > 1 and marks.stride(dim) == 0:
            marks = marks.narrow(dim, 0, 1)
    return marks


def union(several: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The union of marks, broadcast to one shape."""
    result: Tensor | None = None
    for marks in several:
        one = compact(marks.reshape(MARKS, *[1] * (len(shape) - marks.dim() + 1), *marks.shape[1:]))
        result = one if result is None else torch.minimum(result, one)
    assert result is not None
    return result.expand(MARKS, *shape)


def mixed(marks: Tensor, dims: Sequence[int]) -> Tensor:
    """The union along some of the tensor's dimensions, which keep a length of 1."""
    places = sorted({dim % (marks.dim() - 1) + 1 for dim in dims}) if marks.dim() > 1 else []
    return compact(marks, places).amin(places, keepdim=True) if places else marks


_Layout = tuple[tuple[int, ...], tuple[int, ...], int]
"""Size, stride and offset of a tensor in its storage."""


@dataclass(eq=False)
class _Place:
    """A storage: what the values in it depend on.

    Attributes:
        storage: kept alive, so that no other storage can take over its identity.
        itemsize: bytes of a value.
        values: that it holds.
        known: whether it is known what they depend on.
        stored: whether they come from parameters and buffers alone.
        layout: of the tensor that the marks belong to.
        marks: of that tensor.
        flat: [8, values], once marks are kept value by value; without either no value depends on any pixel.
    """

    storage: torch.UntypedStorage
    itemsize: int
    values: int
    known: bool = True
    stored: bool = False
    layout: _Layout | None = None
    marks: Tensor | None = None
    flat: Tensor | None = None


@dataclass
class Memory:
    """The marks of all tensors, by the storage they lie in: a view has those of the values that it shows.

    Attributes:
        lost: whether a tensor of unknown origin was read.
    """

    lost: bool = False
    _places: dict[int, _Place] = field(default_factory=dict)

    def add(self, tensor: Tensor, *, stored: bool) -> None:
        """Take in a tensor that does not depend on the image, unless its storage is known.

        Args:
            tensor: of any kind.
            stored: whether it is a parameter or buffer.
        """
        storage = storage_of(tensor)
        if storage is not None:
            values = storage.nbytes() // tensor.element_size()
            self._places.setdefault(storage._cdata, _Place(storage, tensor.element_size(), values, stored=stored))

    def is_stored(self, tensor: Tensor) -> bool:
        """Whether a tensor comes from parameters and buffers alone."""
        storage = storage_of(tensor)
        place = self._places.get(storage._cdata) if storage is not None else None
        return place is not None and place.stored

    def read(self, tensor: Tensor) -> Tensor | None:
        """A tensor's marks; None where it depends on no pixel.

        Raises:
            UnknownFieldError: what it depends on is not known.
        """
        storage = storage_of(tensor)
        if storage is None:
            raise UnknownFieldError
        place = self._places.get(storage._cdata)
        if place is None:
            self.lost = True
            raise UnknownFieldError
        if not place.known or place.itemsize != tensor.element_size():
            raise UnknownFieldError
        if place.marks is None and place.flat is None:
            return None
        if place.marks is not None and place.layout == _layout(tensor):
            return place.marks
        marks = _strided(_flat(place), _layout(tensor))
        return marks if bool((marks < NOTHING).any()) else None

    def write(self, tensor: Tensor, marks: Tensor | None, *, known: bool = True, stored: bool = False) -> None:
        """Note what a tensor depends on that an operation has just written.

        Args:
            tensor: that was written, all of its storage or a part.
            marks: None where it depends on no pixel.
            known: False where that is not known.
            stored: whether it comes from parameters and buffers alone.
        """
        storage = storage_of(tensor)
        if storage is None:
            return
        itemsize = tensor.element_size()
        place = self._places.get(storage._cdata)
        if place is None or (itemsize == place.itemsize and tensor.numel() >= place.values):
            values = storage.nbytes() // itemsize
            self._places[storage._cdata] = _Place(
                storage, itemsize, values, known, stored, _layout(tensor), marks if known else None
            )
            return
        place.stored = place.stored and stored
        if not known or place.itemsize != itemsize:
            place.known = False
        elif place.known and (marks is not None or place.marks is not None or place.flat is not None):
            try:
                _strided(_flat(place), _layout(tensor)).copy_(nothing(tensor.shape) if marks is None else marks)
            except UnknownFieldError:
                place.known = False


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor; None if it has none of the usual kind, as sparse and uninitialized tensors."""
    if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_nested:
        return None
    return tensor.untyped_storage()


def _flat(place: _Place) -> Tensor:
    """The marks of a storage, value by value."""
    if place.flat is None:
        if place.values > LARGEST:
            raise UnknownFieldError
        place.flat = torch.full((MARKS, place.values), NOTHING, dtype=torch.float32)
        if place.marks is not None and place.layout is not None:
            _strided(place.flat, place.layout).copy_(place.marks)
        place.marks = None
    return place.flat


def _strided(flat: Tensor, layout: _Layout) -> Tensor:
    size, stride, offset = layout
    return flat.as_strided((MARKS, *size), (flat.shape[1], *stride), offset)


def _layout(tensor: Tensor) -> _Layout:
    return tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
