"""The MNIST trials: the seed's three, restated exactly, and the flagship under the strict budgets.

The settings of the first three are those of the public notebooks behind the seed
(garima-mahato/ERA_V3, Session7, and ERA_V1, Session7_InDepthCodingPractice).
"""

from __future__ import annotations

from dataclasses import replace

from smidgen.schedules import OneCycle, Step
from smidgen.trial import SGD, Augmentation, AvgPool, Block, Conv, Goal, Linear, MaxPool, Network, Trial, separable

SEED_NETWORK = Network(
    order="activation-norm",
    blocks=(
        Conv(8),
        Conv(14),
        Conv(10, kernel=1, norm=False, activation="none"),
        MaxPool(2),
        Conv(14),
        Conv(16),
        Conv(20),
        AvgPool(),
        Conv(16, kernel=1, norm=False, activation="none"),
        Conv(None, kernel=1, norm=False, activation="none"),
    ),
)
"""The seed's network: 8,000 parameters, 1.07 million MACs, expand and squeeze."""


def skeleton() -> Trial:
    """Trial 1: find a network of the right size.

    Target: 99 % within 15 epochs with no more than 8,000 parameters, from a plain skeleton that
    widens before the pooling and squeezes with a 1×1 convolution after it.

    Result of the original (one seed): 99.27 % test accuracy, best and last epoch, at 99.58 % on
    the training images; 8,000 parameters.

    Analysis: a good start. The network can hold the task (40 epochs were said to reach 99.4 %),
    but it fits the training images better than the test images: it needs regularization.
    """
    return Trial(
        name="mnist-1-skeleton",
        note="a plain skeleton of the right size",
        goal=Goal(accuracy=99.0, parameters=8_000, epochs=15),
        network=SEED_NETWORK,
        optimizer=SGD(lr=0.01, momentum=0.9),
        batch_size=512,
        epochs=15,
    )


def regularized() -> Trial:
    """Trial 2: close the gap between training and test.

    Target: 99.4 % by dropout of 0.05 after each block, and reach it sooner by a learning rate of
    0.1 that falls to a tenth every 4 epochs.

    Result of the original (one seed): best test accuracy 99.38 % (epoch 12), last 99.33 %, at
    98.45 % on the training images under dropout.

    Analysis: the gap is gone and the accuracy steady above 99.3 %; the high rate gets there in a
    few epochs and the drops settle it. What is missing now is variety in the training images.
    """
    return replace(
        skeleton(),
        name="mnist-2-regularized",
        note="dropout, and a high learning rate that falls in steps",
        goal=Goal(accuracy=99.4, parameters=8_000, epochs=15),
        dropout=0.05,
        optimizer=SGD(lr=0.1, momentum=0.9),
        schedule=Step(every=4, factor=0.1),
        batch_size=128,
    )


def augmented() -> Trial:
    """Trial 3: more varied images.

    Target: 99.4 %, held over the last epochs, by random rotation, translation and scaling of the
    training images, and a later drop of the learning rate (every 8 epochs).

    Result of the original (one seed): best and last test accuracy 99.42 %, at 98.48 % on the
    distorted training images.

    Analysis: distortion makes training harder and the test easier. The original credits part of
    the gain to going from batches of 512 to 128; its log shows that trial 2 had 128 already.
    """
    return replace(
        regularized(),
        name="mnist-3-augmented",
        note="rotation, translation and scaling; the learning rate falls later",
        augmentation=Augmentation(rotation=20, translation=0.1, scale=0.1, interpolation="nearest"),
        schedule=Step(every=8, factor=0.1),
    )


def strict() -> Trial:
    """Trial 4, the flagship: fewer than 8,000 parameters and fewer than 15 epochs, strictly.

    Target: 99.4 % by the last epoch with at most 7,999 parameters and 14 epochs, for every seed, and a
    mean of 99.6 %.

    Result: 99.576 ± 0.039 % over 32 seeds, every one at 99.50 % or above, with 7,754 parameters
    (docs/results.md). The goal is met by every seed; the mean of 99.6 % is missed by 0.02 points.

    Analysis: separable convolutions are what counts. For the parameters of full ones they buy layers
    more than twice as wide, at fewer MACs; on held-out training images that took 15 % off the loss of
    the flagship before it (10-10-10-pool-14-14-16), where deeper networks, other rates, decay and
    distortions moved nothing (docs/log.md). No BatchNorm and ReLU stand between the two halves of a
    separable convolution, and pooling takes means. The last 5 % of the last epoch measure BatchNorm's
    statistics on undistorted images. Training accuracy, on distorted images, ends at 99.55 %, so a better fit alone
    would not help much.
    """
    return replace(
        augmented(),
        name="mnist-4-strict",
        note="separable convolutions, a one-cycle rate, averaged weights, clean statistics",
        goal=Goal(accuracy=99.4, parameters=7_999, epochs=14),
        network=_separable_network(Conv(16), (24, 24), (40, 40, 48)),
        augmentation=Augmentation(rotation=8, translation=0.06, scale=0.08, shear=0.12, interpolation="bilinear"),
        dropout=0.0,
        optimizer=SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=OneCycle(rise=0.2, start=0.1, final=1e-4),
        batch_size=64,
        epochs=14,
        averaging=0.999,
        recalibration=0.05,
    )


