"""Model cards: the `README.md` of an export, in the form of the Hugging Face Hub.

A card is Markdown below a block of YAML, whose keys the Hub documents in
https://github.com/huggingface/hub-docs/blob/main/modelcard.md. It holds no dates and no times, so the same run
exported again gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.data.known import KNOWN
from smidgen.errors import SmidgenError
from smidgen.exports.target import Check, Source
from smidgen.runs.directory import RunDirectory, RunFiles
from smidgen.runs.record import Run
from smidgen.runs.result import Result
from smidgen.statistics import summarize
from smidgen.tables import markdown, render
from smidgen.trial import Module
from smidgen.verdict import percent
from smidgen.version import VERSION

CARD = "README.md"
MOST_NAMES = 100
"""Of classes that are listed."""
_BYTES = {"bytes_of_weights": "bytes of tables", "bytes_of_memory": "bytes of memory beside the image"}
"""Details of a check that a card repeats."""


def model_card(
    source: Source, to: str, command: str, usage: str, sizes: Mapping[str, int], check: Check | None
) -> bytes:
    """The card of an export, UTF-8.

    Args:
        source: what was exported.
        to: the target's name.
        command: the options of `smidgen export`, which say whether the files compute in integers.
        usage: Markdown on how to use the files.
        sizes: bytes of each file, by name.
        check: the result on the test images; None if there was none yet, which the card then says.
    """
    run, trial = source.run, source.run.trial
    seeds, integers = _same_recipe(run), "--type int8" in command
    tags = [to, "int8"] if integers else [to]
    parts = [
        f"---\n{to_yaml(_metadata(source, tags, seeds, check))}---",
        f"# {markdown(trial.name)}",
        _about(source, command, integers, check),
        "## Accuracy",
        _accuracy(run, seeds, integers),
        render(
            ["goal", "reached", "wanted", "", "margin"],
            [[p.what, p.reached, p.wanted, "met" if p.met else "missed", p.margin] for p in run.verdict.parts],
            "markdown",
            left=5,
        ),
        "## Check",
        _check(check),
        "## Use",
        usage,
        "## Data",
        _data(source),
        "## Files",
        render(["file", "bytes"], [[markdown(name), size] for name, size in sizes.items()], "markdown"),
        "## Origin",
        _origin(run),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def to_yaml(data: Mapping[str, Any]) -> str:
    """Nested mappings, lists, texts and numbers as YAML; texts are quoted as in JSON, which YAML contains."""
    return "".join(f"{line}\n" for key, value in data.items() for line in _entry(key, value, ""))


def _entry(key: str, value: Any, indent: str) -> list[str]:
    lines = [f"{indent}{key}:"]
    match value:
        case Mapping():
            return lines + [line for k, v in value.items() for line in _entry(k, v, f"{indent}  ")]
        case list():
            for item in value:
                if isinstance(item, Mapping):
                    first, *others = (line for k, v in item.items() for line in _entry(k, v, f"{indent}  "))
                    lines += [f"{indent}- {first.lstrip()}", *others]
                else:
                    lines.append(f"{indent}- {json.dumps(item, ensure_ascii=False)}")
            return lines
    return [f"{lines[0]} {json.dumps(value, ensure_ascii=False)}"]


def _metadata(source: Source, tags: list[str], seeds: Sequence[Result], check: Check | None) -> dict[str, Any]:
    run = source.run
    known = KNOWN.get(run.trial.data.source)
    metrics: dict[str, list[dict[str, Any]]] = {}

    def add(split: str, value: float, name: str) -> None:
        metrics.setdefault(split, []).append({"type": "accuracy", "value": round(value, 4), "name": name})

    if check is not None:
        add("test", check.accuracy, "accuracy of these files, %")
    add(run.result.held_out, run.accuracy, f"accuracy after the last epoch, seed {run.seed}, %")
    if len(seeds) > 1:
        summary = summarize([result.accuracy_last for result in seeds], 0)
        add(run.result.held_out, summary.mean, f"accuracy after the last epoch, mean of {summary.n} seeds, %")
    return {
        "license": known.licence if known else "unknown",
        "library_name": "smidgen",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "tinyml", *tags],
        **({"datasets": [known.hub]} if known else {}),
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": run.trial.name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "type": known.hub if known else "custom",
                            "name": known.title if known else _own_name(run),
                            "split": split,
                        },
                        "metrics": found,
                    }
                    for split, found in metrics.items()
                ],
            }
        ],
    }


def _own_name(run: Run) -> str:
    """The name of data that is not a known set, without its folder, on one line."""
    name = Path(run.trial.data.source).name
    return "".join(c if c.isprintable() else " " for c in name)


def _about(source: Source, command: str, integers: bool, check: Check | None) -> str:
    run = source.run
    shape, result = " × ".join(map(str, run.trained.input_shape)), run.result
    note = f"Trial: {markdown(run.trial.note)}. " if run.trial.note else ""
    macs = check.details.get("macs", result.macs) if check else result.macs
    more = f" (the plan of these files: {macs:,})" if macs != result.macs else ""
    arithmetic = "; these files compute in integers" if integers else ""
    form = "drawings (light on dark)" if run.trained.form == "drawing" else "pictures"
    return (
        f"{note}A tiny image classifier for {form} of {shape} pixels (channels, height, width) in "
        f"{run.trained.classes} classes: {result.parameters:,} parameters, {result.macs:,} multiply-accumulates an "
        f"image{more}. Trained by smidgen, and exported with `{command}`{arithmetic}."
    )


def _same_recipe(run: Run) -> list[Result]:
    """Finished runs of the same recipe, data and engine in the run's folder, one a seed, its own included."""
    own, found = run.result, {run.result.seed: run.result}
    try:
        beside = sorted(run.directory.resolve().parent.iterdir())
    except OSError:
        beside = []
    for path in beside:
        directory = RunDirectory(path)
        try:
            if not path.is_dir() or not directory.finished:
                continue
            result = Result.from_json(directory.read_json(RunFiles.RESULT), path)
        except (OSError, SmidgenError):
            continue  # what cannot be read is no evidence
        if all(
            getattr(result, name) == getattr(own, name)
            for name in ("recipe_sha256", "data_sha256", "held_out", "engine", "precision", "version")
        ):
            found.setdefault(result.seed, result)
    return [found[seed] for seed in sorted(found)]


