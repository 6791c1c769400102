"""The report of any runs: what stands in it, in order."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from smidgen.anatomy.layers import examine_trial
from smidgen.reports import charts, pictures
from smidgen.reports.analysis import analyse
from smidgen.reports.answers import answers
from smidgen.reports.collect import Collection, TrialRuns
from smidgen.reports.compare import base_of, bases
from smidgen.reports.document import (
    Block,
    Bullets,
    Chart,
    Code,
    Document,
    Gallery,
    Heading,
    Paragraph,
    Picture,
    Table,
    counted,
)
from smidgen.runs.directory import RunDirectory, RunFiles
from smidgen.runs.progress import epoch_line
from smidgen.runs.record import Run
from smidgen.settings import with_settings
from smidgen.trial import BUDGETS, Trial
from smidgen.trials.builtin import BUILTIN
from smidgen.trials.listing import changes
from smidgen.verdict import percent


def write(collection: Collection) -> Document:
    """The whole report.

    Args:
        collection: at least one trial with at least one run.
    """
    groups = collection.trials
    document = Document(_title(groups), _verdict(groups))
    blocks = document.blocks
    if collection.problems:
        blocks.append(Paragraph("Left out:"))
        blocks.append(Bullets(collection.problems))
    blocks += [Heading("Summary"), _summary(groups)]
    if len(groups) > 1 or len(groups[0].runs) > 1:
        rows = "; ".join(f"{g.label}: {_mean_sd(g.last)} %" for g in groups)
        caption = "Accuracy after the last epoch: every run, and the mean of each trial"
        blocks.append(Chart("distribution", charts.distribution(groups), f"{caption}. {rows}.", caption))
    if len(groups) > 2:
        blocks.append(_front(groups))
    for group in groups:
        blocks += _chapter(group, base_of(group, groups))
    return document


def _front(groups: Sequence[TrialRuns]) -> Chart:
    points = [charts.Point(g.runs[0].result.parameters, statistics.mean(g.last), g.label) for g in groups]
    caption = "Mean accuracy after the last epoch against parameters; the line is the Pareto front"
    rows = "; ".join(f"{p.label}: {p.parameters:,} parameters, {p.accuracy:.3f} %" for p in points)
    what = f"{groups[0].held_out} accuracy after the last epoch (%)"
    return Chart("front", charts.front(points, what, "front"), f"{caption}. {rows}.", caption)


def _title(groups: Sequence[TrialRuns]) -> str:
    if len(groups) == 1:
        return f"{groups[0].label}: {groups[0].trial.note}" if groups[0].trial.note else groups[0].label
    return f"{len(groups)} trials, {groups[0].label} to {groups[-1].label}"


def _verdict(groups: Sequence[TrialRuns]) -> str:
    parts = []
    for group in groups:
        verdicts = [run.goal_met for run in group.runs]
        if None in verdicts:
            parts.append(f"{group.label}: goal open, evaluated on the {group.held_out} split")
        else:
            met = sum(map(bool, verdicts))
            parts.append(f"{group.label}: goal met by {met} of {counted(len(verdicts), 'run')}")
    return "; ".join(parts) + "."


def _summary(groups: Sequence[TrialRuns]) -> Table:
    columns = [
        "trial", "target", "evaluated on", "last epoch, mean ± s.d. (%)", "runs", "min", "runs at the goal",
        "best epoch, mean (chosen on the same images)", "training (%)", "parameters", "epochs",
        "seconds", "engine",
    ]  # fmt: skip
    rows = []
    for group in groups:
        goal, first = group.trial.goal, group.runs[0].result
        verdicts = [run.goal_met for run in group.runs]
        rows.append([
            group.label,
            f"{goal.accuracy:g} %, at most {goal.budgets_text}",
            f"{Path(group.trial.data.source).name}, {group.held_out}",
            _mean_sd(group.last),
            str(len(group.runs)),
            _cut(min(group.last)),
            "open" if None in verdicts else f"{sum(map(bool, verdicts))}/{len(verdicts)}",
            f"{statistics.mean(group.best):.3f}",
            f"{statistics.mean(run.history[-1].train_accuracy for run in group.runs):.2f}",
            f"{first.parameters:,}",
            f"{len(group.runs[0].history)}",
            f"{statistics.median(run.result.seconds_training for run in group.runs):.0f}",
            _engines(group),
        ])  # fmt: skip
    return Table("The trials: targets and results", columns, rows, left=3)


def _chapter(group: TrialRuns, base_runs: TrialRuns | None) -> list[Block]:
    trial = group.trial
    blocks: list[Block] = [Heading(group.label)]
    blocks += _story(trial)
    base = base_runs.trial if base_runs else _builtin_base(trial)
    if base is not None:
        differences = changes(base, trial)
        name = base_runs.label if base_runs else f"the built-in {base.name}"
        blocks.append(Heading(f"What changed from {name}", 3))
        blocks.append(Bullets(differences) if differences else Paragraph("Nothing but the name."))
    blocks += [Heading("Analysis", 3), Bullets(analyse(group, base_runs))]
    blocks += [Heading("Curves", 3), _curves(group)]
    blocks += _network(group)
    blocks += [Heading("Epochs", 3)]
    for run in group.runs:
        lines = "\n".join(epoch_line(record, len(run.history), group.held_out) for record in run.history)
        reached = percent(run.history[-1].test_correct, run.history[-1].test_total)
        title = f"seed {run.seed}: {reached} % after the last epoch"
        blocks.append(Code(lines, title, folded=len(group.runs) > 1))
    blocks += _images(group)
    blocks += _environment(group)
    return blocks


def _story(trial: Trial) -> list[Block]:
    """Target, result and analysis of a built-in trial; the note of any other."""
    builtin = BUILTIN.get(trial.name)
    if builtin is None or builtin.make().recipe_digest != trial.recipe_digest:
        return [Paragraph(trial.note)] if trial.note else []
    return [Paragraph(paragraph) for paragraph in builtin.story.paragraphs]


def _builtin_base(trial: Trial) -> Trial | None:
    """The built-in trial that a trial was made from, if it is one."""
    names = bases(trial)
    return BUILTIN[names[0]].make() if names and names[0] in BUILTIN else None


def _curves(group: TrialRuns) -> Chart:
    last = [run.history[-1] for run in group.runs]
    alt = (
        f"Four panels against the epoch: training loss with the learning rate, training accuracy, {group.held_out} "
        f"loss, {group.held_out} accuracy with the target. By the last epoch: training loss "
        f"{statistics.mean(r.train_loss for r in last):.4f}, training accuracy "
        f"{statistics.mean(r.train_accuracy for r in last):.2f} %, {group.held_out} loss "
        f"{statistics.mean(r.test_loss for r in last):.4f}, {group.held_out} accuracy {_mean_sd(group.last)} %."
    )
    runs = len(group.runs)
    lines = f"Thick: the mean of {runs} runs. Band: from the lowest to the highest." if runs > 1 else "Thick: the run."
    thin = " Thin: each run." if 1 < runs <= charts.MOST_LINES else ""
    caption = f"{lines}{thin} Dashed: the target. Violet: the learning rate."
    return Chart(f"curves-{group.label}", charts.curves(group), alt, caption)


def _network(group: TrialRuns) -> list[Block]:
    trained = group.runs[0].trained
    anatomy = examine_trial(group.trial, trained.input_shape, trained.classes)
    layers = Table(
        "Layers",
        ["layer", "type", "output", "parameters", "MACs", "activations (bytes)"],
        [
            [
                x.name,
                x.type,
                _times(x.output_shape),
                f"{x.parameters:,}",
                x.macs_text,
                f"{x.activation_bytes:,}",
            ]
            for x in anatomy.layers
        ],
        left=2,
    )
    seeing = [x for x in anatomy.layers if x.kernel or x.macs or x.uncounted]
    fields = Table(
        "Receptive fields",
        ["layer", "kernel", "input", "output", "receptive field", "jump", "start"],
        [
            [
                f"{x.name} ({x.type})",
                f"{x.kernel[0]}x{x.kernel[1]}" if x.kernel else "-",
                _times(x.input_shape),
                _times(x.output_shape),
                f"{x.receptive_field[0]}x{x.receptive_field[1]}" if x.receptive_field else "unknown",
                f"{x.jump[0]:g}" if x.jump else "-",
                f"{x.start[0]}" if x.start else "-",
            ]
            for x in seeing
        ],
    )
    budgets = []
    for name, limit in group.trial.goal.budgets.items():
        if name != "epochs":
            used = group.runs[0].result.used[name]
            spare = f"{limit - used:,} below" if used <= limit else f"{used - limit:,} above"
            budgets.append(f"{spare} the budget of {limit:,} {BUDGETS[name]}")
    totals = Paragraph(f"{'; '.join([*anatomy.totals().splitlines(), *budgets])}.")
    return [Heading("Network", 3), layers, totals, fields]


def _images(group: TrialRuns) -> list[Block]:
    if group.dataset is None:
        return [Paragraph(f"Without the data there are no images to show: {group.dataset_problem}.")]
    blocks: list[Block] = [*_data(group), *answers(group)]
    typical = group.typical
    before, after = pictures.contact_sheet(group.dataset, group.trial, typical.seed)
    blocks.append(Heading("Training images", 3))
    note = "augmented" if group.trial.augmentation.is_on else "unchanged"
    name, seen = f"sheet-{group.label}", f"As the network saw them, seed {typical.seed}, epoch 1"
    alts = ("Training images as they are in the data", f"The same images {note}, as the network saw them")
    blocks.append(
        Gallery(
            (
                Picture(f"{name}-before", before, alts[0], "In the data", 480),
                Picture(f"{name}-after", after, alts[1], seen, 480),
            )
        )
    )
    kernels = pictures.filters(typical.network)
    if kernels is not None:
        content, count = kernels
        signs = "light: positive, dark: negative" + (", in each colour" if group.dataset.input_shape[0] == 3 else "")
        caption = f"The {count} kernels of the first convolution, seed {typical.seed}; {signs}"
        blocks += [
            Heading("First layer", 3),
            Picture(f"filters-{group.label}", content, caption, caption, 480),
        ]
    return blocks


def _data(group: TrialRuns) -> list[Block]:
    """Facts about the images and their preprocessing."""
    data, augmentation = group.dataset, group.trial.augmentation
    assert data is not None
    shape = _times(data.input_shape)
    mirrored = f"{augmentation.flip:.0%} of them are mirrored" if augmentation.flip else "none are mirrored"
    lines = [
        f"{len(data.train):,} training and {len(data.held_out):,} {group.held_out} images of {shape}, "
        f"{data.classes} classes" + (f": {', '.join(data.class_names)}" if 0 < len(data.class_names) <= 20 else ""),
        f"normalized by mean {data.mean:.4f} and standard deviation {data.std:.4f} of the training images"
        + (", all channels together" if data.input_shape[0] > 1 else ""),
        f"training images are {'augmented' if augmentation.is_on else 'not augmented'}; {mirrored}",
        *data.survey.lines,
    ]
    return [Heading("Data", 3), Bullets(lines)]


def _environment(group: TrialRuns) -> list[Block]:
    facts = RunDirectory(group.typical.directory).read_json(RunFiles.ENVIRONMENT)
    kept = [
        "smidgen",
        "torch",
        "numpy",
        "python",
        "system",
        "machine",
        "cpu",
        "instruction_level",
        "engine",
        "precision",
        "device",
        "threads",
    ]
    rows = [[name, str(facts[name])] for name in kept if name in facts]
    rows += [["weights_sha256, seed " + str(run.seed), run.result.weights_sha256] for run in group.runs]
    return [
        Heading("Environment", 3),
        Table("What the runs were made with", ["what", "value"], rows, left=2),
        *([Bullets(group.notes)] if group.notes else []),
        Paragraph("To repeat them:"),
        Code("\n".join(_command(group.trial, run) for run in group.runs)),
    ]


def _command(trial: Trial, run: Run) -> str:
    builtin = BUILTIN.get(trial.name)
    name = str(run.directory / RunFiles.TRIAL)
    if builtin is not None:
        changed = [f"epochs={trial.epochs}", f"data.evaluate={trial.data.evaluate}"]
        if builtin.make().recipe_digest == trial.recipe_digest:
            name = trial.name
        elif with_settings(builtin.make(), changed).recipe_digest == trial.recipe_digest:
            name = " ".join([trial.name, *(f"--set {change}" for change in changed)])
    shown = name if name.startswith(trial.name) else shlex.quote(name)
    result = run.result
    options = f"--seed {run.seed} --threads {result.threads} --engine {result.engine}"
    if result.precision != "fp32":
        options += f" --precision {result.precision}"
    return f"smidgen run {shown} {options}"


def _engines(group: TrialRuns) -> str:
    return ", ".join(sorted({f"{_engine(r)}, {r.result.threads} thread(s)" for r in group.runs}))


def _engine(run: Run) -> str:
    """The engine, with its precision where that is not float32."""
    engine, precision = run.result.engine, run.result.precision
    return engine + ("" if precision == "fp32" else f" with {precision} products")


def _mean_sd(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _cut(values[0])
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _cut(accuracy: float) -> str:
    """Two decimals, cut and not rounded up, as everywhere else."""
    return f"{int(accuracy * 100 + 1e-6) / 100:.2f}"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "-"
