"""Hold out images for validation: the arrays of `configs/data/cifar10_arrays_split.yaml`.

    python benchmarks/split_arrays.py ARRAYS SPLIT

The last 1,000 training images and the last of all outliers are for validation. The other files are
linked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

INLIERS = 49_000
OUTLIERS = 61_000
OUTLIER_FILES = ("outliers_tinyimagenet.npz", "outliers_tinyimagenet_more.npz")
TESTED = (
    "cifar10_test.npz",
    "cifar100_test.npz",
    "tinyimagenet_val.npz",
    "svhn_test.npz",
    "dtd10.npz",
    "miniplaces_test.npz",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arrays", type=Path, help="folder of the arrays")
    parser.add_argument("split", type=Path, help="folder to write")
    options = parser.parse_args()
    options.split.mkdir(parents=True, exist_ok=True)
    train = np.load(options.arrays / "cifar10_train.npz")
    images = train["images"]
    labels = train["labels"]
    for name, part in (("train_49000", slice(INLIERS)), ("validation_1000", slice(INLIERS, None))):
        path = options.split / f"cifar10_{name}.npz"
        np.savez(path, images=images[part], labels=labels[part])
    outliers = np.concatenate([np.load(options.arrays / name)["images"] for name in OUTLIER_FILES])
    np.savez(options.split / "outliers_61000.npz", images=outliers[:OUTLIERS])
    np.savez(options.split / "outliers_validation_440.npz", images=outliers[OUTLIERS:])
    for name in TESTED:
        link = options.split / name
        if not link.exists():
            link.symlink_to((options.arrays / name).resolve())
    print(f"wrote {options.split}")


if __name__ == "__main__":
    main()