def _accuracy(run: Run, seeds: Sequence[Result], integers: bool) -> str:
    last, split = run.history[-1], run.result.held_out
    reached = (
        f"{percent(last.test_correct, last.test_total)} % of {last.test_total:,} {split} images after the last epoch"
    )
    other = (
        " All of this is the network in float32, from which these files in integers were made: what they themselves "
        "reach is under Check."
    ) * integers
    if len(seeds) == 1:
        return (
            f"One run, seed {run.seed}: {reached}. No other seed of this recipe is beside it, so how much the accuracy "
            f"varies is not known.{other}"
        )
    summary = summarize([result.accuracy_last for result in seeds], sum(result.goal_met is True for result in seeds))
    goal = f"; {summary.at_goal} of {summary.n} met the goal" if split == "test" else ""
    return (
        f"{summary.mean:.3f} ± {summary.sd:.3f} % of the {split} images after the last epoch (mean ± s.d., "
        f"n = {summary.n} runs of this recipe, seeds {_ranges([result.seed for result in seeds])}), min "
        f"{summary.least:.2f} %{goal}. These files are of the run with seed {run.seed}: {reached}.{other}"
    )


def _ranges(seeds: Sequence[int]) -> str:
    """Sorted numbers as in `0-7, 9`."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _check(check: Check | None) -> str:
    if check is None:
        return "**These files were not checked** on the test images."
    wrong = len(check.mismatches)
    if check.allowed:
        verdict = f"{wrong:,} are in another class" if check.passed else f"**{wrong:,} are in another class**"
        verdict += f"; up to {check.allowed:,} are to be expected, as the runtime rounds differently"
    else:
        verdict = f"**{wrong:,} of them do not match**" if wrong else "all match"
    lines = [
        f"All {check.images:,} test images were classified with these files and compared with {check.reference}: "
        f"{verdict}. The files' accuracy is {check.percent} %."
    ]
    other, plain = (
        check.details.get(name) for name in ("other_class_than_the_float32_network", "accuracy_of_the_float32_network")
    )
    if other is not None and plain is not None:
        lines.append(f"{other:,} images are put into another class than by the float32 network ({plain:.2f} %).")
    sizes = [f"{check.details[name]:,} {unit}" for name, unit in _BYTES.items() if name in check.details]
    lines += [f"The network needs {' and '.join(sizes)}."] * bool(sizes)
    return " ".join(lines)


def _data(source: Source) -> str:
    run = source.run
    known = KNOWN.get(run.trial.data.source)
    if known:
        about = (
            f"{known.title} ([{known.hub}](https://huggingface.co/datasets/{known.hub})), licence {known.licence_title}"
            f". The licence of this card is that of the data; smidgen is under the MIT licence."
        )
    else:
        about = (
            f"{markdown(_own_name(run))}, data of the owner's own. **Its licence is not known to smidgen: fill in "
            f"`license` above and this section before you publish these files.**"
        )
    names = [markdown(name) for name in run.trained.class_names[:MOST_NAMES]]
    more = ", …" if len(run.trained.class_names) > MOST_NAMES else ""
    listed = f" Classes, in the order of the scores: {', '.join(names)}{more}." if names else ""
    return (
        f"{about} Images are normalized as (pixels / 255 - {run.trained.mean:.4f}) / {run.trained.std:.4f}; files with "
        f"the whole network take the pixels as they are.{listed}"
    )


def _origin(run: Run) -> str:
    result, network = run.result, run.trial.network
    environment = RunDirectory(run.directory).read_json(RunFiles.ENVIRONMENT)
    known = {"smidgen": "smidgen", "torch": "PyTorch", "python": "Python"}
    versions = [f"{name} {str(environment.get(key, 'of unknown version'))[:40]}" for key, name in known.items()]
    lines = [
        f"trained by {markdown(', '.join(versions))}, engine {result.engine}, {result.precision}; exported by smidgen "
        f"{VERSION}",
        f"recipe SHA-256 `{run.trial.recipe_digest}`, seed {result.seed}",
        f"weights SHA-256 `{result.weights_sha256}`",
    ]
    if isinstance(network, Module):
        lines.append(f"network {markdown(str(network))}, SHA-256 of the file `{network.sha256}`")
    lines.append("`export.json` has the hashes of these files and the check in full")
    return "\n".join(f"- {line}" for line in lines)
