"""Completion scripts, in the shells that they are for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Command
from smidgen.cli import _parser
from smidgen.completion import SHELLS, completion_script
from smidgen.trials.builtin import BUILTIN

Offered = Callable[[str], set[str]]
"""What a shell offers after TAB at the end of a line."""

BASH = """
source "$1"
read -ra COMP_WORDS <<< "$2"
[[ $2 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
[[ $(complete -p smidgen) =~ -F\\ ([^ ]+) ]]
"${BASH_REMATCH[1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = "source $argv[1]; complete -C $argv[2]"
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PROMPT=; autoload -Uz compinit; fpath+=(${(q)1:h}); compinit -D -u"
zpty -w shell 'smidgen() { print "<$@>"; }; print rea""dy'
zpty -r shell seen '*ready*'
zpty -w -n shell "$2"$'\\n'
zpty -r shell seen '*>*'
print -r -- "$seen"
"""
"""Types a line with tabs in it, which calls a function that prints the arguments it was given."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    scripts = {shell: folder / f"_{shell}" for shell in SHELLS} | {"zsh": folder / "_smidgen"}  # as zsh looks for it
    for shell, path in scripts.items():
        path.write_text(completion_script(_parser(), shell))
    return scripts


def in_shell(shell: str, options: list[str], program: str, script: Path, line: str, cwd: Path) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = [shell, *options, "-c", program, *(["-"] if shell != "fish" else []), str(script), line]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(params=["bash", "fish"])
def offered(request: pytest.FixtureRequest, scripts: dict[str, Path], tmp_path: Path) -> Offered:
    """In a folder with the file `mine.py` and the folder `runs`."""
    (tmp_path / "mine.py").touch()
    (tmp_path / "runs").mkdir()
    shell = request.param
    options, program = {"bash": (["--norc"], BASH), "fish": (["--no-config"], FISH)}[shell]

    def offers(line: str) -> set[str]:
        printed = in_shell(shell, options, program, scripts[shell], line, tmp_path)
        return {answer.partition("\t")[0].rstrip("/") for answer in printed.splitlines()}  # fish adds descriptions

    return offers


def test_commands_and_options_are_offered(offered: Offered) -> None:
    assert {"run", "sweep", "compare", "search", "trials", "export", "completion"} <= offered("smidgen ")
    assert offered("smidgen swe") == {"sweep"}
    assert offered("smidgen run --eng") == {"--engine"}
    assert offered("smidgen run --engine ") == {"auto", "native", "eager", "cuda"}
    assert offered("smidgen completion ") >= set(SHELLS)


def test_names_of_trials_data_and_targets_are_offered(offered: Offered) -> None:
    assert set(BUILTIN) | {"mine.py", "runs"} == offered("smidgen run ")
    assert offered("smidgen sweep mnist-4-strict mnist-ti") == {"mnist-tiny", "mnist-tiny-99"}
    assert offered("smidgen inspect fash") == {"fashion-small"}
    assert offered("smidgen run --data fash") == {"fashion-mnist"}
    assert offered("smidgen export runs --to s") == {"safetensors"}


def test_files_are_offered_where_files_are_meant_and_folders_where_folders_are(offered: Offered) -> None:
    assert offered("smidgen run --code ") == {"mine.py", "runs"}
    assert offered("smidgen run --out ") == {"runs"}
    assert offered("smidgen predict runs m") == {"mine.py"}


def test_zsh_completes_what_is_typed(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    for line, completed in {
        "swe\tmnist-4\t--engine nat\t": "<sweep mnist-4-strict --engine native>",
        "run fash\t--code mi\t": "<run fashion-small --code mine.py>",
        "export x --to saf\t": "<export x --to safetensors>",
    }.items():
        assert completed in in_shell("zsh", ["-f"], ZSH, scripts["zsh"], f"smidgen {line}", tmp_path)


def test_the_command_prints_the_script(smidgen: Command, scripts: dict[str, Path]) -> None:
    done = smidgen("completion", "bash")
    assert (done.status, done.out) == (0, scripts["bash"].read_text() + "\n")
    assert smidgen("completion", "zsh", "--json").json == {"shell": "zsh", "script": scripts["zsh"].read_text()}
    assert smidgen("completion", "csh").is_mistake("csh", "bash")


def test_without_shtab_one_line_says_how_to_install_it(smidgen: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert smidgen("completion", "bash").is_mistake("pip install 'smidgen[completion]'")
