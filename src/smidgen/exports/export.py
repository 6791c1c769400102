"""`smidgen export`: a finished run as files for elsewhere, checked against the network over all test images."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from smidgen.data.dataset import Examples
from smidgen.errors import RunError
from smidgen.exports.card import CARD, model_card
from smidgen.exports.registry import Option, make_target
from smidgen.exports.target import Check, Source
from smidgen.files import cannot_read, looked_up, read_bounded, write_together
from smidgen.machine import exclusive
from smidgen.runs.record import Run, load_run
from smidgen.runs.run import load_trial_data
from smidgen.tables import preformatted, render
from smidgen.version import VERSION

MANIFEST = "export.json"
"""Name of the file that records what was exported and the result of its check."""
MOST_SHOWN = 10
_KEPT = (
    "images", "mismatches", "allowed_mismatches", "mismatching_images", "reference", "largest_difference", "accuracy",
    "details",
)  # fmt: skip
"""What the manifest says of a check."""
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Exported:
    """An export that was written.

    Attributes:
        run: what was exported.
        target: as in `onnx`.
        directory: where the files are.
        sizes: bytes by file name.
        check: the result on the test images; None if it was skipped.
    """

    run: Run
    target: str
    directory: Path
    sizes: Mapping[str, int]
    check: Check | None

    @property
    def passed(self) -> bool | None:
        """Whether the export classifies the test images as its reference does; None if that was not checked.

        Every one of them, or, in integers on a runtime that rounds differently, all but `check.allowed`.
        """
        return None if self.check is None else self.check.passed

    def _repr_html_(self) -> str:
        return preformatted(str(self))

    def to_json(self) -> dict[str, Any]:
        """The export as `smidgen export --json` prints it; accuracy in percent, null where nothing was checked."""
        check = self.check
        return {
            "target": self.target,
            "directory": str(self.directory),
            "files": [str(self.directory / name) for name in self.sizes],
            "sizes": dict(self.sizes),
            "images": check and check.images,
            "mismatches": check and len(check.mismatches),
            "allowed_mismatches": check and check.allowed,
            "mismatching_images": check and list(check.mismatches),
            "reference": check and check.reference,
            "largest_difference": check.largest_difference
            if check and math.isfinite(check.largest_difference)
            else None,
            "accuracy": check and check.accuracy,
            "seconds": check and check.seconds,
            "details": dict(check.details) if check else {},
        }

    def __str__(self) -> str:
        files = render(["file", "bytes"], [[str(self.directory / name), size] for name, size in self.sizes.items()])
        check = self.check
        if check is None:
            return f"{files}\nnot checked"
        rows: list[list[object]] = [
            ["test images", check.images],
            ["mismatches", _mismatches(check)],
            ["largest difference of a score", f"{check.largest_difference:.3g}"],
            ["accuracy", f"{check.percent} %"],
            ["time", f"{check.seconds:.2f} s, {1e6 * check.seconds / check.images:,.0f} µs an image"],
        ]
        rows += [[name.replace("_", " "), _shown(value)] for name, value in check.details.items()]
        wrong, all_images = len(check.mismatches), f"{check.images:,} test images"
        verdict = (
            f"{wrong:,} of {all_images} are classified differently from {check.reference}{_expected(check)}"
            if wrong
            else f"all {all_images} match {check.reference}"
        )
        return f"{files}\n{render(['check', f'against {check.reference}'], rows)}\n{verdict}"


def _expected(check: Check) -> str:
    """What to think of mismatches, where some are to be expected."""
    if not check.allowed:
        return ""
    return f"; up to {check.allowed:,} are to be expected, as the runtime rounds differently"


def _shown(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _mismatches(check: Check) -> str:
    if not check.mismatches:
        return "0"
    shown = ", ".join(map(str, check.mismatches[:MOST_SHOWN]))
    more = ", ..." if len(check.mismatches) > MOST_SHOWN else ""
    return f"{len(check.mismatches):,} (images {shown}{more})"


@exclusive()
def export(run: Run | str | Path, to: str, out: str | Path | None = None, **options: Option) -> Exported:
    """Write a run as files for elsewhere, then classify all test images with those files.

    Everything that can be wrong is refused before anything is written. The check is made on the test
    images whether or not the run was evaluated on them.

    Args:
        run: a finished run or its directory.
        to: a name in `smidgen.exports.registry.TARGETS`.
        out: a directory: new, empty or of an earlier export; None takes `<run's directory>-<target>` here.
        options: `check` (False leaves the check out, for want of a compiler or runtime) and those of the target; for
            `c` and `onnx`: `type` (`float32` or `int8`), for `tflite` always `int8`; for `c` also `name` (a C
            identifier) and `package` (`arduino`, `platformio` or `cmake`: as a library of those), and in int8 `bits`
            (of a weight, 8 or 4), `lean` (True: as little memory as possible), `max_ram` (bytes of memory beside the
            image).

    Raises:
        SmidgenError: the target is unknown, the run cannot be read or expressed, a library or compiler is
            missing, or the directory cannot be written or holds other files.
    """
    target = make_target(to, options)
    run = run if isinstance(run, Run) else load_run(run)
    source = _source(run)
    files = target.files(source)
    directory = Path(out) if out is not None else Path(f"{run.directory.resolve().name}-{_label(to, options)}")
    stale = _earlier(directory, [*files, CARD])
    about = {
        "smidgen": VERSION,
        "target": to,
        "options": {name: value for name, value in options.items() if value not in (None, False) or name == "check"},
        "trial": run.trial.name,
        "seed": run.seed,
        "weights_sha256": run.result.weights_sha256,
        **({"class_names": list(run.trained.class_names)} if run.trained.class_names else {}),
    }
    usage, sizes = target.usage(source), {name: len(content) for name, content in files.items()}
    command = _command(to, options)

    def finished(check: Check | None) -> tuple[Exported, dict[str, bytes]]:
        """The export, and those of its files that depend on the check."""
        card = model_card(source, to, command, usage, sizes, check)
        exported = Exported(run, to, directory, {**sizes, CARD: len(card)}, check)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in {**files, CARD: card}.items()}
        shown = exported.to_json()
        result = {key: shown[key] for key in _KEPT} if check else None
        return exported, {CARD: card, MANIFEST: _json({**about, "files": hashes, "check": result})}

    exported, others = finished(None)
    write_together(directory, {**files, **others}, "-o")
    for path in stale:
        path.unlink(missing_ok=True)
    if options.get("check") is not False:
        exported, others = finished(target.check(source, directory))
        write_together(directory, others, "-o")
    return exported


def _command(to: str, options: Mapping[str, Option]) -> str:
    """The options of an export as on the command line, as far as they shape the files."""
    given = {name: value for name, value in options.items() if value not in (None, False) and name != "check"}
    parts = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in given.items()]
    return " ".join([f"--to {to}", *parts])


def _label(to: str, options: Mapping[str, Option]) -> str:
    bits = options.get("bits")
    parts = [to, options.get("type"), f"{bits}bit" if bits not in (None, 8) else None, options.get("package")]
    return "-".join(str(part) for part in parts if part)


def _json(data: object) -> bytes:
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def _source(run: Run) -> Source:
    """The run with all test images of its data.

    Raises:
        SmidgenError: the data is missing, or is not what the run was trained on.
    """
    trial = replace(run.trial, data=replace(run.trial.data, evaluate="test"))
    dataset = load_trial_data(trial)
    trained = run.trained
    if (trained.input_shape, trained.classes) != (dataset.input_shape, dataset.classes):
        raise RunError(f"{run.directory} is for other images or classes than those of {dataset.name}")
    if run.result.held_out == "test" and run.result.data_sha256 != dataset.digest:
        raise RunError(f"the data at {dataset.name} has changed since {run.directory} was made; restore it")
    test: Examples = dataset.held_out
    return Source(run, test.images, test.labels)


def _earlier(directory: Path, files: Collection[str]) -> list[Path]:
    """Files of an earlier export in the directory that the new one does not overwrite.

    Raises:
        RunError: a file would be overwritten that no export wrote, or that was changed since.
    """
    with looked_up(directory):
        if directory.exists() and not directory.is_dir():
            raise RunError(f"{directory} is a file; choose another place with -o")
        own = _own(directory) if os.path.lexists(directory / MANIFEST) else {}
        there = {name for name in {*files, *own, MANIFEST} if os.path.lexists(directory / name)}
        for folder in {parent for name in files for parent in (directory / name).parents} - {
            *directory.parents,
            directory,
        }:
            if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
                raise RunError(f"{folder} is not from an earlier export; choose another place with -o, or remove it")
    for name in there & {*files, MANIFEST} - set(own) - ({MANIFEST} if own else set()):
        raise RunError(f"{directory / name} is not from an earlier export; choose another place with -o, or remove it")
    for name in sorted(there & set(own)):
        try:
            content = read_bounded(directory / name, _MOST_BYTES, follow=False)
        except OSError as error:
            raise RunError(cannot_read(directory / name, error)) from None
        if hashlib.sha256(content).hexdigest() != own[name]:
            raise RunError(
                f"{directory / name} was changed since it was exported; choose another place with -o, or remove it"
            )
    return [directory / name for name in own if name in there and name not in files]


def _is_below(name: str) -> bool:
    """Whether a path stays below the folder that it is looked up in."""
    path = PurePosixPath(name)
    return name == str(path) and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _own(directory: Path) -> dict[str, str]:
    """Hashes by name of the files that an earlier export wrote."""
    try:
        found = json.loads(read_bounded(directory / MANIFEST, 2**20, follow=False))["files"]
        return {str(name): str(digest) for name, digest in found.items() if name != MANIFEST and _is_below(str(name))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
