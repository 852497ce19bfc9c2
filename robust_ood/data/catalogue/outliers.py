"""Auxiliary outliers to train with."""

from __future__ import annotations

from robust_ood.data.catalogue import layouts
from robust_ood.data.catalogue.entry import CatalogueEntry, DatasetPart, Link

RANDOM_IMAGES = CatalogueEntry(
    name="300k-random",
    title="300K Random Images",
    roles=("outliers",),
    licence="none stated; a cleaned part of 80 Million Tiny Images",
    homepage="https://github.com/hendrycks/outlier-exposure",
    links=(
        Link(
            "300K_random_images.npy",
            ("https://people.eecs.berkeley.edu/~hendrycks/300K_random_images.npy",),
            "64ca64357de98351f28454274a112dc3",
            unpack=False,
        ),
    ),
    parts={
        "all": DatasetPart(
            "300K_random_images.npy", layouts.array("300K_random_images.npy"), 300_000
        )
    },
    default="all",
    manual="put 300K_random_images.npy there",
    note=(
        "it replaces 80 Million Tiny Images, with which the papers trained; "
        "it needs other hyper-parameters"
    ),
)

TINY_IMAGES = CatalogueEntry(
    name="80m-tiny",
    title="80 Million Tiny Images",
    roles=("outliers",),
    licence="withdrawn by its authors in 2020, who ask not to use or pass it on",
    homepage="https://groups.csail.mit.edu/vision/TinyImages/",
    links=(),
    parts={
        "all": DatasetPart(
            "tiny_images.bin", layouts.tiny_images("tiny_images.bin", "80mn_cifar_idxs.txt"), None
        ),
    },
    default="all",
    manual=(
        "its authors withdrew it; if you have a copy, put tiny_images.bin there, and the list of "
        "the images that CIFAR was drawn from (80mn_cifar_idxs.txt of the outlier-exposure code: "
        "one number a line, counted from 1)"
    ),
    note="the original has 79,302,017 images; those that CIFAR was drawn from are left out",
)

OUTLIERS = (RANDOM_IMAGES, TINY_IMAGES)
