"""A trained network as a safetensors file that says what it needs to be run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from smidgen.errors import RunError, SmidgenError
from smidgen.nets.build import build_network
from smidgen.settings import canonical_json
from smidgen.trial import Trial

MOST_BYTES = 256 * 2**20
_KEY = "smidgen"
_FORMAT = 1


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with what it needs to be used.

    Attributes:
        network: in evaluation mode, on the CPU; takes normalized float32 images.
        trial: that it was trained by.
        input_shape: channels, height, width.
        classes: number of scores.
        mean: to subtract from images of 0 to 1.
        std: to divide by after that.
    """

    network: nn.Module
    trial: Trial
    input_shape: tuple[int, int, int]
    classes: int
    mean: float
    std: float


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of all weights and buffers, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(network).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def to_bytes(trained: TrainedNetwork) -> bytes:
    """The network as the bytes of a safetensors file; the same network gives the same bytes."""
    about = {
        "format": _FORMAT,
        "trial": trained.trial.to_json(),
        "input_shape": list(trained.input_shape),
        "classes": trained.classes,
        "mean": trained.mean,
        "std": trained.std,
    }
    # One key: safetensors does not keep the order of several, and equal networks should be equal files.
    return safetensors.torch.save(_tensors(trained.network), metadata={_KEY: canonical_json(about)})  # type: ignore[arg-type]


def read_weights(path: Path) -> TrainedNetwork:
    """Read a network back; size, names and shapes are checked before memory is taken for weights.

    Raises:
        RunError: the file is missing, too large, damaged, not smidgen's, or holds weights that
            do not fit its own trial or are not finite.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise RunError(f"{path} is {size:,} bytes; smidgen's networks have at most {MOST_BYTES:,}")
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            if not isinstance(about, dict) or about.get("format") != _FORMAT:
                raise RunError(f"{path} was not written by this version of smidgen: it does not say which trial it is")
            trained = _empty(about)
            _fill(trained.network, file, path)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: the run is unfinished, or it is not a run directory") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    except SmidgenError as error:
        raise error if isinstance(error, RunError) else RunError(f"{path}: {error}") from None
    return trained


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}


def _empty(about: dict[str, object]) -> TrainedNetwork:
    """The network that the metadata describe, without its weights (on the meta device)."""
    trial = Trial.from_json(about["trial"])
    shape, classes, mean, std = (about[name] for name in ("input_shape", "classes", "mean", "std"))
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) and 0 < n < 2**16 for n in shape):
        raise ValueError(f"its input shape is {shape!r}")
    if not isinstance(classes, int) or not 2 <= classes <= 2**16:
        raise ValueError(f"its number of classes is {classes!r}")
    if not isinstance(mean, float) or not isinstance(std, float) or not std > 0:
        raise ValueError(f"its normalization is {mean!r}, {std!r}")
    channels, height, width = shape
    with torch.device("meta"):
        network = build_network(trial.network, input_shape=shape, classes=classes, dropout=trial.dropout)
    return TrainedNetwork(network, trial, (channels, height, width), classes, mean, std)


def _fill(network: nn.Module, file: safetensors.safe_open, path: Path) -> None:
    expected = network.state_dict()
    names = set(file.keys())
    if names != set(expected):
        differing = ", ".join(sorted(names ^ set(expected))[:3])
        raise RunError(f"{path} does not fit its own trial: {differing} missing or too many")
    for name, tensor in expected.items():
        part = file.get_slice(name)
        if part.get_shape() != list(tensor.shape):
            raise RunError(f"{path}: {name} has shape {part.get_shape()}, but its trial needs {list(tensor.shape)}")
    weights = {name: file.get_tensor(name) for name in expected}
    for name, tensor in weights.items():
        if tensor.dtype != expected[name].dtype:
            raise RunError(f"{path}: {name} is {tensor.dtype}, but its trial needs {expected[name].dtype}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(f"{path}: {name} holds values that are not finite")
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)
