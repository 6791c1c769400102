"""Named tensors with a description, as a safetensors file that is sealed by a hash of all its bytes.

safetensors keeps its format's promises about names, types, shapes and places, but does not notice
a changed value. The seal does: SHA-256 over the whole file, with 64 zeros where the digest stands.
The header is read and validated first; memory is allocated only for shapes that the reader
has agreed to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from smidgen.files import open_to_read
from smidgen.settings import canonical_json

MOST_BYTES = 256 * 2**20
MOST_HEADER_BYTES = 2**20

_KEY = "smidgen"
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""PyTorch's types by their names in the format."""
STORABLE = frozenset(_TYPES.values())
_ZEROS = "0" * 64
# The description is JSON within a JSON string, so its quotes are escaped.
_SEAL = re.compile(rb'\\"seal\\":\\"([0-9a-f]{64})\\"')


class TensorFileError(ValueError):
    """A file of tensors that is damaged or not what it says; the text says what is wrong, without the path."""


@dataclass(frozen=True)
class Header:
    """The header of a file of tensors.

    Attributes:
        about: the description.
        tensors: type and shape by name.
        sealed: whether the description holds a seal.
    """

    about: dict[str, Any]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    sealed: bool

    @property
    def tensor_bytes(self) -> int:
        """Total size of the tensors."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.tensors.values())


def sealed_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A sealed file's bytes; the same tensors and description give the same bytes.

    Args:
        tensors: contiguous, on the CPU.
        about: JSON data without a key `seal`.
    """
    described = canonical_json({**about, "seal": _ZEROS})
    content = _with_metadata(safetensors.torch.save(dict(tensors)), {"format": "pt", _KEY: described})
    start, end = _place_of_seal(content)
    return content[:start] + hashlib.sha256(content).hexdigest().encode() + content[end:]


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """A file with metadata in its header, in their order: safetensors does not keep that of several.

    Loaders take `format` for the framework that the tensors are from; `pt` is PyTorch.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8:end])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
    return len(header).to_bytes(8, "little") + header + content[end:]


def plain_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as `sealed_bytes` takes them: contiguous, on the CPU, no two in the same memory."""
    taken: set[int] = set()
    copies = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = plain.untyped_storage().data_ptr()
        copies[name] = plain.clone() if storage in taken else plain
        taken.add(storage)
    return copies


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a contiguous tensor on the CPU, of any type that can be stored."""
    values = tensor.reshape(-1)
    return (torch.view_as_real(values) if values.is_complex() else values).view(torch.uint8).numpy().tobytes()


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    if tensor.is_floating_point() and tensor.itemsize < 4:
        tensor = tensor.float()  # PyTorch has no isfinite for its 8-bit types
    return bool(torch.isfinite(tensor).all())


def read_header(path: Path, *, follow: bool = True) -> Header:
    """Read the header of a file; allocates memory for the header only.

    Raises:
        OSError: it is not a regular file, is too large or cannot be read.
        TensorFileError: it is not a file of tensors that smidgen wrote.
    """
    with open_to_read(path, follow=follow) as file:
        size = _bounded_size(file, path)
        start = file.read(8 + MOST_HEADER_BYTES)
    header = _header(start)
    if size != _header_end(start) + header.tensor_bytes:
        raise TensorFileError(f"its {size:,} bytes are not as many as its header declares")
    return header


def read_tensors(path: Path, header: Header, *, follow: bool = True) -> dict[str, Tensor]:
    """All tensors of a file whose header was read and accepted.

    Raises:
        OSError: it is not a regular file, is too large or cannot be read.
        TensorFileError: the seal is broken, or the file is not the one whose header was read.
    """
    with open_to_read(path, follow=follow) as file:
        content = file.read(_bounded_size(file, path))
    if header.sealed:
        start, end = _place_of_seal(content)
        seal = content[start:end].decode()
        if hashlib.sha256(content[:start] + _ZEROS.encode() + content[end:]).hexdigest() != seal:
            raise TensorFileError("its content does not match its hash")
    if _header(content) != header:
        raise TensorFileError("it changed while it was read")
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise TensorFileError(str(error)) from None
    if {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} != header.tensors:
        raise TensorFileError("its header is ambiguous")
    return tensors


def _bounded_size(file: BinaryIO, path: Path) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes; at most {MOST_BYTES:,} are read", str(path))
    return size


def _header_end(content: bytes) -> int:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > MOST_HEADER_BYTES or len(content) < 8 + length:
        raise TensorFileError("it is truncated, or not a file of tensors")
    return 8 + length


def _header(content: bytes) -> Header:
    raw = content[8 : _header_end(content)]
    try:
        header = json.loads(raw)
        text = header.pop("__metadata__")[_KEY]
        about = json.loads(text)
        tensors = {name: (_TYPES[t["dtype"]], tuple(map(_side, t["shape"]))) for name, t in header.items()}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError):
        raise TensorFileError("it does not say what it holds, as files written by smidgen do") from None
    if not isinstance(about, dict):
        raise TensorFileError("it does not say what it holds, as files written by smidgen do")
    return Header(about, tensors, "seal" in about)


def _side(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**40:
        raise ValueError(f"a shape has {value!r}")
    return value


def _place_of_seal(content: bytes) -> tuple[int, int]:
    """The place of the digest: first byte, and the one after the last."""
    found = list(_SEAL.finditer(content, 8, _header_end(content)))
    if len(found) != 1:
        raise TensorFileError("its hash is missing")
    return found[0].span(1)
