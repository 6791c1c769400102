"""The Fashion-MNIST trial: clothes instead of digits, at the same size."""

from __future__ import annotations

from smidgen.trial import SGD, Augmentation, AvgPool, Conv, Data, Goal, Linear, MaxPool, Network, OneCycle, Trial


def small() -> Trial:
    """Clothes in at most 20,000 parameters and 14 epochs.

    Target: 92.5 % of Fashion-MNIST's test images by the last epoch.

    Result: 92.49 ± 0.16 % over 8 seeds, 4 of them at 92.50 % or above (docs/results.md): missed in the
    mean by a hundredth of a point.

    Analysis: the network is the flagship's idea with padding and a third stage, 18,554 parameters. Of
    four recipes tried on the validation split, seed 0, it did best (92.83 %; docs/log.md), though
    one seed each hardly ranks them. Images are only mirrored, for clothes are the same either way round;
    the moves and scales that help digits brought nothing here. Training accuracy ends 1.8 points above
    test accuracy, so what is left is generalization.
    """
    return Trial(
        name="fashion-small",
        note="Fashion-MNIST, three padded stages, mirrored images",
        goal=Goal(accuracy=92.5, parameters=20_000, epochs=14),
        data=Data(source="fashion-mnist", form="picture"),
        network=Network(
            blocks=(
                Conv(16, padding=1),
                Conv(16, padding=1),
                MaxPool(2),
                Conv(24, padding=1),
                Conv(24, padding=1),
                MaxPool(2),
                Conv(32, padding=1),
                AvgPool(),
                Linear(),
            ),
        ),
        augmentation=Augmentation(flip=0.5),
        optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=3e-4),
        schedule=OneCycle(rise=0.2, start=0.1, final=1e-4),
        batch_size=64,
        epochs=14,
        averaging=0.999,
    )
