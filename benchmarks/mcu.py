"""Measures C code for microcontrollers, smidgen's and others', of the same weights: `make mcu`.

For the flagship and the two smallest trials, seed 0 of `make results` (what is missing is trained first): smidgen's
integers with as much memory as they take, lean, and with 4-bit weights; BakeNN (PyPI: bakenn) with its portable
kernels and with CMSIS-NN's; onnx2c in float32, if --onnx2c names the program (built from its repository). The columns:
flash and RAM of the code as GCC links it with -Os for a Cortex-M4 (without the image of 784 bytes, the stack and the
C library), instructions an image on emulated processors (QEMU) and on this one (callgrind, -O2), accuracy over all
test images, and how many of those it puts into another class than the float32 network.

Needs gcc, gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm and valgrind (Debian's names).
"""

from __future__ import annotations

import copy
import datetime
import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import smidgen
from common import FLAGSHIP, RESULTS, parser
from smidgen.exports.c.compiler import ARM
from smidgen.exports.export import export
from smidgen.tables import render
from smidgen.training.evaluation import scores

BOARD = Path(__file__).parents[1] / "tests" / "arm"
SMALL = replace(RESULTS["float32"], trials=(FLAGSHIP, "mnist-tiny", "mnist-tiny-99"), seeds="0")
CORES = {"M4": ("mps2-an386", "cortex_m4"), "M0+": ("mps2-an385", "cortex_m0plus")}
"""QEMU's board and the flags; it has no large M0, but its code runs on the M3 as it is."""
CLOCK = 25
CALIBRATION = 32
"""Images for BakeNN, which takes a second or more for each."""
EMULATED = 4
"""Images; all take the same path, but for the jumps of a clamp."""
ARM_MAIN = """
#include "images.h"
#include "semihosting.h"
#include "way.h"
#define SYSTICK ((volatile uint32_t *)0xE000E010)
static void number(uint32_t value)
{
    char text[10];
    for (int i = 0; i < 8; i++) text[i] = "0123456789abcdef"[value >> (28 - 4 * i) & 15];
    text[8] = ' ';
    text[9] = 0;
    write_text(text);
}
int main(void)
{
    SYSTICK[1] = 0xffffff;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
    for (int i = 0; i < IMAGES; i++) {
        const uint32_t before = SYSTICK[2];
        const int found = classify(images[i]);
        const uint32_t ticks = (before - SYSTICK[2]) & 0xffffff;
        number((uint32_t)found);
        number(ticks);
        write_text("\\n");
    }
    return 0;
}
"""
PC_MAIN = """
#include <stdio.h>
#include "way.h"
int main(void)
{
    static uint8_t image[784];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) printf("%d\\n", classify(image));
    return 0;
}
"""


@dataclass
class Way:
    """C code of a network.

    Attributes:
        name: for the table.
        sources: C files.
        glue: C that defines `int classify(const uint8_t *image)`.
        includes: folders.
        flags: for the compiler.
        copies_image: whether the glue's memory has the image once more, which does not count.
        only_m4: whether it has instructions that other processors lack.
    """

    name: str
    sources: list[Path]
    glue: str
    includes: list[Path] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    copies_image: bool = False
    only_m4: bool = False


def main() -> None:
    """Train what is missing, export in every way, measure, print."""
    made = parser(__doc__)
    made.add_argument("--onnx2c", type=Path, help="the program, to be in the table")
    arguments = made.parse_args()
    missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm", "valgrind") if not shutil.which(tool)]
    if missing:
        raise SystemExit(f"needs {', '.join(missing)}; see --help")
    dataset = smidgen.load_dataset()
    images, labels = dataset.held_out.images, dataset.held_out.labels
    rows: list[list[object]] = []
    for result in SMALL.runs(arguments):
        run = result.runs[0]
        real = scores(run.network, images, run.trained.mean, run.trained.std).argmax(1)
        with tempfile.TemporaryDirectory() as folder:
            for way in ways(run, dataset.train.images, Path(folder), arguments.onnx2c):
                print(f"{run.trial.name}: {way.name}", file=sys.stderr, flush=True)
                with tempfile.TemporaryDirectory() as work:
                    measured = measure(way, Path(work), images)
                found = measured.classes
                rows.append([
                    run.trial.name, way.name, measured.flash, measured.ram,
                    *(f"{count / 1e6:.2f}" if count else "-" for count in (measured.m4, measured.m0, measured.pc)),
                    f"{100 * float((found == labels).double().mean()):.2f}" if found is not None else "-",
                    int((found != real).sum()) if found is not None else "-",
                ])  # fmt: skip
    print(f"{about()}\n")
    columns = ["network", "code", "flash, bytes", "RAM, bytes", "M4, million instructions", "M0+", "PC"]
    print(render([*columns, "accuracy, %", "images that differ"], rows, "markdown", left=2))


