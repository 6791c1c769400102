"""A trained network as a safetensors file that says what it needs to be run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from smidgen.data.parts import Form, label_name
from smidgen.data.tree import LONGEST_NAME
from smidgen.errors import RunError, SmidgenError
from smidgen.files import cannot_read
from smidgen.nets.build import build_network
from smidgen.tensorfile import Header, all_finite, bytes_of, plain_copies, read_header, read_tensors, sealed_bytes
from smidgen.trial import Module, Trial

_UNSEALED = 1
"""The first format, without a seal."""
_FORMAT = 2
_FORMATS = (_UNSEALED, _FORMAT)


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
        class_names: of each score; none where classes are plain numbers.
        form: how an image file is brought to the form of the images that were trained on.
    """

    network: nn.Module
    trial: Trial
    input_shape: tuple[int, int, int]
    classes: int
    mean: float
    std: float
    class_names: tuple[str, ...] = ()
    form: Form = "drawing"

    def label_name(self, label: int) -> str:
        """A class for people."""
        return label_name(self.class_names, label)


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of all weights and buffers, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(network).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
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
        **({"class_names": list(trained.class_names)} if trained.class_names else {}),
        **({"form": trained.form} if trained.form != "drawing" else {}),
    }
    return sealed_bytes(_tensors(trained.network), about)


def read_weights(path: Path) -> TrainedNetwork:
    """Read a network back; size, names and shapes are checked before memory is taken for weights.

    Raises:
        RunError: the file is missing, too large, damaged, not smidgen's, or holds weights that
            do not fit its own trial or are not finite.
    """
    try:
        header = read_header(path, follow=False)
        if header.about.get("format") not in _FORMATS or header.sealed != (header.about["format"] != _UNSEALED):
            raise RunError(f"{path} was not written by this version of smidgen: it does not say which trial it is")
        trained = _empty(header.about)
        _check_fit(trained.network, header, path)
        _fill(trained.network, read_tensors(path, header, follow=False), path)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist: the run is unfinished, or it is not a run directory") from None
    except OSError as error:
        raise RunError(cannot_read(path, error)) from None
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    except SmidgenError as error:
        raise error if isinstance(error, RunError) else RunError(f"{path}: {error}") from None
    return trained


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return plain_copies(network.state_dict())


def _empty(about: dict[str, object]) -> TrainedNetwork:
    """The network that the metadata describe, without its weights (on the meta device)."""
    trial = Trial.from_json(about["trial"])
    shape, classes, mean, std = (about[name] for name in ("input_shape", "classes", "mean", "std"))
    if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(n, int) and 0 < n < 2**16 for n in shape):
        raise ValueError(f"its input shape is {shape!r}")
    if not isinstance(classes, int) or not 2 <= classes <= 2**16:
        raise ValueError(f"its number of classes is {classes!r}")
    if not isinstance(mean, float) or not isinstance(std, float) or not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(f"invalid normalization {mean!r}, {std!r}")
    names, form = about.get("class_names", []), about.get("form", "drawing")
    if not isinstance(names, list) or len(names) not in (0, classes) or not all(map(_is_name, names)):
        raise ValueError("its class names are not one line of text per class")
    if form not in ("drawing", "picture"):
        raise ValueError(f"its images' form is {form!r}")
    channels, height, width = shape
    # What a user's module keeps besides its weights must be there; blocks keep nothing.
    where = torch.random.fork_rng(devices=[]) if isinstance(trial.network, Module) else torch.device("meta")
    with where:
        network = build_network(trial.network, input_shape=shape, classes=classes, dropout=trial.dropout)
    return TrainedNetwork(network, trial, (channels, height, width), classes, mean, std, tuple(names), form)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()


def _check_fit(network: nn.Module, header: Header, path: Path) -> None:
    expected = network.state_dict()
    if set(header.tensors) != set(expected):
        differing = ", ".join(sorted(set(header.tensors) ^ set(expected))[:3])
        raise RunError(f"{path} does not fit its own trial: {differing} missing or too many")
    for name, tensor in expected.items():
        dtype, shape = header.tensors[name]
        if shape != tuple(tensor.shape):
            raise RunError(f"{path}: {name} has shape {list(shape)}, but its trial needs {list(tensor.shape)}")
        if dtype != tensor.dtype:
            raise RunError(f"{path}: {name} is {dtype}, but its trial needs {tensor.dtype}")


def _fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if not all_finite(tensor):
            raise RunError(f"{path}: {name} holds values that are not finite")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise RunError(f"{path}: {name} holds negative variances")
    # A user's module keeps tensors that it uses under several names.
    network.load_state_dict(weights, assign=any(p.is_meta for p in network.parameters()))
    network.eval().requires_grad_(False)
