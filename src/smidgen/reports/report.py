"""`smidgen report`: the document of any runs, in one file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.errors import RunError
from smidgen.files import cannot_write, write_atomic
from smidgen.reports.collect import TrialRuns, collect
from smidgen.reports.markdown import to_markdown
from smidgen.reports.page import to_html
from smidgen.reports.write import write
from smidgen.runs.record import Run

DEFAULT = Path("report.html")


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: of the file.
        trials: what it is about.
        problems: one line for each run that was left out.
    """

    path: Path
    trials: tuple[TrialRuns, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as `smidgen report --json` prints it."""
        return {
            "path": str(self.path),
            "trials": [{"name": g.trial.name, "seeds": [run.seed for run in g.runs]} for g in self.trials],
            "left_out": list(self.problems),
        }


def report(runs: Iterable[str | Path | Run], out: str | Path = DEFAULT) -> Report:
    """Write the report of runs: one HTML file, or Markdown with a folder of pictures beside it.

    Args:
        runs: runs, run directories, or folders that hold run directories.
        out: a name that ends in `.html` or `.md`; an older report there is replaced.

    Raises:
        RunError: none of the runs can be read, the name ends otherwise, or it cannot be written.
    """
    path = Path(out)
    if path.suffix not in (".html", ".md"):
        raise RunError(f"{path} must end in .html or .md")
    collection = collect(runs)
    document = write(collection)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".html":
            write_atomic(path, to_html(document).encode())
        else:
            folder = path.with_name(f"{path.stem}-images")
            text, files = to_markdown(document, folder.name)
            folder.mkdir(exist_ok=True)
            for name, content in files.items():
                write_atomic(folder / name, content)
            write_atomic(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error, "-o") from None
    return Report(path, tuple(collection.trials), tuple(collection.problems))
