"""Gives generated files to smidgen's readers, in a process that may take 1 GiB of memory.

    python hostile.py FOLDER COUNT FIRST STEP

FOLDER holds a finished run (`run`) and a killed one (`killed`), and is written to. Of the readers, only every
STEP-th from FIRST on is tried. Every input must end in a result or a `SmidgenError`, within a second of processor
time (five for pictures made by hand to be huge); anything else ends this process with an error. Prints, as JSON, for
each reader: inputs, how many were read, how many were refused, and the seconds of the slowest.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import resource
import shutil
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from smidgen.data.dataset import load_dataset
from smidgen.data.decode import read_picture
from smidgen.data.idx import read_idx
from smidgen.engines.choose import choose
from smidgen.errors import SmidgenError
from smidgen.images import read_image
from smidgen.runs.directory import RunDirectory
from smidgen.runs.environment import RunOrigin
from smidgen.runs.record import load_run
from smidgen.runs.weights import read_weights
from smidgen.training import checkpoint
from smidgen.training.checkpoint import Origin
from smidgen.training.loop import new_network, start
from smidgen.trials.find import read_trial

LIMIT = 2**30
SLOWEST = 1.0
LARGEST = 5.0
"""Seconds that a picture of 36 million pixels may take, whose transparency is composited at full size."""

Reader = Callable[[Path], object]


@dataclass
class Count:
    """What became of the inputs of one reader."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0

    def give(self, reader: Reader, path: Path, most: float = SLOWEST) -> None:
        """Have a file read; raises whatever is neither a result nor a `SmidgenError`."""
        began = time.process_time()
        try:
            reader(path)
        except SmidgenError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 5000
            self.refused += 1
        except BaseException:
            shutil.copy(path, path.with_name("culprit"))
            raise
        else:
            self.read += 1
        seconds = time.process_time() - began
        self.inputs += 1
        self.slowest = max(self.slowest, seconds)
        assert seconds < most, f"{path} took {seconds:.2f} s"


def idx(shape: tuple[int, ...], kind: int = 8, rank: int | None = None, values: bytes = b"") -> bytes:
    """An IDX file, or what claims to be one."""
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape) if rank is None else rank, *shape) + values


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, color: int, data: bytes, *extra: bytes) -> bytes:
    """A PNG file, or what claims to be one."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def picture(mode: str, size: int, kind: str, **options: Any) -> bytes:
    """A good image file."""
    values = np.zeros((size, size), np.uint8)
    values[size // 4 : size // 2, size // 3 : size // 2] = 250
    out = io.BytesIO()
    image = Image.fromarray(values)
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(out, kind, **options)
    return out.getvalue()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, or what claims to be one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def npy(header: object, data: bytes = b"", version: int = 1) -> bytes:
    """An array as numpy writes it, or what claims to be one."""
    text = header if isinstance(header, bytes) else repr(header).encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def npz(packed: int = zipfile.ZIP_DEFLATED, **entries: bytes) -> bytes:
    """A file of arrays."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content, packed)  # of a fixed date
    return out.getvalue()


