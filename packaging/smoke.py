"""Smoke test of the packages in dist/ (`make wheel`): the wheel as a user has it, without a compiler or the repository.

The wheel is installed into a fresh virtual environment in a temporary folder, and commands run in an empty folder
with nothing on PATH but that environment. Its dependencies are those of the Python that runs this program, which
takes seconds; with --full, pip installs them from the package index. The exit status is 0 if everything works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cmake", "ninja", "make")
NOT_IN_SDIST = (".ci/",)
"""Tracked files that a source distribution does without."""

WRITE_DIGITS = """
from PIL import Image
from smidgen.data.dataset import load_dataset
held_out = load_dataset().held_out
for i in range(10):
    Image.fromarray(255 - held_out.images[i, 0].numpy()).save(f"{i}-{int(held_out.labels[i])}.png")
"""
"""The first ten test images as dark digits on white, each named by its number and label."""

WHERE = """
import json, smidgen
from smidgen.engines.native import core
print(json.dumps([smidgen.__file__, getattr(core.find_core(), "__file__", None)]))
"""
"""The files of the package and of its compiled part, or null where that is missing."""


class SmokeError(Exception):
    """The packages do not work as they should; the text is one line that says what is wrong."""


def main() -> int:
    """Test the packages; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder of the packages; default dist")
    parser.add_argument("--full", action="store_true", help="install the dependencies too, from the package index")
    options = parser.parse_args()
    try:
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        wheel = _only(options.dist, f"smidgen-*-{python}-{python}-*.whl")
        check_sdist(_only(options.dist, "smidgen-*.tar.gz"))
        with tempfile.TemporaryDirectory(prefix="smidgen-smoke-") as folder:
            environment = Environment(Path(folder), wheel, full=options.full)
            check_commands(environment)
    except SmokeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    print(f"{wheel.name} works without a compiler")
    return 0


def check_sdist(sdist: Path) -> None:
    """Compare a source distribution with the files that git tracks.

    Raises:
        SmokeError: a file is missing.
    """
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        print("contents of the sdist not compared: this is not a git checkout")
        return
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {name for name in listed.split("\0") if name and not name.startswith(NOT_IN_SDIST)}
    if missing := sorted(tracked - there):
        raise SmokeError(f"{sdist.name} lacks {', '.join(missing[:5])}; see sdist.include in pyproject.toml")
    print(f"{sdist.name} holds all {len(tracked)} tracked files that it should")


class Environment:
    """A fresh virtual environment with the wheel, and an empty folder to run commands in.

    Args:
        folder: where both are made.
        wheel: to install.
        full: whether to install the dependencies too; otherwise those of this Python are used.

    Raises:
        SmokeError: the wheel cannot be installed.
    """

    def __init__(self, folder: Path, wheel: Path, *, full: bool) -> None:
        self.home = folder / "environment"
        self.work = folder / "empty"
        self.work.mkdir()
        venv.create(self.home, with_pip=True)
        self._bin = self.home / "bin"
        self._variables = {name: value for name, value in os.environ.items() if not name.startswith(("SMIDGEN", "PY"))}
        self._variables |= {"PATH": str(self._bin), "HOME": str(folder)}
        for name in COMPILERS:
            if shutil.which(name, path=self._variables["PATH"]):
                raise SmokeError(f"{name} is in the fresh environment, so this test would prove nothing")
        pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
        if not full:
            # A folder named in a .pth file comes after the environment's own, and its .pth files are not read: an
            # editable installation of smidgen there has no effect. Python 3.11 brings an old setuptools along.
            own = next(self.home.glob("lib/python*/site-packages"))
            (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
            if next(own.glob("setuptools-*"), None):
                self.call("python", *pip, "uninstall", "--yes", "setuptools")
        source = [] if full else ["--no-index"]
        self.call("python", *pip, "install", "-c", str(CONSTRAINTS), *source, str(wheel))

    def call(self, program: str, *arguments: str, expected: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the empty folder.

        Raises:
            SmokeError: its exit status is not an expected one.
        """
        print("$", program, *("..." if "\n" in argument else argument for argument in arguments), flush=True)
        command = [str(self._bin / program), *arguments]
        done = subprocess.run(command, cwd=self.work, env=self._variables, capture_output=True, text=True, check=False)
        if done.returncode not in expected:
            last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise SmokeError(f"{program} {arguments[0]} ended with exit status {done.returncode}: {last}")
        return done

    def json(self, *arguments: str, expected: tuple[int, ...] = (0,)) -> Any:
        """The object that a command of smidgen prints with --json."""
        return json.loads(self.call("smidgen", *arguments, "--json", expected=expected).stdout)


def check_commands(environment: Environment) -> None:
    """Train, classify, export and inspect with the installed wheel.

    Raises:
        SmokeError: a command fails, or its output is not what it should be.
    """
    for file in json.loads(environment.call("python", "-c", WHERE).stdout):
        _require(file is not None, "the wheel has no compiled part")
        _require(Path(file).is_relative_to(environment.home), f"{file} is not from the wheel")
    version = environment.call("smidgen", "--version").stdout.strip()
    _require(version.startswith("smidgen "), f"--version printed {version!r}")

    names = [trial["name"] for trial in environment.json("trials")["trials"]]
    _require("mnist-tiny-99" in names, f"the built-in trials are {names}")

    run = environment.json("run", "mnist-tiny-99", "--epochs", "1", expected=(0, 1))
    _require(run["engine"] == "native", f"the engine was {run['engine']}")
    _require(run["test_accuracy_last"] > 90, f"the accuracy after one epoch was {run['test_accuracy_last']} %")

    environment.call("python", "-c", WRITE_DIGITS)
    files = sorted(path.name for path in environment.work.glob("*.png"))
    predictions = environment.json("predict", run["run_dir"], *files)["predictions"]
    right = sum(f"-{prediction['label']}." in prediction["file"] for prediction in predictions)
    _require(len(predictions) == 10 and right >= 8, f"{right} of {len(predictions)} digits were classified correctly")

    exported = environment.json("export", run["run_dir"], "--to", "safetensors")
    _require(exported["mismatches"] == 0, f"{exported['mismatches']} mismatches in the export")
    _require(all((environment.work / file).is_file() for file in exported["files"]), f"no {exported['files']}")

    inspected = environment.json("inspect", "mnist-tiny-99")
    _require(inspected["parameters"] == run["parameters"], "inspect and run count different parameters")
    print(f"{version}, native engine, {run['test_accuracy_last']:.2f} % after one epoch of mnist-tiny-99")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SmokeError(f"{len(found)} files {folder / pattern}, not one; run: make wheel")
    return found[0]


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SmokeError(otherwise)


if __name__ == "__main__":
    sys.exit(main())
