"""The exported C on an emulated 8-bit AVR: int8 to the last bit, with its tables in flash.

Needs Debian's gcc-avr, avr-libc and simavr.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from smidgen.data.dataset import Dataset
from smidgen.lowering.c.int8 import int8_code
from smidgen.lowering.c.source import About, files
from smidgen.lowering.memory import plan
from smidgen.lowering.quantize import quantize
from test_export_c import graph_of, random_images

MISSING = [tool for tool in ("avr-gcc", "simavr") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")

CHIP = "atmega1284p"
MAIN = """
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <stdio.h>
#include "net.h"

static net_scratch scratch;
static const __flash uint8_t images[][NET_PIXELS] = {
PIXELS
};

static int put(char c, FILE *file)
{
    (void)file;
    while (!(UCSR0A & (1 << UDRE0))) {}
    UDR0 = (uint8_t)c;
    return 0;
}

int main(void)
{
    static FILE out = FDEV_SETUP_STREAM(put, NULL, _FDEV_SETUP_WRITE);
    static uint8_t image[NET_PIXELS];
    UCSR0B = 1 << TXEN0;
    for (uint8_t n = 0; n < sizeof images / sizeof *images; n++) {
        for (uint16_t i = 0; i < NET_PIXELS; i++) image[i] = images[n][i];
        const int32_t *scores = net_scores(image, &scratch);
        fprintf(&out, "scores");
        for (uint8_t c = 0; c < NET_CLASSES; c++) fprintf(&out, " %ld", (long)scores[c]);
        fprintf(&out, "\\n");
    }
    cli();
    sleep_enable();
    sleep_cpu();
    return 0;
}
"""


@pytest.mark.parametrize(
    ("name", "bits", "count"),
    [
        ("padded, activation first", 8, 4),
        ("random 2", 8, 4),
        ("flagship", 4, 4),
        pytest.param("flagship", 4, 20, marks=pytest.mark.slow),
    ],
)
def test_it_runs_on_an_avr_from_flash(name: str, bits: int, count: int, mnist: Dataset, tmp_path: Path) -> None:
    graph = graph_of(name)
    network = quantize(graph, random_images(graph, 64), bits)
    code = int8_code(graph, network, plan(graph, lean=True))
    about = About("net", "a test", "random weights", graph.input_shape, graph.classes, graph.macs)
    for file, content in files(code, about).items():
        (tmp_path / file).write_bytes(content)
    images = mnist.held_out.images[:count] if name == "flagship" else random_images(graph, count)
    last = images.permute(0, 2, 3, 1).flatten(1)
    pixels = ",\n".join("{" + ",".join(map(str, image.tolist())) + "}" for image in last)
    (tmp_path / "avr.c").write_text(MAIN.replace("PIXELS\n}", pixels + "\n}"))
    command = ["avr-gcc", f"-mmcu={CHIP}", "-std=gnu99", "-Os", "-Wall", "-Wextra", "-Werror", "-o", "avr.elf"]
    subprocess.run([*command, "avr.c", "net.c"], cwd=tmp_path, check=True)
    subprocess.run([*command[:-2], "-c", "-o", "net.o", "net.c"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["avr-size", "-A", "net.o"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    sizes = {section: int(size) for section, size in re.findall(r"^(\.\w+)\S*\s+(\d+)", listed, re.MULTILINE)}
    assert sizes[".data"] + sizes[".bss"] + sizes.get(".rodata", 0) == 0
    done = subprocess.run(
        ["simavr", "-m", CHIP, "-f", "16000000", "avr.elf"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    rows = re.findall(r"scores((?: -?\d+)+)", done.stdout + done.stderr)
    assert [[int(word) for word in row.split()] for row in rows] == network.scores(images).tolist()
