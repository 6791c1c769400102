"""Networks of a user's own module: built, and tried out before they are trained.

Whatever can go wrong with one in the middle of a run is found here by trying it, and becomes one line.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smidgen.errors import SmidgenError, TrialError
from smidgen.graph.cost import count_parameters, count_trainable
from smidgen.nets.code import module_network, where
from smidgen.tensorfile import STORABLE
from smidgen.trial import Module

MOST_PARAMETERS = 10_000_000
"""Bound on a network from a file, checked before memory is taken: this is for tiny ones."""


def own_network(network: Module, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A user's module, tried on two blank images, which gives lazy layers their shapes.

    Raises:
        TrialError: it fails, is too large, or does not give one float32 score a class.
    """
    made = module_network(network, input_shape, classes)
    _check_size(network, made)
    was_training = made.training
    shape = "x".join(map(str, input_shape))
    with user_errors(f"{network} does not take images of {shape}"), torch.no_grad():
        scores: Any = made.eval()(torch.zeros(2, *input_shape))
    made.train(was_training)
    _check_size(network, made)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (2, classes) or scores.dtype != torch.float32:
        found = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TrialError(f"{network} gives {found} for two images of {classes} classes; it must give [2, {classes}]")
    return made


def _check_size(network: Module, made: nn.Module) -> None:
    if count_parameters(made) > MOST_PARAMETERS:
        raise TrialError(f"{network} has {count_parameters(made):,} parameters; make it smaller")


@contextlib.contextmanager
def user_errors(what: str) -> Iterator[None]:
    """Turn whatever a user's code raises into a TrialError in one line, with their file and line.

    Args:
        what: failed.
    """
    try:
        yield
    except SmidgenError:
        raise
    except (Exception, SystemExit) as error:
        raise TrialError(f"{what}: {where(error)}") from None


def check_own_network(
    network: Module, made: nn.Module, input_shape: tuple[int, int, int], build: Callable[[], nn.Module]
) -> list[str]:
    """Refuse a network whose training would fail, or that could not be read back afterwards.

    Draws from PyTorch's generator.

    Args:
        network: the trial's.
        made: what it has built.
        input_shape: channels, height, width.
        build: makes another one, with other random numbers.

    Returns:
        What is worth a note.

    Raises:
        TrialError: names the reason.
    """
    if not count_trainable(made):
        raise TrialError(f"{network} has no parameters to train")
    _check_state(network, made)
    scores = _evaluated(network, made, input_shape)
    if not _close(scores, _evaluated(network, made, input_shape)):
        raise TrialError(
            f"{network} gives different scores for the same images in evaluation mode; dropout and noise must depend "
            f"on self.training"
        )
    other = build()
    with user_errors(f"{network} cannot be read back"):
        other.load_state_dict(made.state_dict())
    if not _close(scores, _evaluated(network, other, input_shape)):
        raise TrialError(
            f"{network} depends on random values that are neither parameters nor buffers, so they would not be saved; "
            f"use self.register_buffer for them"
        )
    if _close(scores[:1], _evaluated(network, made, input_shape, 1)):
        return []
    return [
        "the scores of an image depend on the others in its batch, so only its weights can be exported, and smidgen "
        "predict refuses it"
    ]


def _evaluated(network: Module, made: nn.Module, input_shape: tuple[int, int, int], count: int = 2) -> Tensor:
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))[:count]
    was_training = made.training
    with user_errors(f"{network} failed in evaluation mode"), torch.no_grad():
        scores: Tensor = made.eval()(images)
    made.train(was_training)
    return scores


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)


def _check_state(network: Module, made: nn.Module) -> None:
    """Refuse what weight files cannot hold, and tensors that would lose their connection when they are moved."""
    state = made.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TrialError(f"{network}: {name} is a {type(value).__name__}; only tensors can be saved")
        if value.layout != torch.strided or value.is_quantized or value.dtype not in STORABLE:
            kind = str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")
            raise TrialError(f"{network}: {name} is of type {kind}, which weight files cannot hold")
    # `state_dict` gives a tensor of its own for each name, even if one tensor has several.
    tensors = {id(tensor): (name, tensor) for name, tensor in [*made.named_parameters(), *made.named_buffers()]}
    places = []
    for name, tensor in tensors.values():
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise TrialError(f"{network}: values of {name} share memory; make a copy of it with .clone()")
        if tensor.numel():
            start = tensor.data_ptr()
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            places.append((start, start + (last + 1) * tensor.itemsize, name))
    places.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(places):
        if start < end:
            raise TrialError(
                f"{network}: {first} and {second} share memory; use one tensor under both names, or .clone()"
            )


def check_step(network: nn.Module, input_shape: tuple[int, int, int], smallest_batch: int) -> None:
    """Try a training step on a copy of a network, of blank images.

    Args:
        network: on the CPU.
        input_shape: channels, height, width.
        smallest_batch: images in an epoch's smallest batch.

    Raises:
        TrialError: it fails; names the layer.
    """
    with user_errors("the network cannot be copied"):
        probe = copy.deepcopy(network).train()
    for count in sorted({2, smallest_batch}, reverse=True):
        try:
            scores = probe(torch.zeros(count, *input_shape))
            F.cross_entropy(scores, torch.zeros(count, dtype=torch.int64)).backward()
        except SmidgenError:
            raise
        except (Exception, SystemExit) as error:  # anything can happen in a user's code
            name = _failing_layer(probe, error)
            if count > 1:
                in_layer = f" in {name}" if name else ""
                raise TrialError(f"the network fails in training{in_layer}: {where(error)}") from None
            raise TrialError(
                f"the last batch of an epoch would be a single image, which {name or 'the network'} cannot process in "
                f"training ({where(error)}); change batch_size"
            ) from None


def _failing_layer(network: nn.Module, error: BaseException) -> str:
    """The name of the innermost module that an error came from; empty for the network itself."""
    names = {id(module): name for name, module in network.named_modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [names[id(owner)] for frame in frames if id(owner := frame.f_locals.get("self")) in names]
    return found[-1] if found else ""
