"""The effect of PyTorch's operators on marks: one rule per kind of operator.

It is unknown what the results of an operator without a rule depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smidgen.anatomy.marks import MARKS, NOTHING, Jump, UnknownFieldError, compact, mixed, nothing, union

Operator = torch._ops.OpOverload


def name_of(operator: Operator) -> str:
    """An operator's name without overload, and without the underscore of one that works in place."""
    namespace, _, name = operator._schema.name.partition("::")
    return name.rstrip("_") if namespace == "aten" else f"{namespace}::{name}"


def tensors_in(value: object) -> list[Tensor]:
    """The tensors among arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def arguments_of(operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names in the operator's schema."""
    given = {}
    for index, argument in enumerate(operator._schema.arguments):
        if argument.name in kwargs:
            given[argument.name] = kwargs[argument.name]
        else:
            given[argument.name] = args[index] if index < len(args) else argument.default_value
    return given


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operator that has an argument which depends on the image.

    Attributes:
        operator: that was called.
        given: all its arguments by name.
        results: the tensors that it returned.
        read: gives the marks of a tensor; None where it depends on no pixel.
        jump: gives the jump of a tensor.
    """

    operator: Operator
    given: dict[str, Any]
    results: list[Tensor]
    read: Callable[[Tensor], Tensor | None]
    jump: Callable[[Tensor], Jump]

    def marks(self, name: str = "self") -> Tensor:
        """The marks of one argument."""
        marks = self.read(self.given[name])
        return nothing(self.given[name].shape) if marks is None else marks

    def marks_of(self, *names: str) -> list[Tensor]:
        """The marks of those of some arguments that depend on the image."""
        found = [self.read(tensor) for name in names for tensor in tensors_in(self.given.get(name))]
        return [marks for marks in found if marks is not None]


Rule = Callable[[Call], Sequence[Tensor]]
"""Gives the marks of the first results; it is unknown what the others depend on."""


def rule_for(operator: Operator) -> Rule | None:
    """The rule of an operator, if there is one."""
    known = _RULES.get(name_of(operator))
    return known or (_pointwise if torch.Tag.pointwise in operator.tags else None)


def is_constant(operator: Operator) -> bool:
    """Whether an operator's results depend on no values of its arguments."""
    return name_of(operator) in _CONSTANT


def has_no_products(operator: Operator) -> bool:
    """Whether an operator multiplies and accumulates nothing that MACs count.

    That holds for sums, elementwise work, pooling, normalization, interpolation and whatever only moves values.
    """
    name = name_of(operator)
    ruled = rule_for(operator) is not None and not name.startswith("_fft")
    return ruled or operator.is_view or is_constant(operator) or name in _WITHOUT_PRODUCTS


def _pointwise(call: Call) -> Sequence[Tensor]:
    """Each value depends on the same place of all arguments, as they are broadcast."""
    found = call.marks_of(*[name for name in call.given if name != "out"])
    first = call.results[0].shape
    return [union(found, first) for result in call.results if result.shape == first]


def _copied(call: Call) -> Sequence[Tensor]:
    return [union([call.marks("src")], call.results[0].shape)]


def _filled(call: Call) -> Sequence[Tensor]:
    shape = call.results[0].shape
    return [union([call.marks("value")], shape) if isinstance(call.given["value"], Tensor) else nothing(shape)]


def _moved(call: Call) -> Sequence[Tensor]:
    """Values are copied to other places: the operator itself, run on the marks, shows where to."""
    given = call.given
    if call.marks_of("index", "indices", "mask", "repeats") or given.get("accumulate") or given.get("reduce"):
        raise UnknownFieldError
    values = {
        name: [nothing(t.shape) if (marks := call.read(t)) is None else marks for t in tensors_in(given[name])]
        for name in ("self", "tensors", "src", "source", "values", "input")
        if tensors_in(given.get(name))
    }
    schema = call.operator._schema.arguments
    if any(t.is_meta for name, value in given.items() if name not in values for t in tensors_in(value)):
        raise UnknownFieldError
    others = {name: _on_cpu(value) for name, value in given.items() if name not in values}
    others |= {"value": NOTHING} if "value" in others else {}
    found: list[list[Tensor]] = []
    for index in range(MARKS):
        each = {name: [marks[index].clone() for marks in several] for name, several in values.items()}
        one = {name: parts[0] if isinstance(given[name], Tensor) else parts for name, parts in each.items()}
        arguments = {argument.name: (others | one)[argument.name] for argument in schema}
        found.append(tensors_in(call.operator(**arguments)))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return [_on_cpu(item) for item in value] if isinstance(value, list | tuple) else value


