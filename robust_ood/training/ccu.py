"""Training with densities of inliers and outliers, and no confidence far from data: CCU."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.data import Batch, ImageSet, OODData, to_float
from robust_ood.errors import UserError
from robust_ood.models import Gated, MixtureRatio
from robust_ood.models.mixtures import Mixture
from robust_ood.randomness import derive_seed
from robust_ood.training.drawn import drawn
from robust_ood.training.gated import GatedMethod
from robust_ood.training.optimization import Optimization


class CCU(GatedMethod):
    """Certified certain uncertainty: the classifier is believed where inliers are denser.

    The network is `models.Gated` with the log-ratio of two mixtures of Gaussians as its gate,
    `p(y|x) = [p_f(y|x) p(x|in) + lambda p(x|out) / K] / [p(x|in) + lambda p(x|out)]`. Minimises
    `mean CE(x, y) + outlier_weight mean CE-to-uniform(x_out) - density_weight (mean log p(x|in) +
    outlier_weight mean log p(x_out|out))`.

    Source: CCU (Meinke and Hein 2020), Eq. 3 to 5. The mixtures begin with scikit-learn's EM in
    whitened pixels of the training images, as they are (the published code augments them, loses the
    first outlier and the weights). Scales of the out-mixture are at least twice those inside, which
    the certificate needs; see `models.MixtureRatio`.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`; or a `models.Gated` network with a
            `models.MixtureRatio`, whose settings then count.
        image_size: H = W of the images.
        components: of each mixture, >= 1; 100 in the paper.
        directions: principal directions of the images that are whitened apart, the others
            together; None for all, as in the paper.
        prior_ratio: lambda, > 0; 1 in the paper.
        outlier_weight: >= 0; 1 in the paper.
        density_weight: of the densities' own likelihood, >= 0.
        mixture_learning_rate: of the mixtures, without weight decay, >= 0; 0 leaves them as EM
            found them.
        mixture_images: how many inliers, and how many outliers, EM sees at most.
        smallest_scale: standard deviations of whitening below this share of the largest are raised
            to it, in (0, 1]; 1e-6 in the published code. Pixel balls need larger ones.
        optimization, compile, seed: as in `Method`; the learning rate is the classifier's.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        image_size: int = 32,
        components: int = 100,
        directions: int | None = None,
        prior_ratio: float = 1.0,
        outlier_weight: float = 1.0,
        density_weight: float = 1.0,
        mixture_learning_rate: float = 1e-5,
        mixture_images: int = 10_000,
        smallest_scale: float = 1e-6,
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        if not isinstance(net, Gated):
            gate = MixtureRatio((3, image_size, image_size), components, directions, prior_ratio)
            net = Gated(net, gate)
        if not isinstance(net.gate, MixtureRatio):
            raise UserError(f"net: expected a MixtureRatio as gate, got {type(net.gate).__name__}")
        super().__init__(
            net,
            outlier_weight=outlier_weight,
            optimization=optimization,
            compile=compile,
            seed=seed,
        )
        for name, value in (
            ("density_weight", density_weight),
            ("mixture_learning_rate", mixture_learning_rate),
        ):
            if not value >= 0:
                raise UserError(f"{name}: {value} is not >= 0")
        if not 0 < smallest_scale <= 1:
            raise UserError(f"smallest_scale: {smallest_scale} is not in (0, 1]")
        if mixture_images < components:
            raise UserError(
                f"mixture_images: {mixture_images} is fewer than the {components} components"
            )
        self.density_weight = density_weight
        self.mixture_learning_rate = mixture_learning_rate
        self.mixture_images = mixture_images
        self.smallest_scale = smallest_scale
        self.mixtures.requires_grad_(mixture_learning_rate > 0)

    @property
    def mixtures(self) -> MixtureRatio:
        """The gate."""
        gate = self.gated.gate
        assert isinstance(gate, MixtureRatio)
        return gate

    @property
    def needs_outliers(self) -> bool:
        """Whether the loss reads auxiliary outliers."""
        return True

    def objective(self, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        inlier_logits, outlier_logits = self.logits(batch.images, batch.outliers)
        loss = self.loss(inlier_logits, outlier_logits, batch)
        if not self.density_weight:
            return loss
        inside = self.mixtures.densities(batch.images).inside.mean()
        outside = self.mixtures.densities(batch.outliers).outside.mean()
        self.log("train/log_density_in", inside.detach().float())
        self.log("train/log_density_out", outside.detach().float())
        likelihood = inside + self.outlier_weight * outside
        return loss - self.density_weight * likelihood.to(loss.dtype)

    def parameter_groups(self) -> list[dict[str, Any]] | None:
        """Return the classifier's parameters, and the mixtures' with their own learning rate."""
        groups = [{"params": list(self.gated.classifier.parameters())}]
        if self.mixture_learning_rate:
            mixtures: dict[str, Any] = {
                "params": list(self.mixtures.parameters()),
                "lr": self.mixture_learning_rate,
                "weight_decay": 0.0,
            }
            groups.append(mixtures)
        return groups

    # Where the mixtures begin
    # ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Fit the mixtures to the training data, unless weights that were loaded bring them."""
        super().setup(stage)
        if stage != "fit" or bool(self.mixtures.fitted) or self.trainer.ckpt_path is not None:
            return
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, OODData):
            raise UserError(
                "mixtures: not fitted; call fit_mixtures(inliers, outliers) before a training "
                "without robust_ood.data.OODData"
            )
        outliers = data.outliers()
        if outliers is None:
            return  # the first step says what is missing
        self.fit_mixtures(
            self._drawn(data.inliers("train"), "inliers of mixtures"),
            self._drawn(outliers, "outliers of mixtures"),
        )

    def fit_mixtures(self, inliers: Tensor, outliers: Tensor) -> None:
        """Whiten the pixels, and fit both mixtures by EM.

        Args:
            inliers: `(N, C, H, W)` in [0, 1], at least as many as components.
            outliers: `(M, C, H, W)` likewise.

        Raises:
            UserError: fewer images than components, or images of another size.
        """
        gate = self.mixtures
        components = gate.settings["components"]
        for name, images in (("inliers", inliers), ("outliers", outliers)):
            if len(images) < components:
                raise UserError(
                    f"components: {components} are more than the {len(images)} {name} that the "
                    "mixtures are fitted to"
                )
        gate.whiten(inliers, self.smallest_scale)
        seed = derive_seed(self.seed, "mixtures") % 2**32
        _fit(gate.inside, gate.whitened(inliers), seed)
        _fit(gate.outside, gate.whitened(outliers), seed)
        gate.fitted.fill_(True)

    def _drawn(self, images: ImageSet, purpose: str) -> Tensor:
        """Return at most `mixture_images` images of a set, `(n, 3, H, W)` in [0, 1]."""
        return to_float(drawn(images, self.mixture_images, self.seed, purpose).images)


def _fit(mixture: Mixture, points: Tensor, seed: int) -> None:
    """Set a mixture to what EM finds for points `(N, D)`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    components = len(mixture.means)
    model = GaussianMixture(components, covariance_type="spherical", random_state=seed)
    with warnings.catch_warnings():
        # Training goes on from here, so that an unfinished EM is no fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points.detach().cpu().numpy())
    with torch.no_grad():
        mixture.means.copy_(torch.from_numpy(model.means_))
        mixture.log_scales.copy_(torch.from_numpy(model.covariances_).log() / 2)
        mixture.weight_logits.copy_(torch.from_numpy(model.weights_).clamp_min(1e-300).log())
