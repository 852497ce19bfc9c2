"""Scores of networks that model images: likelihood, complexity, reconstruction."""

from __future__ import annotations

import io
import zlib
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector, full_precision
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import ClassMoments
from robust_ood.errors import UserError
from robust_ood.models.wrap import Network, as_network

Code = Literal["png", "deflate"]
Pixels = NDArray[np.uint8]

_LEAST = 1e30


class Likelihood(Detector):
    """The log-likelihood of a flow in bits per dimension, negated: -bits / dim, unbounded.

    Source: Nalisnick et al. 2019, who show that it fails (SVHN is likelier than CIFAR-10 under a
    flow of CIFAR-10); the encoder-attack paper, Sec. 2.3. Deterministic: pixels are taken as they
    are, without noise.

    Args:
        net: a `models.Glow`, or any network of images `(N, C, H, W)` to bits per dimension `(N,)`
            that says `classifies = False`.
    """

    @typed
    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = as_network(net)
        _refuse_classifier(self.net, type(self).__name__, "bits per dimension, such as Glow")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The flow."""
        return (self.net,)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = likelier, of images `(N, C, H, W)`."""
        with full_precision(images):
            bits = self.net(images.float() if images.dtype == torch.bfloat16 else images)
        if not isinstance(bits, Tensor) or bits.shape != images.shape[:1]:
            raise UserError(
                f"net: {type(self.net).__name__} gives no number for each image; expected bits per "
                "dimension (N,)"
            )
        # Latents of far images overflow; these are as unlikely as a number can say.
        return (-bits).nan_to_num(nan=-_LEAST, neginf=-_LEAST).clamp(-_LEAST, _LEAST)

    def attack_surface(self) -> AttackSurface:
        """Return the score itself; its sums over all pixels need float32."""
        return AttackSurface((self.surrogate,), exact=True, needs_float32=True)


