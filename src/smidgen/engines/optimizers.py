"""The optimizers of a trial: PyTorch's, with what each remembers, one row an optimizer; and our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.engines.engine import Optimizer, Support
from smidgen.engines.flat import FlatState
from smidgen.engines.full_matrix import MOST_PARAMETERS, FullMatrixOptimizer
from smidgen.engines.soap import SoapOptimizer
from smidgen.trial import SGD, SOAP, Adam, AdamW, FullMatrixAdam
from smidgen.trial import Optimizer as OptimizerSettings

_Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer that PyTorch has.

    Attributes:
        make: from the trial's settings and PyTorch's parameter groups, which have their weight decay.
        state: names of what it keeps for each parameter after its first step.
        elementwise: whether each value's step depends on that value's gradients alone. Such an optimizer is given
            all parameters in two vectors, which is faster; any other, each parameter in its shape.
    """

    make: Callable[[Any, _Groups], torch.optim.Optimizer]
    state: Callable[[Any], tuple[str, ...]]
    elementwise: bool


def _sgd(settings: SGD, groups: _Groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)


def _adam(settings: Adam, groups: _Groups) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if isinstance(settings, AdamW) else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True)


_ADAM = OptimizerKind(_adam, lambda _: ("step", "exp_avg", "exp_avg_sq"), elementwise=True)
OPTIMIZERS: dict[type[Any], OptimizerKind] = {
    SGD: OptimizerKind(_sgd, lambda settings: ("momentum_buffer",) if settings.momentum else (), elementwise=True),
    Adam: _ADAM,
    AdamW: _ADAM,
}


def optimizer_support(settings: OptimizerSettings, network: nn.Module) -> Support:
    """Whether there is the optimizer that a trial asks for, for this network.

    Args:
        settings: the trial's.
        network: that is to be trained.
    """
    if isinstance(settings, FullMatrixAdam):
        count = sum(p.numel() for p in trained_parameters(network))
        if count <= MOST_PARAMETERS:
            return Support()
        return Support(
            f"{settings.type_name} is for at most {MOST_PARAMETERS:,} trained parameters, and the network has "
            f"{count:,}; set another optimizer"
        )
    if type(settings) not in OPTIMIZERS and not isinstance(settings, SOAP):
        return Support(f"no engine has the optimizer {type(settings).__name__}")
    return Support()


def new_optimizer(settings: OptimizerSettings, network: nn.Module, flat: FlatState) -> Optimizer:
    """The optimizer that a trial asks for, by PyTorch's operations.

    Args:
        settings: the trial's.
        network: whose parameters are trained.
        flat: the state of that network.
    """
    if isinstance(settings, FullMatrixAdam):
        return FullMatrixOptimizer(settings, trained_parameters(network))
    if isinstance(settings, SOAP):
        return SoapOptimizer(settings, trained_parameters(network))
    return TorchOptimizer(settings, network, flat)


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """A network's parameters without the frozen ones."""
    return [p for p in network.parameters() if p.requires_grad]


class TorchOptimizer:
    """One of PyTorch's optimizers, as `smidgen.engines.engine.Optimizer` says.

    Args:
        settings: the trial's.
        network: whose parameters are trained.
        flat: the state of that network.
    """

    def __init__(self, settings: OptimizerSettings, network: nn.Module, flat: FlatState) -> None:
        self._kind, self._settings = OPTIMIZERS[type(settings)], settings
        if self._kind.elementwise:
            weights, vectors = {"weights": flat.weights}, {"vectors": flat.vectors}
        else:
            trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
            weights = {name: p for name, p in trained.items() if p.dim() > 1}
            vectors = {name: p for name, p in trained.items() if p.dim() <= 1}
        groups = [
            {"params": [p for p in parameters.values() if p.numel()], "weight_decay": decay}
            for parameters, decay in ((weights, settings.weight_decay), (vectors, 0.0))
        ]
        self._parameters = {name: p for name, p in {**weights, **vectors}.items() if p.numel()}
        self._optimizer = self._kind.make(settings, [group for group in groups if group["params"]])

    def set_rate(self, rate: float) -> None:
        """As `Optimizer` says."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def step(self) -> None:
        """As `Optimizer` says."""
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """As `Optimizer` says."""
        kept = {name: self._optimizer.state.get(p, {}) for name, p in self._parameters.items()}
        return {
            f"{name}.{key}": value
            for name, state in kept.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def state_after(self, steps: int) -> dict[str, Tensor]:
        """As `Optimizer` says."""
        keys = self._kind.state(self._settings) if steps else ()
        return {f"{name}.{key}": _room(key, p) for name, p in self._parameters.items() for key in keys}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """As `Optimizer` says."""
        for name, value in state.items():
            parameter, _, key = name.rpartition(".")
            self._optimizer.state[self._parameters[parameter]][key] = value


def _room(key: str, parameter: Tensor) -> Tensor:
    """An empty tensor for one entry of the state: a scalar for `step`, otherwise shaped like the parameter."""
    if key == "step":
        return torch.zeros((), device=parameter.device)
    return torch.zeros_like(parameter, requires_grad=False)
