"""The Fashion-MNIST trial: clothes instead of digits, at the same size."""

from __future__ import annotations

from smidgen.schedules import OneCycle
from smidgen.trial import SGD, Augmentation, AvgPool, Conv, Data, Goal, Linear, MaxPool, Network, Trial, separable


def small() -> Trial:
    """Clothes in at most 20,000 parameters and 14 epochs.

    Target: 92.5 % of Fashion-MNIST's test images by the last epoch.

    Result: 92.90 ± 0.19 % over 8 seeds, every one at 92.50 % or above, the least 92.68 % (docs/results.md).

    Analysis: the network is the flagship's idea, separable convolutions, with padding and a third stage.
    With full convolutions as many parameters buy narrower layers, and 0.4 points less (92.49 %). It was
    chosen on the validation split: 93.48 % over two seeds, against 92.83 % of the one seed of the network
    before it (docs/log.md). Images are only mirrored, for clothes are the same either way round; moving
    them, with more weight decay, cost 0.8 points there. Training accuracy ends 1.5 points above test
    accuracy, so what is left is generalization.
    """
    return Trial(
        name="fashion-small",
        note="Fashion-MNIST, separable convolutions in three padded stages, mirrored images",
        goal=Goal(accuracy=92.5, parameters=20_000, epochs=14),
        data=Data(source="fashion-mnist", form="picture"),
        network=Network(
            blocks=(
                Conv(24, padding=1),
                *separable(24, 40, padding=1),
                MaxPool(2),
                *separable(40, 56, padding=1),
                *separable(56, 56, padding=1),
                MaxPool(2),
                *separable(56, 68, padding=1),
                *separable(68, 80, padding=1),
                AvgPool(),
                Linear(),
            ),
        ),
        augmentation=Augmentation(flip=0.5),
        optimizer=SGD(lr=0.2, momentum=0.9, nesterov=True, weight_decay=3e-4),
        schedule=OneCycle(rise=0.2, start=0.1, final=1e-4),
        batch_size=64,
        epochs=14,
        averaging=0.999,
        recalibration=0.05,
    )
