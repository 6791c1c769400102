"""The web page of a trained network: template, styles, scripts and model joined into one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from importlib.resources import files
from typing import Any

from smidgen.exports.page_model import page_model
from smidgen.exports.target import Source
from smidgen.verdict import percent
from smidgen.version import VERSION

_WEB = files("smidgen.exports") / "web"
_SCRIPTS = ("image.js", "files.js", "pad.js", "view.js", "main.js")
"""Of the page; `network.js` stands by itself, so that node can run it."""


def page_html(source: Source) -> str:
    """The page as HTML that needs nothing else: no library, no font, no request.

    Only the scripts and styles that are written here can run: the page's policy names them by hash
    and forbids every connection.

    Raises:
        RunError: the network has a layer that no export can express.
    """
    style, network = _asset("style.css"), _asset("network.js")
    script = "\n".join(map(_asset, _SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_digest(network)} {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        **{name: escape(text) for name, text in _words(source).items()},
        "about": "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _about(source)),
        "model": _json(page_model(source.graph) | {"classes": [str(label) for label in range(source.graph.classes)]}),
        "policy": policy,
        "style": style,
        "network": network,
        "script": script,
    }
    # In one pass, so that nothing that was put in is looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that can stand within a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _words(source: Source) -> dict[str, str]:
    run, graph = source.run, source.graph
    digits = run.trial.data.source == "mnist"
    channels, height, width = graph.input_shape
    sees = f"{height} × {width} pixels, fitted and centred by mass"
    return {
        "title": f"{'Draw a digit' if digits else 'Draw'} · {run.trial.name}",
        "heading": "Draw a digit" if digits else "Draw something",
        "hint": "Draw a digit here" if digits else "Draw here",
        "lead": f"{run.trial.name}, a network of {run.result['parameters']:,} parameters, reads it as you draw.",
        "sees": sees if channels == 1 else f"{sees}; the same grey in all {channels} channels",
        "limits": (
            f"It knows {'the ten digits' if digits else f'its {graph.classes} classes'} and nothing else: "
            f"whatever it is shown, it gives to one of them."
        ),
        "version": VERSION,
    }


def _about(source: Source) -> list[tuple[str, str]]:
    run = source.run
    last, split = run.history[-1], run.result["held_out"]
    note = f", {run.trial.note}" if run.trial.note else ""
    return [
        ("Trial", f"{run.trial.name}{note}; seed {run.seed}"),
        ("Parameters", f"{run.result['parameters']:,}"),
        ("MACs", f"{source.graph.macs:,} multiply-accumulates for one image"),
        (
            f"{split.capitalize()} accuracy",
            f"{percent(last.test_correct, last.test_total)} % of {last.test_total:,} {split} images "
            f"(last epoch, this one run)",
        ),
        ("Made by", f"smidgen {VERSION}; BatchNorm folded into float32 weights"),
    ]
