"""Scripts with which a shell completes the command line, made by shtab from the parser's own arguments."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from smidgen.errors import SmidgenError

SHELLS = ("bash", "zsh", "fish")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a command for a shell.

    What an argument completes follows from its metavar: files, folders, the names of built-in trials and data sets.

    Args:
        parser: of the command; completions are added to its arguments, so it should be used for nothing else.
        shell: one of `SHELLS`.

    Raises:
        SmidgenError: shtab is missing.
    """
    try:
        import shtab
    except ImportError:
        raise SmidgenError("completion needs shtab; install it with: pip install 'smidgen[completion]'") from None
    from smidgen.data.known import KNOWN
    from smidgen.exports.c.package import PACKAGES
    from smidgen.exports.registry import TARGETS
    from smidgen.trials.builtin import BUILTIN

    trial = _words_or_files("trials", BUILTIN)
    completions = {
        "DIR": shtab.DIRECTORY,
        "RUN": shtab.DIRECTORY,
        "PATH": _words_or_files("data", KNOWN),
        "TRIAL": trial,
        "TRIAL|FILE.py:NAME": trial,
    }
    choices = {"TARGET": TARGETS, "KIND": PACKAGES}
    for argument in _arguments(parser):
        metavar = argument.metavar
        if not isinstance(metavar, str):
            continue
        if metavar in choices:
            argument.choices = tuple(choices[metavar])
        elif metavar in completions or "FILE" in metavar:
            argument.complete = completions.get(metavar, shtab.FILE)  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a command, those of its subcommands included."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _arguments(sub)


def _words_or_files(name: str, words: Iterable[str]) -> dict[str, Any]:
    """Some words, or the path of a file, in the form that shtab has for functions of a shell."""
    function, joined = f"_smidgen_{name}_or_files", shlex.join(words)
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {
            "bash": f'{function}() {{ compgen -W "{joined}" -- "$1"; compgen -f -- "$1"; }}',
            "zsh": f"{function}() {{ _alternative '{name}:{name}:({joined})' 'files:file:_files'; }}",
            "fish": f"function {function}; printf '%s\\n' {joined}; __fish_complete_path (commandline -ct); end",
        },
    }
