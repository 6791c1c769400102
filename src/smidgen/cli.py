"""The command line: a thin layer, each command one or two calls of the library.

Output for people goes to standard output; with `--json` that holds exactly one JSON object, and
everything else goes to standard error. Exit status: 0 done, 1 a goal missed, 2 the user's
mistake in one line, 130 interrupted.

argparse instead of a library built on types: its one error hook gives the one line that the
contract asks for, and it starts in no time. The library is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

from smidgen.errors import SmidgenError

DONE, MISSED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, raised rather than printed."""

    def error(self, message: str) -> NoReturn:
        raise SmidgenError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _ready_streams()
    wants_json = "--json" in arguments
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _terminate)
    try:
        options = _parser().parse_args(arguments)
        if options.code:
            from smidgen.nets.code import trust

            for path in options.code:
                trust(path)
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except SmidgenError as error:
        print(f"smidgen: {error}", file=sys.stderr)
        if wants_json:
            print(json.dumps({"error": str(error)}))
        return MISTAKE
    except KeyboardInterrupt as interruption:
        about = vars(interruption)
        print(f"smidgen: {str(interruption) or 'interrupted'}", file=sys.stderr)
        if wants_json:
            directory = str(about["directory"]) if "directory" in about else None
            shown = {"run_dir": directory, "epochs": about.get("epochs"), "resume": about.get("resume")}
            print(json.dumps({"interrupted": True, **shown}))
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; nothing is left to tell it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        # Standard output on a full disk, or the like; files report their own errors.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        what = f"{error.filename}: " if error.filename else ""
        remedy = "free some space, or write elsewhere" if error.errno == errno.ENOSPC else "see to that, and try again"
        print(f"smidgen: {what}{error.strerror or error}: {remedy}", file=sys.stderr)
        return MISTAKE


