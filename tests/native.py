"""Comparing the native engine with PyTorch in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from smidgen.engines.native.core import find_core
from smidgen.engines.native.module import NativeNetwork

core = find_core()
LEVELS = [name for name, _ in core.levels()] if core else []
"""The instruction levels that can be tested here."""


generated = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
"""For tests over generated shapes, the same ones every time."""


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction level in turn."""
    monkeypatch.setenv("SMIDGEN_ISA", request.param)
    return str(request.param)


def largest_difference(found: Tensor, exact: Tensor, noise: float = 1e-3) -> float:
    """Relative to the largest value of the exact tensor, at least `noise`, below which it says nothing."""
    assert found.shape == exact.shape
    if not exact.numel():
        return 0.0
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=noise))


def compare(
    network: nn.Module,
    images: Tensor,
    tolerance: float,
    *,
    threads: int = 2,
    bfloat16: bool = False,
    noise: float = 1e-3,
) -> None:
    """Output, all gradients and all buffers of a network against PyTorch's in float64.

    The loss is a random weighting of the output, so that no gradient is trivial. `noise`: of gradients, as above:
    the exact gradient is 0 for whatever the next BatchNorm undoes.
    """
    exact = copy.deepcopy(network).double()
    native = NativeNetwork(copy.deepcopy(network), threads, bfloat16=bfloat16)
    native.train(network.training)
    outputs, inputs = [], []
    for module, x in ((exact, images.double()), (native, images.clone())):
        x.requires_grad_()
        y = module(x)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        (y * weights.to(y.dtype)).sum().backward()
        outputs.append(y.detach())
        inputs.append(x.grad)
    assert largest_difference(outputs[1], outputs[0]) < tolerance, "output"
    assert inputs[0] is not None
    assert inputs[1] is not None
    assert largest_difference(inputs[1], inputs[0], noise) < tolerance, "gradient by input"
    for (name, p), q in zip(exact.named_parameters(), native.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert largest_difference(q.grad, p.grad, noise) < tolerance, f"gradient of {name}"
    for (name, b), c in zip(exact.named_buffers(), native.buffers(), strict=True):
        assert largest_difference(c, b.double()) < tolerance, name
    with torch.no_grad():
        for mode in (network.training, False):
            exact.train(mode)
            native.train(mode)
            assert largest_difference(native(images), exact(images.double())) < tolerance, "output without gradients"
