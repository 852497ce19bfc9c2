"""Medical data sets: retinal OCT and lung CT, as the OOD-attack paper splits them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.data.catalogue import layouts
from robust_ood.data.catalogue.entry import CatalogueEntry, DatasetPart, Layout
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError
from robust_ood.randomness import generator

_TEST, _VALIDATION = 200, 30
"""Images of each class of COVID-19 CT (App. B.2); the rest is for training."""


def _drawn(read_all: Layout, key: str, first: int, last: int | None) -> Layout:
    """The images `first` to `last` of each class, in an order that is drawn once.

    Source: the OOD-attack paper draws its splits; its own draws are not published.
    """

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        images = read_all(folder, form, name)
        assert images.labels is not None
        chosen = _of_each_class(images.labels, key, first, last)
        if not len(chosen):
            raise UserError(
                f"{name}: {folder} has no more than {first} images of a class; expected all of "
                "the original"
            )
        return images.subset(chosen)

    return read


def _of_each_class(
    labels: NDArray[np.int64], key: str, first: int, last: int | None
) -> NDArray[np.int64]:
    """Return indices in ascending order, `first` to `last` of each class's drawn order."""
    chosen = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator(0, key, label)).numpy()
        chosen.append(members[order[first:last]])
    indices: NDArray[np.int64] = np.sort(np.concatenate(chosen))
    return indices


_COVID = layouts.class_folders("SARS-COV-2-CT")

OCT = CatalogueEntry(
    name="oct",
    title="Retinal OCT (Kermany et al. 2018)",
    roles=("in-distribution",),
    licence="CC BY 4.0",
    homepage="https://data.mendeley.com/datasets/rscbjbr9sj/2",
    links=(),
    parts={
        "train": DatasetPart(
            "OCT2017/train", layouts.class_folders("OCT2017/train"), None, 4, True
        ),
        "train-4000": DatasetPart(
            "OCT2017/train",
            _drawn(layouts.class_folders("OCT2017/train"), "oct", 0, 1000),
            4000,
            4,
            True,
        ),
        "test": DatasetPart("OCT2017/test", layouts.class_folders("OCT2017/test"), 968, 4, True),
    },
    default="test",
    manual=(
        "download OCT2017.tar.gz from https://data.mendeley.com/datasets/rscbjbr9sj/2, unpack it, "
        "and put its train/ and test/ into OCT2017/ there"
    ),
    note="the paper draws 1,000 images of each class to train on: oct/train-4000 does, by our seed",
)

COVID_CT = CatalogueEntry(
    name="covid-ct",
    title="SARS-CoV-2 CT scans (Soares et al. 2020)",
    roles=("in-distribution",),
    licence="CC BY-NC-SA 4.0",
    homepage="https://www.kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset",
    links=(),
    parts={
        "train": DatasetPart(
            "SARS-COV-2-CT",
            _drawn(_COVID, "covid-ct", _TEST + _VALIDATION, None),
            2022,
            2,
            True,
        ),
        "val": DatasetPart(
            "SARS-COV-2-CT", _drawn(_COVID, "covid-ct", _TEST, _TEST + _VALIDATION), 60, 2, True
        ),
        "test": DatasetPart("SARS-COV-2-CT", _drawn(_COVID, "covid-ct", 0, _TEST), 400, 2, True),
    },
    default="test",
    manual=(
        "download the archive of https://www.kaggle.com/datasets/plameneduardo/"
        "sarscov2-ctscan-dataset (an account is needed) and put its COVID/ and non-COVID/ into "
        "SARS-COV-2-CT/ there"
    ),
    note="split into 200 images of each class to test, 30 to validate, the rest, by our seed",
)

MEDICAL = (OCT, COVID_CT)