class Complexity(Likelihood):
    """Likelihood against complexity: `L(x) - bits(x)`, L bits per dimension of a lossless code.

    Unbounded.

    Source: Serra et al. 2020, Eq. 1, where OOD is high: this is its negative. The encoder-attack
    paper, App. I, with PNG. Simple images are likely; the code's length says how simple one is. It
    does not change under most small steps, so an attack follows the likelihood, and the true score
    chooses. Images are coded in 8 bits.

    Args:
        net: as in `Likelihood`.
        code: "png", as published, whose header of some 67 bytes dominates small images; "deflate",
            the shortest of PNG's five filters, compressed without any header.
    """

    @typed
    def __init__(self, net: Network, code: Code = "png") -> None:
        super().__init__(net)
        if code not in ("png", "deflate"):
            raise UserError(f"code: {code!r} is neither 'png' nor 'deflate'")
        self.code = code

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)`."""
        return super().forward(images) + self.lengths(images)

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the likelihood `(N,)`, the part of the score that has gradients."""
        return super().forward(images)

    def lengths(self, images: Tensor) -> Tensor:
        """Return the code's bits per dimension, `(N,)`, without gradients."""
        quantised = (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
        arrays = quantised.permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, C)
        measure = _png_bytes if self.code == "png" else _deflated_bytes
        lengths = [8 * measure(array) / array.size for array in arrays]
        return torch.tensor(lengths, dtype=torch.float32, device=images.device)

    def attack_surface(self) -> AttackSurface:
        """Return the likelihood, which does not order images as the score does."""
        return AttackSurface((self.surrogate,), needs_float32=True)


class ReconstructionError(Detector):
    """How far an image is from what an auto-encoder makes of it, negated: <= 0.

    Source: the encoder-attack paper, Sec. 2.4, which argues that an attack on the encoder leaves it
    as it is. An attack through the error itself does not.

    Args:
        net: images `(N, C, H, W)` in [0, 1] to images: a `models.AutoEncoder` or any callable.
        p: of the norm, >= 1; `float("inf")` for the largest error.
        distance: "norm"; or "mahalanobis", of the residual under the mean and covariance of those
            of training images, which `fit` learns (D x D numbers of images with D).
    """

    @typed
    def __init__(
        self,
        net: Network,
        p: float = 2.0,
        distance: Literal["norm", "mahalanobis"] = "norm",
    ) -> None:
        super().__init__()
        self.net = as_network(net)
        if not p >= 1:
            raise UserError(f"p: expected a number >= 1, got {p}")
        if distance not in ("norm", "mahalanobis"):
            raise UserError(f"distance: {distance!r} is neither 'norm' nor 'mahalanobis'")
        self.p = p
        self.distance = distance
        if distance == "mahalanobis":
            self.declare("mean", "whitening")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The auto-encoder."""
        return (self.net,)

    def residuals(self, images: Tensor) -> Tensor:
        """Return `x - AE(x)`, `(N, D)`. Raises: `UserError` where the network gives no images."""
        reconstructions = self.net(images)
        given = getattr(reconstructions, "shape", None)
        if given != images.shape:
            shape = "no tensor" if given is None else tuple(given)
            raise UserError(
                f"net: {type(self.net).__name__} gives back {shape} of images "
                f"{tuple(images.shape)}; expected an auto-encoder, images to images"
            )
        with full_precision(images):
            lost: Tensor = images.float() - reconstructions.float()
        return lost.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = better reconstructed, of images `(N, C, H, W)`."""
        residuals = self.residuals(images)
        p = self.p
        if self.distance == "mahalanobis":
            residuals = (residuals - self.learned("mean")) @ self.learned("whitening")
            p = 2.0
        length: Tensor = torch.linalg.vector_norm(residuals, ord=p, dim=1)
        return -length

    def learn(self) -> Rounds:
        """Find mean and covariance of the residuals, in one pass, where the distance has them."""
        if self.distance == "norm":
            return
        moments = ClassMoments(1)
        yield [Pass(moments, self._read, self, forward=False)]
        values, vectors = torch.linalg.eigh(moments.overall)  # ascending
        # Directions in which residuals do not vary count as those in which they vary least.
        floor = values[-1].clamp_min(1e-12) * 1e-6
        self.keep(mean=moments.mean, whitening=vectors / values.clamp_min(floor).sqrt())

    def _read(self, seen: SeenBatch) -> tuple[Tensor, Tensor]:
        residuals = self.residuals(seen.images)
        return residuals, torch.zeros(len(residuals), dtype=torch.int64, device=residuals.device)

    def attack_surface(self) -> AttackSurface:
        """Return the score itself; small errors need float32."""
        return AttackSurface((self.surrogate,), exact=True, needs_float32=True)


def _refuse_classifier(net: nn.Module, name: str, expected: str) -> None:
    if getattr(net, "classifies", isinstance(net, nn.Module) and not _is_function(net)):
        raise UserError(
            f"net: {name} expects a network that gives {expected}, got the classifier "
            f"{type(net).__name__}"
        )


def _is_function(net: nn.Module) -> bool:
    return hasattr(net, "function")


def _png_bytes(array: Pixels) -> int:
    plain = array[..., 0] if array.shape[2] == 1 else array
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plain)).save(file, "PNG", optimize=True)
    return len(file.getvalue())


def _deflated_bytes(array: Pixels) -> int:
    """Return the bytes of the shortest filtered form, compressed without header or checksum."""
    lengths = []
    for residual in _filtered(array):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        lengths.append(len(packer.compress(residual.tobytes())) + len(packer.flush()))
    return min(lengths)


def _filtered(array: Pixels) -> list[Pixels]:
    """Return an image `(H, W, C)` minus each of PNG's predictions, modulo 256."""
    whole = np.pad(array.astype(np.int16), ((1, 0), (1, 0), (0, 0)))
    left = whole[1:, :-1]
    above = whole[:-1, 1:]
    corner = whole[:-1, :-1]
    estimate = left + above - corner
    distances = np.stack([abs(estimate - near) for near in (left, above, corner)])
    paeth = np.choose(distances.argmin(0), [left, above, corner])
    filtered = []
    for prediction in (np.zeros_like(left), left, above, (left + above) // 2, paeth):
        filtered.append(((array - prediction) % 256).astype(np.uint8))
    return filtered