def good_npz(packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Forty images in two classes."""
    sides = {"descr": "|u1", "fortran_order": False}
    pixels = npy({**sides, "shape": (40, 4, 4)}, random.Random(1).randbytes(640))
    names = npy({**sides, "descr": "<U2", "shape": (2,)}, "a\0b\0".encode("utf-32-le"))
    return npz(packed, images=pixels, labels=npy({**sides, "shape": (40,)}, bytes([0, 1] * 20)), class_names=names)


def npz_bombs() -> Iterator[bytes]:
    """Archives of arrays that promise too much, or that no array can be."""
    zeros, sides = b"\0" * 50_000_000, {"descr": "|u1", "fortran_order": False}
    for shape in ((2**40, 28, 28), (-1, 5, 5), (0, 5, 5), (50_000_000,), (2**62, 2**62, 2**62), (1,) * 60, (True,), ()):
        for descr in ("|u1", "<U12500000", "<U0", "|O", "<f8", [("a", "|u1")], "<M8[s]", "|V1000000000"):
            yield npz(images=npy({**sides, "descr": descr, "shape": shape}), labels=npy({**sides, "shape": shape}))
    yield npz(images=npy({**sides, "shape": (50_000, 10, 10)}, zeros), labels=npy({**sides, "shape": (9,)}, zeros))
    yield npz(
        images=npy({**sides, "shape": (10, 2, 2)}, bytes(40)),
        labels=npy({**sides, "descr": "<U1250000", "shape": (10,)}, zeros),
    )
    for packed in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield npz(packed, images=npy({**sides, "shape": (50_000, 10, 100)}, zeros), labels=b"")
    for header in (
        b"(" * 5_000,
        b"{[]: 1}",
        b"{'shape': 9" + b"9" * 5_000,
        b"-" * 9_000,
        b"\xff\0",
        b"1L",
        b"lambda:0",
    ):
        for version in (1, 2, 3, 9):
            yield npz(images=npy(header, version=version), labels=b"")
    whole = good_npz()
    yield whole[:-22] + zeros[:70_000] + whole[-22:]
    yield whole.replace(b"labels.npy", b"images.npy")


def csv_bombs() -> Iterator[bytes]:
    """Tables of too many, too long or too strange cells."""
    yield b"\n" * 1_000_000
    yield b'"' + b"a\n" * 500_000
    yield b"," * 100_000
    yield b"a" * 200_000 + b",b"
    yield b"p/0.png," + b"b" * 100_000
    yield b"p/0.png,a\n" * 5_000
    yield b"".join(b"p/0.png,%d\n" % i for i in range(5_000))
    yield "path,label\np/0.png,\ud800\n".encode("utf-8", "surrogatepass")
    yield b"path,label\n" + b"/".join([b"x" * 200] * 100) + b",a\n"
    yield b"path,label\n" + b"../" * 3_000 + b"etc/passwd,a\n"
    yield b"path,label\np/0.png\0,a\np/1.png,\0\n"


def bombs(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Made by hand, to take memory or time or to break what reads them: reader and content."""
    zeros = zlib.compress(b"\0" * 200_000_000, 9)
    for shape in ((2**32 - 1,) * 3, (2**16, 2**16, 2), (60_000, 28, 28), (1, 1, 1), (0, 0, 0)):
        yield "idx", idx(shape)
        yield "idx.gz", gzip.compress(idx(shape) + b"\0" * 1000)
    body = gzip.compress(b"\0" * 900_000_000, 1)
    for shape in ((900_000, 1000, 1), (2**31, 1, 1), (10, 10, 10)):
        yield "idx.gz", gzip.compress(idx(shape)) + body
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (100_000, 100_000),
        (1, 50_000_001),
        (50_000_000, 1),
        (6_000, 6_000),
        (20_000, 1_800),
    ):
        for depth, color in ((1, 0), (16, 0), (8, 2), (8, 6), (16, 6), (8, 3)):
            yield "image", png(width, height, depth, color, zeros)
    yield "image", png(28, 28, 8, 0, zlib.compress(b"\0" * 29 * 28), chunk(b"zTXt", b"a\0\0" + zeros))
    yield "image", png(28, 28, 8, 0, zlib.compress(b"\0" * 29 * 28), chunk(b"iCCP", b"a\0\0" + zeros))
    yield (
        "image",
        png(28, 28, 8, 0, zlib.compress(b"\0" * 29 * 28), *[chunk(b"tEXt", b"a\0" + b"x" * 9) for _ in range(9999)]),
    )
    for mode in ("I;16", "RGBA", "L"):
        yield "image", picture(mode, 6_000, "PNG", compress_level=1)
    for options in ({"progressive": True}, {"quality": 1}):
        yield "image", picture("RGB", 7_000, "JPEG", **options)
    whole = picture("L", 4_000, "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    for scans in (30, 100, 100_000):
        yield "image", whole[:-2] + scan[:200] * scans + whole[-2:]
    for content in npz_bombs():
        yield "npz", content
    for content in csv_bombs():
        yield "csv", content
    for text in (
        "[" * 500_000, '{"a":' * 100_000, "[0" + ",0" * 500_000 + "]", "1" * 4301, "1e999", "NaN", '"' + "\\ud800" * 9,
        '{"goal":{"parameters":1' + "0" * 4000 + "}}", "[{}" + ",{}" * 300_000 + "]", "{" + '"a":1,' * 100_000 + '"b":1}',
    ):  # fmt: skip
        for reader in ("trial", "epochs", "result", "environment"):
            yield reader, text.encode()
    trial = json.loads((folder / "run" / "trial.json").read_text())
    conv = {"type": "conv", "channels": 4096, "kernel": 63, "padding": 31}
    for blocks in ([conv] * 256, [conv], [{"type": "max-pool", "size": 1}] * 256, []):
        yield "trial", json.dumps({**trial, "network": {"blocks": blocks}}).encode()
    weights = (folder / "run" / "weights.safetensors").read_bytes()
    about = json.loads(json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])["__metadata__"]["smidgen"])
    for reader in ("weights", "checkpoint", "predictions"):
        for length in (2**63, 2**64 - 1, 2**31, 2**20, 0):
            yield reader, safetensors({}, b"\0" * 64, length=length)
        yield reader, safetensors(b"{" + b" " * (2**20 - 2) + b"}")
        yield reader, safetensors(b"[" * 2**20)
        for sides in ([2**62, 2**62], [-1], [1.5], ["1"], [2**40] * 3, [0] * 1000, None, [1] * 100_000):
            tensors = {"x": {"dtype": "F32", "shape": sides, "data_offsets": [0, 4]}}
            yield reader, safetensors({**tensors, "__metadata__": {"smidgen": json.dumps(about)}}, b"\0" * 4)
        changes: list[dict[str, Any]] = [
            {"format": 10**400}, {"format": [1]}, {"classes": 2**16}, {"input_shape": [2**16 - 1] * 3}, {"trial": []},
            {"trial": {**about["trial"], "network": {"blocks": [conv] * 256}}}, {"mean": float("nan")}, {"std": 1e308},
        ]  # fmt: skip
        for change in changes:
            yield reader, safetensors({"__metadata__": {"smidgen": json.dumps({**about, **change})}})


