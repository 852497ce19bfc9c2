"""The energy without the leading component of feature maps, or of weights: RankFeat, RankWeight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector, full_precision
from robust_ood.detectors.layers import PENULTIMATE, Layers, named
from robust_ood.errors import UserError
from robust_ood.models.outputs import submodule
from robust_ood.models.wrap import Network, as_network

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
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
                f"net: {type(self).__name__} reads the logits of a classifier, and "
                f"{type(self.net).__name__} is none"
            )
        if not temperature > 0:
            raise UserError(f"temperature: expected a number > 0, got {temperature}")
        self.layers = self._named(layers)
        if PENULTIMATE in self.layers:
            raise UserError("layers: 'penultimate' is no feature map; expected names of submodules")
        self.temperature = temperature

    def _named(self, layers: Layers | None) -> tuple[str, ...]:
        """Return the layers whose maps are changed."""
        if layers is None:
            return named(self.net, "all")[-2:]
        return named(self.net, layers)

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
        handle = submodule(self._module, layer).register_forward_hook(_changing(layer))
        try:
            return self._run(images)
        finally:
            handle.remove()

    @property
    def _module(self) -> nn.Module:
        """The network whose hooks are called; compiled code calls none."""
        module: nn.Module = getattr(self.net, "_orig_mod", self.net)
        return module

    def _run(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K)`, under the hooks that are there."""
        return losses.wide(self._module(images))


class RankWeight(RankFeat):
    """The free energy of a network whose weights have lost their leading component, unbounded.

    Source: Song et al. 2024 (RankWeight): a weight of the last block as a matrix minus `s_1 u_1
    v_1'`, its largest singular value and vectors. The kernel of a convolution is taken as `(C_out,
    C_in k k)`. With `layers`, feature maps lose theirs, too, which is RankFeat and RankWeight
    together. The authors change the last 1 x 1 convolution of a ResNetV2's last block, and name its
    3 x 3 one, too, for which their product is not defined; of transformers they change a linear
    layer of the last block of a stage. The component is found at each call, so that it is always
    that of the present weights.

    Args:
        net: classifier, a module whose layers can be named.
        weights: names of the linear layers and convolutions that are changed; by default the last
            one that is registered before the network's last, its head.
        layers: names of submodules whose maps `(N, C, H, W)` are changed; none by default.
        temperature: T, > 0.
    """

    @typed
    def __init__(
        self,
        net: Network,
        weights: Layers | None = None,
        layers: Layers | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(net, layers, temperature)
        self.weights = _with_matrices(self._module, weights)

    def _named(self, layers: Layers | None) -> tuple[str, ...]:
        return () if layers is None else named(self.net, layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the energies `(N,)` of images `(N, C, H, W)`."""
        if self.layers:
            return super().forward(images)
        return self._energy(self._run(images))

    def _run(self, images: Tensor) -> Tensor:
        net = self._module
        changed = {}
        for name in self.weights:
            weight = submodule(net, name).get_parameter("weight").detach()
            matrix = losses.wide(weight.flatten(1))[None, :, :, None]  # (1, C_out, C_in k k, 1)
            with full_precision(weight):
                pruned = without_leading_component(matrix).view_as(weight)
            changed[f"{name}.weight"] = pruned.to(weight.dtype)
        return losses.wide(functional_call(net, changed, (images,)))


def _has_matrix(module: nn.Module) -> bool:
    """Return whether a module multiplies by a weight of its own, not one that is made of others."""
    return isinstance(module, _MATRICES) and "weight" in module._parameters


def _with_matrices(net: nn.Module, names: Layers | None) -> tuple[str, ...]:
    """Return the names of the layers whose weights are changed."""
    if names is not None:
        chosen = (names,) if isinstance(names, str) else tuple(names)
        if not chosen or len(set(chosen)) < len(chosen):
            raise UserError(
                f"weights: expected one or more layers without duplicates, got {list(chosen)}"
            )
        for name in chosen:
            if not _has_matrix(submodule(net, name, "weights")):
                raise UserError(f"weights: {name} is neither a linear layer nor a convolution")
        return chosen
    known = [name for name, module in net.named_modules() if _has_matrix(module)]
    if len(known) < 2:
        raise UserError(
            f"weights: {type(net).__name__} has no linear layer or convolution before its last "
            "one; expected a network of two or more"
        )
    return (known[-2],)


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
