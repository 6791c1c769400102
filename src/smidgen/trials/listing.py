"""`smidgen trials`: the built-in trials with goals, measured results, and what each changed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from smidgen.anatomy.layers import examine_trial
from smidgen.data.known import KNOWN
from smidgen.settings import Json, differences
from smidgen.tables import render
from smidgen.trial import Module, Network, Trial
from smidgen.trials.builtin import BUILTIN
from smidgen.trials.measured import measured


def listing() -> list[dict[str, Any]]:
    """One entry a trial, as `smidgen trials --json` prints it.

    `measured` is None for a trial whose recipe has changed since it was measured.
    """
    entries = []
    for name, builtin in BUILTIN.items():
        trial = builtin.make()
        known = KNOWN[trial.data.source]
        anatomy = examine_trial(trial, known.shape, known.classes)
        result = measured(trial)
        entries.append(
            {
                "name": name,
                "note": trial.note,
                "parameters": anatomy.parameters,
                "macs": anatomy.macs,
                "epochs": trial.epochs,
                "target": trial.goal.accuracy,
                "most_parameters": trial.goal.parameters,
                "most_epochs": trial.goal.epochs,
                "most_flash": trial.goal.flash,
                "most_ram": trial.goal.ram,
                "network": str(trial.network),
                "base": trial.base,
                "changes": changes(BUILTIN[trial.base].make(), trial) if trial.base else [],
                "story": asdict(builtin.story),
                "measured": asdict(result) if result else None,
                "recipe_sha256": trial.recipe_digest,
            }
        )
    return entries


def listing_text() -> str:
    """The list for people: a table, then what each trial changed."""
    entries = listing()
    rows = []
    for e in entries:
        found = e["measured"]
        result = f"{found['mean']:.3f} ± {found['sd']:.3f}, n = {found['n']}" if found else "-"
        rows.append([e["name"], e["parameters"], e["epochs"], f"{e['target']:.2f} %", result])
    columns = ["trial", "parameters", "epochs", "target", "measured: test %, last epoch"]
    parts = [render(columns, rows)]
    for e in entries:
        head = f"{e['name']}: {e['note']}"
        parts.append("\n".join([head] + [f"  {change}" for change in e["changes"] or [f"network {e['network']}"]]))
    return "\n\n".join(parts)


def changes(old: Trial, new: Trial) -> list[str]:
    """Differences between a trial and its base, one line per setting."""
    lines = []
    if old.network != new.network:
        lines.append(f"network: {_shown(old.network)} -> {_shown(new.network)}")
    for path, before, after in differences(old, new):
        if path not in ("name", "note") and path.split(".")[0] != "network":
            lines.append(f"{path}: {_plain(before)} -> {_plain(after)}")
    return lines


def _shown(network: Network | Module) -> str:
    if not isinstance(network, Network):
        return f"{network} ({network.sha256[:12]})"
    return f"{network} ({network.order}{'' if network.scale else ', no scale'})"


def _plain(value: Json) -> str:
    if isinstance(value, dict):
        settings = ", ".join(f"{k}={_plain(v)}" for k, v in value.items() if k != "type")
        return f"{value.get('type', '')}({settings})"
    return f"{value:g}" if isinstance(value, float) else str(value)
