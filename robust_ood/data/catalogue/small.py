"""Data sets of small images, and those that serve as OOD tests for them."""

from __future__ import annotations

from robust_ood.data.catalogue import layouts
from robust_ood.data.catalogue.balanced import balanced
from robust_ood.data.catalogue.entry import CatalogueEntry, DatasetPart, Link

_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_FASHION = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_IDX = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx_links(bases: tuple[str, ...], folder: str, md5s: tuple[str, ...]) -> tuple[Link, ...]:
    links = []
    for file, md5 in zip(_IDX, md5s, strict=True):
        urls = tuple(base + file for base in bases)
        links.append(Link(file, urls, md5, folder))
    return tuple(links)


def _odin(
    name: str, title: str, key: str, file: str, md5: str | None, marker: str, count: int
) -> CatalogueEntry:
    """One of the sets that the ODIN authors cut to 32 x 32 and published."""
    return CatalogueEntry(
        name=name,
        title=title,
        roles=("ood",),
        licence="none stated by the ODIN authors; the scenes are research data",
        homepage="https://github.com/facebookresearch/odin",
        links=(Link(file, (f"https://www.dropbox.com/s/{key}/{file}?dl=1",), md5),),
        parts={"test": DatasetPart(marker, layouts.tree(marker), count, sized=True)},
        default="test",
        manual=(
            f"download {file} from the links of https://github.com/facebookresearch/odin "
            "and unpack it there"
        ),
    )


CIFAR10 = CatalogueEntry(
    name="cifar10",
    title="CIFAR-10",
    roles=("in-distribution", "ood"),
    licence="none stated; cite Krizhevsky 2009",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    links=(
        Link(
            "cifar-10-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "c58f30108f718f92721af3b95e74349a",
        ),
    ),
    parts={
        "train": DatasetPart("cifar-10-batches-py", layouts.cifar(10, True), 50_000, 10),
        "test": DatasetPart("cifar-10-batches-py", layouts.cifar(10, False), 10_000, 10),
    },
    default="test",
    manual="unpack cifar-10-python.tar.gz there",
)

