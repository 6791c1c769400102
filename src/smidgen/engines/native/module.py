"""A PyTorch module whose forward and backward passes run in the native kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from smidgen.engines.engine import LayerPass
from smidgen.engines.native.core import cache_bytes, find_core, level
from smidgen.engines.native.fuse import Fused, UnsupportedError, fuse
from smidgen.engines.native.images import Blocks
from smidgen.errors import TrainingError
from smidgen.graph.ops import ModuleTensor, Shape
from smidgen.graph.trace import TraceError, trace
from smidgen.randomness import Stream

MOST_THREADS = 256


class NativeNetwork(nn.Module):
    """A network in the native engine.

    It has the parameters and buffers of the module it is made from, under the same names, and
    shares them; autograd, optimizers and state dicts work as they do with that module. Second
    derivatives are not supported.

    Args:
        network: what to run; it is traced again when its modules change between training and
            evaluation, when their parameters are replaced, or the images' size changes. Settings of
            its layers (a dropout's rate, say) and hooks are looked at only then.
        threads: that take part; the results do not depend on it.
        bfloat16: multiply in bfloat16, add in float32.

    Raises:
        UnsupportedError: at the first call, or by `check`: the network has a layer that the engine
            lacks.
    """

    def __init__(self, network: nn.Module, threads: int, *, bfloat16: bool = False) -> None:
        super().__init__()
        # Not registered as a submodule, so that names stay what they are in `network`.
        self.__dict__["original"] = network
        for name, child in network.named_children():
            if hasattr(type(self), name) or name in ("original", "threads", "products16"):
                raise UnsupportedError(name, "a layer of this name would hide a part of the engine")
            self.add_module(name, child)
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in network.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        if not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"threads is {threads}; allowed: 1 to {MOST_THREADS}")
        self.threads = threads
        self.products16 = bfloat16
        self._parts = list(network.modules())
        self._programs: dict[tuple[object, ...], _Program] = {}
        self.training = network.training

    original: nn.Module

    def check(self, input_shape: Shape) -> None:
        """Raise `UnsupportedError` if the engine cannot run this network on images of this shape, in either mode."""
        modes = [part.training for part in self._parts]
        try:
            for mode in (True, False):
                self.original.train(mode)
                _fused(self.original, input_shape, keep=mode)
        finally:
            for part, mode in zip(self._parts, modes, strict=True):
                part.training = mode

    def train(self, mode: bool = True) -> NativeNetwork:
        """Training or evaluation mode, as in any module."""
        super().train(mode)
        self.original.train(mode)
        return self

    def forward(self, images: Tensor | Blocks) -> Tensor:
        """The network's output for a batch of images.

        Args:
            images: float32 [count, channels, height, width], or blocks; blocks are read where they lie and must
                stay as they are until the backward pass is done.

        Raises:
            TypeError: the input is neither blocks nor a float32 tensor on the CPU.
            ValueError: a tensor does not have four dimensions, or blocks are not aligned to 64 bytes.
            UnsupportedError: the number of channels or the size is not the network's.
            TrainingError: a value is not finite; names the layer, or the input.
        """
        _check_input(images)
        _, channels, height, width = images.shape
        by_images = isinstance(images, Tensor) and images.requires_grad
        learns = torch.is_grad_enabled() and (by_images or any(p.requires_grad for p in self.parameters()))
        down_to_images = learns and by_images
        program = self._program((channels, height, width), keep=learns, input_gradient=down_to_images)
        if not learns:
            return program.forward(images, program.state)
        output: Tensor = _Run.apply(program, images, *program.parameters)  # type: ignore[no-untyped-call]
        return output

    def loss_and_gradients(
        self, images: Tensor | Blocks, labels: Tensor, label_smoothing: float = 0.0, stream: Stream | None = None
    ) -> tuple[float, int]:
        """One pass forward and backward without autograd; overwrites the gradient of every parameter.

        Args:
            images: as for `forward`.
            labels: int64 [count], 0 to classes - 1.
            label_smoothing: 0 to 1, as in `torch.nn.functional.cross_entropy`.
            stream: what dropout draws from; None: PyTorch's generator.

        Returns:
            The mean cross-entropy (nats), and how many images have their highest score at their
            label. If the loss is not finite, the gradients are unchanged.

        Raises:
            TypeError, ValueError: the images or labels are not as said above.
            TrainingError: a value is not finite; names the layer, or the input.
        """
        _check_input(images)
        count, channels, height, width = images.shape
        labels = labels.contiguous()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; allowed: 0 to 1")
        if labels.dtype != torch.int64 or labels.device.type != "cpu" or labels.shape != (count,) or not count:
            raise ValueError(f"labels: they must be int64 [{count}] on the CPU, at least one")
        program = self._program((channels, height, width), keep=True, input_gradient=False)
        if not program.graph.flat and program.output_shape[1:] != (1, 1):
            raise ValueError("output: for a loss, the network must return one score per class")
        for parameter in program.parameters:
            if parameter.requires_grad and not _can_take_gradient(parameter):
                parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        gradients = [p.grad if p.requires_grad else None for p in program.parameters]
        try:
            loss, correct = program.core.step(
                **_location(images),
                count=count,
                labels=labels.data_ptr(),
                smoothing=label_smoothing,
                tensors=program.addresses(),
                key=program.key(stream),
                state=program.state,
                gradients=program.gradient_addresses(gradients),
                threads=self.threads,
            )
        except RuntimeError as error:
            raise TrainingError(str(error)) from None
        except IndexError as error:
            raise ValueError(f"labels: {error}") from None
        return float(loss), int(correct)

    def _program(self, shape: Shape, *, keep: bool, input_gradient: bool) -> _Program:
        key = (shape, keep, input_gradient, *[part.training for part in self._parts])
        program = self._programs.get(key)
        if program is None or not program.is_current():
            program = self._programs[key] = _Program(self, shape, keep=keep, input_gradient=input_gradient)
        return program

    def timings(self) -> list[LayerPass]:
        """Every pass of every layer since `time_layers`."""
        return [LayerPass(*entry) for program in self._programs.values() for entry in program.core.timings()]

    def time_layers(self) -> None:
        """Take the time of every layer's passes from now on."""
        for program in self._programs.values():
            program.core.set_timed(True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeNetwork:
        return NativeNetwork(copy.deepcopy(self.original, memo), self.threads, bfloat16=self.products16)


def _fused(network: nn.Module, input_shape: Shape, *, keep: bool) -> Fused:
    core = find_core()
    assert core is not None
    try:
        return fuse(trace(network, input_shape), keep=keep, activations=core.activations())
    except TraceError as error:
        raise UnsupportedError(error.layer, error.reason) from error


def _check_input(images: object) -> None:
    if isinstance(images, Blocks):
        return
    if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.device.type != "cpu":
        found = f"{images.dtype} on {images.device}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"input: the native engine takes float32 tensors on the CPU, not {found}")
    if images.dim() != 4:
        raise ValueError(f"input: it has {images.dim()} dimensions; it must be [count, channels, height, width]")


def _location(images: Tensor | Blocks) -> dict[str, Any]:
    """The address and layout of the images, for the compiled part."""
    if isinstance(images, Blocks):
        return {"images": images.values.data_ptr(), "strides": None}
    return {"images": images.data_ptr(), "strides": images.stride()}


class _Program:
    """A network made ready for one mode and one size of images."""

    def __init__(self, network: NativeNetwork, shape: Shape, *, keep: bool, input_gradient: bool) -> None:
        core = find_core()
        assert core is not None
        fused = _fused(network.original, shape, keep=keep)
        graph = self.graph = fused.graph
        self.core = core.Program(
            shapes=list(graph.shapes),
            operations=fused.to_core(core),
            tensor_sizes=[entry.tensor.numel() for entry in graph.tensors],
            output=graph.output,
            keep=keep,
            input_gradient=input_gradient,
            bfloat16=network.products16,
            cache=cache_bytes(),
            level=level(),
        )
        self.threads = network.threads
        self.parameters = [entry.tensor for entry in graph.tensors if entry.is_parameter]
        self.sizes = [p.numel() for p in self.parameters]
        self.floats = sum(self.sizes)
        self.output_shape = graph.shapes[graph.output]
        self.features = self.output_shape[0] * self.output_shape[1] * self.output_shape[2]
        self.random = fused.is_random
        self.uses_batch_statistics = fused.uses_batch_statistics
        self.state = core.State()
        self.free: list[Any] = []
        self._checked: tuple[list[int], list[int]] = [], []
        self._shapes = [entry.tensor.shape for entry in graph.tensors]
        self._new_state: Callable[[], Any] = core.State

    def is_current(self) -> bool:
        """Whether the modules still hold the tensors that were there when they were traced."""
        return all(entry.owner.get(entry.key) is entry.tensor for entry in self.graph.tensors)

    def addresses(self) -> list[int]:
        """The addresses of parameters and buffers, which are checked whenever they change."""
        tensors = self.graph.tensors
        addresses = [entry.tensor.data_ptr() for entry in tensors]
        found = addresses, [entry.tensor.numel() for entry in tensors]
        if found != self._checked:
            _check_tensors(tensors, self._shapes)
            self._checked = found
        return addresses

    def gradient_addresses(self, gradients: Sequence[Tensor | None]) -> list[int]:
        """The address of the gradient of each tensor of the graph: 0 for buffers and frozen parameters."""
        addresses = [0 if g is None else g.data_ptr() for g in gradients]
        filled = iter(addresses)
        return [next(filled) if entry.is_parameter else 0 for entry in self.graph.tensors]

    def key(self, stream: Stream | None = None) -> int:
        """The key of dropout's random numbers: the stream's, or drawn from PyTorch's generator."""
        if not self.random:
            return 0
        return stream.torch_seed() if stream else int(torch.empty((), dtype=torch.int64).random_())

    def forward(self, images: Tensor | Blocks, state: Any) -> Tensor:
        count = images.shape[0]
        output = torch.empty((count, self.features))
        if count:
            try:
                self.core.forward(
                    **_location(images),
                    count=count,
                    tensors=self.addresses(),
                    key=self.key(),
                    state=state,
                    output=output.data_ptr(),
                    threads=self.threads,
                )
            except RuntimeError as error:
                raise TrainingError(str(error)) from None
        elif self.uses_batch_statistics:
            raise TrainingError("input: BatchNorm in training mode needs at least one image")
        return output if self.graph.flat else output.view(count, *self.output_shape)

    def take_state(self) -> Any:
        return self.free.pop() if self.free else self._new_state()


def _can_take_gradient(parameter: Tensor) -> bool:
    """Whether the kernels can write into the gradient that a parameter has."""
    grad = parameter.grad
    return grad is not None and grad.dtype == torch.float32 and grad.is_contiguous() and grad.device.type == "cpu"


def _check_tensors(tensors: Sequence[ModuleTensor], shapes: list[torch.Size]) -> None:
    for entry, shape in zip(tensors, shapes, strict=True):
        name, tensor = entry.name, entry.tensor
        if tensor.shape != shape:
            raise ValueError(f"{name}: its shape was {list(shape)} and is now {list(tensor.shape)}")
        wanted = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        if tensor.dtype != wanted or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise TypeError(f"{name}: the native engine takes contiguous {wanted} tensors on the CPU")


class _Run(torch.autograd.Function):
    """One pass through a program, in autograd's terms."""

    @staticmethod
    def forward(ctx: Any, program: _Program, images: Tensor | Blocks, *parameters: Tensor) -> Tensor:
        state = program.take_state()
        output = program.forward(images, state)
        ctx.program, ctx.state, ctx.shape = program, state, images.shape
        ctx.blocks = images if isinstance(images, Blocks) else None  # the backward pass reads them again
        ctx.versions = [p._version for p in parameters]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        program: _Program = ctx.program
        if ctx.state is None:
            raise RuntimeError("backward was already called for this output of the native engine")
        if ctx.versions != [p._version for p in program.parameters]:
            raise RuntimeError("a parameter was changed in place between forward and backward")
        gradient = gradient.contiguous()
        flat = torch.empty(program.floats)
        parts = [
            part.view_as(p) for part, p in zip(flat.split_with_sizes(program.sizes), program.parameters, strict=True)
        ]
        wants_input = ctx.needs_input_grad[1]
        by_input = torch.empty(ctx.shape) if wants_input else None
        if ctx.shape[0]:
            program.core.backward(
                output_gradient=gradient.data_ptr(),
                tensors=program.addresses(),
                state=ctx.state,
                gradients=program.gradient_addresses(parts),
                input_gradient=by_input.data_ptr() if by_input is not None else 0,
                threads=program.threads,
            )
        else:
            flat.zero_()
        program.free.append(ctx.state)
        ctx.state = ctx.blocks = None
        return None, by_input, *parts
