"""The OOD attack on encoders: OOD images that a network encodes like in-distribution ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from robust_ood.arguments import check_fields, typed
from robust_ood.attacks.pgd import Draws
from robust_ood.detectors import Detector
from robust_ood.detectors.layers import vectors
from robust_ood.detectors.perturbed import Moved
from robust_ood.errors import UserError, unknown_name
from robust_ood.inputs import accepted
from robust_ood.models import outputs
from robust_ood.modes import evaluating, ordinary
from robust_ood.perturb import minimize
from robust_ood.randomness import generators
from robust_ood.regions import L2, Region
from robust_ood.rules import Optimizer

Code = Literal["features", "logits", "layers", "score", "log-score"]
CODES: tuple[Code, ...] = get_args(Code)
OF_SCORES = ("score", "log-score")
"""Codes that only a detector has; they are one number."""

Encoder = Callable[[Tensor], Tensor]
"""Images `(N, C, H, W)` to codes `(N, D)`."""


class Matched(NamedTuple):
    """What the attack found.

    images: `(N, C, H, W)`. distances: squared distances of their codes `(N,)`. losses: the squared
    distance at the start and after each step of the restart that was kept, `(steps + 1, N)`.
    """

    images: Tensor
    distances: Tensor
    losses: Tensor


@dataclass(frozen=True)
class EncoderAttack:
    """Settings of the OOD attack on an encoder.

    Source: "An algorithm for out-of-distribution attack to neural network encoder", Alg. 1 with
    Adamax, as in the authors' code: the squared distance to the code of a paired in-distribution
    image is minimised within an L2 ball around the start.

    Args:
        region: around the start images; `L2(10)` in the paper (5 to 30 at 224 px).
        steps: iterations, 100 to 10,000 in the paper.
        learning_rate: of Adamax; a hundredth of the radius by default.
        random_start: begin at a random point of the region.
        seed: seed of the random starts, keyed by sample index.
        restarts: runs from other random starts, >= 1; each pair keeps its best (Sec. 2.1).
    """

    region: Region = field(default_factory=lambda: L2(10.0))
    steps: int = 100
    learning_rate: float | None = None
    random_start: bool = True
    seed: int = 0
    restarts: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.learning_rate is None and not math.isfinite(self.region.radius):
            raise UserError(
                "learning_rate: an Unbounded region has no radius to derive it from; give one"
            )
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected a number >= 1, got {getattr(self, name)}")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise UserError(f"learning_rate: expected a finite number > 0, got {rate}")
        if self.restarts > 1 and not self.random_start:
            raise UserError("restarts: without random_start they are all the same; expected 1")

    def match(
        self, encode: Encoder, starts: Tensor, inliers: Tensor, indices: Tensor | None = None
    ) -> Tensor:
        """Return images `(N, C, H, W)` near `starts` whose codes are those of `inliers`.

        Each is the best of all steps and restarts. Arguments are those of `search`.
        """
        return self.search(encode, starts, inliers, indices).images

    def search(
        self, encode: Encoder, starts: Tensor, inliers: Tensor, indices: Tensor | None = None
    ) -> Matched:
        """Return images near `starts` whose codes are those of `inliers`, pair by pair.

        Args:
            encode: from `encoder`, or any callable.
            starts: OOD images `(N, C, H, W)` in [0, 1]: noise, one picture repeated, or another
                data set.
            inliers: in-distribution images `(N, C, H, W)`, one for each start.
            indices: sample indices `(N,)`; 0..N-1 by default.
        """
        if starts.shape != inliers.shape:
            raise UserError(
                f"inliers: shape {tuple(inliers.shape)}, but starts have {tuple(starts.shape)}; "
                "expected pairs"
            )
        starts = ordinary(starts)
        with torch.no_grad():
            codes = encode(ordinary(inliers))

        def distance(images: Tensor) -> Tensor:
            return (encode(images) - codes).square().sum(1)

        draws = self._draws(len(starts), indices)
        best = self._run(distance, starts, draws, 0)
        for restart in range(1, self.restarts):
            best = _better(self._run(distance, starts, draws, restart), best)
        return best

    def _run(
        self, distance: Callable[[Tensor], Tensor], starts: Tensor, draws: Draws, restart: int
    ) -> Matched:
        """Return what one run finds, from the random starts of that restart."""
        rate = self.learning_rate
        if rate is None:
            rate = self.region.radius / 100
        start = None
        if self.random_start:
            start = self.region.sample(starts, draws(restart))
        minimum = minimize(
            distance,
            starts,
            self.region,
            steps=self.steps,
            step_size=rate,
            rule=Optimizer(torch.optim.Adamax),
            start=start,
            trace=True,
        )
        assert minimum.values is not None
        assert minimum.trace is not None
        return Matched(minimum.images, minimum.values, minimum.trace.values)

    def _draws(self, size: int, indices: Tensor | None) -> Draws:
        keys: Sequence[int] = range(size)
        if indices is not None:
            keys = indices.tolist()
        return lambda restart: generators(self.seed, "encoder attack start", restart, indices=keys)


def _better(new: Matched, old: Matched) -> Matched:
    """Return for each pair what is nearer to its code."""
    is_nearer = new.distances < old.distances  # (N,)
    return Matched(
        torch.where(is_nearer.view(-1, 1, 1, 1), new.images, old.images),
        torch.where(is_nearer, new.distances, old.distances),
        torch.where(is_nearer, new.losses, old.losses),
    )


@typed
def encoder(net: nn.Module | Detector, code: Code = "features") -> Encoder:
    """Return the callable that encodes images, in eval mode at each call.

    The codes are those of a network, or of all networks that a detector reads, one after the other
    (App. F). A detector that moves images before it reads them, such as ODIN, encodes the moved
    ones (App. C.2).

    Args:
        net: a network, or a detector.
        code: "features" (the penultimate ones), "logits", "layers" (the feature maps that the
            network names, averaged over pixels, App. D.2), or of a detector its true "score" with
            the gradient of its surrogate, or "log-score", `sign(s) log(1 + |s|)` of scores that
            range over decades.
    """
    if code not in CODES:
        raise unknown_name("code", code, CODES)
    if code in OF_SCORES:
        if not isinstance(net, Detector):
            raise UserError(
                f"code: {code!r} of a {type(net).__name__}; expected a detector, or another of "
                f"{', '.join(CODES)}"
            )
        return partial(_score, net, logarithmic=code == "log-score")
    networks: Sequence[nn.Module] = (net,)
    if isinstance(net, Detector):
        networks = net.networks
    if not networks:
        raise UserError(f"code: {type(net).__name__} reads no network; expected score or log-score")
    if code == "layers":
        for network in networks:
            if not getattr(network, "feature_layers", ()):
                raise UserError(f"code: {type(network).__name__} names no layers; see find_layers")
    return partial(_representation, net, networks, code)


def _score(detector: Detector, images: Tensor, *, logarithmic: bool) -> Tensor:
    """Return true scores `(N, 1)` with the gradient of the surrogate."""
    with evaluating(detector):
        images = accepted(images, *detector.networks)
        stand_in = detector.surrogate(images)
        # What is matched is the true score; the surrogate may lie elsewhere and only leads the way.
        true: Tensor = detector(images)
        scores = stand_in + (true - stand_in).detach()
    if logarithmic:
        scores = scores.sign() * scores.abs().log1p()
    return scores[:, None]


def _representation(
    net: nn.Module, networks: Sequence[nn.Module], code: Code, images: Tensor
) -> Tensor:
    """Return what networks make of images: `(N, D)`, one network's after the other's."""
    with evaluating(net):
        if isinstance(net, Moved):
            images = net.moved(images)
        codes = []
        for network in networks:
            codes += _codes_of(network, code, accepted(images, network))
    return torch.cat(codes, dim=1)


def _codes_of(network: nn.Module, code: Code, images: Tensor) -> list[Tensor]:
    if not getattr(network, "classifies", True):
        features: Callable[[Tensor], Tensor] | None = getattr(network, "features", None)
        if code != "features" or features is None:
            raise UserError(
                f"code: {type(network).__name__} is no classifier and has no {code}; expected "
                "features of a flow or an auto-encoder of ours, score or log-score"
            )
        return [features(images)]
    if code != "layers":
        out = outputs(network, images)
        if code == "features":
            return [out.features]
        return [out.logits]
    layers: Sequence[str] = network.feature_layers  # type: ignore[assignment]
    out = outputs(network, images, layers)
    return [vectors(out, layer) for layer in layers]


@typed
def mape(codes: Tensor, targets: Tensor) -> Tensor:
    """Return each pair's mean absolute percentage error `(N,)`, a fraction >= 0.

    It is `mean |z_out - z_in| / max |z_in|`. Source: the paper's Sec. 3. Codes and targets are
    `(N, D)`.

    Raises: `UserError` for codes or targets of another shape.
    """
    if codes.dim() != 2 or codes.shape != targets.shape:
        raise UserError(
            f"codes and targets: shapes {tuple(codes.shape)} and {tuple(targets.shape)}; expected "
            "(N, D) of both"
        )
    error = (codes - targets).abs().mean(1)
    return error / targets.abs().amax(1).clamp_min(torch.finfo(targets.dtype).tiny)
