"""The table of post-hoc scores names what is there, and scores of the logits take any callable."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_ood import Linf, attacks, detectors
from robust_ood.errors import UserError

TESTS = Path(__file__).parents[1]
PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "post_hoc_scores.md").read_text()
# The names in its `evaluation_api` and `configs/postprocessors`: of v1.5, then of what came later.
OPENOOD = (
    "ash", "cider", "conf_branch", "msp", "ebo", "odin", "mds", "mds_ensemble", "npos", "rmds", "gmm",
    "patchcore", "openmax", "react", "vim", "gradnorm", "godin", "gram", "cutpaste", "mls", "residual",
    "klm", "temp_scaling", "ensemble", "dropout", "draem", "dsvdd", "mos", "mcd", "opengan", "knn",
    "dice", "scale", "ssd", "she", "rd4ad", "rotpred", "rankfeat", "gen", "nnguide", "relation",
    "kdad", "rts", "nci", "fdbd", "iodin", "mcm", "vra", "adascale_a", "adascale_l", "t2fnorm",
    "reweightood", "grood", "cfood",
)  # fmt: skip
OF_LOGITS = (
    "msp", "entropy", "gen", "maxlogit", "energy", "oe-score", "kl-matching", "odin", "pro-msp", "pro-gen",
)  # fmt: skip
OF_FEATURES = (
    "she", "fdbd", "nci", "nnguide", "relation", "gmm", "pnml", "cop", "corp", "vra", "lts", "optfs",
    "line", "weiper", "nac", "feature-dropout", "adascale-a", "adascale-l", "grad-uncertainty",
)  # fmt: skip
IMAGES = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) * 4


def rows() -> list[list[str]]:
    """Return the cells of the table's rows."""
    return cells(PAGE.partition("| method | paper |")[2].partition("Not built")[0])[1:]


def left_out() -> list[list[str]]:
    """Return the cells of the table of what is not built."""
    return cells(PAGE.partition("Not built, and why:")[2].partition("## ")[0])[2:]


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [re.split(r" \| ", line.strip("| ")) for line in lines]


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`([\w-]+)`", cell))


def named_of(library: str, column: int) -> set[str]:
    """Return what the two tables say that a library has."""
    named = set()
    for row in rows():
        named |= names_in(row[column])
    for method, where, _ in left_out():
        if where.startswith(library):
            named |= names_in(method)
    return named


def test_every_registered_score_is_in_the_table():
    named = {name for row in rows() for name in names_in(row[2])}
    # Wrappers of any score, and what is nobody's table's.
    others = {"pro-ent", "pro-msp-t", "safe-spot", "smoothed", "gradient-norm"}
    assert set(detectors.REGISTRY) - others <= named
    assert named <= {*detectors.REGISTRY, "max", "softmax"}


def test_the_table_names_every_score_of_pytorch_ood_and_no_other():
    pood = pytest.importorskip("pytorch_ood.detector")
    named = named_of("pytorch-ood", 4)
    assert named - losses_with_a_score() == set(pood.__all__)
    assert losses_with_a_score() <= named


def losses_with_a_score() -> set[str]:
    """Return the losses of pytorch-ood that also score images."""
    package = importlib.import_module("pytorch_ood.loss")
    scoring = set()
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in inspect.getmembers(module, inspect.isclass):
            own = value.__module__ == module.__name__
            if own and any(hasattr(value, way) for way in ("score", "distance", "predict")):
                scoring.add(name)
    return scoring - {"CenterRegularizationLoss"}


def test_the_table_names_every_score_of_openood_and_no_other():
    assert named_of("OpenOOD", 3) == set(OPENOOD)


def test_the_table_says_what_each_score_is_checked_against():
    references = pytest.importorskip("tests.parity.test_detectors").REFERENCES
    for row in rows():
        compared = sorted(names_in(row[2]) & set(references))
        assert names_in(row[2]) & set(detectors.REGISTRY), row
        if not compared:
            (path,) = re.findall(r"^`(.+)`$", row[5])
            assert (TESTS / path).exists()
            continue
        for name in compared:
            calls = "pood." in inspect.getsource(references[name])
            assert row[5] == ("pytorch-ood" if calls else "formula"), name


def logits(images: Tensor) -> Tensor:
    return images.mean((2, 3)) @ WEIGHT.T


class Convolution(nn.Module):
    """The same logits by a 1 x 1 convolution, averaged over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 5, 1, bias=False)
        self.head.weight.data.copy_(WEIGHT[:, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images).mean((2, 3))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_ten_scores_of_the_logits_take_a_plain_function(name):
    built = [detectors.build(name, net).fit([IMAGES]) for net in (logits, Convolution())]
    with torch.no_grad():
        clean, of_module = (detector(IMAGES) for detector in built)
        torch.testing.assert_close(clean, of_module, rtol=1e-4, atol=1e-4)
        lost = attacks.lower_score(built[0], IMAGES, attacks.PGD(Linf(0.1), steps=3))
        assert built[0](lost).mean() < clean.mean()


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_pooled_convolution_is_a_head_and_a_function_is_refused_in_a_line(name):
    loader = [(IMAGES, torch.arange(12) % 5)]
    settings = {"nnguide": {"neighbours": 3}, "corp": {"random_features": 8}}.get(name, {})
    with torch.no_grad():
        scores = detectors.build(name, Convolution().eval(), **settings).fit(loader)(IMAGES)
    assert scores.isfinite().all()
    with pytest.raises(UserError, match="head") as refused:
        detectors.build(name, logits, **settings)
    assert "\n" not in str(refused.value)