def _along(call: Call) -> Sequence[Tensor]:
    """Reductions, sorting, softmax: each result depends on everything along some dimensions, or on all."""
    marks, dims = call.marks(), call.given.get("dim")
    count = marks.dim() - 1
    dims = [dims] if isinstance(dims, int) else list(dims or range(count))
    if call.given.get("other") is not None:
        raise UnknownFieldError
    marks = mixed(marks, dims)
    kept = [n for at, n in enumerate(marks.shape[1:]) if at not in {dim % count for dim in dims}] if count else []
    return [
        (marks if result.dim() == count else marks.reshape(MARKS, *kept)).expand(MARKS, *result.shape)
        for result in call.results
    ]


def _batch_norm(call: Call) -> Sequence[Tensor]:
    marks = call.marks("input")
    if call.given.get("running_mean") is None or call.given.get("training"):
        marks = mixed(marks, [dim for dim in range(marks.dim() - 1) if dim != 1])
    vectors = call.marks_of("weight", "bias", "running_mean", "running_var")
    ones = [1] * (marks.dim() - 3)
    return [union([marks, *[vector.reshape(MARKS, 1, -1, *ones) for vector in vectors]], call.results[0].shape)]


def _layer_norm(call: Call) -> Sequence[Tensor]:
    marks = mixed(call.marks("input"), range(-len(call.given["normalized_shape"]), 0))
    return [union([marks, *call.marks_of("weight", "bias")], call.results[0].shape)]


def _group_norm(call: Call) -> Sequence[Tensor]:
    if call.marks_of("weight", "bias"):
        raise UnknownFieldError
    count, _, *sides = call.results[0].shape
    parted = call.marks("input").reshape(MARKS, count, call.given["group"], -1, *sides)
    return [mixed(parted, range(2, parted.dim() - 1)).expand(parted.shape).flatten(2, 3)]


def _glu(call: Call) -> Sequence[Tensor]:
    marks = call.marks()
    first, second = marks.chunk(2, call.given["dim"] % (marks.dim() - 1) + 1)
    return [torch.minimum(first, second)]


# Windows.