def _ready_streams() -> None:
    """Standard output and error that take any text: names need not be UTF-8, and either may be closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="smidgen",
        description="Trains tiny image classifiers under hard budgets and proves the result.",
        epilog="exit status: 0 done, every goal met; 1 a goal missed; 2 a mistake to mend; 130 interrupted",
        allow_abbrev=False,
    )
    from smidgen.version import VERSION

    parser.add_argument("--version", action="version", version=f"smidgen {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Any, help: str, *, code: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        sub.set_defaults(command=function, code=[])
        if code:
            sub.add_argument(
                "--code", action="append", default=[], metavar="FILE.py",
                help="run this file, which defines a trial's network; may be repeated",
            )  # fmt: skip
        return sub

    trial_help = "a built-in name, FILE.py:NAME, or the trial.json of a run"

    run = command("run", _run, "train a trial with one seed and judge it", code=True)
    run.add_argument("trial", nargs="?", metavar="TRIAL", help=trial_help + "; default: mnist-4-strict, the flagship")
    run.add_argument("--data", metavar="PATH", help="a bundled data set, or a path: images, IDX files, .npz or .csv")
    run.add_argument("--seed", type=int, metavar="N", help="default 0")
    run.add_argument("--epochs", type=int, metavar="N", help="instead of the trial's")
    run.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="settings",
        help="change a setting, as in --set optimizer.lr=0.05; may be repeated",
    )  # fmt: skip
    run.add_argument(
        "--engine",
        choices=["auto", "native", "eager"],
        default="auto",
        help="auto: native where it is installed and has all the layers, else eager",
    )
    run.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        help="of the products; default fp32; bf16 needs the native engine and a CPU with avx512_bf16",
    )
    run.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    run.add_argument("--threads", type=int, metavar="N", help="default: the usable cores, at most 8")
    run.add_argument(
        "--out",
        metavar="DIR",
        help="directory of the run: new, or of this very run, which then goes on; default: runs/TRIAL-seedN, "
        "numbered if taken",
    )
    run.add_argument("--resume", metavar="RUN", help="go on with a run that was interrupted or killed")
    run.add_argument(
        "--checkpoint-seconds", type=float, default=30, metavar="S",
        help="time between checkpoints within an epoch; default 30",
    )  # fmt: skip

    sweep = command("sweep", _sweep, "train trials with many seeds; what is done already is not done again", code=True)
    sweep.add_argument("trials", nargs="+", metavar="TRIAL", help=trial_help)
    sweep.add_argument("--seeds", default="0-7", metavar="SEEDS", help="as in 0-31 or 0-3,8; default 0-7")
    sweep.add_argument("--workers", type=int, metavar="N", help="processes; default: the cores over the threads")
    sweep.add_argument(
        "--folds", type=int, metavar="N", help="tune: judge seed i on block i modulo N of the training images"
    )
    sweep.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster: local, auto, or ray://HOST:PORT")
    sweep.add_argument("--shard", metavar="I/N", help="only the I-th of N parts of the runs, for N machines")
    sweep.add_argument("--engine", choices=["auto", "native", "eager"], default="auto")
    sweep.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    sweep.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    sweep.add_argument("--threads", type=int, metavar="N", help="of each run; default 1")
    sweep.add_argument("--out", metavar="DIR", default="runs/sweep", help="where the runs go; default runs/sweep")

    compare = command("compare", _compare, "compare two sets of runs on the same test images", code=True)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of them")
    compare.add_argument("--with", nargs="+", required=True, metavar="RUN", dest="others", help="the other set")

    search = command("search", _search, "find trials within limits that do best on the validation split")
    search.add_argument(
        "base", nargs="?", default="mnist-4-strict", metavar="TRIAL",
        help="gives data, epochs and target: " + trial_help + "; default: mnist-4-strict",
    )  # fmt: skip
    search.add_argument("--max-parameters", type=int, metavar="N", help="default: the goal's")
    search.add_argument("--max-macs", type=int, metavar="N", help="of one image; default: any number")
    search.add_argument("--max-epochs", type=int, metavar="N", help="of every candidate; default: the trial's")
    search.add_argument("--candidates", type=int, default=32, metavar="N", help="to be trained; default 32")
    search.add_argument("--seeds", type=int, default=4, metavar="N", help="of those that are not dropped; default 4")
    search.add_argument("--batch", type=int, default=8, metavar="N", help="candidates at a time; default 8")
    search.add_argument("--folds", type=int, default=1, metavar="N", help="blocks of 6,000 to be judged on; default 1")
    search.add_argument("--finalists", type=int, default=4, metavar="N", help="that get fresh seeds; default 4")
    search.add_argument("--pareto", action="store_true", help="look for few parameters as well")
    search.add_argument("--name", default="found", help="what the candidates' names begin with; default found")
    search.add_argument("--seed", type=int, default=0, metavar="N", help="of the search's choices; default 0")
    search.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="settings",
        help="change what is searched, as in --set width.high=12 (docs/search.md); may be repeated",
    )  # fmt: skip
    search.add_argument("--workers", type=int, metavar="N", help="processes; default: the cores over the threads")
    search.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster: local, auto, or ray://HOST:PORT")
    search.add_argument("--engine", choices=["auto", "native", "eager"], default="auto")
    search.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    search.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    search.add_argument("--threads", type=int, metavar="N", help="of each run; default 1")
    search.add_argument("--out", metavar="DIR", default="runs/search", help="the search's folder; default runs/search")

    command("trials", _trials, "list the built-in trials: goals, results, and what each changed")

    inspect = command("inspect", _inspect, "show a network's layers, totals and budget verdict", code=True)
    inspect.add_argument("trial", metavar="TRIAL|FILE.py:NAME", help=trial_help + ", or an nn.Module in a file")
    inspect.add_argument("--input", type=_shape, metavar="CxHxW", help="shape of an image; default 1x28x28")
    inspect.add_argument("--max-parameters", type=int, metavar="N", help="a budget; default: the trial's goal's")
    inspect.add_argument("--format", choices=["table", "markdown", "csv"], default="table")

    data = command("data", _data, "describe the bundled data sets, or what is at a path")
    data.add_argument("path", nargs="?", metavar="PATH", help="images, IDX files, .npz or .csv")
    data.add_argument("--check", action="store_true", help="show each file's hash, and whether it is a known one")

    data.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet: a row of images for each class")

    new = command("new", _new, "write a trial file for data of your own, with a network sized to a budget")
    new.add_argument("file", metavar="FILE.py", help="must not exist yet")
    new.add_argument("--data", required=True, metavar="PATH", help="images, IDX files, .npz or .csv")
    new.add_argument("--max-parameters", type=int, default=20_000, metavar="N", help="default 20000")
    new.add_argument("--epochs", type=int, default=14, metavar="N", help="default 14")

    export = command("export", _export, "write a run as files for elsewhere, checked over all test images", code=True)
    export.add_argument("run", metavar="RUN", help="run directory")
    export.add_argument("--to", required=True, metavar="TARGET", help="safetensors, onnx, c or page")
    export.add_argument("-o", "--out", metavar="DIR", help="default: named after the run and the target")
    export.add_argument("--type", choices=["float32", "int8"], help="of the arithmetic in C; default float32")
    export.add_argument("--name", metavar="NAME", help="how identifiers in C begin; default: after the trial")
    export.add_argument("--no-check", action="store_false", dest="check", help="write the files and do not check them")

    predict = command("predict", _predict, "classify image files with a finished run", code=True)
    predict.add_argument("run", metavar="RUN", help="run directory, or a safetensors file of smidgen export")
    predict.add_argument("files", nargs="+", metavar="FILE")

    report = command(
        "report", _report, "write the document of runs: results, curves, tables, mistakes, analysis", code=True
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or folders of them")
    report.add_argument("-o", "--out", metavar="FILE", default="report.html", help="FILE.html or FILE.md")

    bench = command("bench", _bench, "measure training speed: the seed's way and smidgen's, in turn in one run")
    bench.add_argument("--threads", type=int, metavar="N", help="default: the usable cores, at most 8")
    bench.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements of each; default 7")
    bench.add_argument("--profile", action="store_true", help="also show where the native engine's time goes")
    bench.add_argument("--variants", action="store_true", help="also compare ways to run PyTorch eagerly")
    return parser


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,5}x\d{1,5}x\d{1,5}", text) or "0" in text.split("x"):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form CxHxW, as in 1x28x28")
    return tuple(int(side) for side in text.split("x"))


def _print_json(data: object) -> None:
    print(json.dumps(data, allow_nan=False))


def _run(options: argparse.Namespace) -> int:
    from smidgen.runs.progress import best_progress
    from smidgen.runs.run import run

    finished = run(
        options.trial,
        seed=options.seed,
        data=options.data,
        epochs=options.epochs,
        settings=options.settings,
        engine=options.engine,
        precision=options.precision,
        device=options.device,
        threads=options.threads,
        out=options.out,
        resume=options.resume,
        checkpoint_seconds=options.checkpoint_seconds,
        progress=best_progress(sys.stderr if options.json else sys.stdout),
    )
    if options.json:
        _print_json(finished.result)
    else:
        print(f"run directory {finished.directory}")
    return MISSED if finished.goal_met is False else DONE


def _sweep(options: argparse.Namespace) -> int:
    from smidgen.sweeps.sweep import sweep

    stream = sys.stderr if options.json else sys.stdout
    finished = sweep(
        options.trials,
        options.seeds,
        workers=options.workers,
        folds=options.folds,
        shard=options.shard,
        cluster=options.cluster,
        engine=options.engine,
        precision=options.precision,
        device=options.device,
        threads=options.threads,
        out=options.out,
        show=live(stream),
    )
    if options.json:
        _print_json(finished.to_json())
    else:
        print(finished)
    for job, error in finished.failures:
        print(f"smidgen: {job}: {error}", file=sys.stderr)
    if finished.failures:
        return MISTAKE
    return MISSED if finished.goals_met is False else DONE


def _search(options: argparse.Namespace) -> int:
    from smidgen.searches.search import search

    found = search(
        options.base,
        max_parameters=options.max_parameters,
        max_macs=options.max_macs,
        max_epochs=options.max_epochs,
        candidates=options.candidates,
        seeds=options.seeds,
        batch=options.batch,
        folds=options.folds,
        finalists=options.finalists,
        pareto=options.pareto,
        name=options.name,
        seed=options.seed,
        settings=options.settings,
        workers=options.workers,
        cluster=options.cluster,
        engine=options.engine,
        precision=options.precision,
        device=options.device,
        threads=options.threads,
        out=options.out,
        show=live(sys.stderr if options.json else sys.stdout),
    )
    if options.json:
        _print_json(found.to_json())
    else:
        print(found)
    return DONE


def live(stream: TextIO) -> Callable[[str], None]:
    """Shows text in place of the text before it on a terminal; elsewhere, its last line."""
    shown = 0

    def show(text: str) -> None:
        nonlocal shown
        if stream.isatty():
            up = f"\x1b[{shown}F\x1b[J" if shown else ""
            print(f"{up}{text}", file=stream, flush=True)
            shown = text.count("\n") + 1 if "\n" in text else 0
        else:
            print(text.splitlines()[-1], file=stream, flush=True)

    return show


def _compare(options: argparse.Namespace) -> int:
    from smidgen.reports.compare import compare

    comparison = compare(options.runs, options.others)
    if options.json:
        _print_json(comparison.to_json())
    else:
        print(comparison)
    return DONE


def _trials(options: argparse.Namespace) -> int:
    from smidgen.trials.listing import listing, listing_text

    if options.json:
        _print_json({"trials": listing()})
    else:
        print(listing_text())
    return DONE


def _inspect(options: argparse.Namespace) -> int:
    from smidgen.inspection import inspect

    inspection = inspect(options.trial, input_shape=options.input, max_parameters=options.max_parameters)
    if options.json:
        _print_json(inspection.to_json())
    else:
        print(inspection.text(options.format))
    return MISSED if inspection.within_budget is False else DONE


def _data(options: argparse.Namespace) -> int:
    from smidgen.data.describe import describe

    descriptions = describe(options.path, sheet=options.sheet)
    if options.json:
        _print_json({"datasets": [description.to_json() for description in descriptions]})
    else:
        print("\n".join(description.text(hashes=options.check) for description in descriptions))
    return DONE


def _new(options: argparse.Namespace) -> int:
    from smidgen.trials.new import new_trial

    written = new_trial(options.file, data=options.data, max_parameters=options.max_parameters, epochs=options.epochs)
    if options.json:
        _print_json(written.to_json())
    else:
        print(written)
    return DONE


def _predict(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from smidgen.runs.predict import predict
    from smidgen.tables import render

    predictions = predict(options.run, options.files)
    if options.json:
        _print_json({"predictions": [asdict(prediction) for prediction in predictions]})
    else:
        rows = [[p.file, p.name, f"{100 * p.probability:.2f} %"] for p in predictions]
        print(render(["file", "label", "probability"], rows))
    return DONE


def _export(options: argparse.Namespace) -> int:
    from smidgen.exports.export import export

    exported = export(options.run, options.to, options.out, type=options.type, name=options.name, check=options.check)
    if options.json:
        _print_json(exported.to_json())
    else:
        print(exported)
    return MISSED if exported.equal is False else DONE


def _report(options: argparse.Namespace) -> int:
    from smidgen.reports.report import report

    written = report(options.runs, options.out)
    for problem in written.problems:
        print(f"smidgen: left out: {problem}", file=sys.stderr)
    if options.json:
        _print_json(written.to_json())
    else:
        print(f"report {written.path}")
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from smidgen.bench import benchmark

    results = benchmark(threads=options.threads, rounds=options.rounds, variants=options.variants)
    if options.json:
        _print_json(results.to_json())
    else:
        print(results)
    if options.profile:
        print("\n" + results.profiles(), file=sys.stderr if options.json else sys.stdout)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
