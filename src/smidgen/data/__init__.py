"""Data: reading IDX files, bundled MNIST, splits, augmentation."""