def _listed(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _padded(marks: Tensor, dim: int, before: int, after: int, jump: Fraction | None) -> Tensor:
    """Marks with padding on both sides of one dimension, or with less of them where that is negative.

    The image is thought to continue in the padding of images [count, channels, height, width], if the jump is known.
    """
    start, end = max(-before, 0), marks.shape[dim] + min(after, 0)
    kept = marks.narrow(dim, start, end - start)
    parts = []
    for count, edge, sign in (
        (max(before, 0), kept.narrow(dim, 0, 1), -1),
        (max(after, 0), kept.narrow(dim, -1, 1), 1),
    ):
        beyond = edge.repeat_interleave(count, dim)
        axis = {marks.dim() - 2: 0, marks.dim() - 1: 2}.get(dim)
        if axis is not None and marks.dim() == 5:
            steps = torch.arange(1, count + 1, dtype=torch.float32)
            steps = (steps.flip(0) if sign < 0 else steps).reshape(-1, *[1] * (marks.dim() - dim - 1))
            moved = (steps * sign * float(jump or 0)).round()
            for at, shift in ((axis, moved), (axis + 1, -moved)):
                beyond[at] = torch.where(beyond[at] < NOTHING, beyond[at] + shift, NOTHING)
        beyond[MARKS // 2 :] = NOTHING
        parts.append(beyond)
    return torch.cat([parts[0], kept, parts[1]], dim)


def _slid(marks: Tensor, dim: int, kernel: int, stride: int, dilation: int, count: int) -> Tensor:
    """The union over each window along one dimension, from windows of 1, 2, 4, ... places."""
    marks = marks.narrow(dim, 0, (count - 1) * stride + (kernel - 1) * dilation + 1)
    size = 1
    while size < kernel:
        step = min(size, kernel - size)
        left = marks.shape[dim] - step * dilation
        marks = torch.minimum(marks.narrow(dim, 0, left), marks.narrow(dim, step * dilation, left))
        size += step
    return marks[(slice(None),) * dim + (slice(None, None, stride),)]


@dataclass(frozen=True)
class _Window:
    """A window over the last dimensions of images: one number, or one for each dimension, of each setting."""

    kernel: Any
    stride: Any
    padding: Any
    dilation: Any = 1


def _windows(call: Call, name: str, spatial: int, window: _Window) -> Tensor:
    """The union over windows of an argument's last dimensions; channels that are alike in one."""
    result = call.results[0]
    marks = compact(call.marks(name), [call.given[name].dim() - spatial])
    jumps = dict(zip((-2, -1), call.jump(call.given[name]), strict=True))
    settings = [_listed(x, spatial) for x in (window.kernel, window.stride, window.padding, window.dilation)]
    for at, (kernel, stride, padding, dilation) in enumerate(zip(*settings, strict=True)):
        dim, count = marks.dim() - spatial + at, result.shape[result.dim() - spatial + at]
        needed = (count - 1) * stride + dilation * (kernel - 1) + 1 - padding - marks.shape[dim]
        marks = _padded(marks, dim, padding, max(needed, 0), jumps.get(at - spatial))
        marks = _slid(marks, dim, kernel, stride, dilation, count)
    return marks


def _pool(spatial: int) -> Rule:
    def rule(call: Call) -> Sequence[Tensor]:
        given, kernel = call.given, call.given["kernel_size"]
        window = _Window(kernel, given.get("stride") or kernel, given["padding"], given.get("dilation", 1))
        marks = _windows(call, "self", spatial, window)
        return [marks.expand(MARKS, *result.shape) for result in call.results]

    return rule


def _adaptive(spatial: int) -> Rule:
    """The windows of PyTorch's adaptive pooling: from floor(i n / m) to ceil((i + 1) n / m)."""

    def rule(call: Call) -> Sequence[Tensor]:
        marks, result = call.marks(), call.results[0]
        marks = compact(marks, range(1, marks.dim() - spatial))
        for dim in range(marks.dim() - spatial, marks.dim()):
            n, m = marks.shape[dim], result.shape[dim - 1]
            windows = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            parts = [marks.narrow(dim, start, end - start).amin(dim, keepdim=True) for start, end in windows]
            marks = torch.cat(parts, dim)
        return [marks.expand(MARKS, *result.shape) for result in call.results]

    return rule


def _convolution(call: Call) -> Sequence[Tensor]:
    image, weight, result = call.given["input"], call.given["weight"], call.results[0]
    groups, spatial, transposed = call.given["groups"], weight.dim() - 2, call.given["transposed"]
    if image.dim() != weight.dim():
        raise UnknownFieldError
    stride, padding, dilation = (_listed(call.given[name], spatial) for name in ("stride", "padding", "dilation"))
    window = _Window(list(weight.shape[2:]), stride, padding, dilation)
    marks = _spread_windows(call, window) if transposed else _windows(call, "input", spatial, window)
    outputs = result.shape[1]
    if marks.shape[2] > 1:
        marks = marks.unflatten(2, (groups, -1)).amin(3, keepdim=True)
        marks = marks.expand(*marks.shape[:3], outputs // groups, *marks.shape[4:]).flatten(2, 3)
    vectors = call.marks_of("bias")
    if call.marks_of("weight"):
        if transposed and groups > 1:
            raise UnknownFieldError
        vectors.append(mixed(call.marks("weight"), [dim for dim in range(weight.dim()) if dim != transposed]))
    return [union([marks, *[v.reshape(MARKS, 1, outputs, *[1] * spatial) for v in vectors]], result.shape)]


def _spread_windows(call: Call, window: _Window) -> Tensor:
    """The windows of a transposed convolution, over images whose pixels are spread by the stride."""
    marks, result = compact(call.marks("input"), [2]), call.results[0]
    for dim, kernel, stride, padding, dilation in zip(
        range(3, marks.dim()), window.kernel, window.stride, window.padding, window.dilation, strict=True
    ):
        shape = list(marks.shape)
        shape[dim] = (shape[dim] - 1) * stride + 1
        spread = torch.full(shape, NOTHING, dtype=torch.float32)
        spread[(slice(None),) * dim + (slice(None, None, stride),)] = marks
        reach, count = dilation * (kernel - 1), result.shape[dim - 1]
        before = reach - padding
        spread = F.pad(spread.movedim(dim, -1), (before, count + reach - before - shape[dim]), value=NOTHING)
        marks = _slid(spread.movedim(-1, dim), dim, kernel, 1, dilation, count)
    return marks


def _constant_pad(call: Call) -> Sequence[Tensor]:
    marks, pad = call.marks(), call.given["pad"]
    jumps = dict(zip((-2, -1), call.jump(call.given["self"]), strict=True))
    for at in range(len(pad) // 2):
        marks = _padded(marks, marks.dim() - 1 - at, pad[2 * at], pad[2 * at + 1], jumps.get(-1 - at))
    return [marks]


# Products.


def _product(first: str, second: str) -> Rule:
    """A product of matrices or vectors: each value depends on a row of the first and a column of the second."""

    def rule(call: Call) -> Sequence[Tensor]:
        a, b, result = call.given[first], call.given[second], call.results[0]
        found = call.marks_of("self") if "self" not in (first, second) else []
        for marks in call.marks_of(first):
            rows = mixed(marks, [-1])
            found.append(rows if b.dim() > 1 else rows.squeeze(-1))
        for marks in call.marks_of(second):
            found.append(mixed(marks, [-2 if b.dim() > 1 else -1]))
        if a.dim() == 1:  # of two vectors
            found = [marks.reshape(MARKS) for marks in found]
        return [union(found, result.shape)]

    return rule


def _attention(call: Call) -> Sequence[Tensor]:
    """Each query depends on all keys and values."""
    found = [mixed(marks, [-1]) for marks in call.marks_of("query", "attn_mask", "attn_bias")]
    found += [mixed(marks, [-2, -1]) for marks in call.marks_of("key")]
    found += [mixed(marks, [-2]) for marks in call.marks_of("value")]
    return [union(found, call.results[0].shape)]


def _recurrent(call: Call) -> Sequence[Tensor]:
    """Every step counts as depending on all the others, as the last one does."""
    found = [mixed(marks, range(marks.dim() - 1)).reshape(MARKS) for marks in call.marks_of(*call.given)]
    return [union(found, result.shape) for result in call.results]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POINTWISE = _names("_to_copy native_dropout _prelu_kernel rrelu_with_noise hardswish log_sigmoid_forward")
"""Operators that work value by value without being tagged so."""
_ALONG = _names(
    """
    sum nansum mean prod amax amin max min any all std var std_mean var_mean logsumexp linalg_vector_norm norm argmax
    argmin median nanmedian mode kthvalue aminmax count_nonzero _softmax _safe_softmax _log_softmax cumsum cumprod
    logcumsumexp cummax cummin sort topk _fft_r2c _fft_c2c _fft_c2r
    """
)
_MOVED = _names(
    """
    cat stack flip roll repeat pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col tril triu
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d gather
    index index_select take slice_scatter select_scatter diagonal_scatter as_strided_scatter scatter index_put
    _index_put_impl _unsafe_index_put _unsafe_index index_copy repeat_interleave unsafe_split unsafe_split_with_sizes
    unsafe_chunk split_copy split_with_sizes_copy unbind_copy slice_copy select_copy permute_copy transpose_copy
    view_copy unfold_copy expand_copy diagonal_copy upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    """
)
_ATTENTION = _names(
    """
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    """
)
_CONSTANT = _names(
    """
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full
    new_empty_strided zero normal uniform random exponential geometric cauchy log_normal
    """
)
"""Operators of which only the shape of their argument matters; those with random numbers work in place."""
_WITHOUT_PRODUCTS = _names(
    """
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d affine_grid_generator nonzero col2im embedding index_add
    scatter_add scatter_reduce index_reduce masked_select masked_scatter bucketize searchsorted max_unpool2d
    fractional_max_pool2d _local_scalar_dense equal is_nonzero bincount histc _unique2 unique_dim put resize set
    transpose squeeze unsqueeze t as_strided _unsafe_view _reshape_alias _assert_async lift_fresh _linalg_check_errors
    """
)
"""Operators without a rule that multiply no matrices."""

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_MOVED, _moved),
    **dict.fromkeys(_ATTENTION, _attention),
    "copy": _copied,
    "fill": _filled,
    "constant_pad_nd": _constant_pad,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "glu": _glu,
    "avg_pool1d": _pool(1),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "max_pool2d_with_indices": _pool(2),
    "max_pool3d_with_indices": _pool(3),
    "_adaptive_avg_pool2d": _adaptive(2),
    "_adaptive_avg_pool3d": _adaptive(3),
    "adaptive_max_pool2d": _adaptive(2),
    "adaptive_max_pool3d": _adaptive(3),
    "convolution": _convolution,
    "mm": _product("self", "mat2"),
    "addmm": _product("mat1", "mat2"),
    "bmm": _product("self", "mat2"),
    "baddbmm": _product("batch1", "batch2"),
    "mv": _product("self", "vec"),
    "addmv": _product("mat", "vec"),
    "dot": _product("self", "tensor"),
    "vdot": _product("self", "other"),
    "mkldnn_rnn_layer": _recurrent,
}
