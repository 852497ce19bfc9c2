"""The table of post-hoc scores names what is there, and scores of the logits take any callable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_ood import Linf, attacks, detectors
from robust_ood.errors import UserError

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "post_hoc_scores.md").read_text()
OF_LOGITS = (
    "msp", "entropy", "gen", "maxlogit", "energy", "oe-score", "kl-matching", "odin", "pro-msp", "pro-gen",
)  # fmt: skip
OF_FEATURES = (
    "she", "fdbd", "nci", "nnguide", "relation", "gmm", "pnml", "cop", "corp", "vra", "lts", "optfs",
    "line", "weiper", "nac", "feature-dropout", "adascale-a", "adascale-l",
)  # fmt: skip
IMAGES = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) * 4


def rows() -> list[list[str]]:
    """Return the cells of the table's rows."""
    table = PAGE.partition("| method | here |")[2].partition("Not built")[0]
    return [
        re.split(r" \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| ")
    ][1:]


def test_every_registered_score_is_in_the_table():
    named = {name for row in rows() for name in re.findall(r"`([\w-]+)`", row[1])}
    # Wrappers of any score, and what is nobody's table's.
    others = {"pro-ent", "pro-msp-t", "safe-spot", "smoothed", "gradient-norm"}
    assert set(detectors.REGISTRY) - others <= named
    assert named <= {*detectors.REGISTRY, "max", "softmax"}


def test_every_score_of_pytorch_ood_is_on_the_page():
    pood = pytest.importorskip("pytorch_ood.detector")
    missing = [name for name in pood.__all__ if not re.search(rf"\b{name}\b", PAGE)]
    assert missing == ["odin_preprocessing"]  # a function


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
