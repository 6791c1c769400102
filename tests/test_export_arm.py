"""The exported C on emulated microcontrollers: int8 to the last bit, float32 to the class.

Needs Debian's gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm; `make test-arm` says so.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from smidgen.data.dataset import Dataset
from smidgen.exports.c.compiler import ARM, STRICT
from smidgen.exports.target import fused_graph
from smidgen.lowering.c.float32 import float32_code
from smidgen.lowering.c.int8 import int8_code
from smidgen.lowering.c.source import About, files
from smidgen.lowering.fused import FusedGraph
from smidgen.lowering.memory import plan
from smidgen.lowering.quantize import quantize
from smidgen.runs.record import Run

HERE = Path(__file__).parent / "arm"
MISSING = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (see make test-arm)")


@dataclass(frozen=True)
class Board:
    """An emulated board: QEMU's name, what its processor's code is compiled with, clock in MHz, memory in bytes."""

    machine: str
    core: str
    clock: int
    ram: int
    flash: int = 256 * 1024


PORTABLE = "-DSMIDGEN_DSP=0"
"""Leaves out the instructions that only some processors have."""
BOARDS = {
    "Cortex-M0 with 16 kB": Board("microbit", "cortex_m0plus", 16, 16 * 1024),
    # QEMU has no larger M0: its code (ARMv6-M) runs on the M3 as it is, floating point in software.
    "Cortex-M0+ code on an M3": Board("mps2-an385", "cortex_m0plus", 25, 256 * 1024, 4 * 2**20),
    "Cortex-M4 with FPU": Board("mps2-an386", "cortex_m4", 25, 256 * 1024, 4 * 2**20),
}
RUNS: list[Any] = [
    ("int8", "Cortex-M0 with 16 kB", 20),
    ("int8 with 4-bit weights, lean", "Cortex-M0 with 16 kB", 10),
    ("int8", "Cortex-M4 with FPU", 20),
    ("int8, portable", "Cortex-M4 with FPU", 10),
    ("int8 with 4-bit weights, lean", "Cortex-M4 with FPU", 10),
    ("float32", "Cortex-M4 with FPU", 20),
    ("float32", "Cortex-M0+ code on an M3", 4),
    pytest.param("int8", "Cortex-M4 with FPU", 10_000, marks=pytest.mark.slow),
    pytest.param("int8 with 4-bit weights, lean", "Cortex-M4 with FPU", 10_000, marks=pytest.mark.slow),
]
AT_ONCE = 2000
"""Images that fit into the boards' memory; the microbit holds a tenth."""


@pytest.fixture(scope="module")
def graph(flagship_run: Run) -> FusedGraph:
    """The flagship's network, hardly trained."""
    return fused_graph(flagship_run.trained)


