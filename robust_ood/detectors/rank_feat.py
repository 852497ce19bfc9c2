"""The energy of feature maps without their leading singular component: RankFeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector, full_precision
from robust_ood.detectors.layers import PENULTIMATE, Layers, named
from robust_ood.errors import UserError
from robust_ood.models.outputs import submodule
from robust_ood.models.wrap import Network, as_network

_REFINEMENTS = 3
"""Power iterations that carry the gradient; their value is that of the decomposition."""


class RankFeat(Detector):
    """The free energy of logits whose feature maps have lost their leading component, unbounded.

    Source: Song et al. 2022 (RankFeat): a map as a matrix `(C, H W)` minus `s_1 u_1 v_1'`, its
    largest singular value and vectors; then the rest of the network. The logits of several layers
    are averaged before the energy `T logsumexp(z / T)`, as in the paper's fusion of the last two
    blocks. The codes of the authors and of OpenOOD can approximate the component by 20 power
    iterations from a random start; here it is exact.

    Each layer takes a forward pass of its own.

    Args:
        net: classifier, a module whose layers can be named.
        layers: names of submodules that give maps `(N, C, H, W)`, "all" for the network's
            `feature_layers`; by default the last two of those.
        temperature: T, > 0.
    """

    @typed
    def __init__(
        self, net: Network, layers: Layers | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.net = as_network(net)
        if not getattr(self.net, "classifies", True):
            raise UserError(
                f"net: RankFeat reads the logits of a classifier, and {type(self.net).__name__} "
                "is none"
            )
        if not temperature > 0:
            raise UserError(f"temperature: expected a number > 0, got {temperature}")
        names = named(self.net, "all")[-2:] if layers is None else named(self.net, layers)
        if PENULTIMATE in names:
            raise UserError("layers: 'penultimate' is no feature map; expected names of submodules")
        self.layers = names
        self.temperature = temperature

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)

    def forward(self, images: Tensor) -> Tensor:
        """Return the energies `(N,)` of images `(N, C, H, W)`."""
        logits = torch.stack([self._logits(images, layer) for layer in self.layers]).mean(0)
        return self._energy(logits)

    def unchanged(self, images: Tensor) -> Tensor:
        """Return the energies `(N,)` of the maps as they are."""
        return self._energy(losses.wide(self.net(images)))

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the energy of the maps as they are.

        Where the two largest singular values are close, the leading component turns quickly.
        """
        return AttackSurface((self.surrogate, self.unchanged), exact=True)

    def _energy(self, logits: Tensor) -> Tensor:
        energy: Tensor = self.temperature * (logits / self.temperature).logsumexp(1)
        return energy

    def _logits(self, images: Tensor, layer: str) -> Tensor:
        """Return the logits `(N, K)` with the layer's maps changed."""
        net = getattr(self.net, "_orig_mod", self.net)  # compiled code calls no hooks
        handle = submodule(net, layer).register_forward_hook(_changing(layer))
        try:
            return losses.wide(net(images))
        finally:
            handle.remove()


def _changing(layer: str) -> Callable[[nn.Module, Any, Any], Tensor]:
    """Return a hook that removes the leading component from a layer's maps."""

    def hook(_: nn.Module, __: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"layers: {layer} gives {shape}; expected maps (N, C, H, W)")
        with full_precision(output):
            return without_leading_component(losses.wide(output)).to(output.dtype)

    return hook


def without_leading_component(maps: Tensor) -> Tensor:
    """Return maps `(N, C, H, W)` minus their best approximation of rank one, as `(C, H W)`.

    The leading right vector is found without gradient, then refined by power iterations that have
    one: derivatives of a whole decomposition are infinite where singular values are equal.
    """
    matrix = maps.flatten(2)  # (N, C, P)
    with torch.no_grad():
        wide = matrix.double() if matrix.device.type != "mps" else matrix
        transposed = wide.shape[1] < wide.shape[2]
        gram = wide @ wide.mT if transposed else wide.mT @ wide  # the smaller of both
        leading = torch.linalg.eigh(gram).eigenvectors[:, :, -1:]
        if transposed:
            leading = wide.mT @ leading
        vector = F.normalize(leading, dim=1).to(matrix)  # (N, P, 1)
    for _ in range(_REFINEMENTS):
        vector = F.normalize(matrix.mT @ F.normalize(matrix @ vector, dim=1), dim=1)
    return (matrix - matrix @ vector @ vector.mT).view_as(maps)
