"""Receptive fields, exactly: which input pixels each unit of each layer sees.

While the network runs once, every tensor that comes out of an operation is given, for each of the
two image axes, the first and the last input pixel that each of its positions depends on. So
branches that are added or concatenated give the union over their paths, whatever the network is
built of. What an operation does to positions is known for those listed here; behind any other
the receptive field is unknown, and said to be.

The arithmetic of size, jump and start is that of Araujo, Norris and Sim, "Computing Receptive
Fields of Convolutional Neural Networks", Distill 2019, kept a position at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_Ints = npt.NDArray[np.int64]

_NOTHING_LOW, _NOTHING_HIGH = 2**31, -(2**31)
"""First and last pixel of a position that sees none, only padding."""


@dataclass(frozen=True, eq=False)
class Axis:
    """What each position along one axis of a tensor sees along the same axis of the input.

    Attributes:
        first: the first pixel, as if the image went on beyond its edges: can be negative.
        last: the last pixel, likewise.
        seen_first: the first pixel that really reaches the position; padding holds none.
        seen_last: the last one.
        jump: input pixels between neighbouring positions.
    """

    first: _Ints
    last: _Ints
    seen_first: _Ints
    seen_last: _Ints
    jump: Fraction

    @classmethod
    def of_input(cls, side: int) -> Axis:
        """The input sees itself."""
        pixels = np.arange(side)
        return cls(pixels, pixels, pixels, pixels, Fraction(1))

    def __len__(self) -> int:
        return len(self.first)

    @property
    def size(self) -> int:
        """The receptive field's side, pixels, edges of the image not counted."""
        return int((self.last - self.first).max()) + 1

    @property
    def start(self) -> int:
        """The first pixel that the first position sees; negative where that is padding."""
        return int(self.first[0])

    def windows(self, windows: Sequence[Sequence[int]], jump: Fraction) -> Axis:
        """Positions that each see a window of these positions; an index beyond an end is padding."""
        first, last, seen_first, seen_last = [], [], [], []
        for window in windows:
            inside = [i for i in window if 0 <= i < len(self)]
            first.append(min(self._beyond(self.first, i) for i in window))
            last.append(max(self._beyond(self.last, i) for i in window))
            seen_first.append(min((int(self.seen_first[i]) for i in inside), default=_NOTHING_LOW))
            seen_last.append(max((int(self.seen_last[i]) for i in inside), default=_NOTHING_HIGH))
        arrays = [np.array(pixels, dtype=np.int64) for pixels in (first, last, seen_first, seen_last)]
        return Axis(arrays[0], arrays[1], arrays[2], arrays[3], jump)

    def collapsed(self) -> Axis:
        """One position that sees all of these."""
        return self.windows([range(len(self))], self.jump * len(self))

    def _beyond(self, pixels: _Ints, index: int) -> int:
        nearest = min(max(index, 0), len(self) - 1)
        return int(pixels[nearest]) + round((index - nearest) * self.jump)

    @staticmethod
    def union(axes: Sequence[Axis]) -> Axis:
        """Positions that see what any of several tensors' positions see; a length of 1 is broadcast."""
        length = max(map(len, axes))
        stacked = [
            np.stack([np.broadcast_to(getattr(axis, name), length) for axis in axes])
            for name in ("first", "last", "seen_first", "seen_last")
        ]
        jump = max(axis.jump for axis in axes if len(axis) == length)
        return Axis(stacked[0].min(0), stacked[1].max(0), stacked[2].min(0), stacked[3].max(0), jump)


@dataclass(frozen=True, eq=False)
class Field:
    """What a tensor's positions see.

    Attributes:
        height: along the image's height.
        width: along its width.
    """

    height: Axis
    width: Axis

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Height and width."""
        return self.height, self.width

    def collapsed(self) -> Field:
        """A single position that sees everything that any position sees."""
        return Field(self.height.collapsed(), self.width.collapsed())


class FieldTracer(TorchFunctionMode):
    """Follows receptive fields through whatever runs while it is active.

    Args:
        input: the image batch [count, channels, height, width] that the network is run on.
    """

    def __init__(self, input: Tensor) -> None:
        super().__init__()
        # The tensors are kept, so that no other can take over the identity of one that is gone.
        self._known: dict[int, tuple[Tensor, Field | None]] = {}
        self._set(input, Field(Axis.of_input(input.shape[2]), Axis.of_input(input.shape[3])))

    def field(self, tensor: object) -> Field | None:
        """What a tensor's positions see, or None where that is unknown or nothing of the image."""
        known = self._known.get(id(tensor))
        return known[1] if known else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # A shape is taken before the call: an operation may change its input in place.
        inputs = [t for t in _tensors([*args, *kwargs.values()]) if id(t) in self._known]
        output = func(*args, **kwargs)
        if inputs:
            for result in _tensors([output]):
                if id(result) not in self._known or func.__name__.endswith("_"):
                    self._set(result, self._after(func.__name__, inputs, args, kwargs, result))
        return output

    def _set(self, tensor: Tensor, field: Field | None) -> None:
        self._known[id(tensor)] = (tensor, field)

    def _after(
        self, name: str, inputs: Sequence[Tensor], args: Any, kwargs: Mapping[str, Any], result: Tensor
    ) -> Field | None:
        fields = [self.field(t) for t in inputs]
        known = [field for field in fields if field is not None]
        if len(known) < len(fields):
            return None
        name = name.strip("_")
        field, before = known[0], tuple(inputs[0].shape)
        if name in _WINDOWED:
            return _windowed(field, _WINDOWED[name], args, kwargs, result)
        if name.startswith("adaptive_"):
            return _adaptive(field, result)
        if name in ("interpolate", "upsample") and kwargs.get("mode", "nearest") == "nearest":
            return _nearest(field, result)
        if name == "pad":
            return _padded(field, args, kwargs)
        if name in _REDUCING:
            return _reduced(field, before, tuple(result.shape))
        if name in _SHAPING:
            return _reshaped(field, before, tuple(result.shape))
        if name in ("linear", "matmul", "mm", "addmm"):
            # Positions are only mixed where the last dimension is one of the image's.
            return field if len(before) == 2 else None
        if name in _POINTWISE and all(t.dim() == result.dim() for t in inputs):
            return Field(Axis.union([f.height for f in known]), Axis.union([f.width for f in known]))
        return None


