"""The command line: a thin layer, each command one or two calls of the library.

Output for people goes to standard output; with `--json` that holds exactly one JSON object, and
everything else goes to standard error. Exit status: 0 done, 1 a goal missed, 2 usage error, in
one line, 130 interrupted.

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
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from smidgen.completion import SHELLS
from smidgen.errors import SmidgenError, SmidgenInterruptedError
from smidgen.output import Results

if TYPE_CHECKING:
    from smidgen.runs.options import RunOptions

DONE, MISSED, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, raised rather than printed."""

    def error(self, message: str) -> NoReturn:
        raise SmidgenError(f"{message} (see {self.prog} --help)")


def _unknown(arguments: Sequence[str], parser: argparse.ArgumentParser) -> SmidgenError:
    """The error of arguments that a command does not have; names the first option among them."""
    from smidgen.settings import suggestion

    first = next((a for a in arguments if a.startswith("-")), arguments[0]).partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    return SmidgenError(f"no argument {first!r}; {suggestion(first, known)}see {parser.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _ready_streams()
    wants_json = "--json" in arguments
    if not wants_json and not {"csv", "latex"} & set(arguments):
        return _main(arguments, wants_json=wants_json)
    with Results.alone():
        return _main(arguments, wants_json=wants_json)


def _main(arguments: list[str], *, wants_json: bool) -> int:
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _terminate)
    try:
        options, unknown = _parser().parse_known_args(arguments)
        if unknown:
            raise _unknown(unknown, options.parser)
        if options.code:
            from smidgen.nets.code import trust

            for path in options.code:
                trust(path)
        status: int = options.command(options)
        Results.flush()
        return status
    except SmidgenError as error:
        print(f"smidgen: {error}", file=sys.stderr)
        if wants_json:
            _print_json({"error": str(error)})
        return USAGE_ERROR
    except KeyboardInterrupt as interruption:
        print(f"smidgen: {str(interruption) or 'interrupted'}", file=sys.stderr)
        if wants_json:
            shown = SmidgenInterruptedError().to_json()
            if isinstance(interruption, SmidgenInterruptedError):
                # A sweep or search has no command of its own for this: the same one resumes it.
                again = shlex.join(["smidgen", *arguments])
                shown = interruption.to_json()
                shown["resume"] = shown["resume"] or again
            _print_json(shown)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output has closed it; nothing can be reported there.
        Results.discard()
        return DONE
    except OSError as error:
        # Standard output on a full disk, or the like; files report their own errors.
        Results.discard()
        what = f"{error.filename}: " if error.filename else ""
        remedy = "free some space, or write elsewhere" if error.errno == errno.ENOSPC else "fix this and retry"
        print(f"smidgen: {what}{error.strerror or error}: {remedy}", file=sys.stderr)
        return USAGE_ERROR


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


