"""Analysis that is computed: sentences that follow from figures by stated rules.

Each rule is a function of plain figures, so that its boundary can be tested.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from smidgen.data.parts import label_name
from smidgen.errors import RunError
from smidgen.reports.collect import TrialRuns, binomial_sd
from smidgen.reports.compare import bases, compare_trials
from smidgen.reports.document import counted
from smidgen.training.loop import EpochRecord
from smidgen.trial import Trial
from smidgen.verdict import images_needed

OVERFIT_GAP = 0.3
"""Points by which training accuracy must be above held-out accuracy to be called overfitting."""
UNDERFIT_GAP = 0.3
"""Points by which training accuracy without augmentation must be below the target to be called underfitting."""
FAR_BELOW = 1.0
"""Points below the target from which a network that does not overfit counts as too weak."""
LAST_EPOCHS = 4
"""How many epochs at the end are looked at for stability."""
STEADY = 1.0
"""Spread over the last epochs, in units of the binomial noise, up to which it is called steady."""
DROP = 0.5
"""A learning rate that falls to this share of the last epoch's, or below, is a drop."""
STEADY_RATE = 0.99
"""A learning rate of at least this share of the last epoch's is steady."""


def analyse(group: TrialRuns, base: TrialRuns | None = None) -> list[str]:
    """Sentences on one trial's runs.

    Args:
        group: the runs.
        base: the runs of the trial that it was made from, to be compared with.
    """
    trial = group.trial
    train = statistics.mean(run.history[-1].train_accuracy for run in group.runs)
    held_out = statistics.mean(group.last)
    sentences = [fit_sentence(train, held_out, trial, group.held_out)]
    if group.held_out == "test":
        firsts = [
            held_from([r.test_correct for r in run.history], _needed(run.history[-1], trial)) for run in group.runs
        ]
        sentences.append(goal_sentence(firsts, trial))
    sentences.append(stability_sentence([run.history for run in group.runs]))
    sentences += drop_sentences([run.history for run in group.runs])
    if group.predictions:
        names = group.runs[0].trained.class_names
        sentences.append(pairs_sentence([(group.labels, p.classes) for p in group.predictions], names))
    if base is not None:
        sentences.append(comparison_sentence(group, base))
    elif made_from := bases(trial):
        sentences.append(f"{made_from[0]}, the trial that it was made from, is not in this report: no comparison.")
    return [sentence for sentence in sentences if sentence]


def fit_sentence(train: float, held_out: float, trial: Trial, split: str) -> str:
    """A sentence on the gap between training and held-out accuracy.

    Args:
        train: mean training accuracy of the last epoch, percent, as the images were seen.
        held_out: mean held-out accuracy of the last epoch, percent.
        trial: says whether augmentation or dropout was on.
        split: test or validation.
    """
    gap = train - held_out
    harder = [
        name
        for name, on in (
            ("augmentation", trial.augmentation.is_on),
            ("dropout", trial.dropout),
        )
        if on
    ]
    seen = f"Training accuracy {train:.2f} %, {split} accuracy {held_out:.2f} %: a gap of {gap:+.2f} points"
    if gap > OVERFIT_GAP:
        despite = f", even with {' and '.join(harder)}" if harder else ""
        return f"{seen}{despite}: the network overfits; more augmentation or regularization may help."
    if harder:
        verdict = "no sign of overfitting"
        if held_out < trial.goal.accuracy - FAR_BELOW:
            verdict += ", but both are far below the target: the network underfits, or trained too short"
        return f"{seen}, where training is measured with {' and '.join(harder)}, which lowers it: {verdict}."
    if train < trial.goal.accuracy - UNDERFIT_GAP:
        return f"{seen}, and training itself stays below the target: the network underfits."
    return f"{seen}: neither over- nor underfitting stands out."


def held_from(correct: Sequence[int], needed: int) -> tuple[int | None, int | None]:
    """The epoch (from 1) at which the target was first met, and from which it was held to the end."""
    met = [count >= needed for count in correct]
    first = met.index(True) + 1 if True in met else None
    if not met or not met[-1]:
        return first, None
    held = len(met)
    while held > 1 and met[held - 2]:
        held -= 1
    return first, held