def emulate(folder: Path, board: Board, images: Tensor, *flags: str) -> list[list[int]]:
    """Lines of numbers, class, scores and ticks of each image, as the board writes them."""
    pixels = ",\n".join("{" + ",".join(map(str, image.flatten().tolist())) + "}" for image in images)
    head = f"#include <stdint.h>\n#define IMAGES {len(images)}\n"
    text = f"{head}static const uint8_t images[][{images[0].numel()}] = {{\n{pixels}\n}};\n"
    (folder / "images.h").write_text(text)
    program = folder / "program.elf"
    compile_and_link = [
        "arm-none-eabi-gcc", *ARM[board.core], "-std=gnu99", "-Os", "-ffunction-sections", "-Wl,--gc-sections",
        "-nostartfiles", "-ffreestanding", "--specs=nosys.specs", "-T", str(HERE / "link.ld"),
        f"-Wl,--defsym=RAM_BYTES={board.ram},--defsym=FLASH_BYTES={board.flash}", "-Wl,--no-warn-rwx-segments",
        "-I", str(folder), "-I", str(HERE), str(HERE / "start.c"), str(HERE / "classify.c"), str(folder / "net.c"),
        *flags, "-o", str(program),
    ]  # fmt: skip
    subprocess.run(compile_and_link, check=True)
    emulator = [
        "qemu-system-arm",
        "-M",
        board.machine,
        "-nographic",
        "-monitor",
        "none",
        "-serial",
        "none",
        "-icount",
        "shift=0",
    ]
    done = subprocess.run(
        [*emulator, "-semihosting-config", "enable=on,target=native", "-kernel", str(program)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    written = done.stdout + done.stderr
    rows = [
        [int(word, 16) for word in line.split()] for line in re.findall(r"^(?:[0-9a-f]{8} )+$", written, re.MULTILINE)
    ]
    assert len(rows) == len(images), written[-500:]
    return rows


@pytest.mark.parametrize(("kind", "board", "count"), RUNS, ids=lambda value: str(value))
def test_it_runs_on_a_microcontroller(
    kind: str, board: str, count: int, graph: FusedGraph, mnist: Dataset, tmp_path: Path
) -> None:
    images = mnist.held_out.images[:count]
    about = About("net", "a test", "one epoch", graph.input_shape, graph.classes, graph.macs)
    network = quantize(graph, mnist.train.images, 4 if "4-bit" in kind else 8) if "int8" in kind else None
    code = int8_code(graph, network, plan(graph, lean="lean" in kind)) if network else float32_code(graph)
    for name, content in files(code, about).items():
        (tmp_path / name).write_bytes(content)
    flags = [PORTABLE] if "portable" in kind else []
    rows = [row for part in images.split(AT_ONCE) for row in emulate(tmp_path, BOARDS[board], part, *flags)]
    labels = [row[0] for row in rows]
    words = struct.pack(f"<{count * graph.classes}I", *(word for row in rows for word in row[1:-1]))
    # With -icount shift=0 an instruction takes a nanosecond of the board's time.
    instructions = 1000 / BOARDS[board].clock * sum(row[-1] for row in rows) / count
    print(f"\n{kind} on {board}: {instructions / 1e6:.2f} million instructions an image")
    assert graph.macs < instructions < (16 if network else 300) * graph.macs
    if network:
        expected = network.scores(images)
        found = np.frombuffer(words, dtype="<i4").reshape(count, -1)
        np.testing.assert_array_equal(found, expected.numpy())
    else:
        expected = graph.scores(images)
        found = np.frombuffer(words, dtype="<f4").reshape(count, -1)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    assert labels == expected.argmax(1).tolist()


@pytest.mark.parametrize("core", ARM)
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_constants_stay_in_flash_and_nothing_in_ram(
    core: str, kind: str, graph: FusedGraph, mnist: Dataset, tmp_path: Path
) -> None:
    about = About("net", "a test", "one epoch", graph.input_shape, graph.classes, graph.macs)
    code = int8_code(graph, quantize(graph, mnist.train.images[:64])) if kind == "int8" else float32_code(graph)
    for name, content in files(code, about).items():
        (tmp_path / name).write_bytes(content)
    made = tmp_path / "net.o"
    subprocess.run(["arm-none-eabi-gcc", *ARM[core], *STRICT, "-Os", "-c", "-o", made, tmp_path / "net.c"], check=True)
    listed = subprocess.run(["arm-none-eabi-size", "-A", made], capture_output=True, text=True, check=True).stdout
    sizes = {name: int(size) for name, size in re.findall(r"^(\.\w+)\S*\s+(\d+)", listed, re.MULTILINE)}
    assert sizes[".data"] == sizes[".bss"] == 0
    assert sizes[".text"] < (3000 if kind == "int8" else 6000)
    assert code.weight_bytes <= sizes[".rodata"] < code.weight_bytes + 48 * len(graph.operations)
    undefined = subprocess.run(["arm-none-eabi-nm", "-u", made], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"malloc|printf|expf|tanhf", undefined)