class _Group:
    """Options that several commands share, added to the command's own."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.add = parser.add_argument

    def code(self) -> None:
        """Files with the networks of trials."""
        self.add(
            "--code", action="append", default=[], metavar="FILE.py",
            help="Python file that defines a trial's network, and is executed; repeatable",
        )  # fmt: skip

    def trial_changes(self) -> None:
        """Changes to a trial."""
        self.add("--data", metavar="PATH", help=f"override the trial's data: {_DATA_HELP}")
        self.add("--epochs", type=int, metavar="N", help="override the trial's number of epochs")
        self.settings("override a setting of the trial, e.g. --set optimizer.lr=0.05; repeatable")

    def settings(self, help: str) -> None:
        """Typed settings by path."""
        self.add("--set", action="append", default=[], metavar="PATH=VALUE", dest="settings", help=help)

    def bytes(self, otherwise: str) -> None:
        """Budgets in bytes of C in integers."""
        self.add(
            "--max-flash", type=int, metavar="BYTES", help=f"budget of tables as int8 C code; default: {otherwise}"
        )
        self.add(
            "--max-ram", type=int, metavar="BYTES",
            help=f"budget of memory as int8 C code, beside the image; default: {otherwise}",
        )  # fmt: skip

    def execution(self, threads: str) -> None:
        """The options of `RunOptions`."""
        self.add(
            "--engine", choices=["auto", "native", "eager", "cuda"], default="auto",
            help="native: C++ kernels on the CPU; eager: PyTorch; cuda: PyTorch on a GPU with recorded "
            "steps; auto (default): native if it can run the trial, otherwise eager, and on a GPU cuda",
        )  # fmt: skip
        self.add(
            "--precision", choices=["fp32", "tf32", "bf16"],
            help="of multiplications; default fp32; bf16 needs the native engine and a CPU with avx512_bf16, "
            "tf32 a GPU",
        )  # fmt: skip
        self.add(
            "--device", choices=["auto", "cpu", "cuda", "mps"], metavar="{auto,cpu,cuda}", default="auto",
            help="default auto: the CPU",
        )  # fmt: skip
        self.add("--threads", type=int, metavar="N", help=threads)
        self.add(
            "--checkpoint-seconds", type=float, default=30, metavar="S",
            help="seconds between checkpoints within an epoch; default 30",
        )  # fmt: skip
        self.add(
            "--log", choices=["tensorboard", "trackio"],
            help="also write each run for TensorBoard or trackio (extras tensorboard, trackio)",
        )  # fmt: skip
        self.add(
            "--log-dir",
            metavar="DIR",
            help="folder for these logs; default: tensorboard in the run directory, or trackio's own folder",
        )

    def workers(self) -> None:
        """Worker processes or a cluster."""
        self.add("--workers", type=int, metavar="N", help="worker processes; default: usable cores / --threads")
        self.add("--cluster", metavar="ADDRESS", help="use a Ray cluster: local, auto, or ray://HOST:PORT")

    def out(self, what: str, default: str | None = None) -> None:
        """The output directory."""
        self.add("--out", metavar="DIR", default=default, help=f"{what}; default {default}" if default else what)


_TRIAL_HELP = "a built-in name, FILE.py:NAME, or the trial.json of a run"
_DATA_HELP = "name of a bundled data set, or path of an image folder, IDX folder, .npz or .csv file"
_RUNS_HELP = "run directories, or folders of them"
_CORES = "CPU threads; default: usable cores, at most 8"
_SINGLE = "CPU threads per run; default 1"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="smidgen",
        description="Trains tiny image classifiers under hard budgets and proves the result.",
        epilog="exit status: 0 success, every goal met; 1 a goal was missed, or an export does not match; "
        "2 usage error; 130 interrupted",
        allow_abbrev=False,
    )
    from smidgen.version import VERSION

    parser.add_argument("--version", action="version", version=f"smidgen {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Any, help: str) -> tuple[argparse.ArgumentParser, _Group]:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        sub.set_defaults(command=function, code=[], parser=sub)
        return sub, _Group(sub)

    run, shared = command("run", _run, "train a trial with one seed and evaluate it")
    run.add_argument("trial", nargs="?", metavar="TRIAL", help=_TRIAL_HELP + "; default: mnist-4-strict, the flagship")
    run.add_argument("--seed", type=int, metavar="N", help="random seed; default 0")
    shared.trial_changes()
    shared.execution(_CORES)
    shared.out("run directory, new or of the same run (which is then resumed); default: runs/TRIAL-seedN")
    run.add_argument("--resume", metavar="RUN", help="resume a run that was interrupted or killed")
    shared.code()

    sweep, shared = command("sweep", _sweep, "train trials with many seeds; finished runs are not repeated")
    sweep.add_argument("trials", nargs="+", metavar="TRIAL", help=_TRIAL_HELP)
    sweep.add_argument("--seeds", default="0-7", metavar="SEEDS", help="random seeds, e.g. 0-31 or 0-3,8; default 0-7")
    shared.trial_changes()
    sweep.add_argument(
        "--folds", type=int, metavar="N", help="for tuning: evaluate seed i on fold i mod N of the training images"
    )
    sweep.add_argument(
        "--shard", metavar="I/N", help="do only the I-th of N parts of the runs, to divide a sweep over N machines"
    )
    shared.workers()
    shared.execution(_SINGLE)
    shared.out("folder for the run directories", "runs/sweep")
    shared.code()

    compare, shared = command("compare", _compare, "compare two sets of runs on the same test images")
    compare.add_argument("runs", nargs="+", metavar="RUN", help=_RUNS_HELP)
    compare.add_argument(
        "--with", nargs="+", required=True, metavar="RUN", dest="others", help="the runs to compare with"
    )
    shared.code()

    search, shared = command("search", _search, "search for the best trials within limits, on the validation split")
    search.add_argument(
        "base", nargs="?", default="mnist-4-strict", metavar="TRIAL",
        help=f"base trial, which sets data, epochs and target: {_TRIAL_HELP}; default: mnist-4-strict",
    )  # fmt: skip
    search.add_argument(
        "--max-parameters", type=int, metavar="N", help="limit on parameters; default: the goal of the base trial"
    )
    search.add_argument("--max-macs", type=int, metavar="N", help="limit on MACs per image; default: none")
    shared.bytes("the goal of the base trial")
    search.add_argument(
        "--max-epochs", type=int, metavar="N", help="epochs of every candidate; default: those of the base trial"
    )
    search.add_argument(
        "--candidates", type=int, default=32, metavar="N", help="number of candidates to train; default 32"
    )
    search.add_argument(
        "--seeds", type=int, default=4, metavar="N", help="seeds for candidates that survive halving; default 4"
    )
    search.add_argument("--batch", type=int, default=8, metavar="N", help="candidates per batch; default 8")
    search.add_argument(
        "--folds", type=int, default=1, metavar="N", help="folds of 6,000 training images to evaluate on; default 1"
    )
    search.add_argument(
        "--finalists", type=int, default=4, metavar="N", help="candidates to retrain with fresh seeds; default 4"
    )
    search.add_argument("--pareto", action="store_true", help="optimize accuracy and number of parameters together")
    search.add_argument("--name", default="found", help="prefix of the candidates' names; default found")
    search.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the search itself; default 0")
    shared.settings("change the search space, e.g. --set width.high=12 (docs/search.md); repeatable")
    shared.workers()
    shared.execution(_SINGLE)
    shared.out("folder of the search", "runs/search")

    command("trials", _trials, "list the built-in trials: goals, results, changes")

    inspect, shared = command(
        "inspect", _inspect, "show layers, costs, receptive fields and budget verdict of a network"
    )
    inspect.add_argument("trial", metavar="TRIAL|FILE.py:NAME", help=_TRIAL_HELP + ", or an nn.Module in a file")
    inspect.add_argument("--input", type=_shape, metavar="CxHxW", help="input shape; default 1x28x28")
    inspect.add_argument("--max-parameters", type=int, metavar="N", help="budget; default: the trial's goal")
    shared.bytes("the trial's goal")
    inspect.add_argument("--format", choices=["table", "markdown", "csv", "latex"], default="table")
    shared.code()

    data, _ = command("data", _data, "describe the bundled data sets or your own data")
    data.add_argument("path", nargs="?", metavar="PATH", help=_DATA_HELP)
    data.add_argument(
        "--check", action="store_true", help="show the SHA-256 of each file and whether it is a published one"
    )
    data.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet with a row of images per class")

    new, shared = command("new", _new, "write a trial file for your own data, with a network sized to a budget")
    new.add_argument("file", metavar="FILE.py", help="file to write; must not exist")
    new.add_argument("--data", required=True, metavar="PATH", help=_DATA_HELP)
    new.add_argument("--max-parameters", type=int, default=20_000, metavar="N", help="budget; default 20000")
    shared.bytes("none")
    new.add_argument("--epochs", type=int, default=14, metavar="N", help="epochs; default 14")

    export, shared = command("export", _export, "export a run and verify the export on all test images")
    export.add_argument("run", metavar="RUN", help="run directory")
    export.add_argument("--to", required=True, metavar="TARGET", help="safetensors, onnx, tflite, c or page")
    export.add_argument(
        "-o", "--out", metavar="DIR", help="output directory; default: named after the run and the target"
    )
    export.add_argument("--type", choices=["float32", "int8"], help="arithmetic of c, onnx or tflite; default float32")
    export.add_argument(
        "--bits", type=int, metavar="N", help="of a weight in int8 code: 8, or 4 to halve the tables; default 8"
    )
    export.add_argument(
        "--lean", action="store_true", help="int8 code with as little memory as possible, for more work"
    )
    export.add_argument(
        "--max-ram", type=int, metavar="BYTES", help="int8 code that needs no more memory than this beside the image"
    )
    export.add_argument("--package", metavar="KIND", help="C files as a library: arduino, platformio or cmake")
    export.add_argument("--name", metavar="NAME", help="prefix of the C identifiers; default: from the trial's name")
    export.add_argument("--no-check", action="store_false", dest="check", help="write the files without verifying them")
    shared.code()

    predict, shared = command("predict", _predict, "classify image files with a finished run")
    predict.add_argument(
        "run", metavar="RUN|FILE", help="run directory, or a safetensors file written by smidgen export"
    )
    predict.add_argument("files", nargs="+", metavar="FILE")
    shared.code()

    report, shared = command(
        "report", _report, "write a report on runs: results, curves, tables, misclassified images, analysis"
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help=_RUNS_HELP)
    report.add_argument("-o", "--out", metavar="FILE", default="report.html", help="FILE.html or FILE.md")
    shared.code()

    bench, _ = command("bench", _bench, "measure training speed of the engines, in turn, in one process")
    bench.add_argument("--threads", type=int, metavar="N", help=_CORES)
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="measurements of each way; default 5")
    bench.add_argument("--profile", action="store_true", help="also show the native engine's time by layer")
    bench.add_argument("--variants", action="store_true", help="also compare variants of the eager engine")

    completion, _ = command("completion", _completion, "print the script with which a shell completes this command")
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,5}x\d{1,5}x\d{1,5}", text) or "0" in text.split("x"):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form CxHxW with 1 to 99999 each, as in 1x28x28")
    return tuple(int(side) for side in text.split("x"))


def _show(text: object) -> None:
    print(text, file=Results.stream())


def _print_json(data: object) -> None:
    _show(json.dumps(data, allow_nan=False))


def _run_options(options: argparse.Namespace) -> RunOptions:
    from dataclasses import fields

    from smidgen.runs.options import RunOptions

    return RunOptions(**{field.name: getattr(options, field.name) for field in fields(RunOptions)})


def _trial_changes(options: argparse.Namespace) -> dict[str, Any]:
    return {"data": options.data, "epochs": options.epochs, "settings": options.settings}


def _run(options: argparse.Namespace) -> int:
    from smidgen.runs.progress import best_progress
    from smidgen.runs.run import run

    finished = run(
        options.trial,
        seed=options.seed,
        **_trial_changes(options),
        out=options.out,
        resume=options.resume,
        options=_run_options(options),
        progress=best_progress(sys.stderr if options.json else sys.stdout),
    )
    if options.json:
        _print_json(finished.result.to_json())
    else:
        _show(f"run directory {finished.directory}")
    return MISSED if finished.goal_met is False else DONE


def _sweep(options: argparse.Namespace) -> int:
    from smidgen.sweeps.progress import best_sweep_progress
    from smidgen.sweeps.sweep import sweep

    finished = sweep(
        options.trials,
        options.seeds,
        **_trial_changes(options),
        folds=options.folds,
        shard=options.shard,
        options=_run_options(options),
        workers=options.workers,
        cluster=options.cluster,
        out=options.out,
        progress=best_sweep_progress(sys.stderr if options.json else sys.stdout),
    )
    if options.json:
        _print_json(finished.to_json())
    else:
        _show(finished)
    for job, error in finished.failures:
        print(f"smidgen: {job}: {error}", file=sys.stderr)
    if finished.failures:
        return USAGE_ERROR
    return MISSED if finished.goals_met is False else DONE


def _search(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from smidgen.searches.ask import Limits
    from smidgen.searches.search import SearchPlan, search
    from smidgen.sweeps.progress import best_sweep_progress

    found = search(
        options.base,
        plan=SearchPlan(**{field.name: getattr(options, field.name) for field in fields(SearchPlan)}),
        limits=Limits(options.max_parameters, options.max_macs, options.max_epochs, options.max_flash, options.max_ram),
        settings=options.settings,
        options=_run_options(options),
        workers=options.workers,
        cluster=options.cluster,
        out=options.out,
        progress=best_sweep_progress(sys.stderr if options.json else sys.stdout),
    )
    if options.json:
        _print_json(found.to_json())
    else:
        _show(found)
    return DONE


def _compare(options: argparse.Namespace) -> int:
    from smidgen.reports.compare import compare

    comparison = compare(options.runs, options.others)
    for note in comparison.notes:
        print(f"smidgen: {note}", file=sys.stderr)
    if options.json:
        _print_json(comparison.to_json())
    else:
        _show(comparison)
    return DONE


def _trials(options: argparse.Namespace) -> int:
    from smidgen.trials.listing import listing, listing_text

    if options.json:
        _print_json({"trials": listing()})
    else:
        _show(listing_text())
    return DONE


def _inspect(options: argparse.Namespace) -> int:
    from smidgen.inspection import inspect

    inspection = inspect(
        options.trial,
        input_shape=options.input,
        max_parameters=options.max_parameters,
        max_flash=options.max_flash,
        max_ram=options.max_ram,
    )
    if options.json:
        _print_json(inspection.to_json())
    else:
        _show(inspection.text(options.format))
        if options.format == "csv":  # which is the table alone
            for verdict in inspection.verdicts:
                print(f"smidgen: {verdict}", file=sys.stderr)
    return MISSED if inspection.within_budget is False else DONE


def _data(options: argparse.Namespace) -> int:
    from smidgen.data.describe import describe

    descriptions = describe(options.path, sheet=options.sheet)
    if options.json:
        _print_json({"datasets": [description.to_json() for description in descriptions]})
    else:
        _show("\n".join(description.text(hashes=options.check) for description in descriptions))
    return DONE


def _new(options: argparse.Namespace) -> int:
    from smidgen.trials.new import new_trial

    written = new_trial(
        options.file,
        data=options.data,
        max_parameters=options.max_parameters,
        epochs=options.epochs,
        max_flash=options.max_flash,
        max_ram=options.max_ram,
    )
    if options.json:
        _print_json(written.to_json())
    else:
        _show(written)
    return DONE


def _predict(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from smidgen.runs.predict import predict

    errors: dict[str, str] = {}
    predictions = predict(options.run, options.files, lambda file, error: errors.update({str(file): str(error)}))
    for error in errors.values():
        print(f"smidgen: {error}", file=sys.stderr)
    if options.json:
        shown: dict[str, Any] = {"predictions": [asdict(prediction) for prediction in predictions]}
        _print_json(shown | ({"error": next(iter(errors.values())), "errors": errors} if errors else {}))
    elif predictions:
        _show(predictions)
    return USAGE_ERROR if errors else DONE


def _export(options: argparse.Namespace) -> int:
    from smidgen.exports.export import export

    exported = export(
        options.run,
        options.to,
        options.out,
        type=options.type,
        bits=options.bits,
        lean=options.lean,
        max_ram=options.max_ram,
        package=options.package,
        name=options.name,
        check=options.check,
    )
    if options.json:
        _print_json(exported.to_json())
    else:
        _show(exported)
    return MISSED if exported.passed is False else DONE


def _report(options: argparse.Namespace) -> int:
    from smidgen.reports.report import report

    written = report(options.runs, options.out)
    for problem in written.problems:
        print(f"smidgen: left out: {problem}", file=sys.stderr)
    if options.json:
        _print_json(written.to_json())
    else:
        _show(f"report {written.path}")
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from smidgen.bench.measure import benchmark
    from smidgen.runs.progress import progress_bar

    with progress_bar(sys.stderr) as report:
        results = benchmark(options.threads, options.rounds, options.variants, report)
    if options.json:
        _print_json(results.to_json())
    else:
        _show(results)
    if options.profile:
        print("\n" + results.profiles(), file=sys.stderr if options.json else sys.stdout)
    return DONE


def _completion(options: argparse.Namespace) -> int:
    from smidgen.completion import completion_script

    script = completion_script(_parser(), options.shell)
    if options.json:
        _print_json({"shell": options.shell, "script": script})
    else:
        _show(script)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
