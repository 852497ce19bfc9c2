"""The mean softmax under dropout at test time: of a network's own dropout, or of its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector, OutputsDetector, full_precision
from robust_ood.detectors.logarithms import tempered_log_odds
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network, as_network
from robust_ood.randomness import generator

_OF_CHANNELS: tuple[Callable[..., Tensor], ...] = (F.dropout1d, F.dropout2d, F.dropout3d)


class MCDropout(Detector):
    """The largest probability of the mean softmax under dropout, as log-odds, >= 0.

    Source: Gal and Ghahramani 2016 (Monte-Carlo dropout); `mode="mean"` of pytorch-ood's MCD, whose
    default is the variance instead. The network's own dropout drops at test time, whether it is a
    layer or a call of `torch.nn.functional`; everything else is in eval mode. The published value
    is the probability, in (1/K, 1], which `published` gives.

    Masks are functions of `seed`, the draw and the place in the network: all images share them, and
    a score depends neither on its batch nor on how often an attacker asks. An attack differentiates
    through all draws.

    Args:
        net: classifier with dropout.
        draws: forward passes, >= 1; 30 in pytorch-ood.
        seed: of the masks.
    """

    @typed
    def __init__(self, net: Network, draws: int = 30, seed: int = 0) -> None:
        super().__init__()
        self.net = as_network(net)
        if not getattr(self.net, "classifies", True):
            raise UserError(
                f"net: MCDropout reads the logits of a classifier, and {type(self.net).__name__} "
                "is none"
            )
        if draws < 1:
            raise UserError(f"draws: expected a whole number >= 1, got {draws}")
        self.draws = draws
        self.seed = seed

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)

    def forward(self, images: Tensor) -> Tensor:
        """Return the log-odds `(N,)` of images `(N, C, H, W)`."""
        return tempered_log_odds(self._mean_log(images))

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the largest mean probabilities `(N,)`."""
        return self._mean_log(images).amax(1).exp()

    def attack_surface(self) -> AttackSurface:
        """Return the score."""
        return AttackSurface((self.surrogate,), exact=True)

    def _mean_log(self, images: Tensor) -> Tensor:
        """Return the logarithm `(N, K)` of the mean softmax."""
        log_p = []
        for draw in range(self.draws):
            with _Masked(self.seed, draw) as masked:
                logits = self.net(images)
            if not masked.calls:
                raise UserError(
                    f"net: {type(self.net).__name__} has no dropout; expected a network with some, "
                    "or the detector feature-dropout"
                )
            with full_precision(images):
                log_p.append(F.log_softmax(losses.wide(logits), dim=1))
        with full_precision(images):
            return _mean_of_logs(torch.stack(log_p))


class FeatureDropout(OutputsDetector):
    """The largest probability of the mean softmax of features with dropout, as log-odds, >= 0.

    Source: Gal and Ghahramani 2016, with dropout of the penultimate features alone, as in OpenOOD's
    `dropout`: it works for every network with a linear head, and takes one forward pass. OpenOOD
    averages logits, which for a linear head tend to those without dropout; here softmaxes are
    averaged. The published value is the probability, in (1/K, 1], which `published` gives.

    Args:
        net: classifier with a linear head.
        rate: share of features that each draw drops, in (0, 1).
        draws: how many, >= 1.
        seed: of the masks, which all images share.
    """

    needs = "head"

    @typed
    def __init__(self, net: Network, rate: float = 0.5, draws: int = 30, seed: int = 0) -> None:
        super().__init__(net)
        if not 0 < rate < 1:
            raise UserError(f"rate: expected a share in (0, 1), got {rate}")
        if draws < 1:
            raise UserError(f"draws: expected a whole number >= 1, got {draws}")
        self.rate = rate
        self.draws = draws
        self.seed = seed

    def score(self, out: Outputs) -> Tensor:
        """Return the log-odds of the largest mean probability."""
        return tempered_log_odds(self._mean_log(out))

    def published_score(self, out: Outputs) -> Tensor:
        """Return the largest mean probability `(N,)`."""
        return self._mean_log(out).amax(1).exp()

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class without dropout."""
        return AttackSurface((self.surrogate, self.confidence), exact=True)

    def _mean_log(self, out: Outputs) -> Tensor:
        features = losses.wide(out.features)
        log_p = []
        for draw in range(self.draws):
            mask = kept_mask((features.shape[1],), self.rate, self.seed, draw, 0).to(features)
            logits = out.head((features * mask).to(out.head.weight.dtype))
            log_p.append(F.log_softmax(losses.wide(logits), dim=1))
        return _mean_of_logs(torch.stack(log_p))


def kept_mask(shape: tuple[int, ...], rate: float, seed: int, draw: int, call: int) -> Tensor:
    """Return a mask of 0 and `1 / (1 - rate)`, of any shape.

    Args:
        shape: of the mask.
        rate: share of zeros, in [0, 1).
        seed: of all masks.
        draw: which forward pass.
        call: which dropout of the pass.
    """
    source = generator(seed, "dropout", draw, call)
    return (torch.rand(shape, generator=source) >= rate).float() / (1 - rate)


class _Masked(TorchFunctionMode):
    """Dropout that drops, whatever the mode of its module, the same for all images."""

    def __init__(self, seed: int, draw: int) -> None:
        super().__init__()
        self.seed = seed
        self.draw = draw
        self.calls = 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.dropout and func not in _OF_CHANNELS:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["input"]
        rate = float(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        if not 0 < rate < 1:
            return tensor
        shape = tensor.shape[1:]
        if func in _OF_CHANNELS:
            shape = (shape[0],) + (1,) * (len(shape) - 1)
        mask = kept_mask(tuple(shape), rate, self.seed, self.draw, self.calls)
        self.calls += 1
        return tensor * mask.to(tensor)


def _mean_of_logs(log_p: Tensor) -> Tensor:
    """Return the logarithm `(N, K)` of the mean of probabilities, from `(draws, N, K)` logarithms.

    In logarithms, small probabilities do not vanish.
    """
    return losses.finite_logs(log_p.logsumexp(0)) - torch.tensor(len(log_p)).to(log_p).log()
