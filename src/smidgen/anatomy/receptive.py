"""Receptive fields, exactly: which input pixels the units of each layer see.

The network runs once, and every operator that PyTorch executes is seen, whatever class or function it is written in.
What each value depends on follows from what the operators do to their arguments: a field is the furthest that
gradients can reach. Behind an operator without a rule it is unknown, and reported as unknown.

The arithmetic of size, jump and start is that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional
Neural Networks", Distill 2019, applied to each value.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from smidgen.anatomy.marks import MARKS, NOTHING, Jump, Memory, UnknownFieldError, image_marks, storage_of
from smidgen.anatomy.rules import (
    Call,
    Operator,
    arguments_of,
    has_no_products,
    is_constant,
    name_of,
    rule_for,
    tensors_in,
)
from smidgen.graph.cost import macs_of_operator


@dataclass(frozen=True, eq=False)
class Field:
    """The receptive field of a tensor's units.

    Attributes:
        marks: float32 [8, *positions], as described in `smidgen.anatomy.marks`; the channels of a position are
            taken together.
        jump: input pixels between neighbouring positions along height and width.
    """

    marks: Tensor
    jump: Jump

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the largest field; 0 for a constant.

        The edges of the image do not limit it, unless the jump varies: then nothing says how fields would continue.
        """
        height, width = (axis + (MARKS // 2) * (self.jump[axis // 2] is None) for axis in (0, 2))
        return _span(self.marks[height : height + 2]), _span(self.marks[width : width + 2])

    @property
    def start(self) -> tuple[int, int]:
        """The first row and column that the first unit sees; negative where that is padding."""
        first = self.marks.reshape(MARKS, -1)[:, 0]
        return int(first[0]), int(first[2])


def _span(ends: Tensor) -> int:
    """The largest number of pixels from first to last."""
    lengths = torch.where(ends[0] < NOTHING, 1 - ends[1] - ends[0], 0)
    return int(lengths.max()) if lengths.numel() else 0


@dataclass
class Account:
    """The cost of one call of a module, without its submodules.

    Attributes:
        macs: multiply-accumulates.
        uncounted: operators that may multiply and accumulate, but are not counted.
        parameters: identities of the parameters that were used.
    """

    macs: int = 0
    uncounted: set[str] = field(default_factory=set)
    parameters: set[int] = field(default_factory=set)


_EXITS = frozenset({"numpy", "__array__", "tolist", "data_ptr", "__dlpack__", "untyped_storage", "storage"})
"""Methods of a tensor that take its values where no operator is seen."""
_TO_PYTHON = frozenset({"_local_scalar_dense", "equal", "is_nonzero"})
"""Operators that give Python a number, by which it can decide anything."""


class NetworkTracer:
    """Follows everything that a network computes from one image.

    Args:
        network: its parameters and buffers do not depend on the image.
        image: batch [1, channels, height, width] that the network is run on.

    Attributes:
        account: of the running module; the caller of a module replaces it during the call.
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        self.account = Account()
        self._network, self._image = network, image
        self._begin(())

    def run(self, call: Callable[[Tensor], Any], restart: Callable[[], None] = lambda: None) -> Any:
        """Run the network on the image, without gradients.

        A tensor of unknown origin can still be a constant, as those that modules keep without registering them. So if
        there is one the network runs again: tensors that exist before that cannot depend on the image.

        Args:
            call: the network.
            restart: called before the network runs again.
        """
        output = self._run(call)
        if self._memory.lost:
            existing = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
            self.account = Account()
            self._begin(existing)
            restart()
            output = self._run(call)
        return output

    def field(self, output: object) -> Field | None:
        """The receptive field of a tensor's units; None if it is unknown."""
        if not isinstance(output, Tensor) or self._left:
            return None
        with self.own_work():
            try:
                marks, jump = self._memory.read(output), self._jump(output)
            except UnknownFieldError:
                return None
            if marks is None:
                return Field(torch.full((MARKS, 1), NOTHING, dtype=torch.float32), (None, None))
            if marks.dim() <= 3:  # a vector has one position
                return Field(marks.flatten(1).amin(1, keepdim=True), jump)
            # Channels come first after the count, or last.
            both = [Field(marks.amin(dim), jump) for dim in (2, marks.dim() - 1)]
            return min(both, key=lambda found: found.size[0] * found.size[1])

    def _begin(self, existing: Iterable[Tensor]) -> None:
        self._memory = Memory()
        self._jumps: dict[int, Jump] = {}
        self._kept: list[Tensor] = []
        self._left = self._busy = False
        self._parameters: dict[int, set[int]] = {}
        for parameter in self._network.parameters():
            self._memory.add(parameter, stored=True)
            if (storage := storage_of(parameter)) is not None:
                self._parameters.setdefault(storage._cdata, set()).add(id(parameter))
        for buffer in self._network.buffers():
            self._memory.add(buffer, stored=True)
        self._memory.write(self._image, image_marks(self._image))
        self._keep(self._image, (Fraction(1), Fraction(1)))
        for tensor in existing:
            self._memory.add(tensor, stored=False)

    def _run(self, call: Callable[[Tensor], Any]) -> Any:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # a single operator, which shows nothing of what it does
        try:
            with torch.no_grad(), _Methods(self), _Operators(self):
                return call(self._image)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    @contextlib.contextmanager
    def own_work(self) -> Iterator[None]:
        """Meanwhile, ignore executed operators: they are the tracer's own."""
        busy, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = busy

    def exited(self, tensors: Sequence[Tensor]) -> None:
        """Note that the values of tensors are taken where no operator is seen: all that follows may depend on them."""
        if self._busy:
            return
        with self.own_work():
            depends = any(self._depends(tensor) for tensor in tensors)
        if depends:
            self._left = True
            self.account.uncounted.add("values taken out of PyTorch")

    def executed(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any], output: object) -> None:
        """Note what an operator was given and returned."""
        if self._busy:
            return
        results = tensors_in(output)
        with self.own_work():
            try:
                self._follow(operator, arguments_of(operator, args, kwargs), results)
            except Exception:  # a fault of the tracer is no reason to refuse a network that PyTorch runs
                self.account.uncounted.add(name_of(operator))
                for tensor in results:
                    self._memory.write(tensor, None, known=False)

    def _follow(self, operator: Operator, given: dict[str, Any], results: list[Tensor]) -> None:
        name = name_of(operator)
        if name == "lift_fresh":  # the constants that torch.tensor makes
            for tensor in results:
                self._memory.add(tensor, stored=False)
            return
        written = [a.name for a in operator._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        outputs = {argument for argument in written if argument not in ("self", "input")}
        inputs = [t for argument, value in given.items() if argument not in outputs for t in tensors_in(value)]
        stored = bool(inputs) and all(self._memory.is_stored(tensor) for tensor in inputs)
        depends = any(self._depends(tensor) for tensor in inputs)
        self._count(operator, given, inputs, results, depends=depends, stored=stored)
        if depends and name in _TO_PYTHON:
            self._left = True
        jump = self._jump_after(operator, given, inputs, results)
        if torch.Tag.inplace_view not in operator.tags:
            storages = {storage._cdata for t in inputs if (storage := storage_of(t)) is not None}
            new = [t for t in results if written or (s := storage_of(t)) is None or s._cdata not in storages]
            marks = self._marks_after(operator, given, inputs, new, depends=depends)
            for index, tensor in enumerate(new):
                known = index < len(marks) and not self._left
                self._memory.write(tensor, marks[index] if known else None, known=known, stored=stored)
            for tensor in [t for argument in written for t in tensors_in(given[argument])]:
                if not any(tensor is result for result in results):
                    self._memory.write(tensor, None, known=False)
        for tensor in results:
            self._keep(tensor, jump)

    def _count(
        self,
        operator: Operator,
        given: dict[str, Any],
        inputs: list[Tensor],
        results: list[Tensor],
        *,
        depends: bool,
        stored: bool,
    ) -> None:
        """Note the multiply-accumulates, those among parameters alone left out, and the parameters used."""
        for tensor in inputs:
            if (storage := storage_of(tensor)) is not None:
                self.account.parameters |= self._parameters.get(storage._cdata, set())
        if stored:
            return
        macs = macs_of_operator(operator, given, results)
        if macs is not None:
            self.account.macs += macs
        elif depends and not has_no_products(operator):
            self.account.uncounted.add(name_of(operator))

    def _marks_after(
        self, operator: Operator, given: dict[str, Any], inputs: list[Tensor], results: list[Tensor], *, depends: bool
    ) -> Sequence[Tensor | None]:
        """The marks of the first results; those of the others are unknown."""
        if is_constant(operator) or not depends:
            return [None] * len(results)
        rule = rule_for(operator)
        if rule is None:
            return []
        read: set[int] = set()

        def reading(tensor: Tensor) -> Tensor | None:
            read.add(id(tensor))
            return self._memory.read(tensor)

        try:
            marks = rule(Call(operator, given, results, reading, self._jump))
        except Exception:  # the rule does not fit these arguments
            return []
        overwrites = name_of(operator) in ("copy", "fill")
        unread = [tensor for tensor in inputs if id(tensor) not in read and self._depends(tensor)]
        if unread and not overwrites:
            return []
        fits = all(m.shape[1:] == t.shape for m, t in zip(marks, results, strict=False))
        return marks if fits else []

    def _depends(self, tensor: Tensor) -> bool:
        """Whether a tensor can depend on the image."""
        try:
            return self._left or self._memory.read(tensor) is not None
        except UnknownFieldError:
            return True

    # Jumps follow from shapes, and are checked against the marks when they are needed.

    def _keep(self, tensor: Tensor, jump: Jump) -> None:
        self._kept.append(tensor)
        self._jumps[id(tensor)] = jump

    def _jump_after(
        self, operator: Operator, given: dict[str, Any], inputs: list[Tensor], results: list[Tensor]
    ) -> Jump:
        height: set[Fraction | None] = set()
        width: set[Fraction | None] = set()
        for tensor in inputs if results else ():
            if id(tensor) not in self._jumps or self._jumps[id(tensor)] == (None, None):
                continue
            before = self._jump(tensor) if tensor.dim() == 4 != results[0].dim() else self._jumps[id(tensor)]
            for axis, jumps in enumerate((height, width)):
                scale = _scale(operator, given, axis, tensor, results[0])
                jump = before[axis]
                if scale is not None:
                    jumps.add(None if jump is None else jump * scale)
        return height.pop() if len(height) == 1 else None, width.pop() if len(width) == 1 else None

    def _jump(self, tensor: Tensor) -> Jump:
        """The jump of a tensor, where its marks agree.

        Raises:
            UnknownFieldError: what it depends on is not known.
        """
        height, width = self._jumps.get(id(tensor), (None, None))
        marks = self._memory.read(tensor)
        if tensor.dim() != 4 or marks is None:
            return height, width
        return _checked(height, marks[0], -2), _checked(width, marks[2], -1)


def _scale(operator: Operator, given: dict[str, Any], axis: int, tensor: Tensor, result: Tensor) -> Fraction | None:
    """The factor between the jumps of an argument and a result; None where the argument says nothing of it."""
    if tensor.dim() != 4 or result.dim() != 4:
        return Fraction(tensor.shape[axis + 2]) if tensor.dim() == 4 else Fraction(1)
    n, m, name = tensor.shape[axis + 2], result.shape[axis + 2], name_of(operator)
    if "adaptive" in name or "upsample" in name:
        return Fraction(n, m) if m else None
    if name == "convolution" or "_pool2d" in name:
        stride = given.get("stride") or given["kernel_size"]
        step = stride[axis % len(stride)]
        return Fraction(1, step) if given.get("transposed") else Fraction(step)
    if n == 1 < m:
        return None
    return Fraction(n) if m == 1 < n else Fraction(1)


def _checked(jump: Fraction | None, first: Tensor, dim: int) -> Fraction | None:
    """The distance of neighbouring positions.

    It is the expected one if there is a single position, if all positions see the same, or if it is not a whole number.
    """
    if first.shape[dim] < 2:
        return jump
    steps = first.diff(dim=dim)
    step = steps.reshape(-1)[0]
    if bool((steps == step).all()):
        return Fraction(int(step)) if step else jump
    return jump if jump is not None and jump.denominator > 1 else None


class _Operators(TorchDispatchMode):
    """Reports every operator that is executed to a tracer."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise PyTorch imports its compiler, which takes more than a second; nothing is compiled here."""
        return False

    def __init__(self, tracer: NetworkTracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracer = tracer

    def __torch_dispatch__(
        self,
        func: Operator,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self._tracer.executed(func, args, dict(kwargs or {}), output)
        return output


class _Methods(TorchFunctionMode):
    """Reports methods that execute no operator to a tracer."""

    def __init__(self, tracer: NetworkTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _EXITS:
            self._tracer.exited(tensors_in(list(args)))
        return func(*args, **(kwargs or {}))