def main() -> None:
    """Bombs first, then as many generated inputs of each kind; of every so many readers one, as the arguments say."""
    folder, count, first, step = Path(sys.argv[1]), *map(int, sys.argv[2:])
    run, killed = folder / "run", folder / "killed"
    trial = read_trial(killed / "trial.json")
    data = load_dataset(trial.data.source)
    origin = Origin(trial.recipe_digest, data.digest, 7)
    training = start(trial, new_network(trial, data, 0), choose("auto", threads=1))
    read_image(_written(folder / "x.png", picture("L", 30, "PNG")))  # loads what Pillow loads when first used
    load_run(run)
    copy = Path(shutil.copytree(run, folder / "copy"))

    def in_run(name: str) -> Reader:
        def read(path: Path) -> object:
            shutil.copy(path, copy / name)
            try:
                return load_run(copy)
            finally:
                shutil.copy(run / name, copy / name)

        return read

    def environment(path: Path) -> object:
        shutil.copy(path, copy / "environment.json")
        return RunOrigin.from_json(RunDirectory(copy).read_json("environment.json"), copy)

    readers: dict[str, Reader] = {
        "idx": lambda path: read_idx(path, 3),
        "idx.gz": lambda path: read_idx(path, 3),
        "image": read_image,
        "picture": lambda path: read_picture(path, (3, 8, 8)),
        "npz": load_dataset,
        "csv": load_dataset,
        "trial": read_trial,
        "weights": read_weights,
        "checkpoint": lambda path: checkpoint.restore(training, path, origin, trial, len(data.train)),
        "epochs": in_run("epochs.jsonl"),
        "result": in_run("result.json"),
        "predictions": in_run("predictions.safetensors"),
        "environment": environment,
    }
    for number in range(20):
        _written(folder / "p" / f"{number}.png", picture("RGB", 8 + number, "PNG"))
    mine = list(readers)[first::step]
    made = list(bombs(folder))
    by_hand = [
        (each, content)
        for name, content in made
        for each in (["image", "picture"] if name == "image" else [str(name)])
        if each in mine
    ]  # before the limit, which is for the readers
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is to be the readers', too
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    counts = {name: Count() for name in mine}
    for name, content in by_hand:
        limit = LARGEST if name == "picture" else SLOWEST
        counts[name].give(readers[name], _written(folder / f"bomb.{name}", content), limit)

    values = random.Random(0).randbytes(3 * 8 * 8)
    good_idx = idx((3, 8, 8), values=values)
    seeds: dict[str, list[bytes]] = {
        "idx": [good_idx, idx((9,), values=values[:9]), b""],
        "idx.gz": [gzip.compress(good_idx), gzip.compress(b""), gzip.compress(good_idx) * 2],
        "image": [
            picture("L", 30, "PNG"), picture("RGBA", 30, "PNG"), picture("P", 30, "PNG"), picture("I;16", 30, "PNG"),
            picture("1", 30, "PNG"), picture("L", 30, "JPEG"), picture("CMYK", 30, "JPEG"),
            picture("RGB", 30, "JPEG", progressive=True),
        ],
        "picture": [
            picture("RGB", 30, "PNG"), picture("P", 30, "PNG"), picture("I;16", 30, "PNG"), picture("RGB", 30, "JPEG"),
            picture("RGB", 30, "BMP"), picture("P", 30, "GIF"), picture("RGBA", 30, "WEBP"),
        ],
        "npz": [good_npz(), good_npz(zipfile.ZIP_STORED), good_npz(zipfile.ZIP_LZMA)],
        "csv": [
            b"path,label,split\n" + b"".join(b"p/%d.png,c%d,%s\n" % (i, i % 2, (b"train", b"test")[i > 14]) for i in range(20)),
            b"".join(b'"p/%d.png","c%d"\n' % (i, i % 3) for i in range(20)),
        ],
        "trial": [(run / "trial.json").read_bytes()],
        "weights": [(run / "weights.safetensors").read_bytes()],
        "checkpoint": [p.read_bytes() for p in killed.glob("checkpoint*")],
        "epochs": [(run / "epochs.jsonl").read_bytes()],
        "result": [(run / "result.json").read_bytes()],
        "predictions": [(run / "predictions.safetensors").read_bytes()],
        "environment": [(run / "environment.json").read_bytes()],
    }  # fmt: skip
    for name in mine:
        _generate(
            counts[name], readers[name], folder / f"generated.{name}", seeds[name], max(1, -(-count // len(readers)))
        )
    report = {name: asdict(count) for name, count in counts.items()}
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"bombs": sum(name in mine for name, _ in made), "readers": report, "peak_mib": peak}))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _generate(count: Count, reader: Reader, path: Path, seeds: list[bytes], examples: int) -> None:
    textual = seeds[0][:1] == b"{"

    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["bytes", "cut", *["values"] * 3] if textual else ["bytes", "bytes", "cut"]))
        seed = data.draw(st.sampled_from(seeds))
        content = _with_other_values(seed, data) if kind == "values" else _damaged(seed, data, cut=kind == "cut")
        count.give(reader, _written(path, content))

    run()


def _damaged(seed: bytes, data: st.DataObject, *, cut: bool) -> bytes:
    """Bytes changed, put in and taken out at a few places, the first ones more often than the rest."""
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 4))):
        if not content:
            break
        place = min(data.draw(st.sampled_from([24, 200, len(content)])), len(content))
        at = data.draw(st.integers(0, place - 1))
        new = data.draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]))
        old = data.draw(st.integers(0, 8))
        content[at : at + old] = new
    return bytes(content[: data.draw(st.integers(0, len(content)))] if cut else content)


def _with_other_values(seed: bytes, data: st.DataObject) -> bytes:
    """JSON (of the first line, where there are several) with a few values replaced by others."""
    first, _, rest = seed.partition(b"\n") if seed.count(b"}\n{") else (seed, b"", b"")
    tree = json.loads(first)
    for _ in range(data.draw(st.integers(1, 3))):
        node: Any = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
                node[key] = data.draw(_JSON)
                break
            node = node[key]
    return json.dumps(tree).encode("utf-8", "surrogatepass") + (b"\n" + rest if rest else b"")


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


if __name__ == "__main__":
    main()
