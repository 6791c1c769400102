"""A training's whole state as named tensors, and back: network, optimizer, average, epoch."""

from __future__ import annotations

import json

import safetensors.torch
import torch
from torch import Tensor

from smidgen.errors import RunError
from smidgen.training.loop import Training

_KEY = "smidgen"


def to_bytes(training: Training, recipe_digest: str, seed: int) -> bytes:
    """The state after a finished epoch as the bytes of a safetensors file."""
    about = {"epoch": training.epoch, "recipe": recipe_digest, "seed": seed}
    return safetensors.torch.save(_tensors(training), metadata={_KEY: json.dumps(about)})


def restore(training: Training, content: bytes, recipe_digest: str, seed: int) -> None:
    """Bring a new training of the same trial and seed to where the checkpoint was written.

    Args:
        training: as `start` gives it; changed in place.
        content: of the checkpoint.
        recipe_digest: of the trial that goes on.
        seed: of the run that goes on.

    Raises:
        RunError: the checkpoint is damaged, or of another trial or seed.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_KEY])
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"the checkpoint is damaged: {error}") from None
    if (about.get("recipe"), about.get("seed")) != (recipe_digest, seed):
        raise RunError("the checkpoint is of another trial or seed")
    _materialize_optimizer_state(training, tensors)
    wanted = _tensors(training)
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in tensors.items()}:
        raise RunError("the checkpoint does not fit the trial's network and optimizer")
    with torch.no_grad():
        for name, tensor in _live(training).items():
            tensor.copy_(tensors[name])
    training.epoch = int(about["epoch"])


def _tensors(training: Training) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous().clone() for name, t in _live(training).items()}


def _live(training: Training) -> dict[str, Tensor]:
    """The tensors that hold the state, not copies, by name."""
    named = {f"network.{name}": t for name, t in training.network.state_dict().items()}
    if training.average:
        named |= {f"average.{name}": t for name, t in training.average.network.state_dict().items()}
    for index, parameter in enumerate(_parameters(training)):
        state = training.optimizer.state.get(parameter, {})
        named |= {f"optimizer.{index}.{n}": t for n, t in state.items() if isinstance(t, Tensor)}
    return named


def _parameters(training: Training) -> list[Tensor]:
    return [p for group in training.optimizer.param_groups for p in group["params"]]


def _materialize_optimizer_state(training: Training, tensors: dict[str, Tensor]) -> None:
    """Make room for the optimizer's state, which PyTorch creates only in the first step."""
    for index, parameter in enumerate(_parameters(training)):
        prefix = f"optimizer.{index}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                like = parameter if tensor.shape == parameter.shape else tensor
                fresh = torch.empty_like(like, dtype=tensor.dtype)
                training.optimizer.state[parameter][name.removeprefix(prefix)] = fresh