def about() -> str:
    """What was measured with what."""
    versions = [
        subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
        for tool in ("gcc", "arm-none-eabi-gcc", "qemu-system-arm", "valgrind")
    ]
    peers = [f"bakenn {importlib.metadata.version('bakenn')}"] if importlib.util.find_spec("bakenn") else []
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return f"{today}, smidgen {smidgen.VERSION}, {', '.join([*versions, *peers])}; seed 0 of each trial"


def ways(run: smidgen.Run, training_images: Tensor, folder: Path, onnx2c: Path | None) -> Iterator[Way]:
    """Each way in which there is C code of the network."""
    ours: dict[str, dict[str, str | int | bool]] = {
        "smidgen": {},
        "smidgen, portable C": {},
        "smidgen, lean": {"lean": True},
        "smidgen, 4-bit weights": {"bits": 4},
        "smidgen, 4-bit weights, lean": {"bits": 4, "lean": True},
    }
    for name, options in ours.items():
        out = folder / name.replace(" ", "-")
        export(run, "c", out, type="int8", name="net", check=False, **options)
        glue = '#include "net.h"\nstatic net_scratch scratch;\n'
        glue += "static int classify(const uint8_t *image) { return net_classify(image, &scratch); }\n"
        portable = ["-DSMIDGEN_DSP=0"] if "portable" in name else []
        yield Way(name, [out / "net.c"], glue, [out], portable)
    if importlib.util.find_spec("bakenn"):
        yield from bakenn_ways(run, training_images, folder)
    if onnx2c:
        out = folder / "onnx"
        file = next(
            path for path in export(run, "onnx", out, check=False).directory.iterdir() if path.suffix == ".onnx"
        )
        made = subprocess.run([onnx2c, "-d", "N:1", "-l", "0", file], capture_output=True, text=True, check=True)
        (out / "entry.c").write_text(made.stdout)
        glue = """
void entry(const uint8_t images[1][1][28][28], float scores[1][10]);
static float scores[1][10];
static int classify(const uint8_t *image)
{
    int best = 0;
    entry((const uint8_t(*)[1][28][28])image, scores);
    for (int i = 1; i < 10; i++) if (scores[0][i] > scores[0][best]) best = i;
    return best;
}
"""
        yield Way("onnx2c, float32", [out / "entry.c"], glue, [out])


def bakenn_ways(run: smidgen.Run, training_images: Tensor, folder: Path) -> Iterator[Way]:
    """BakeNN's code, calibrated on training images."""
    bakenn = importlib.import_module("bakenn")
    layers = [module for module in copy.deepcopy(run.network).modules() if not list(module.children())]
    network = nn.Sequential(*layers).eval()
    mean, std = run.trained.mean, run.trained.std
    chosen = torch.linspace(0, len(training_images) - 1, CALIBRATION).round().long()
    samples = (training_images[chosen].float() / 255 - mean) / std
    selection = importlib.import_module("bakenn.backend.portable_c.selection")
    with_cmsis = selection.CBackendOptions(
        kernel_policy=selection.KernelPolicy.STATIC_PRIORITY, enable_cmsis_nn=True, target=bakenn.CORTEX_M4
    )
    kernels = {"BakeNN, portable": None, "BakeNN, CMSIS-NN": with_cmsis}
    for name, options in kernels.items():
        out = folder / name.replace(" ", "-")
        made = bakenn.compile_torch_ptq(
            network, samples[:1], list(samples[:, None]), out, name="net", backend_options=options
        )
        pixels = torch.arange(256).reshape(-1, 1, 1, 1).expand(256, 1, 28, 28)
        normalized = ((pixels.float() / 255 - mean) / std).permute(0, 2, 3, 1).numpy()
        table = [int(np.asarray(bakenn.quantize_input(made.plan, image[None])).ravel()[0]) for image in normalized]
        glue = f"""
#include "bknn_net.h"
static const int8_t table[256] = {{{", ".join(map(str, table))}}};
static int8_t input[784], output[10];
static uint8_t arena[BKNN_NET_ARENA_SIZE] __attribute__((aligned(16)));
static int classify(const uint8_t *image)
{{
    int best = 0;
    for (int i = 0; i < 784; i++) input[i] = table[image[i]];
    bknn_net_infer(arena, input, output);
    for (int i = 1; i < 10; i++) if (output[i] > output[best]) best = i;
    return best;
}}
"""
        sources = sorted(out.rglob("*.c"))
        includes = sorted({path.parent for path in out.rglob("*.h")})
        yield Way(name, sources, glue, includes, copies_image=True, only_m4=options is not None)


@dataclass
class Measured:
    """What a way needs, and the classes that it gives: None where it only runs on an emulated processor."""

    flash: int
    ram: int
    m4: float
    m0: float | None
    pc: float | None
    classes: Tensor | None


