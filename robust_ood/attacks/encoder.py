"""The OOD attack on encoders: OOD images that a network encodes like in-distribution ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.attacks.pgd import Draws
from robust_ood.detectors import Detector
from robust_ood.errors import UserError, unknown_name
from robust_ood.inputs import accepted
from robust_ood.models import outputs
from robust_ood.modes import evaluating, ordinary
from robust_ood.perturb import minimize
from robust_ood.randomness import generators
from robust_ood.regions import L2, Region
from robust_ood.rules import Optimizer

Encoder = Callable[[Tensor], Tensor]
"""Images `(N, C, H, W)` to codes `(N, D)`."""


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
    """

    region: Region = field(default_factory=lambda: L2(10.0))
    steps: int = 100
    learning_rate: float | None = None
    random_start: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.learning_rate is None and not math.isfinite(self.region.radius):
            raise UserError(
                "learning_rate: an Unbounded region has no radius to derive it from; give one"
            )

    def match(
        self, encode: Encoder, starts: Tensor, inliers: Tensor, indices: Tensor | None = None
    ) -> Tensor:
        """Return images near `starts` whose codes are those of `inliers`, pair by pair.

        Each is the best of the run.

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

        rate = self.learning_rate
        if rate is None:
            rate = self.region.radius / 100
        start = None
        if self.random_start:
            start = self.region.sample(starts, self._draws(len(starts), indices)(0))
        return minimize(
            distance,
            starts,
            self.region,
            steps=self.steps,
            step_size=rate,
            rule=Optimizer(torch.optim.Adamax),
            start=start,
        ).images

    def _draws(self, size: int, indices: Tensor | None) -> Draws:
        keys: Sequence[int] = range(size)
        if indices is not None:
            keys = indices.tolist()
        return lambda restart: generators(self.seed, "encoder attack start", restart, indices=keys)


@typed
def encoder(
    net: nn.Module | Detector, code: Literal["features", "logits", "score"] = "features"
) -> Encoder:
    """Return the callable that encodes images: features, logits, or a detector's true score.

    The features are the penultimate ones. The score has the gradient of the detector's surrogate.
    The network is in eval mode at each call.
    """

    def encode(images: Tensor) -> Tensor:
        with evaluating(net):
            networks = net.networks if isinstance(net, Detector) else (net,)
            images = accepted(images, *networks)
            if code == "score":
                assert isinstance(net, Detector)
                stand_in = net.surrogate(images)
                # What is matched is the true score; the surrogate may lie elsewhere and only leads
                # the way.
                scores: Tensor = net(images)
                return (stand_in + (scores - stand_in).detach())[:, None]
            out = outputs(net, images)
            if code == "features":
                return out.features
            return out.logits

    if code not in ("features", "logits", "score"):
        raise unknown_name("code", code, ("features", "logits", "score"))
    if (code == "score") != isinstance(net, Detector):
        raise UserError(
            f"code: {code!r} of a {type(net).__name__}; a detector gives 'score', a network the "
            "others"
        )
    return encode


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
