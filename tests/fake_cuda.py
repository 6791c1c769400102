"""Training on a GPU with tensors that have a device, a shape and a type, but no values.

Run by test_cuda.py in a process of its own, with cuda_guard.cpp loaded before PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from smidgen.data import augment
from smidgen.data.dataset import Dataset
from smidgen.engines.cuda import CudaEngine
from smidgen.engines.eager import EagerEngine, EagerLoader
from smidgen.runs.progress import Silent
from smidgen.runs.run import load_trial_data
from smidgen.training import checkpoint, evaluation, loop, sums
from smidgen.training.checkpoint import Origin
from smidgen.training.loop import Training, new_network, start, train
from smidgen.training.rounding import Rounding
from smidgen.trial import Trial
from test_cuda import TRIALS

ORIGIN = Origin("recipe", "data", 0)
GPU = torch.device("cuda")
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

_META = torch.library.Library("aten", "IMPL", "Meta")
for _name in ("sgd", "adam", "adamw"):  # PyTorch has these for real tensors only; they change what they are given
    for _kind in ("", ".tensor_lr"):
        _META.impl(f"_fused_{_name}_{_kind}", lambda *_, **__: None)


@pytest.fixture(scope="module")
def data(small_trial: Trial) -> Dataset:
    return load_trial_data(small_trial)


def _moved(network: nn.Module, move: Callable[[Tensor], Tensor]) -> nn.Module:
    """`nn.Module._apply`, which for tensors without values insists on swapping them."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(move(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = move(buffer)
    return network


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Everything on the device `cuda` without values; gives how many rows each reading had, and makes up what is read."""
    rows: list[int] = []

    def on_host(table: Tensor) -> list[list[float]]:
        assert table.device.type == "cuda"
        assert table.dtype == torch.float64
        rows.append(len(table))
        return [[1.0] * table.shape[1]] * len(table)

    monkeypatch.setattr(sums, "on_host", on_host)
    monkeypatch.setattr(evaluation, "on_host", on_host)
    monkeypatch.setattr(nn.Module, "_apply", _moved)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: None)
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_READINGS", math.inf)
    monkeypatch.setattr(loop, "new_network", real(new_network))
    monkeypatch.setattr(loop, "Rounding", real(Rounding))
    monkeypatch.setattr(augment, "_elastic_kernel", real(augment._elastic_kernel))
    with FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False):
        yield rows


def real(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with tensors that have values, as for work that is done on the CPU whatever the device is."""

    def call(*arguments: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments, **options)

    return call


def fake_engine(kind: type[EagerEngine]) -> EagerEngine:
    return CudaEngine(GPU, 1, records=False) if kind is CudaEngine else EagerEngine(GPU, 1)


def state_of(training: Training) -> dict[str, Tensor]:
    return checkpoint._live(training)


@pytest.mark.parametrize("kind", [EagerEngine, CudaEngine])
@pytest.mark.parametrize("name", list(TRIALS))
def test_a_gpu_trains_and_nothing_is_read_back_within_an_epoch(
    small_trial: Trial, data: Dataset, readings: list[int], kind: type[EagerEngine], name: str
) -> None:
    trial = TRIALS[name](small_trial)
    with unset_fake_temporarily():
        network = new_network(trial, data, 0)
    training = start(trial, network, fake_engine(kind))
    history = list(train(training, trial, data, 0, Silent()))
    steps = math.ceil(len(data.train) / 64)
    learning = steps - (loop.recalibration_steps(trial, steps) if trial.recalibration else 0)
    assert readings == [steps, 1, learning, 1]  # the sums of an epoch, and its evaluation
    assert [record.epoch for record in history] == [1, 2]
    state = state_of(training)
    assert len([key for key in state if key.startswith("optimizer.")]) >= 2
    assert {key: tensor.device.type for key, tensor in state.items()} == dict.fromkeys(state, "cuda")
    assert training.evaluation is not None
    assert training.evaluation.logits.device.type == "cuda"
    plain = training.engine.plain(training.judged)
    assert {tensor.device.type for tensor in plain.state_dict().values()} == {"cpu"}


def test_a_gpus_checkpoint_is_written_and_resumed(
    small_trial: Trial, data: Dataset, readings: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = TRIALS["strict"](small_trial)

    def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert all(tensor.device.type == "cuda" for tensor in tensors.values())
        with unset_fake_temporarily():
            taken = float(3 + 10 * 0)
            return {
                n: torch.full(t.shape, taken if n.endswith(".step") else 0, dtype=t.dtype) for n, t in tensors.items()
            }

    monkeypatch.setattr(checkpoint, "plain_copies", copies)
    for name in ("all_finite", "read_tensors", "_check_values", "_to_history", "_from_history", "sealed_bytes"):
        monkeypatch.setattr(checkpoint, name, real(getattr(checkpoint, name)))

    class Stop(Silent):
        def step(self, epoch: int, images: int, loss: float, accuracy: float) -> None:
            if images == 3 * 64:
                raise KeyboardInterrupt

    def begun() -> Training:
        with unset_fake_temporarily():
            network = new_network(trial, data, 0)
        return start(trial, network, fake_engine(CudaEngine))

    first, second = begun(), begun()
    with pytest.raises(KeyboardInterrupt):
        list(train(first, trial, data, 0, Stop()))
    assert readings == []
    path = tmp_path / "checkpoint"
    path.write_bytes(checkpoint.to_bytes(first, ORIGIN))
    assert readings == [3]
    checkpoint.restore(second, path, ORIGIN, trial, len(data.train))
    assert second.step == 3
    assert len(list(train(second, trial, data, 0, Silent()))) == 2
    assert {tensor.device.type for tensor in state_of(second).values()} == {"cuda"}


def test_a_tensor_on_the_cpu_and_a_reading_are_noticed(
    small_trial: Trial, data: Dataset, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliberate faults, so that the tests above are known to notice them."""
    trial = TRIALS["strict"](small_trial)

    def attempt() -> None:
        with unset_fake_temporarily():
            network = new_network(trial, data, 0)
        list(train(start(trial, network, fake_engine(EagerEngine)), trial, data, 0, Silent()))

    load, figures = EagerLoader.load, EagerEngine.figures
    with monkeypatch.context() as patch:
        patch.setattr(EagerLoader, "load", lambda *a: (load(*a)[0], load(*a)[1].cpu()))
        with pytest.raises(RuntimeError, match="devices, cuda:0 and cpu"):
            attempt()
    with monkeypatch.context() as patch:
        patch.setattr(EagerEngine, "figures", lambda *a: figures(*a) * figures(*a)[0].item())
        with pytest.raises(DataDependentOutputException):
            attempt()
    attempt()
