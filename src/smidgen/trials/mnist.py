"""The MNIST trials: the seed's three, restated exactly, and the flagship under the strict budgets.

The settings of the first three are those of the public notebooks behind the seed
(garima-mahato/ERA_V3, Session7, and ERA_V1, Session7_InDepthCodingPractice).
"""

from __future__ import annotations

from dataclasses import replace

from smidgen.trial import (
    SGD,
    Augmentation,
    AvgPool,
    Conv,
    Goal,
    Linear,
    MaxPool,
    Network,
    OneCycle,
    Step,
    Trial,
)

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

    Target: 99.4 % by the last epoch with at most 7,999 parameters and 14 epochs, for every seed.

    Result: 99.52 ± 0.05 % over 20 seeds, 19 of them at 99.40 % or above, the least 99.39 %
    (docs/results.md); 7,248 parameters.

    Analysis: three convolutions before the only pooling, BatchNorm before the activation, and one
    linear layer at the end spend the parameters better than the seed's squeezes. A one-cycle rate
    and averaged weights make the last epoch the best or nearly so, so nothing hangs on choosing an
    epoch. Training accuracy on the distorted images (99.33 %) stays below test accuracy: what is
    left is generalization, not training. The recipe was chosen on the validation split
    (docs/log.md); the network and most settings come from an exploratory search that had also
    looked at the test set, so some of its luck may be in them.
    """
    return replace(
        augmented(),
        name="mnist-4-strict",
        note="three convolutions before the pooling, a one-cycle rate, averaged weights",
        goal=Goal(accuracy=99.4, parameters=7_999, epochs=14),
        network=Network(
            order="norm-activation",
            blocks=(
                Conv(10),
                Conv(10),
                Conv(10),
                MaxPool(2),
                Conv(14),
                Conv(14),
                Conv(16),
                AvgPool(),
                Linear(),
            ),
        ),
        augmentation=Augmentation(rotation=10, translation=0.07, scale=0.1, interpolation="bilinear"),
        dropout=0.0,
        optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=OneCycle(rise=0.2, start=0.1, final=1e-4),
        batch_size=64,
        epochs=14,
        averaging=0.999,
    )