CIFAR100 = CatalogueEntry(
    name="cifar100",
    title="CIFAR-100",
    roles=("in-distribution", "ood"),
    licence="none stated; cite Krizhevsky 2009",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    links=(
        Link(
            "cifar-100-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            "eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    parts={
        "train": DatasetPart("cifar-100-python", layouts.cifar(100, True), 50_000, 100),
        "test": DatasetPart("cifar-100-python", layouts.cifar(100, False), 10_000, 100),
    },
    default="test",
    manual="unpack cifar-100-python.tar.gz there",
)

GTSRB = CatalogueEntry(
    name="gtsrb",
    title="German Traffic Sign Recognition Benchmark",
    roles=("in-distribution",),
    licence="none stated; cite Stallkamp et al. 2012",
    homepage="https://benchmark.ini.rub.de/",
    links=(
        Link(
            "GTSRB-Training_fixed.zip",
            (f"{_GTSRB}GTSRB-Training_fixed.zip",),
            "513f3c79a4c5141765e10e952eaa2478",
            "gtsrb",
        ),
        Link(
            "GTSRB_Final_Test_Images.zip",
            (f"{_GTSRB}GTSRB_Final_Test_Images.zip",),
            "c7e4e6327067d32654124b0fe9e82185",
            "gtsrb",
        ),
        Link(
            "GTSRB_Final_Test_GT.zip",
            (f"{_GTSRB}GTSRB_Final_Test_GT.zip",),
            "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
            "gtsrb",
        ),
    ),
    parts={
        "train": DatasetPart(
            "gtsrb/GTSRB/Training", layouts.traffic_signs("train"), 26_640, 43, sized=True
        ),
        "train-balanced": DatasetPart(
            "gtsrb/GTSRB/Training",
            balanced(layouts.traffic_signs("train"), 10_000),
            430_000,
            43,
            sized=True,
        ),
        "test": DatasetPart(
            "gtsrb/GT-final_test.csv", layouts.traffic_signs("test"), 12_630, 43, sized=True
        ),
    },
    default="test",
    manual=(
        "unpack the training images, test images and test labels of the final benchmark into "
        "gtsrb/ there"
    ),
    note="the ALOE paper has 34,799 training images; the archive that torchvision uses has 26,640",
)

SVHN = CatalogueEntry(
    name="svhn",
    title="Street View House Numbers",
    roles=("ood",),
    licence="for non-commercial use only",
    homepage="http://ufldl.stanford.edu/housenumbers/",
    links=(
        Link(
            "test_32x32.mat",
            ("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",),
            "eb5a983be6a315427106f1b164d9cef3",
            unpack=False,
        ),
        Link(
            "train_32x32.mat",
            ("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",),
            "e26dedcc434d2e4c54c9b2d4a06d8373",
            unpack=False,
        ),
    ),
    parts={
        "test": DatasetPart("test_32x32.mat", layouts.svhn("test", 1000), 10_000, 10),
        "test-all": DatasetPart("test_32x32.mat", layouts.svhn("test"), 26_032, 10),
        "train": DatasetPart("train_32x32.mat", layouts.svhn("train"), 73_257, 10),
    },
    default="test",
    manual="put test_32x32.mat and, to train on it, train_32x32.mat there",
    note="the part test is the first 1,000 images of each class, as in the ALOE paper's code",
)

TEXTURES = CatalogueEntry(
    name="textures",
    title="Describable Textures (DTD)",
    roles=("ood",),
    licence="for research purposes",
    homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    links=(
        Link(
            "dtd-r1.0.1.tar.gz",
            ("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
            "fff73e5086ae6bdbea199a49dfb8a4c1",
        ),
    ),
    parts={
        "all": DatasetPart("dtd/images", layouts.class_folders("dtd/images"), 5_640, 47, sized=True)
    },
    default="all",
    manual="unpack dtd-r1.0.1.tar.gz there",
)

PLACES365 = CatalogueEntry(
    name="places365",
    title="Places365",
    roles=("ood",),
    licence="Places2 terms: non-commercial research and education",
    homepage="http://places2.csail.mit.edu/",
    links=(
        Link(
            "val_256.tar",
            ("http://data.csail.mit.edu/places/places365/val_256.tar",),
            "e27b17d8d44f4af9a78502beb927f808",
        ),
    ),
    parts={
        "val": DatasetPart("val_256", layouts.tree("val_256"), 36_500, sized=True),
        "test": DatasetPart("test_256", layouts.tree("test_256"), 328_500, sized=True),
    },
    default="val",
    manual="unpack val_256.tar there (or test_256.tar for the part test)",
    note=(
        "the ALOE paper draws 10,000 of the test images; "
        "`count: 10000` draws as many of either part"
    ),
)

MNIST = CatalogueEntry(
    name="mnist",
    title="MNIST",
    roles=("ood",),
    licence="none stated by its authors",
    homepage="http://yann.lecun.com/exdb/mnist/",
    links=_idx_links(
        _MNIST,
        "MNIST/raw",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    parts={
        "train": DatasetPart("MNIST/raw", layouts.idx("MNIST", True), 60_000, 10),
        "test": DatasetPart("MNIST/raw", layouts.idx("MNIST", False), 10_000, 10),
    },
    default="test",
    manual="unpack the four .gz files into MNIST/raw there",
)

FASHION_MNIST = CatalogueEntry(
    name="fashion-mnist",
    title="Fashion-MNIST",
    roles=("ood",),
    licence="MIT",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    links=_idx_links(
        _FASHION,
        "FashionMNIST/raw",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    parts={
        "train": DatasetPart("FashionMNIST/raw", layouts.idx("FashionMNIST", True), 60_000, 10),
        "test": DatasetPart("FashionMNIST/raw", layouts.idx("FashionMNIST", False), 10_000, 10),
    },
    default="test",
    manual="unpack the four .gz files into FashionMNIST/raw there",
)

SMALL = (
    CIFAR10,
    CIFAR100,
    GTSRB,
    SVHN,
    TEXTURES,
    PLACES365,
    _odin(
        "lsun-crop",
        "LSUN (crop)",
        "fhtsw1m3qxlwj6h",
        "LSUN.tar.gz",
        "458a0a0ab8e5f1cb4516d7400568e460",
        "LSUN",
        10_000,
    ),
    _odin(
        "lsun-resize",
        "LSUN (resize)",
        "moqh2wh8696c3yl",
        "LSUN_resize.tar.gz",
        "278b7b31c8cb7e804a1465a8ce03a2dc",
        "LSUN_resize",
        10_000,
    ),
    _odin("isun", "iSUN", "ssz7qxfqae0cca5", "iSUN.tar.gz", None, "iSUN", 8_925),
    MNIST,
    FASHION_MNIST,
)
