"""C exports as libraries: built as their users build them, and run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import Command
from smidgen.exports.c.compiler import ARM, find_compiler
from smidgen.exports.export import MANIFEST
from smidgen.runs.record import Run

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
ARDUINO = """
#pragma once
#include <stdint.h>
#ifdef __AVR__
#include <avr/pgmspace.h>
#else
#include <string.h>
#define PROGMEM
#define memcpy_P memcpy
#define pgm_read_byte(from) (*(const uint8_t *)(from))
#endif
#define F(text) text
struct Port {
    void begin(long) {}
    operator bool() { return true; }
    template <class T> void print(T value) { show(value); }
    template <class T> void println(T value) { show(value); show("\\n"); }
    void show(const char *text);
    void show(long value);
    void show(unsigned long value) { show((long)value); }
    void show(int value) { show((long)value); }
};
static Port Serial;
unsigned long micros(void);
"""
RUNTIME = """
#include <stdio.h>
#include "Arduino.h"
#include "sketch.ino"
void Port::show(const char *text) { fputs(text, stdout); }
void Port::show(long value) { printf("%ld", value); }
unsigned long micros(void) { return 0; }
int main() { setup(); loop(); return 0; }
"""
FLAGS = ["-Wall", "-Wextra", "-Werror"]


def exported(smidgen: Command, run: Run, folder: Path, *options: str) -> Path:
    done = smidgen("export", run.directory, "--to", "c", "-o", folder, "--name", "net", *options)
    assert done.status == 0, done.err
    return folder


@pytest.mark.parametrize("kind", ["int8", "float32"])
@pytest.mark.parametrize("package", ["arduino", "platformio"])
def test_the_sketch_prints_the_classes_of_ten_images(
    package: str, kind: str, small_run: Run, smidgen: Command, tmp_path: Path
) -> None:
    folder = exported(smidgen, small_run, tmp_path / "net", "--type", kind, "--package", package)
    sketches = folder / "examples" / "net_examples"
    shutil.copy(sketches / "net_examples.ino", tmp_path / "sketch.ino")
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    (tmp_path / "runtime.cpp").write_text(RUNTIME)
    include = ["-I", str(tmp_path), "-I", str(folder / "src"), "-I", str(sketches)]
    subprocess.run(["gcc", *FLAGS, "-O1", "-c", folder / "src" / "net.c", "-o", tmp_path / "net.o"], check=True)
    built = ["g++", *FLAGS, *include, str(tmp_path / "runtime.cpp"), str(tmp_path / "net.o"), "-o", str(tmp_path / "a")]
    subprocess.run(built, check=True)
    printed = subprocess.run([tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^class (\d), label (\d), 0 us$", printed, re.MULTILINE)
    assert len(found) == 10
    assert sorted(label for _, label in found) == list("0123456789")
    images = re.search(r"images\[10\]\[784\] PROGMEM = \{\n(.*)\n\};", (sketches / "images.h").read_text(), re.DOTALL)
    assert images
    # The example program of the same export says the same of the same images.
    pixels = [bytes(map(int, row.strip("{},").split(","))) for row in images[1].splitlines()]
    idx = b"\0\0\x08\x03" + (10).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2 + b"".join(pixels)
    (tmp_path / "images.idx").write_bytes(idx)
    main = folder / "extras" / "classify" / "main.c"
    subprocess.run(["gcc", *include, main, tmp_path / "net.o", "-o", tmp_path / "b", "-lm"], check=True)
    classes = subprocess.run([tmp_path / "b", tmp_path / "images.idx"], capture_output=True, text=True, check=True)
    assert [found_class for found_class, _ in found] == classes.stdout.split()
    for compiler, flags in {"avr-g++": ["-mmcu=atmega2560"], "arm-none-eabi-g++": ARM["cortex_m4"]}.items():
        if shutil.which(compiler):
            command = [compiler, *flags, *FLAGS, "-Os", *include, "-c", "-x", "c++", str(tmp_path / "sketch.ino")]
            subprocess.run([*command, "-o", str(tmp_path / "sketch.o")], check=True)
            plain = [
                compiler.replace("g++", "gcc"),
                *flags,
                *FLAGS,
                "-std=gnu11",
                "-Os",
                "-c",
                str(folder / "src/net.c"),
            ]
            subprocess.run([*plain, "-o", str(tmp_path / "net_target.o")], check=True)


def test_a_library_says_what_it_is(small_run: Run, smidgen: Command, tmp_path: Path) -> None:
    arduino = exported(smidgen, small_run, tmp_path / "a", "--type", "int8", "--package", "arduino")
    lines = dict(line.split("=", 1) for line in (arduino / "library.properties").read_text().splitlines())
    assert lines["name"] == "net"
    assert lines["includes"] == "net.h"
    assert {"version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"} < set(lines)
    platformio = exported(smidgen, small_run, tmp_path / "p", "--type", "int8", "--package", "platformio")
    library = json.loads((platformio / "library.json").read_text())
    assert library["headers"] == "net.h"
    for example in library["examples"]:
        for name in example["files"]:
            assert (platformio / example["base"] / name).is_file()
    manifest = json.loads((platformio / MANIFEST).read_text())
    assert {path.relative_to(platformio).as_posix() for path in platformio.rglob("*") if path.is_file()} == {
        *manifest["files"],
        MANIFEST,
    }
    assert manifest["check"]["mismatches"] == 0


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_cmake_builds_the_example_and_the_library(small_run: Run, smidgen: Command, tmp_path: Path) -> None:
    folder = exported(smidgen, small_run, tmp_path / "net", "--type", "int8", "--package", "cmake")
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(user C)\n"
        f"add_subdirectory({folder} net)\nadd_executable(user user.c)\ntarget_link_libraries(user PRIVATE net)\n"
    )
    (tmp_path / "user" / "user.c").write_text(
        "#include <net.h>\nint main(void) { static net_scratch s; static uint8_t i[NET_PIXELS]; "
        "return net_classify(i, &s) > 9; }\n"
    )
    for source, program in ((folder, "net_classify"), (tmp_path / "user", "user")):
        build = tmp_path / f"build-{program}"
        subprocess.run(["cmake", "-S", source, "-B", build], check=True, capture_output=True)
        subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
        assert (build / program).is_file()
    subprocess.run([tmp_path / "build-user" / "user"], check=True)


def test_a_package_replaces_its_own_files_and_no_others(small_run: Run, smidgen: Command, tmp_path: Path) -> None:
    folder = exported(smidgen, small_run, tmp_path / "net", "--type", "int8", "--package", "arduino")
    (folder / "src" / "mine.c").write_text("int mine;\n")
    exported(smidgen, small_run, tmp_path / "net", "--type", "int8", "--package", "cmake")
    assert (folder / "CMakeLists.txt").is_file()
    assert [path.name for path in (folder / "src").iterdir()] == ["mine.c"]
    (folder / "src" / "mine.c").rename(folder / "src" / "net.c")
    done = smidgen("export", small_run.directory, "--to", "c", "-o", folder, "--name", "net", "--package", "arduino")
    assert done.status == 2
    assert "src/net.c is not from an earlier export" in done.err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(folder / "src")
    (folder / "src").symlink_to(elsewhere)
    done = smidgen("export", small_run.directory, "--to", "c", "-o", folder, "--name", "net", "--package", "arduino")
    assert done.status == 2
    assert "src is not from an earlier export" in done.err
    assert not list(elsewhere.iterdir())


def test_a_manifest_cannot_name_files_elsewhere(small_run: Run, smidgen: Command, tmp_path: Path) -> None:
    """Files of an earlier export are removed: only those below it."""
    folder = exported(smidgen, small_run, tmp_path / "net", "--type", "int8")
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    manifest = json.loads((folder / MANIFEST).read_text())
    digest = subprocess.run(["sha256sum", precious], capture_output=True, text=True, check=True).stdout.split()[0]
    manifest["files"] |= {"../precious": digest, str(precious): digest}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    exported(smidgen, small_run, folder, "--type", "float32")
    assert precious.read_text() == "mine\n"


def test_an_unknown_package_is_refused(small_run: Run, smidgen: Command, tmp_path: Path) -> None:
    done = smidgen("export", small_run.directory, "--to", "c", "--package", "conan", "-o", tmp_path / "net")
    assert done.status == 2
    assert "--package is 'conan'; allowed: arduino, platformio, cmake" in done.err
    assert not (tmp_path / "net").exists()