def tiny() -> Trial:
    """Trial 5: as few parameters as 99.4 % can be had with.

    Target: a mean of 99.4 % by the last epoch, with at most 3,000 parameters and 14 epochs.

    Result: 99.479 ± 0.055 % over 32 seeds, 29 of them at 99.40 % or above, the least 99.38 %, with 2,962
    parameters (docs/results.md).

    Analysis: the flagship, narrower, with less distortion, for a small network has less to spare. Full
    convolutions need 4,566 parameters for as much; a 5×5 kernel first, a fourth layer before the pooling
    or depthwise 5×5 kernels were no better on held-out training images (docs/log.md). There is room
    below: 2,290 parameters promised 99.40 to 99.42 %.
    """
    return replace(
        strict(),
        name="mnist-tiny",
        note="99.4 % in as few parameters as can be",
        goal=Goal(accuracy=99.4, parameters=3_000, epochs=14),
        network=_separable_network(Conv(10), (14, 14), (20, 24, 24)),
        augmentation=Augmentation(rotation=6, translation=0.045, scale=0.06, interpolation="bilinear"),
    )


def tiny_99() -> Trial:
    """Trial 6: as few parameters as 99 % can be had with.

    Target: a mean of 99 % by the last epoch, with at most 1,500 parameters and 14 epochs.

    Result: 99.239 ± 0.062 % over 32 seeds, the least 99.13 %, with 1,464 parameters (docs/results.md).

    Analysis: at this size a 5×5 kernel first is worth its price, and what is trained on fits hardly
    better than what is not, so distortion is kept small. The result leaves room for about a third fewer
    parameters. 99 % with 697 is known from 2,000 epochs and the best of hundreds of runs; in 14 epochs, in
    the mean, 634 parameters in layers that share weights promised about 98.7 % (docs/log.md).
    """
    return replace(
        tiny(),
        name="mnist-tiny-99",
        note="99 % in as few parameters as can be",
        goal=Goal(accuracy=99.0, parameters=1_500, epochs=14),
        network=_separable_network(Conv(6, kernel=5), (10, 12), (16, 16)),
        augmentation=Augmentation(rotation=5, translation=0.03, scale=0.05, interpolation="bilinear"),
    )


def sprint() -> Trial:
    """Trial 7: the shortest way to 99.4 %.

    Target: a mean of 99.4 % by the last epoch, in the fewest seconds on 2 cores, with at most 7,999
    parameters.

    Result: 99.470 ± 0.050 % over 32 seeds, 30 of them at 99.40 % or above, the least 99.39 %, in 6 epochs
    and 7.6 seconds (median; 6.3 to 10.1) with evaluations, on 2 cores with bfloat16 (docs/results.md).

    Analysis: most of a run's time goes into the large first values, so this network has one layer before
    the pooling, with a 5×5 kernel that looks far enough, and spends the rest after it. Its higher rate and shorter
    average of weights are those of fewer steps. Separable convolutions throughout would have half the MACs and
    take as long: they wait for memory (docs/log.md).
    """
    return replace(
        strict(),
        name="mnist-sprint",
        note="99.4 % in as few seconds as can be",
        goal=Goal(accuracy=99.4, parameters=7_999, epochs=6),
        network=Network(
            blocks=(
                Conv(8, kernel=5),
                AvgPool(2),
                Conv(18),
                Conv(24),
                *separable(24, 48),
                AvgPool(),
                Linear(),
            ),
            order="norm-activation",
        ),
        augmentation=Augmentation(rotation=6, translation=0.05, scale=0.07, interpolation="bilinear"),
        optimizer=SGD(lr=0.3, momentum=0.9, nesterov=True, weight_decay=1e-4),
        epochs=6,
        averaging=0.996,
    )


def _separable_network(first: Conv, before: tuple[int, ...], after: tuple[int, ...]) -> Network:
    """A full convolution, separable ones of so many channels before and after the only pooling, a linear layer."""
    blocks: list[Block] = [first]
    channels = first.channels or 0
    for stage in (before, after):
        if stage is after:
            blocks.append(AvgPool(2))
        for outputs in stage:
            blocks += separable(channels, outputs)
            channels = outputs
    return Network((*blocks, AvgPool(), Linear()), "norm-activation")