def goal_sentence(firsts: Sequence[tuple[int | None, int | None]], trial: Trial) -> str:
    """At which epoch the target was first met, and held, over the seeds."""
    first = [f for f, _ in firsts if f is not None]
    held = [h for _, h in firsts if h is not None]
    target = f"the target of {trial.goal.accuracy:g} %"
    if not first:
        return f"No epoch reached {target}, in {counted(len(firsts), 'run')}."
    text = f"{len(first)} of {counted(len(firsts), 'run')} reached {target}, first in epoch {_range(first)}"
    if not held:
        return f"{text}; none held it to the last epoch."
    return f"{text}; {len(held)} held it to the end, from epoch {_range(held)} on."


def stability_sentence(histories: Sequence[Sequence[EpochRecord]]) -> str:
    """The spread over the last epochs against the noise that so many images have anyway."""
    tails = [history[-LAST_EPOCHS:] for history in histories if len(history) >= LAST_EPOCHS]
    if not tails:
        return ""
    spread = statistics.mean(statistics.stdev(r.test_accuracy for r in tail) for tail in tails)
    last = tails[0][-1]
    mean = statistics.mean(tail[-1].test_accuracy for tail in tails)
    noise = binomial_sd(mean, last.test_total)
    if noise == 0:
        return ""
    verdict = "steady" if spread <= STEADY * noise else "still moving more than noise explains"
    return (
        f"Over the last {LAST_EPOCHS} epochs the accuracy of a run varies by {spread:.3f} points (s.d.); "
        f"resampling the {last.test_total:,} images would vary it by {noise:.3f}: {verdict}."
    )


def drop_sentences(histories: Sequence[Sequence[EpochRecord]]) -> list[str]:
    """Sentences on the effect of each drop of the learning rate, averaged over seeds."""
    first = histories[0]
    sentences = []
    # The first two epochs show whether the rate was steady to begin with.
    for i in range(2, len(first)):
        before, after = first[i - 1].learning_rate, first[i].learning_rate
        # A schedule that falls all the time has no drops; a drop has a steady rate before and after it.
        falling = before < STEADY_RATE * first[i - 2].learning_rate
        smooth = falling or (i + 1 < len(first) and first[i + 1].learning_rate < STEADY_RATE * after)
        if after > DROP * before or smooth or any(len(history) != len(first) for history in histories):
            continue
        change = statistics.mean(h[i].test_accuracy - h[i - 1].test_accuracy for h in histories)
        sentences.append(
            f"The drop of the learning rate from {before:g} to {after:g} at epoch {i + 1} changed the accuracy by "
            f"{change:+.2f} points."
        )
    return sentences


def pairs_sentence(
    judged: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    class_names: Sequence[str] = (),
    most: int = 3,
) -> str:
    """The most frequently confused pairs of classes, in images per run.

    Args:
        judged: labels and predictions of each run.
        class_names: of each label, if they have any.
        most: how many pairs are named.
    """
    counts: dict[tuple[int, int], int] = {}
    errors = 0
    for labels, predictions in judged:
        for a, b in zip(labels[labels != predictions], predictions[labels != predictions], strict=True):
            pair = (min(int(a), int(b)), max(int(a), int(b)))
            counts[pair] = counts.get(pair, 0) + 1
            errors += 1
    if not errors:
        return "No image is misclassified."
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    named = ", ".join(
        f"{label_name(class_names, a)} and {label_name(class_names, b)} ({count / len(judged):.1f})"
        for (a, b), count in top
    )
    share = sum(count for _, count in top) / errors
    return (
        f"{errors / len(judged):.1f} images are misclassified per run; the most frequent confusions are {named}: "
        f"{share:.0%} of all errors."
    )


def comparison_sentence(group: TrialRuns, base: TrialRuns) -> str:
    """A sentence that compares a trial with the one it was derived from."""
    try:
        return str(compare_trials(group, base))
    except RunError as error:
        return f"Not compared with {base.label}: {error}."


def _needed(record: EpochRecord, trial: Trial) -> int:
    return images_needed(trial.goal.accuracy, record.test_total)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
