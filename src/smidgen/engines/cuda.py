"""The engine for GPUs: PyTorch, with the work of a step recorded once and played back.

A tiny network keeps a GPU busy for microseconds at a time, so launching its operations takes longer than they do
(docs/log.md, 2026-11-27). CUDA graphs launch all operations of a recording at once. Nothing here waits for the GPU,
but elastic augmentation, and full-matrix-adam and soap where they renew their root or axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.data.augment import normalize, resample, sampling_matrices, to_float
from smidgen.data.dataset import Examples
from smidgen.engines.eager import EagerEngine, EagerLoader
from smidgen.engines.engine import Batch, EngineKind, Figures, Optimizer
from smidgen.engines.flat import FlatAverage, FlatState
from smidgen.engines.optimizers import OPTIMIZERS, TorchOptimizer
from smidgen.randomness import Purpose, Stream
from smidgen.trial import Augmentation
from smidgen.trial import Optimizer as OptimizerSettings

_STEPS_DRAWN = 128
"""Steps whose augmentation is drawn and sent to the GPU at once."""


class Recording:
    """Work on a GPU that is always the same but for the values in its tensors.

    The first call does it by hand, which also lets libraries choose their kernels, the second records it, and from
    then on it is played back.

    Args:
        work: reads and writes tensors that stay where they are, and gives others; it must not wait for the GPU.
        on: whether to record at all; otherwise each call does it by hand.
    """

    def __init__(self, work: Callable[[], tuple[Tensor, ...]], *, on: bool) -> None:
        self._work = work
        self._stream = torch.cuda.Stream() if on else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, ...] | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        """Do the work; what it gives is valid until the next call."""
        if self._stream is None:
            return self._work()
        if self._given is None:
            # On a stream of its own, as the recording will be: autograd notes the streams of what it is given.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._given = self._work()
            torch.cuda.current_stream().wait_stream(self._stream)
            return self._given
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._given = self._work()
        self._graph.replay()
        return self._given


@dataclass(frozen=True)
class CudaEngine(EagerEngine):
    """Runs networks by PyTorch on a GPU, each step as recordings of loading, gradients and optimizer.

    Attributes:
        records: whether steps are recorded; without, the same operations are launched one by one.
    """

    name: ClassVar[EngineKind] = "cuda"
    threads_change_results: ClassVar[bool] = False

    records: bool = True
    _steps: WeakKeyDictionary[nn.Module, dict[object, _Step]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def loader(self, examples: Examples, augmentation: Augmentation, seed: int, mean: float, std: float) -> EagerLoader:
        """As `Engine` says."""
        return CudaLoader(examples, augmentation, seed, mean, std, self.memory_format, records=self.records)

    def gradients(
        self, network: nn.Module, images: Batch, labels: Tensor, label_smoothing: float, stream: Stream
    ) -> Figures:
        """As `Engine` says."""
        assert isinstance(images, Tensor)
        trained = [p for p in network.parameters() if p.requires_grad]
        if not trained or any(p.grad is None for p in trained):  # gradients that a recording would own
            return super().gradients(network, images, labels, label_smoothing, stream)
        steps = self._steps.setdefault(network, {})
        place = (trained[0].data_ptr(), trained[0].grad.data_ptr())  # type: ignore[union-attr] # checked above
        key = (tuple(images.shape), label_smoothing, network.training, place)
        if key not in steps:
            steps[key] = _Step(self, network, images, labels, label_smoothing)
        return steps[key](images, labels, stream)

    def backward(self, network: nn.Module, loss: Tensor) -> None:
        """As `EagerEngine` says, without setting each to 0 and adding to it: 50 launches less for the flagship."""
        trained = [p for p in network.parameters() if p.requires_grad]
        kept = [p.grad for p in trained if p.grad is not None]
        if len(kept) < len(trained):
            super().backward(network, loss)
            return
        found = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            torch._foreach_copy_(kept, list(found))

    def optimizer(
        self, settings: OptimizerSettings, network: nn.Module, *, averaged: bool
    ) -> tuple[Optimizer, FlatAverage | None]:
        """As `Engine` says."""
        if type(settings) not in OPTIMIZERS:  # our own waits for the GPU to find eigenvectors, which no graph records
            return super().optimizer(settings, network, averaged=averaged)
        flat = FlatState(network)
        optimizer = CudaOptimizer(settings, network, flat, self.device, records=self.records)
        return optimizer, FlatAverage(network, flat, Tensor.lerp_) if averaged else None


class _Step:
    """Forward and backward over batches of one shape."""

    def __init__(
        self, engine: CudaEngine, network: nn.Module, images: Tensor, labels: Tensor, label_smoothing: float
    ) -> None:
        self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)

        def work() -> tuple[Tensor]:
            return (engine.figures(network, self._images, self._labels, label_smoothing),)

        self._recording = Recording(work, on=engine.records)
        self._seed = engine.seed

    def __call__(self, images: Tensor, labels: Tensor, stream: Stream) -> Tensor:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._seed(stream)
        return self._recording()[0].clone()  # the next step overwrites it


class CudaOptimizer(TorchOptimizer):
    """One of PyTorch's optimizers, its step recorded, with a learning rate that is a tensor on the GPU.

    Args:
        settings: the trial's.
        network: whose parameters are trained.
        flat: the state of that network.
        device: of the network.
        records: whether steps are recorded.
    """

    def __init__(
        self, settings: OptimizerSettings, network: nn.Module, flat: FlatState, device: torch.device, *, records: bool
    ) -> None:
        super().__init__(settings, network, flat)
        self._rate = torch.zeros((), device=device)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
            if "capturable" in group:
                group["capturable"] = True
        self._recording = Recording(self._work, on=records)

    def _work(self) -> tuple[Tensor, ...]:
        self._optimizer.step()
        return ()

    def set_rate(self, rate: float) -> None:
        """As `Optimizer` says."""
        self._rate.fill_(rate)

    def step(self) -> None:
        """As `Optimizer` says."""
        self._recording()


@dataclass
class CudaLoader(EagerLoader):
    """Batches by recorded operations; the random numbers are the CPU's, drawn for many steps at once.

    Elastic noise is drawn and sent step by step, which waits for the GPU, and such loading is not recorded.

    Attributes:
        records: as the engine's.
    """

    records: bool = True
    _loads: dict[int, tuple[Tensor, Tensor, Recording]] = field(default_factory=dict, init=False)
    _drawn: tuple[tuple[int, int, int], Tensor] | None = field(default=None, init=False)

    def load(self, picks: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """As `Loader` says."""
        if self.augmentation.elastic:
            return super().load(picks, epoch, step)
        count = len(picks)
        if count not in self._loads:
            self._loads[count] = self._new_load(picks)
        chosen, matrices, recording = self._loads[count]
        chosen.copy_(picks)
        if self.augmentation.is_on:
            matrices.copy_(self._matrices(count, epoch, step))
        images, labels = recording()
        return images, labels

    def _new_load(self, picks: Tensor) -> tuple[Tensor, Tensor, Recording]:
        chosen = torch.empty_like(picks)
        matrices = torch.empty(len(picks), 2, 3, device=picks.device)

        def work() -> tuple[Tensor, Tensor]:
            images = to_float(self.examples.images[chosen])
            if self.augmentation.is_on:
                images = resample(images, self.augmentation, matrices)
            images = normalize(images, self.mean, self.std).contiguous(memory_format=self.layout)
            return images, self.examples.labels[chosen]

        return chosen, matrices, Recording(work, on=self.records)

    def _matrices(self, count: int, epoch: int, step: int) -> Tensor:
        """[count, 2, 3] on the GPU, of one step."""
        first = step - step % _STEPS_DRAWN
        if self._drawn is None or self._drawn[0] != (count, epoch, first):
            steps = range(first, first + _STEPS_DRAWN)
            streams = [Stream(self.seed, Purpose.AUGMENTATION, epoch, number) for number in steps]
            draws = np.concatenate([stream.uniforms(count, 6) for stream in streams])
            height, width = self.examples.images.shape[2:]
            table = torch.from_numpy(sampling_matrices(self.augmentation, draws, height, width))
            device = self.examples.images.device
            # From pinned memory, which the GPU fetches by itself: other memory would have to be waited for.
            table = table.pin_memory() if self.records else table
            sent = table.to(device, non_blocking=True).view(len(steps), count, 2, 3)
            self._drawn = (count, epoch, first), sent
        return self._drawn[1][step - first]
