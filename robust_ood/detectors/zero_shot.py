"""Zero-shot scores: how much closer an image is to words of the in-distribution than to others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector, full_precision
from robust_ood.detectors.logarithms import tempered_log_odds
from robust_ood.errors import UserError
from robust_ood.models.image_text import ImageText, image_tower, unit_embeddings
from robust_ood.models.words import WordFeatures, read_words
from robust_ood.models.wrap import Network, Wrapped, as_network
from robust_ood.randomness import generator

_SHARP = 100.0  # factor of the cosines in the smooth stand-in: a temperature of 0.01

Rule = Literal["difference", "max", "softmax"]


class ZeroShot(Detector):
    """A score of an image's cosines to in-words and out-words, with CLIP(x, w) = scale * cosine.

    - `difference`: the largest in-logit minus the largest out-logit. Source: Fort Eq. 6-7 (one
      formula on two numbered lines). The factor does not change how it orders images. Unbounded.
    - `max`: the largest in-logit, without out-words. Unbounded.
    - `softmax`: with out-words the in-words' share of the softmax over all words, which is one
      minus the sum over the out-words, of Fort et al. 2021; without out-words the largest softmax
      probability over in-words, MCM of Ming et al. 2022 (whose temperature 1 is `scale=1`).
      `published` gives it in (0, 1]; the score is its log-odds, unbounded, in the same order.
      With `groups`, the share is the mean of those that the in-words have beside each group of
      out-words: NegLabel of Jiang et al. 2024, whose negative words are mined by
      `WordFeatures.with_negative_words`.

    Args:
        encoder: images `(N, C, H, W)` in [0, 1] to embeddings `(N, D)`, a module or a function; or
            an `ImageText` classifier, whose embeddings are taken.
        words: unit text features, or the file of them; by default those of the `ImageText`.
        rule: "difference", "max" or "softmax".
        scale: the factor before the cosines, > 0; by default the model's own.
        groups: into how many groups of equal size the out-words are drawn, >= 1; the authors take
            100 of about 10,000. As many as are left over are in no group, as in their code.
        seed: of that draw.

    Raises:
        UserError: no text features, those of another width than an `ImageText` has, the rule
            "difference" without out-words, more groups than out-words, groups of another rule, or,
            in a call, embeddings of another width.
    """

    in_features: Tensor
    out_features: Tensor

    @typed
    def __init__(
        self,
        encoder: Network,
        words: WordFeatures | Path | str | None = None,
        rule: Rule = "difference",
        scale: float | None = None,
        groups: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net = as_network(encoder, "encoder")
        # The commands wrap networks, to find their layers.
        if isinstance(self.net, Wrapped) and isinstance(self.net.module, ImageText):
            self.net = self.net.module
        words = _words_of(self.net, words)
        if isinstance(self.net, ImageText):
            _require_width(words, self.net.head.in_features)
        else:
            self.net = image_tower(self.net)  # its width shows in the first call
        if rule not in ("difference", "max", "softmax"):
            raise UserError(f"rule: expected 'difference', 'max' or 'softmax', got {rule!r}")
        if rule == "difference" and not words.out_words:
            raise UserError(
                "rule: 'difference' needs out-words, and the text features have none; expected "
                "'max' or 'softmax'"
            )
        if scale is not None and not 0 < scale < float("inf"):
            raise UserError(f"scale: expected a number > 0, got {scale}")
        _check_groups(groups, rule, len(words.out_words))
        self.rule = rule
        self.groups = groups
        self.scale = float(words.logit_scale if scale is None else scale)
        self.register_buffer("in_features", words.in_features.clone())
        out_features = words.out_features
        if groups > 1:
            order = torch.randperm(len(out_features), generator=generator(seed, "groups of words"))
            out_features = out_features[order[: len(order) // groups * groups]]
        self.register_buffer("out_features", out_features.clone())

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The image encoder, or the classifier of text features."""
        return (self.net,)

    def cosines(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines to in-words `(N, K)` and to out-words `(N, M)`."""
        if isinstance(self.net, ImageText):
            embeddings = self.net.encode(images)  # (N, D)
        else:
            embeddings = unit_embeddings(self.net, images, self.in_features.shape[1])
        with full_precision(images):
            wide = losses.wide(embeddings)
            inside = wide @ self.in_features.to(wide).T
            outside = wide @ self.out_features.to(wide).T
        return inside, outside

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)`."""
        inside, outside = self.cosines(images)
        with full_precision(images):
            inside = self.scale * inside
            outside = self.scale * outside
            if self.rule == "max":
                return inside.amax(1)
            if self.rule == "difference":
                return inside.amax(1) - outside.amax(1)
            if not outside.shape[1]:
                return tempered_log_odds(inside)
            # The log-odds of the in-words' share beside each group of out-words
            log_odds = self._log_odds(inside, outside)  # (N, groups)
            if self.groups == 1:
                return log_odds[:, 0]
            in_share = F.logsigmoid(log_odds).logsumexp(1)
            return in_share - F.logsigmoid(-log_odds).logsumexp(1)

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the published value `(N,)`: of `softmax` the probability, of others the score."""
        if self.rule != "softmax":
            scores: Tensor = self.forward(images)
            return scores
        inside, outside = self.cosines(images)
        with full_precision(images):
            inside = self.scale * inside
            outside = self.scale * outside
            if outside.shape[1]:
                return torch.sigmoid(self._log_odds(inside, outside)).mean(1)
            return inside.softmax(1).amax(1)

    def _log_odds(self, inside: Tensor, outside: Tensor) -> Tensor:
        """Return the log-odds `(N, groups)` of the in-words beside each group of out-words."""
        by_group = outside.reshape(len(outside), self.groups, -1)  # (N, groups, M / groups)
        return inside.logsumexp(1)[:, None] - by_group.logsumexp(2)

    def smooth(self, images: Tensor) -> Tensor:
        """Return a stand-in without the maxima's edges, `(N,)`: sums of exponentials instead."""
        inside, outside = self.cosines(images)
        with full_precision(images):
            value = (_SHARP * inside).logsumexp(1)
            if self.rule != "max" and outside.shape[1]:
                value = value - (_SHARP * outside).logsumexp(1)
            return value

    def attack_surface(self) -> AttackSurface:
        """Return the score and, where the rule takes maxima, the smooth stand-in."""
        if self.rule == "softmax":
            return AttackSurface((self.surrogate,), exact=True)
        return AttackSurface((self.surrogate, self.smooth), exact=True)


def _check_groups(groups: int, rule: str, out_words: int) -> None:
    if groups < 1:
        raise UserError(f"groups: expected a whole number >= 1, got {groups}")
    if groups > 1 and rule != "softmax":
        raise UserError(f"groups: expected 1 with the rule {rule!r}, got {groups}")
    if groups > max(1, out_words):
        raise UserError(
            f"groups: expected at most the number of out-words ({out_words}), got {groups}"
        )


def _require_width(words: WordFeatures, width: int) -> None:
    """Raise `UserError` for text features of another width than the network's embeddings."""
    if words.in_features.shape[1] != width:
        raise UserError(
            f"words: the text features have width {words.in_features.shape[1]}, the encoder gives "
            f"{width}; they are of another model"
        )


def _words_of(net: nn.Module, words: WordFeatures | Path | str | None) -> WordFeatures:
    if isinstance(words, WordFeatures):
        return words
    if words is not None:
        return read_words(words)
    if isinstance(net, ImageText):
        return net.words
    raise UserError(
        "words: not given, and the network brings no text features; robust-ood text-features "
        "writes a file of them"
    )
