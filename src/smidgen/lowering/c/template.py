"""Fragments of C with places to fill in and parts to leave out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib import resources


def render(fragment: str, values: Mapping[str, object], features: Collection[str] = ()) -> str:
    """A fragment as C.

    `{{name}}` stands for a value. Lines between `@if feature` (or `@if not feature`) and `@end` are kept where
    that holds, with `@else` in between for the other case; nesting is possible.

    Args:
        fragment: name of a file in `fragments`.
        values: what the places stand for.
        features: those that hold.
    """
    text = resources.files("smidgen.lowering.c").joinpath("fragments", fragment).read_text(encoding="utf-8")
    kept: list[str] = []
    states: list[bool] = []
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "@if":
            negated = rest.startswith("not ")
            states.append((rest.removeprefix("not ") in features) != negated)
        elif word == "@else":
            states[-1] = not states[-1]
        elif word == "@end":
            states.pop()
        elif all(states):
            kept.append(line)
    assert not states, fragment
    return re.sub(r"\{\{(\w+)\}\}", lambda found: str(values[found[1]]), "\n".join(kept))
