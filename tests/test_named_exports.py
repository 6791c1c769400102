"""Names of classes in every export and in the report: of a colour network, and names that were chosen to break out."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import onnx
import pytest
from markdown_it import MarkdownIt
from safetensors import safe_open

from conftest import Command
from images import picture
from smidgen.exports.c.compiler import STRICT, find_compiler
from smidgen.exports.export import MANIFEST, export
from smidgen.exports.registry import TARGETS
from smidgen.lowering.c.source import About, Code, files, string
from smidgen.reports.report import report
from smidgen.runs.progress import Silent
from smidgen.runs.record import Run
from smidgen.runs.run import run
from smidgen.runs.weights import read_weights
from smidgen.trial import SGD, AvgPool, Conv, Data, Goal, Linear, Network, Trial
from test_export import WAYS
from test_export_int8 import needs_litert
from test_export_page import model_in
from test_export_page import pytestmark as needs_node

HOSTILE = (
    "</script><script>alert(1)</script>", '"; int x; //', "*/ int y; /*", "日本語", "line\nbreak", "??/ ??' \\", "%s%n{{model}}",
    "שלום עולם", "\u202egnp.exe", "<!-- <img src=x onerror=alert(1)>", "\x07f7 é1", "a|b `c` *d* [e](javascript:f)",
    "x" * 100,
)  # fmt: skip
"""Labels of a CSV file, where they can be anything."""
KEPT = sorted((*HOSTILE[:4], "line\\nbreak", *HOSTILE[5:8], "\\u202egnp.exe", HOSTILE[9], "\\x07f7 é1", *HOSTILE[11:]))
"""The same as smidgen keeps them: in one line, and nothing in them that is not shown."""


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("hostile")
    rows = ["path,label,split"]
    for label, name in enumerate(HOSTILE):
        for number in range(6):
            picture(label, number).save(folder / f"{label}-{number}.png")
            quoted = name.replace('"', '""')
            rows.append(f'{label}-{number}.png,"{quoted}",{"test" if number > 3 else "train"}')
    (folder / "list.csv").write_text("\n".join(rows), newline="")
    trial = Trial(
        name="hostile",
        goal=Goal(accuracy=0, parameters=2_000, epochs=1),
        data=Data(source=str(folder / "list.csv")),
        network=Network(blocks=(Conv(6, stride=2), Conv(6), AvgPool(), Linear())),
        optimizer=SGD(lr=0.05),
        batch_size=13,
        epochs=1,
    )
    return run(trial, out=folder / "run", progress=Silent())


@pytest.fixture(params=["colour", "hostile"])
def named_run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(f"{request.param}_run")
    return found


def in_safetensors(file: Path) -> list[str]:
    assert read_weights(file).form == "picture"
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["smidgen"])
    assert about["class_names"] == list(read_weights(file).class_names)
    return list(read_weights(file).class_names)


def in_onnx(file: Path) -> list[str]:
    about = {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    names: list[str] = json.loads(about["class_names"])
    return names


def in_tflite(file: Path) -> list[str]:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes()))
    (entry,) = model.metadata
    assert entry.name == b"class_names"
    names: list[str] = json.loads(bytes(model.buffers[entry.buffer].data).decode())
    return names


def in_c(file: Path) -> list[str]:
    """As a program prints them that has nothing but the header."""
    name = file.stem
    program = file.parent / "names"
    (file.parent / "names.c").write_text(
        f'#include <stdio.h>\n#include "{name}.h"\n'
        f"int main(void)\n{{\n    int i;\n    for (i = 0; i < {name.upper()}_CLASSES; i++)\n"
        f"        printf(\"%s%c\", {name}_names[i], 0);\n    return 0;\n}}\n"
    )  # fmt: skip
    subprocess.run([*(find_compiler() or []), *STRICT, "-o", program, file.parent / "names.c"], check=True)
    return subprocess.run([program], capture_output=True, check=True).stdout.decode().split("\0")[:-1]


def in_page(file: Path) -> list[str]:
    names: list[str] = model_in(file.read_text())["classes"]
    return names


READERS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "safetensors": ("*.safetensors", in_safetensors),
    "onnx": ("*.onnx", in_onnx),
    "tflite": ("*.tflite", in_tflite),
    "c": ("*.h", in_c),
    "page": ("*.html", in_page),
}


@pytest.mark.parametrize(
    "way",
    [
        *WAYS,
        pytest.param({"to": "page"}, id="page", marks=needs_node),
        pytest.param({"to": "onnx", "type": "int8"}, id="onnx-int8"),
        pytest.param({"to": "tflite", "type": "int8"}, id="tflite-int8", marks=needs_litert),
    ],
)
def test_every_target_has_the_names_and_is_checked(
    named_run: Run, way: dict[str, str], smidgen: Command, tmp_path: Path
) -> None:
    assert set(READERS) == set(TARGETS)
    options = [word for name, value in way.items() for word in (f"--{name}", value)]
    done = smidgen("export", named_run.directory, *options, "-o", tmp_path, "--json")
    assert done.status == 0, done
    assert done.json["mismatches"] == 0
    assert done.json["images"] == named_run.history[-1].test_total
    names = list(named_run.trained.class_names)
    assert json.loads((tmp_path / MANIFEST).read_text())["class_names"] == names
    pattern, read = READERS[way["to"]]
    (file,) = tmp_path.glob(pattern)
    assert read(file) == names


def test_hostile_names_are_kept_in_one_line_each(hostile_run: Run) -> None:
    assert sorted(hostile_run.trained.class_names) == KEPT


def test_a_run_without_names_exports_none(small_run: Run, tmp_path: Path) -> None:
    for to in ("onnx", "c"):
        made = export(small_run, to, tmp_path / to, check=False)
        assert "class_names" not in json.loads((made.directory / MANIFEST).read_text())
        for file in made.directory.iterdir():
            assert b"class_names" not in file.read_bytes()
            assert b"small_names" not in file.read_bytes()


@pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
def test_names_in_c_cost_nothing_where_they_are_not_used(tmp_path: Path) -> None:
    code = Code("a test", "float", "1", "", tables=[], steps=["    return (const float *)scratch;"])
    code.scratch.append(("float", "values", 10))
    sizes = []
    for folder, names in (("with", (*"abcdefghi", "a name that is longer" * 4)), ("without", ())):
        (tmp_path / folder).mkdir()
        made = files(code, About("net", "a test", "none", (1, 4, 4), 10, 1, names))
        for name, content in made.items():
            (tmp_path / folder / name).write_bytes(
                content.replace(b"const uint8_t image[NET_PIXELS], net_s", b"const uint8_t *image, net_s")
            )
        assert (b"net_names" in made["net.h"]) == bool(names)
        source, target = tmp_path / folder / "net.c", tmp_path / folder / "net.o"
        command = [*(find_compiler() or []), "-std=c99", "-Os", "-Wall", "-c", "-o", str(target), str(source)]
        subprocess.run(command, check=True)
        sizes.append(subprocess.run(["size", target], capture_output=True, text=True, check=True).stdout.split()[6:10])
    assert sizes[0] == sizes[1]


def test_any_text_is_a_string_in_plain_ascii() -> None:
    assert string('a"b\\c?') == r'"a\042b\134c\077"'
    assert string("é1") == r'"\303\2511"'
    assert string("*/ //") == '"*/ //"'


@pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
def test_the_example_program_prints_names(colour_run: Run, tmp_path: Path) -> None:
    from smidgen.data.dataset import load_dataset
    from smidgen.exports.c.compiler import idx_bytes

    export(colour_run, "c", tmp_path, name="net")
    subprocess.run([*(find_compiler() or []), "-o", "classify", "main.c", "net.c", "-lm"], cwd=tmp_path, check=True)
    images = load_dataset(colour_run.trial.data.source).held_out.images[:5]
    (tmp_path / "images").write_bytes(idx_bytes(images))
    done = subprocess.run(["./classify", "images"], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = colour_run.trained.class_names
    found = [line.partition(" ") for line in done.stdout.splitlines()]
    assert len(found) == 5
    assert all(names[int(number)] == name for number, _, name in found)


class Parsed(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_stay_text_in_page_and_report(hostile_run: Run, colour_run: Run, tmp_path: Path) -> None:
    files = {}
    for run_ in (hostile_run, colour_run):
        export(run_, "page", tmp_path / run_.trial.name, check=False)
        files[run_.trial.name, "page"] = next((tmp_path / run_.trial.name).glob("*.html"))
        files[run_.trial.name, "report"] = report([run_], tmp_path / f"{run_.trial.name}-report.html").path
    for kind in ("page", "report"):
        hostile, harmless = (Parsed(files[name, kind].read_text()) for name in ("hostile", colour_run.trial.name))
        # The report of the harmless run may have no misclassified images, and then no sheet of them.
        assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in harmless.tags} | {"bdi", "image"}
        for about in (dict(about) for tag, about in hostile.tags if tag == "image"):
            assert str(about["xlink:href"]).startswith("data:image/png;base64,")
            assert not [name for name in about if name.startswith("on")]
        assert not [tag for tag, about in hostile.tags if tag == "img" and "onerror" in about]
        count = [sum(tag == "script" for tag, _ in page.tags) for page in (hostile, harmless)]
        assert count[0] == count[1]
        assert "</script><script>alert(1)</script>" in hostile.text
        assert "日本語" in hostile.text


def test_hostile_names_stay_text_in_markdown(hostile_run: Run, tmp_path: Path) -> None:
    made = report([hostile_run], tmp_path / "r.md").path.read_text()
    tokens = [t for top in MarkdownIt("gfm-like", {"linkify": False}).parse(made) for t in [top, *(top.children or [])]]
    html = [t.content for t in tokens if t.type.startswith("html")]
    assert html
    own = r'(<img src="r-images/[\w.-]+" width="\d+" alt="[^"<>]*" title="[^"<>]*">\s*)+'
    assert [tag for tag in html if not re.fullmatch(own, tag)] == []
    assert not [t for t in tokens if t.type == "link_open"]
    text = "".join(t.content for t in tokens if t.type == "text")
    for name in KEPT:
        assert f"as {name}" in text  # a column of the table of what is taken for what
