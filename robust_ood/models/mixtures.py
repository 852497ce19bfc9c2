"""The log-ratio of two mixtures of Gaussians, with bounds in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_ood.errors import UserError


class Mixture(nn.Module):
    """A mixture of Gaussians with one variance for all dimensions of a component.

    Args:
        components: their number, >= 1.
        dimensions: of the space, D >= 1.
    """

    def __init__(self, components: int, dimensions: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.zeros(components, dimensions))
        self.log_scales = nn.Parameter(torch.zeros(components))
        self.weight_logits = nn.Parameter(torch.zeros(components))

    def log_density(self, distances: Tensor, smallest_log_scale: Tensor | None = None) -> Tensor:
        """Return the log-density up to a constant of D alone, `(N,)` in float64.

        Args:
            distances: `(N, components)`, float64, of points from the components' means.
            smallest_log_scale: a scalar, which all scales' logarithms are raised to; None for none.
        """
        log_scales = self.log_scales.double()
        if smallest_log_scale is not None:
            log_scales = torch.maximum(log_scales, smallest_log_scale)
        log_weights = self.weight_logits.double().log_softmax(0)
        dimensions = self.means.shape[1]
        exponents = -(distances**2) / (2 * (2 * log_scales).exp())  # (N, components)
        return (log_weights - dimensions * log_scales + exponents).logsumexp(1)


class Densities(NamedTuple):
    """Log-densities of images in the in- and the out-distribution, `(N,)` each, in float64."""

    inside: Tensor
    outside: Tensor


class MixtureRatio(nn.Module):
    """`log p(x|in) - log(prior_ratio p(x|out))`, images `(N, C, H, W)` in [0, 1] to `(N,)`.

    Both densities are mixtures of Gaussians in whitened pixels, and every scale of the second is at
    least twice the largest of the first: far from all data the ratio falls without end. Computed in
    float64, because densities of thousands of dimensions underflow.

    Source: CCU (Meinke and Hein 2020), Eq. 3 and Theorem 1, which asks for larger scales outside.

    Args:
        image_shape: (C, H, W).
        components: of each mixture, >= 1.
        prior_ratio: lambda, p(out) / p(in), > 0; 1 in the paper.
    """

    mean: Tensor
    whitening: Tensor
    fitted: Tensor

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        components: int = 100,
        prior_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise UserError(f"image_shape: expected (C, H, W), got {tuple(image_shape)}")
        if components < 1:
            raise UserError(f"components: expected a number >= 1, got {components}")
        if not (prior_ratio > 0 and math.isfinite(prior_ratio)):
            raise UserError(f"prior_ratio: expected a number > 0, got {prior_ratio}")
        self.settings = {
            "image_shape": list(image_shape),
            "components": components,
            "prior_ratio": prior_ratio,
        }
        dimensions = math.prod(image_shape)
        self.prior_ratio = prior_ratio
        self.inside = Mixture(components, dimensions)
        self.outside = Mixture(components, dimensions)
        self.register_buffer("mean", torch.zeros(dimensions))
        # Rows are principal directions over their standard deviations: orthogonal to each other.
        self.register_buffer("whitening", torch.eye(dimensions))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, images: Tensor) -> Tensor:
        """Return the log-ratio, `(N,)` in float64."""
        densities = self.densities(images)
        return densities.inside - densities.outside - math.log(self.prior_ratio)

    def densities(self, images: Tensor) -> Densities:
        """Return both log-densities of images `(N, C, H, W)`."""
        points = self.whitened(images)
        return self._densities(
            _distances(points, self.inside.means), _distances(points, self.outside.means)
        )

    def bounds(self, images: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """Return bounds of the log-ratio in the ball around each image, `(N,)` each, in float64.

        Source: CCU (Meinke and Hein 2020), Theorem 1, by the triangle inequality.

        Args:
            images: `(N, C, H, W)`; the ball is not cut with [0, 1].
            radius: of the ball in whitened pixels, >= 0; `whitened_radius` gives that of a ball of
                pixels.
        """
        points = self.whitened(images)
        inside = _distances(points, self.inside.means)
        outside = _distances(points, self.outside.means)
        far = self._densities(inside + radius, (outside - radius).clamp_min(0))
        near = self._densities((inside - radius).clamp_min(0), outside + radius)
        log_prior = math.log(self.prior_ratio)
        return far.inside - far.outside - log_prior, near.inside - near.outside - log_prior

    def whitened(self, images: Tensor) -> Tensor:
        """Return images `(N, C, H, W)` as points `(N, D)` in whitened pixels, in float64."""
        if list(images.shape[1:]) != self.settings["image_shape"]:
            raise UserError(
                f"image_shape: expected images of {tuple(self.settings['image_shape'])}, got "
                f"{tuple(images.shape[1:])}"
            )
        centred = images.flatten(1).double() - self.mean.double()
        return centred @ self.whitening.double().T

    def whitened_radius(self, radius: float, norm: str) -> float:
        """Return the radius of a ball in whitened pixels that holds a ball of pixels.

        Args:
            radius: of the ball of pixels, >= 0.
            norm: "L2" or "Linf".
        """
        rows = self.whitening.double()
        # Orthogonal rows: the largest is the spectral norm.
        stretch = float(rows.norm(dim=1).max())
        if norm == "L2":
            return stretch * radius
        if norm != "Linf":
            raise UserError(f"norm: expected L2 or Linf, got {norm!r}")
        by_diagonal = math.sqrt(rows.shape[1]) * stretch
        by_rows = float(rows.abs().sum(1).norm())
        return min(by_diagonal, by_rows) * radius

    def _densities(self, inside: Tensor, outside: Tensor) -> Densities:
        """Return the log-densities at distances `(N, components)` from the means."""
        widest = self.inside.log_scales.double().max() + math.log(2)
        return Densities(self.inside.log_density(inside), self.outside.log_density(outside, widest))


def _distances(points: Tensor, means: Tensor) -> Tensor:
    """Return distances `(N, components)` of points `(N, D)`, differentiable at 0, too."""
    means = means.double()
    products = points @ means.T
    squares = (points**2).sum(1, keepdim=True) - 2 * products + (means**2).sum(1)
    return squares.clamp_min(1e-12).sqrt()
