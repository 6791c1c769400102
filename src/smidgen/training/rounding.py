"""Quantization-aware training: the last epochs see the weights as an export will round them.

Each step's gradient is that of the rounded weights, and moves the weights behind them: a straight-through estimator
(Bengio, Léonard, Courville, arXiv 1308.3432). So every engine can do it. The rounding has a step for each output
channel, so it does not matter that an export multiplies a channel by what follows it, as a BatchNorm is folded; only
what is folded into input channels would be another rounding, and is refused.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.errors import TrialError
from smidgen.graph.fold import fold
from smidgen.graph.ops import Convolution, Shape
from smidgen.graph.trace import TraceError, trace
from smidgen.quantization import rounded
from smidgen.training.recalibration import norms
from smidgen.trial import Trial


@dataclass(frozen=True)
class _Layer:
    """A layer whose weights are rounded.

    Attributes:
        name: of its module.
        together: whether all its channels have one step, as where the sums are the scores.
    """

    name: str
    together: bool


class Rounding:
    """What rounds the weights of a trial's network.

    Args:
        trial: with a quantization.
        network: that it describes, before training.
        input_shape: channels, height, width.

    Raises:
        TrialError: an export would not round the same numbers.
    """

    def __init__(self, trial: Trial, network: nn.Module, input_shape: Shape) -> None:
        assert trial.quantization is not None
        self.bits = trial.quantization.weights
        self.first_epoch = max(trial.epochs - trial.quantization.epochs, 0) + 1
        self._layers = _layers(trial, network, input_shape)

    def settle(self, network: nn.Module) -> None:
        """Round the weights for good."""
        self._round(self._weights(network))

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The weights are rounded meanwhile, and then as they were."""
        weights = self._weights(network)
        before = self._round(weights)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, kept in zip(weights, before, strict=True):
                    weight.copy_(kept)

    def _weights(self, network: nn.Module) -> list[Tensor]:
        found = [network.get_submodule(layer.name).weight for layer in self._layers]
        return [weight for weight in found if isinstance(weight, Tensor)]

    @torch.no_grad()
    def _round(self, weights: list[Tensor]) -> list[Tensor]:
        """Round weights in place; gives what they were, shaped alike.

        Layers of similar widths together, their channels as rows filled up with zeros, which change no rounding: one by
        one they would take longer than the step that they are rounded for.
        """
        before = list(weights)
        groups: dict[int, list[tuple[int, Tensor]]] = {}
        for number, (weight, layer) in enumerate(zip(weights, self._layers, strict=True)):
            row = weight.reshape(1 if layer.together else len(weight), -1)
            groups.setdefault(row.shape[1].bit_length(), []).append((number, row))
        for members in groups.values():
            sizes = [len(row) for _, row in members]
            together = weights[0].new_zeros(sum(sizes), max(row.shape[1] for _, row in members))
            kept = together.split(sizes)
            for part, (_, row) in zip(kept, members, strict=True):
                part[:, : row.shape[1]] = row
            found = rounded(together, self.bits).split(sizes)
            for (number, row), old, new in zip(members, kept, found, strict=True):
                shape, width = weights[number].shape, row.shape[1]
                before[number] = old[:, :width].reshape(shape)
                weights[number].copy_(new[:, :width].reshape(shape))
        return before


def _layers(trial: Trial, network: nn.Module, input_shape: Shape) -> list[_Layer]:
    probe = copy.deepcopy(network).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    for norm in norms(probe):
        assert norm.running_var is not None
        norm.running_var.uniform_(0.5, 2, generator=generator)  # so that what is folded in can be seen
    try:
        graph = fold(trace(probe, input_shape))
    except TraceError as error:
        raise TrialError(f"{trial.name}: quantization needs a network that can be exported: {error}") from None
    found = []
    for node in graph.operations:
        if not isinstance(node, Convolution):
            continue
        try:
            weight = probe.get_submodule(node.name).weight
        except AttributeError:
            weight = None
        if not isinstance(weight, Tensor) or weight.numel() != node.weight.numel():
            raise TrialError(f"{trial.name}: quantization does not know where {node.name} keeps its weights")
        ratio = (node.weight / weight.reshape(node.weight.shape)).flatten(1)
        if not torch.allclose(ratio, ratio[:, :1], rtol=1e-3):
            raise TrialError(
                f"{trial.name}: an export folds the norm before {node.name} into its weights, which quantization "
                "cannot foresee; put each norm after its convolution (network.order norm-activation), or leave "
                "quantization out"
            )
        found.append(_Layer(node.name, together=node.output == graph.output))
    return found