def measure(way: Way, work: Path, images: Tensor) -> Measured:
    """Compile for each processor and run."""
    (work / "way.h").write_text(f"#include <stdint.h>\n{way.glue}")
    (work / "arm.c").write_text(ARM_MAIN)
    (work / "pc.c").write_text(PC_MAIN)
    shown = images[:EMULATED]
    pixels = ",\n".join("{" + ",".join(map(str, image.flatten().tolist())) + "}" for image in shown)
    head = f"#include <stdint.h>\n#define IMAGES {len(shown)}\n"
    (work / "images.h").write_text(f"{head}static const uint8_t images[][784] = {{\n{pixels}\n}};\n")
    counts = {core: emulated(way, work, core) for core in CORES if not (way.only_m4 and core != "M4")}
    classes, pc = None, None
    if not way.only_m4:
        program = [*include(way, work), "-O2", "-g", "-o", str(work / "pc"), str(work / "pc.c"), *map(str, way.sources)]
        compiler = ["gcc", "-std=gnu11", "-w"]
        subprocess.run([*compiler, *program, "-lm"], check=True)
        given = images.numpy().tobytes()
        done = subprocess.run([work / "pc"], input=given, capture_output=True, check=True)
        classes = torch.tensor([int(line) for line in done.stdout.split()])
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=main", f"--callgrind-out-file={work / 'calls'}"]
        counted = [
            _collected(subprocess.run([*command, work / "pc"], input=given[: 784 * n], capture_output=True, check=True))
            for n in (1, 1 + EMULATED)
        ]
        pc = (counted[1] - counted[0]) / EMULATED
    flash, ram = sizes(way, work)
    m0 = counts["M0+"][0] if "M0+" in counts else None
    return Measured(flash, ram, counts["M4"][0], m0, pc, classes)


def _collected(done: subprocess.CompletedProcess[bytes]) -> int:
    found = re.search(rb"Collected\s*:\s*(\d+)", done.stderr)
    assert found, done.stderr[-300:]
    return int(found[1])


def include(way: Way, work: Path) -> list[str]:
    """Flags that find the headers."""
    return [*way.flags, *(f"-I{folder}" for folder in (work, *way.includes))]


def emulated(way: Way, work: Path, core: str) -> tuple[float, list[int]]:
    """Instructions an image, and the classes."""
    machine, flags = CORES[core][0], ARM[CORES[core][1]]
    command = [
        "arm-none-eabi-gcc", *flags, "-std=gnu11", "-w", "-Os", "-ffunction-sections", "-fdata-sections",
        "-Wl,--gc-sections", "-nostartfiles", "--specs=nosys.specs", "-T", str(BOARD / "link.ld"),
        "-Wl,--defsym=RAM_BYTES=262144,--defsym=FLASH_BYTES=4194304", "-Wl,--no-warn-rwx-segments",
        *include(way, work), f"-I{BOARD}", str(BOARD / "start.c"), str(work / "arm.c"), *map(str, way.sources),
        "-lm", "-o", str(work / "arm.elf"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    emulator = ["qemu-system-arm", "-M", machine, "-nographic", "-monitor", "none", "-serial", "none"]
    emulator += ["-icount", "shift=0", "-semihosting-config", "enable=on,target=native", "-kernel"]
    done = subprocess.run(
        [*emulator, str(work / "arm.elf")], capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )
    rows = re.findall(r"^([0-9a-f]{8}) ([0-9a-f]{8}) $", done.stdout + done.stderr, re.MULTILINE)
    assert len(rows) == EMULATED, (done.stdout + done.stderr)[-500:]
    # With -icount shift=0 an instruction takes a nanosecond of the board's time.
    return 1000 / CLOCK * sum(int(ticks, 16) for _, ticks in rows) / EMULATED, [int(label, 16) for label, _ in rows]


def sizes(way: Way, work: Path) -> tuple[int, int]:
    """Flash and RAM of the code and its glue for a Cortex-M4, as they are linked."""
    (work / "only.c").write_text('#include "way.h"\nint run(const uint8_t *image) { return classify(image); }\n')
    command = [
        "arm-none-eabi-gcc", *ARM["cortex_m4"], "-std=gnu11", "-w", "-Os", "-ffunction-sections", "-fdata-sections",
        "-nostdlib", "-r", "-Wl,--gc-sections", "-Wl,-e,run", "-Wl,-u,run", *include(way, work), str(work / "only.c"),
        *map(str, way.sources), "-o", str(work / "only.o"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    size = ["arm-none-eabi-size", str(work / "only.o")]
    listed = subprocess.run(size, capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, listed.splitlines()[1].split()[:3])
    return text + data, data + bss - (784 if way.copies_image else 0)


if __name__ == "__main__":
    main()
