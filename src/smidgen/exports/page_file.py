"""The web page of a trained network: template, styles, scripts and model joined into one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from smidgen.exports.page_model import activations_script, page_model
from smidgen.exports.target import Source
from smidgen.verdict import percent
from smidgen.version import VERSION

WEB = files("smidgen.exports") / "web"
"""Where the parts of the page are."""
_NAMED = 20
"""Classes: with more, the page does not list their names in its text."""


@dataclass(frozen=True)
class _Kind:
    """A kind of page, by how it receives images.

    Attributes:
        scripts: of the page; `network.js` stands by itself, so that node can run it.
        desk: the part of the page where they are given.
    """

    scripts: tuple[str, ...]
    desk: str


_DRAWING = _Kind(("rounding.js", "drawing.js", "files.js", "pad.js", "view.js", "page.js", "draw.js"), "draw.html")
_PICTURE = _Kind(
    ("rounding.js", "picture.js", "files.js", "formats.js", "view.js", "page.js", "choose.js"), "choose.html"
)


def page_html(source: Source) -> str:
    """The page as HTML that needs nothing else: no library, no font, no request.

    Only the scripts and styles that are written here can run: the page's policy names them by hash
    and forbids every connection.

    Raises:
        RunError: the network has a layer that no export can express.
    """
    kind = _DRAWING if _is_drawn(source) else _PICTURE
    style, network = _asset("style.css"), network_script()
    script = "\n".join(map(_asset, kind.scripts))
    policy = (
        f"default-src 'none'; script-src {_digest(network)} {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    names = [source.run.trained.label_name(label) for label in range(source.graph.classes)]
    parts = {
        **{name: escape(text) for name, text in _words(source).items()},
        "about": _about(source),
        "model": _json(page_model(source.graph) | {"classes": names}),
        "policy": policy,
        "style": style,
        "network": network,
        "script": script,
    }
    template = _asset("page.html").replace("{{input}}", _asset(kind.desk))
    # In one pass, so that nothing that was put in is looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def network_script() -> str:
    """The script that runs the network, with the activations of `smidgen.graph.activations`."""
    return _asset("network.js").replace("/*ACTIVATIONS*/", activations_script())


def _is_drawn(source: Source) -> bool:
    """Whether the network is given drawings, as `smidgen predict` has it; those are grey."""
    return source.run.trained.form == "drawing" and source.graph.input_shape[0] == 1


def _asset(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that can stand within a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _words(source: Source) -> dict[str, str]:
    run, graph = source.run, source.graph
    digits = run.trial.data.source == "mnist"
    _, height, width = graph.input_shape
    common = {
        "limits": (
            f"It knows {'the ten digits' if digits else f'its {graph.classes} classes'} and nothing else: "
            f"whatever it is shown, it gives to one of them."
        ),
        "version": VERSION,
    }
    network = f"{run.trial.name}, a network of {run.result.parameters:,} parameters,"
    if _is_drawn(source):
        return common | {
            "title": f"{'Draw a digit' if digits else 'Draw'} · {run.trial.name}",
            "heading": "Draw a digit" if digits else "Draw something",
            "hint": "Draw a digit here" if digits else "Draw here",
            "lead": f"{network} reads it as you draw.",
            "sees": f"{height} × {width} pixels, fitted and centred by mass",
            "answer": "It reads",
            "given": "drawing",
            "early": "edges and strokes",
            "done": "draw or open",
        }
    colours = "grey" if graph.input_shape[0] == 1 else "in colour"
    return common | {
        "title": f"Show it a picture · {run.trial.name}",
        "heading": "Show it a picture",
        "hint": "Drop a picture here",
        "lead": f"{network} says which of its {graph.classes} classes the picture shows.",
        "sees": f"{height} × {width} pixels, {colours}, scaled to fit and centred on black",
        "answer": "It says",
        "given": "picture",
        "early": "edges and colours" if graph.input_shape[0] == 3 else "edges and lines",
        "done": "open",
    }


def _about(source: Source) -> str:
    """Facts about the network, as a list in HTML."""
    run = source.run
    last, split = run.history[-1], run.result.held_out
    note = f", {run.trial.note}" if run.trial.note else ""
    lines = [
        ("Trial", escape(f"{run.trial.name}{note}; seed {run.seed}")),
        ("Parameters", f"{run.result.parameters:,}"),
        ("MACs", f"{source.graph.macs:,} multiply-accumulates for one image"),
        (
            f"{escape(split.capitalize())} accuracy",
            f"{percent(last.test_correct, last.test_total)} % of {last.test_total:,} {escape(split)} images "
            f"(last epoch, this one run)",
        ),
        ("Made by", f"smidgen {VERSION}; BatchNorm folded into float32 weights"),
    ]
    names = run.trained.class_names
    if 0 < len(names) <= _NAMED:
        # Each apart from the rest, so that a name that is written from right to left moves none of the others.
        lines.insert(1, ("Classes", ", ".join(f"<bdi>{escape(name)}</bdi>" for name in names)))
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in lines)
