"""The log-ratio of two mixtures of Gaussians, with bounds in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError


class Mixture(nn.Module):
    """A mixture of Gaussians with one variance for all dimensions of a component.

    Args:
        components: their number, >= 1.
        coordinates: of a point.
        dimensions: of the space that the points are of, D >= 1; fewer than the coordinates where
            these are not independent of each other.
    """

    def __init__(self, components: int, coordinates: int, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.means = nn.Parameter(torch.zeros(components, coordinates))
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
        exponents = -(distances**2) / (2 * (2 * log_scales).exp())  # (N, components)
        return (log_weights - self.dimensions * log_scales + exponents).logsumexp(1)


class Densities(NamedTuple):
    """Log-densities of images in the in- and the out-distribution, `(N,)` each, in float64."""

    inside: Tensor
    outside: Tensor


class MixtureRatio(nn.Module):
    """`log p(x|in) - log(prior_ratio p(x|out))`, images `(N, C, H, W)` in [0, 1] to `(N,)`.

    Both densities are mixtures of Gaussians in whitened pixels, and every scale of the second is at
    least twice the largest of the first: far from all data the ratio falls without end. Computed in
    float64, because densities of thousands of dimensions underflow.

    Whitened pixels are the coordinates along `directions` principal directions, each over its
    standard deviation, and the remainder of the image over one scale for all other directions.

    Source: CCU (Meinke and Hein 2020), Eq. 3 and Theorem 1, which asks for larger scales outside.

    Args:
        image_shape: (C, H, W).
        components: of each mixture, >= 1.
        directions: principal directions with scales of their own, in [1, C H W]; None for all.
        prior_ratio: lambda, p(out) / p(in), > 0; 1 in the paper.
    """

    mean: Tensor
    axes: Tensor
    scales: Tensor
    rest_scale: Tensor
    fitted: Tensor

    @typed
    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        components: int = 100,
        directions: int | None = None,
        prior_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise UserError(f"image_shape: expected (C, H, W), got {tuple(image_shape)}")
        if components < 1:
            raise UserError(f"components: expected a number >= 1, got {components}")
        if not (prior_ratio > 0 and math.isfinite(prior_ratio)):
            raise UserError(f"prior_ratio: expected a number > 0, got {prior_ratio}")
        dimensions = math.prod(image_shape)
        rank = dimensions if directions is None else directions
        if not 1 <= rank <= dimensions:
            raise UserError(f"directions: expected a number in [1, {dimensions}], got {rank}")
        self.settings: dict[str, Any] = {
            "image_shape": list(image_shape),
            "components": components,
            "directions": directions,
            "prior_ratio": prior_ratio,
        }
        self.prior_ratio = prior_ratio
        self.has_rest = rank < dimensions
        coordinates = rank + dimensions if self.has_rest else rank
        self.inside = Mixture(components, coordinates, dimensions)
        self.outside = Mixture(components, coordinates, dimensions)
        self.register_buffer("mean", torch.zeros(dimensions))
        # Orthonormal rows; a row of zeros where there were fewer images than directions.
        self.register_buffer("axes", torch.eye(dimensions)[:rank].contiguous())  # (rank, D)
        self.register_buffer("scales", torch.ones(rank))
        self.register_buffer("rest_scale", torch.ones(()))
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
        """Return images `(N, C, H, W)` as points `(N, coordinates)`, in float64."""
        if list(images.shape[1:]) != self.settings["image_shape"]:
            raise UserError(
                f"image_shape: expected images of {tuple(self.settings['image_shape'])}, got "
                f"{tuple(images.shape[1:])}"
            )
        centred = images.flatten(1).double() - self.mean.double()
        axes = self.axes.double()
        along = centred @ axes.T  # (N, rank)
        whitened = along / self.scales.double()
        if not self.has_rest:
            return whitened
        rest = (centred - along @ axes) / self.rest_scale.double()  # (N, D)
        return torch.cat([whitened, rest], 1)

    def whiten(self, images: Tensor, smallest_scale: float) -> None:
        """Find the whitening of images.

        Args:
            images: `(N, C, H, W)`, at least 2.
            smallest_scale: standard deviations below this share of the largest are raised to it,
                in (0, 1].
        """
        pixels = images.flatten(1).double()
        mean = pixels.mean(0)
        _, singular, directions = torch.linalg.svd(pixels - mean, full_matrices=False)
        scales = singular / math.sqrt(len(pixels))
        floor = float(scales.max()) * smallest_scale
        rank = len(self.scales)
        # The first direction without a scale of its own gives that of all the rest.
        rest = max(float(scales[rank]) if rank < len(scales) else 0.0, floor)
        self.mean.copy_(mean)
        self.axes.zero_()
        self.scales.fill_(rest)
        kept = min(rank, len(scales))
        self.axes[:kept].copy_(directions[:kept])
        self.scales[:kept].copy_(scales[:kept].clamp_min(floor))
        self.rest_scale.fill_(rest)
        if not self.has_rest and kept < rank:
            # All directions are needed: complete the rows to a basis.
            basis = torch.linalg.qr(directions[:kept].T, mode="complete").Q  # (D, D)
            self.axes[kept:].copy_(basis[:, kept:].T)

    def whitened_radius(self, radius: float, norm: str) -> float:
        """Return the radius of a ball in whitened pixels that holds a ball of pixels.

        Args:
            radius: of the ball of pixels, >= 0.
            norm: "L2" or "Linf".
        """
        if norm not in ("L2", "Linf"):
            raise UserError(f"norm: expected L2 or Linf, got {norm!r}")
        scales = self.scales.double()
        stretch = float(1 / scales.min())
        if self.has_rest:
            stretch = max(stretch, float(1 / self.rest_scale.double()))
        if norm == "L2":
            return stretch * radius
        dimensions = self.axes.shape[1]
        # A cube is inside the L2 ball through its corners; and each coordinate has its own largest
        # value in it.
        by_corners = math.sqrt(dimensions) * stretch
        squares = float((self.axes.double().abs().sum(1) / scales).square().sum())
        if self.has_rest:
            squares += dimensions / float(self.rest_scale.double()) ** 2
        return min(by_corners, math.sqrt(squares)) * radius

    def _densities(self, inside: Tensor, outside: Tensor) -> Densities:
        """Return the log-densities at distances `(N, components)` from the means."""
        widest = self.inside.log_scales.double().max() + math.log(2)
        return Densities(self.inside.log_density(inside), self.outside.log_density(outside, widest))


def _distances(points: Tensor, means: Tensor) -> Tensor:
    """Return distances `(N, components)` of points `(N, coordinates)`, differentiable at 0, too."""
    means = means.double()
    products = points @ means.T
    squares = (points**2).sum(1, keepdim=True) - 2 * products + (means**2).sum(1)
    return squares.clamp_min(1e-12).sqrt()
