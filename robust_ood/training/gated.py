"""Training of a classifier together with what says where it may be sure: ProoD."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.bounds.interval import pixel_interval
from robust_ood.bounds.trace import bound
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.losses import wide
from robust_ood.models import Gated, load_weights, network_state, read_checkpoint
from robust_ood.modes import mode
from robust_ood.regions import Fraction
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization
from robust_ood.training.ramps import Ramp, checked_ramp, climbed


class GatedMethod(Method):
    """A method whose network is a classifier with a gate."""

    @property
    def gated(self) -> Gated:
        """The network, images `(N, C, H, W)` to log-probabilities `(N, K)`."""
        assert isinstance(self.net, Gated)
        return self.net

    def begin_from(self, weights: Path) -> None:
        """Load weights of the whole network, or of an ordinary classifier into its place."""
        content = read_checkpoint(weights)
        has_gate = any(key.startswith("gate.") for key in network_state(content, weights))
        load_weights(self.gated if has_gate else self.gated.classifier, content, source=weights)


class ProoD(GatedMethod):
    """A classifier, and a small discriminator whose interval bounds limit its confidence.

    The network is `models.Gated`: `log p(y|x) = log(sigmoid(g + shift) p_f(y|x) + sigmoid(-g -
    shift) / K)`. The classifier's term is outlier exposure of that network, `mean CE(x, y) +
    outlier_weight mean CE-to-uniform(x_out)`. The discriminator's is `mean -log sigmoid(g(x)) +
    bound_weight mean -log sigmoid(-ub g(x_out))`, ub the interval bound in an Linf ball.

    Source: ProoD (Meinke et al. 2022), Eq. 6 to 9. Semi-joint, as there: first `part:
    discriminator`, then `part: classifier` from that run's checkpoint, whose discriminator stays
    fixed. Its published code shifts the discriminator's margin by one, `logaddexp(1, -x)`.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`; or a `models.Gated` network, whose
            gate and shift then count.
        discriminator: images to one number, `(N, 1)` or `(N,)`, of layers that `bounds` knows; a
            `models.ConvNet` with `nonpositive_head` in the paper. Not for a `Gated` network.
        radius: of the Linf ball around outliers, in pixel fractions, >= 0; 0.01 in the paper.
        part: what is trained; the rest is fixed.
        bias_shift: added to the discriminator's output in the network, not in its own loss; 3 in
            the paper.
        outlier_weight: of outliers in the classifier's loss, >= 0.
        bound_weight: kappa, of the bound in the discriminator's loss, >= 0.
        weight_ramp: shares of the run between which `bound_weight` climbs from 0; epochs 0 to 300
            of 1,000 in the paper.
        radius_ramp: likewise the radius.
        optimization, compile, seed: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        discriminator: nn.Module | None = None,
        radius: float | Fraction = 0.01,
        part: Literal["both", "discriminator", "classifier"] = "both",
        bias_shift: float = 3.0,
        outlier_weight: float = 1.0,
        bound_weight: float = 1.0,
        weight_ramp: Ramp = (0.0, 0.3),
        radius_ramp: Ramp = (0.0, 0.3),
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        super().__init__(
            _gated(net, discriminator, bias_shift),
            outlier_weight=outlier_weight,
            optimization=optimization,
            compile=compile,
            seed=seed,
        )
        self.radius = float(Fraction(radius))
        if not self.radius >= 0:
            raise UserError(f"radius: {radius} is not >= 0")
        if not bound_weight >= 0:
            raise UserError(f"bound_weight: {bound_weight} is not >= 0")
        if part not in ("both", "discriminator", "classifier"):
            raise UserError(f"part: {part!r} is none of 'both', 'discriminator' and 'classifier'")
        self.part = part
        self.bound_weight = bound_weight
        self.weight_ramp = checked_ramp("weight_ramp", weight_ramp)
        self.radius_ramp = checked_ramp("radius_ramp", radius_ramp)
        self.gated.classifier.requires_grad_(part != "discriminator")
        self.gated.gate.requires_grad_(part != "classifier")

    @property
    def needs_outliers(self) -> bool:
        """Whether the loss reads auxiliary outliers."""
        return True

    def objective(self, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        if self.part == "discriminator":
            return self.discriminator_loss(batch)
        fixed = nullcontext()
        if self.part == "classifier":
            # What is fixed must not learn by its running statistics either.
            fixed = mode(self.gated.gate, training=False)  # type: ignore[assignment]
        with fixed:
            inliers, outliers = self.logits(batch.images, batch.outliers)
        loss = self.loss(inliers, outliers, batch)
        if self.part == "both":
            return loss + self.discriminator_loss(batch)
        return loss

    def discriminator_loss(self, batch: Batch) -> Tensor:
        """Return the binary loss, of the bound on outliers, and log its terms."""
        weight = self.bound_weight * climbed(self.weight_ramp, self.progress)
        radius = self.radius * climbed(self.radius_ramp, self.progress)
        # Without the shift, which belongs to the network.
        inliers = wide(self.gated.gate(batch.images)).flatten()  # (N,)
        upper = bound(self.gated.gate, pixel_interval(batch.outliers, radius)).outputs.upper
        inlier_loss = F.softplus(-inliers).mean()
        outlier_loss = F.softplus(upper).mean()
        self.log("train/discriminator_inlier_loss", inlier_loss.detach())
        self.log("train/discriminator_outlier_loss", outlier_loss.detach())
        self.log("train/radius", radius)
        return inlier_loss + weight * outlier_loss


def _gated(net: nn.Module, discriminator: nn.Module | None, bias_shift: float) -> Gated:
    if isinstance(net, Gated):
        if discriminator is not None:
            raise UserError("discriminator: the network has a gate already")
        return net
    if discriminator is None:
        raise UserError(
            "discriminator: not given; expected a network of one output, such as models.ConvNet "
            "with num_classes 1 and nonpositive_head"
        )
    return Gated(net, discriminator, bias_shift)
