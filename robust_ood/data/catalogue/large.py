"""Data sets of large images: ImageNet, its OOD tests, CelebA, and Tiny-ImageNet."""

from __future__ import annotations

from robust_ood.data.catalogue import layouts
from robust_ood.data.catalogue.entry import CatalogueEntry, DatasetPart, Link


def google_drive(key: str) -> tuple[str, ...]:
    """Return the direct link of a publicly shared file, past the page about virus scans."""
    return (f"https://drive.usercontent.google.com/download?id={key}&export=download&confirm=t",)


def _openood(
    name: str, title: str, licence: str, key: str, file: str, folder: str, count: int
) -> CatalogueEntry:
    """One of the OOD tests for ImageNet that OpenOOD distributes, without checksums."""
    return CatalogueEntry(
        name=name,
        title=title,
        roles=("ood",),
        licence=licence,
        homepage="https://github.com/Jingkang50/OpenOOD",
        links=(Link(file, google_drive(key), None, folder),),
        parts={"test": DatasetPart(folder, layouts.tree(folder), count, sized=True)},
        default="test",
        manual=(
            f"download {file} with OpenOOD's scripts/download/download.sh "
            f"and unpack it into {folder}/ there"
        ),
    )


def _celeba_part(number: int, count: int) -> DatasetPart:
    table = "celeba/list_eval_partition.txt"
    layout = layouts.partitioned("celeba/img_align_celeba", table, number)
    return DatasetPart(table, layout, count, sized=True)


TINY_IMAGENET = CatalogueEntry(
    name="tinyimagenet",
    title="Tiny-ImageNet-200",
    roles=("ood", "outliers"),
    licence="ImageNet terms: non-commercial research and education",
    homepage="http://cs231n.stanford.edu/",
    links=(
        Link(
            "tiny-imagenet-200.zip",
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            "90528d7ca1a48142e341f4ef8d21d0de",
        ),
    ),
    parts={
        "train": DatasetPart(
            "tiny-imagenet-200/train",
            layouts.class_folders("tiny-imagenet-200/train"),
            100_000,
            200,
            True,
        ),
        "val": DatasetPart(
            "tiny-imagenet-200/val",
            layouts.annotated(
                "tiny-imagenet-200/val/images", "tiny-imagenet-200/val/val_annotations.txt"
            ),
            10_000,
            200,
            True,
        ),
    },
    default="val",
    manual="unpack tiny-imagenet-200.zip there",
    note=(
        "for CIFAR, OpenOOD leaves out the images of classes that CIFAR has: "
        "use its image list to do the same"
    ),
)

CELEBA = CatalogueEntry(
    name="celeba",
    title="CelebA, aligned and cropped",
    roles=("ood",),
    licence="for non-commercial research only",
    homepage="http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    links=(
        Link(
            "img_align_celeba.zip",
            google_drive("0B7EVK8r0v71pZjFTYXZWM3FlRnM"),
            "00d2c5bc6d35e252742224ab0c1e8fcb",
            "celeba",
        ),
        Link(
            "list_eval_partition.txt",
            google_drive("0B7EVK8r0v71pY0NSMzRuSXJEVkk"),
            "d32c9cbf5e040fd4025c592c306e6668",
            "celeba",
            unpack=False,
        ),
    ),
    parts={
        "train": _celeba_part(0, 162_770),
        "val": _celeba_part(1, 19_867),
        "test": _celeba_part(2, 19_962),
    },
    default="test",
    manual="put img_align_celeba/ (unpacked) and list_eval_partition.txt into celeba/ there",
)

IMAGENET = CatalogueEntry(
    name="imagenet",
    title="ImageNet-1k (ILSVRC 2012)",
    roles=("in-distribution",),
    licence="ImageNet terms: non-commercial research and education, after registration",
    homepage="https://image-net.org/challenges/LSVRC/2012/",
    links=(),
    parts={
        "train": DatasetPart("train", layouts.class_folders("train"), 1_281_167, 1000, True),
        "val": DatasetPart("val", layouts.class_folders("val"), 50_000, 1000, True),
    },
    default="val",
    manual=(
        "register at https://image-net.org, then put the images into train/nXXXXXXXX/ and "
        "val/nXXXXXXXX/ there (torchvision.datasets.ImageNet sorts its archives like this)"
    ),
)

NINCO = CatalogueEntry(
    name="ninco",
    title="NINCO",
    roles=("ood",),
    licence="CC BY 4.0",
    homepage="https://github.com/j-cb/NINCO",
    links=(
        Link(
            "NINCO_all.tar.gz",
            ("https://zenodo.org/record/8013288/files/NINCO_all.tar.gz",),
            "b9ffae324363cd900a81ce3c367cd834",
        ),
    ),
    parts={
        "test": DatasetPart(
            "NINCO/NINCO_OOD_classes",
            layouts.class_folders("NINCO/NINCO_OOD_classes"),
            5_879,
            64,
            True,
        ),
    },
    default="test",
    manual="unpack NINCO_all.tar.gz there",
)

LARGE = (
    TINY_IMAGENET,
    CELEBA,
    IMAGENET,
    _openood(
        "ssb-hard",
        "SSB-hard",
        "ImageNet terms: non-commercial research and education",
        "1PzkA-WGG8Z18h0ooL_pDdz9cO-DCIouE",
        "ssb_hard.zip",
        "ssb_hard",
        49_000,
    ),
    NINCO,
    _openood(
        "inaturalist",
        "iNaturalist, 10,000 plants",
        "iNaturalist 2017 terms: non-commercial research and education",
        "1zfLfMvoUD0CUlKNnkk7LgxZZBnTBipdj",
        "inaturalist.zip",
        "inaturalist",
        10_000,
    ),
    _openood(
        "openimage-o",
        "OpenImage-O",
        "annotations CC BY 4.0; images are listed as CC BY 2.0",
        "1VUFXnB_z70uHfdgJG2E_pjYOcEgqM7tE",
        "openimage_o.zip",
        "openimage_o",
        17_632,
    ),
)