_WINDOWED = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "max_pool2d_with_indices": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding"),
    "lp_pool2d": ("input", "norm_type", "kernel_size", "stride"),
}
_REDUCING = frozenset({"mean", "sum", "amax", "amin", "max", "min", "logsumexp", "std", "var"})
_SHAPING = frozenset({"flatten", "view", "reshape", "squeeze", "unsqueeze", "getitem"})
_POINTWISE = frozenset(
    """
    relu relu6 leaky_relu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh prelu rrelu softplus
    softsign sigmoid tanh exp log sqrt rsqrt pow square abs neg clamp clamp_min clamp_max threshold logsigmoid
    batch_norm dropout dropout2d feature_dropout alpha_dropout add sub mul div rsub radd rmul truediv rtruediv
    iadd imul isub itruediv maximum minimum where cat concat concatenate contiguous clone to float double half
    detach channel_shuffle native_channel_shuffle
    """.split()  # noqa: SIM905 - a hundred quotes would only hide the names
)
"""Each position of the result depends on the same position of the inputs."""


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def _windowed(field: Field, names: Sequence[str], args: Any, kwargs: Mapping[str, Any], result: Tensor) -> Field | None:
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    kernel = given["weight"].shape[2:] if "weight" in given else _pair(given["kernel_size"])
    stride = _pair(given.get("stride") or (1 if "weight" in given else given["kernel_size"]))
    dilation, padding = _pair(given.get("dilation", 1)), given.get("padding", 0)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(r // 2 for r in reach) if padding == "same" else 0
    if result.dim() != 4:
        return None
    axes = []
    parts = zip(field.axes, kernel, stride, _pair(padding), dilation, result.shape[2:], strict=True)
    for axis, k, s, p, d, count in parts:
        windows = [[i * s - p + t * d for t in range(k)] for i in range(count)]
        axes.append(axis.windows(windows, axis.jump * s))
    return Field(*axes)


def _adaptive(field: Field, result: Tensor) -> Field:
    """The windows of PyTorch's adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m)."""
    axes = []
    for axis, count in zip(field.axes, result.shape[-2:], strict=True):
        n = len(axis)
        windows = [range(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]
        axes.append(axis.windows(windows, axis.jump * Fraction(n, count)))
    return Field(*axes)


def _nearest(field: Field, result: Tensor) -> Field:
    axes = []
    for axis, count in zip(field.axes, result.shape[-2:], strict=True):
        windows = [[i * len(axis) // count] for i in range(count)]
        axes.append(axis.windows(windows, axis.jump * Fraction(len(axis), count)))
    return Field(*axes)


def _padded(field: Field, args: Any, kwargs: Mapping[str, Any]) -> Field | None:
    given = {**dict(zip(("input", "pad", "mode"), args, strict=False)), **kwargs}
    if given.get("mode", "constant") != "constant":
        return None
    left, right, top, bottom = [*given["pad"], 0, 0, 0, 0][:4]
    axes = []
    for axis, before, after in ((field.height, top, bottom), (field.width, left, right)):
        axes.append(axis.windows([[i] for i in range(-before, len(axis) + after)], axis.jump))
    return Field(*axes)


def _reduced(field: Field, before: tuple[int, ...], after: tuple[int, ...]) -> Field | None:
    """Over the channels positions stay; over both image axes they become one; anything else is unknown."""
    if len(before) != 4:
        return field
    if len(after) == 4 and after[2:] == before[2:]:
        return field
    if after in ((before[0], before[1]), (before[0], before[1], 1, 1)):
        return field.collapsed()
    return None


def _reshaped(field: Field, before: tuple[int, ...], after: tuple[int, ...]) -> Field | None:
    """Flattening mixes all positions for whatever comes next; other changes of the image are unknown."""
    if len(before) == 4 and len(after) == 4 and after[2:] == before[2:]:
        return field
    if len(after) == 2 and after[0] == before[0]:
        return field.collapsed() if len(before) == 4 else field
    if len(before) == 2 and after[0] == before[0] and after[2:] in ((), (1, 1)):
        return field
    return None


def trace(tracer: FieldTracer, network: Callable[[Tensor], Any], input: Tensor) -> Any:
    """Run the network under the tracer, without gradients."""
    with torch.no_grad(), tracer:
        return network(input)
