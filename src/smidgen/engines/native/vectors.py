"""The optimizer's and the average's arithmetic on flat vectors, each in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from smidgen.engines.flat import FlatState
from smidgen.engines.native.core import find_core, level
from smidgen.engines.soap import Factors, Matrix, SoapOptimizer, Vector, gradient_of
from smidgen.trial import SGD, SOAP


class FlatSGD:
    """`torch.optim.SGD` on flat vectors, without its bookkeeping, which takes longer than the step.

    Args:
        settings: the trial's.
        flat: contiguous float32 on the CPU, whose gradients stay the same tensors.
    """

    def __init__(self, settings: SGD, flat: FlatState) -> None:
        core = find_core()
        assert core is not None
        self._core, self._settings, self._rate = core, settings, settings.lr
        decayed = {"weights": (flat.weights, settings.weight_decay), "vectors": (flat.vectors, 0.0)}
        self._parameters = {name: pair for name, pair in decayed.items() if pair[0].numel()}
        # With buffers of zeros the first step equals PyTorch's, which has none yet.
        self._buffers = self.state_after(0)

    def set_rate(self, rate: float) -> None:
        """As `Optimizer` says."""
        self._rate = rate

    def step(self) -> None:
        """As `Optimizer` says."""
        settings = self._settings
        for (p, decay), buffer in zip(self._parameters.values(), self._buffers.values(), strict=True):
            assert p.grad is not None
            self._core.sgd(
                p.data_ptr(), p.grad.data_ptr(), buffer.data_ptr(), p.numel(),
                self._rate, settings.momentum, settings.nesterov, decay,
            )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """As `Optimizer` says."""
        return self._buffers

    def state_after(self, steps: int) -> dict[str, Tensor]:  # noqa: ARG002 - the same after any number
        """As `Optimizer` says."""
        return {
            f"{name}.momentum_buffer": torch.zeros_like(p, requires_grad=False)
            for name, (p, _) in self._parameters.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """As `Optimizer` says."""
        self._buffers = state


class NativeSoap(SoapOptimizer):
    """`SoapOptimizer` whose steps the kernels take; new axes are still PyTorch's.

    Args:
        settings: the trial's.
        parameters: that are trained; contiguous float32 on the CPU, whose gradients stay the same tensors.
        threads: that take part; the result does not depend on it.
    """

    def __init__(self, settings: SOAP, parameters: Sequence[nn.Parameter], threads: int) -> None:
        self._threads = threads
        super().__init__(settings, parameters)

    def move(self, factors: Factors) -> None:
        """As `SoapOptimizer` says."""
        assert all(p.grad is gradient for p, gradient in self._gradients), "the kernels would read freed memory"
        self._kernels.step(**asdict(factors), threads=self._threads)

    def renew(self) -> None:
        """As `SoapOptimizer` says."""
        super().renew()
        self._kernels.renewed()

    def _take(self, state: Mapping[str, Tensor]) -> None:
        super()._take(state)
        core = find_core()
        assert core is not None
        self._gradients = [(p, gradient_of(p)) for p in self._parameters]
        self._kernels = core.SoapSteps(
            [(*matrix.mean.shape, _addresses(matrix)) for matrix in self.matrices],
            [(vector.mean.numel(), _addresses(vector)) for vector in self.vectors],
            level(),
        )


def _addresses(of: Matrix | Vector) -> list[int]:
    """Of values, gradients and state, in the order of the kernels' SoapMatrix and SoapVector; 0 for what is empty."""
    tensors = [of.parameter, gradient_of(of.parameter), of.mean, of.square]
    if isinstance(of, Matrix):
        tensors += [*of.products, *of.axes]
    if not all(t.is_contiguous() and t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors):
        raise TypeError("the native engine's SOAP takes contiguous float32 parameters on the CPU")
    return [t.data_ptr() if t.numel() else 0 for t in tensors]


def move_towards(means: Tensor, values: Tensor, weight: float) -> None:
    """`means.lerp_(values, weight)` for contiguous float32 vectors of one length."""
    core = find_core()
    assert core is not None
    assert means.shape == values.shape
    core.average(means.data_ptr(), values.data_ptr(), means.numel(), weight)
