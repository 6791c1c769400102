"""The project itself: imports go one way, public names are documented, the README's example runs."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import smidgen
from smidgen.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "smidgen"

LAYERS = [
    ["errors", "version"],
    ["settings", "tables", "files", "machine", "output"],
    ["tensorfile", "statistics"],
    ["schedules", "randomness", "quantization"],
    ["trial"],
    ["data", "graph"],
    ["nets"],
    ["engines", "images"],
    ["training", "verdict", "anatomy"],
    ["lowering"],
    ["trials"],
    ["runs"],
    ["reports", "sweeps", "exports"],
    ["searches", "bench", "inspection", "completion"],
    ["__init__"],
    ["cli"],
    ["__main__"],
]
"""From the ground up: a module imports only from its own folder and from rows above."""


def layer_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    return next(i for i, row in enumerate(LAYERS) if part in row)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    parts = ("smidgen", *path.relative_to(SOURCE).with_suffix("").parts)
    mine = parts[1]
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module.split(".")[0] == "smidgen" and module.split(".")[1:2] != [mine]:
                assert layer_of(module) < layer_of(".".join(parts)), f"{path} imports {module}"


def test_every_public_name_is_there_and_documented() -> None:
    assert "run" in dir(smidgen)
    for name in dir(smidgen):
        value = getattr(smidgen, name)
        assert not isinstance(value, types.ModuleType), name
        if callable(value):
            assert inspect.getdoc(value), name
            if isinstance(value, type) and issubclass(value, Settings):
                assert value.__doc__ != inspect.getdoc(Settings), name


def test_type_checkers_know_the_names_that_there_are() -> None:
    """Under -OO too, and without loading PyTorch."""
    stub = ast.parse((SOURCE / "__init__.pyi").read_text())
    exported = [alias for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.name == alias.asname for alias in exported)  # without `as`, a stub's import is private
    code = "import smidgen, sys; print(*dir(smidgen)); assert 'torch' not in sys.modules; smidgen.Trial"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert sorted(alias.name for alias in exported) == sorted(done.stdout.split())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        smidgen.nothing  # type: ignore[attr-defined]  # noqa: B018 - the access is the test
    assert smidgen.__version__ == smidgen.VERSION


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, on the real data: about half a minute."""
    (block,) = readme_blocks("python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    finished = names["run"]
    assert isinstance(finished, smidgen.Run)
    assert finished.accuracy > 98
    assert (tmp_path / finished.directory / "result.json").exists()


def test_every_command_in_the_readme_is_one_that_there_is() -> None:
    from smidgen.cli import _parser

    lines = [line for block in readme_blocks("sh") for line in block.splitlines()]
    commands = [line.split("#")[0].split() for line in lines if line.startswith("smidgen ")]
    assert len(commands) > 5
    for words in commands:
        _parser().parse_args(words[1:])


def test_the_makefile_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for block in readme_blocks("sh"):
        for target in re.findall(r"^make ([\w-]+)", block, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_nothing_depends_on_what_is_outside_the_project() -> None:
    for folder in ("src", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "../" + "shared" not in path.read_text(), path


def test_the_citation_names_this_version() -> None:
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == smidgen.VERSION


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "smidgen", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("smidgen ")
