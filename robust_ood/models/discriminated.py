"""A classifier, and beside it a small discriminator of inliers on its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models.activation import Activation, activation_named, check_choice
from robust_ood.models.heads import find_head
from robust_ood.models.outputs import Outputs, outputs


class Discriminated(nn.Module):
    """A classifier of K classes, and a discriminator that says from its features what is an inlier.

    Images `(N, C, H, W)` in [0, 1] to the classifier's logits `(N, K)`. So accuracy, and detectors
    that read logits, are the classifier's; `discriminate` and `discriminator_logits` give the
    discriminator's logit, higher = more in-distribution.

    Source: ATD (Azizmalayeri et al. 2022), whose discriminator reads the features of a robust
    network that stays as it is.

    Args:
        net: classifier with a linear head, images to logits `(N, K)`.
        hidden: widths of the discriminator's hidden layers, each >= 1; none for a linear one.
        activation: between its layers: "relu", "silu", "elu" or "leaky_relu" (slope 0.2).
        norm: "batch" for BatchNorm after each of its hidden layers but the first; "none".
        bias: whether its linear layers have biases.

    ATD's published discriminator has hidden layers of 512, 256, 128 and 64, "leaky_relu", "batch"
    and no biases.

    Raises:
        UserError: no linear head, or a width below 1.
    """

    separate_part = "discriminator"
    """What a file of weights may hold alone, where `net` has its own."""

    @typed
    def __init__(
        self,
        net: nn.Module,
        hidden: Sequence[int] = (128,),
        activation: Activation = "relu",
        norm: Literal["none", "batch"] = "none",
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ("none", "batch"))
        if isinstance(net, Discriminated):
            raise UserError("net: has a discriminator already")
        for width in hidden:
            if width < 1:
                raise UserError(f"hidden: {width} is not a width >= 1")
        self.net = net
        self.hidden = tuple(hidden)
        layers: list[nn.Module] = []
        width = find_head(net).in_features
        for wider in self.hidden:
            layers.append(nn.Linear(width, wider, bias=bias))
            if norm == "batch" and len(layers) > 1:
                layers.append(nn.BatchNorm1d(wider))
            layers.append(activation_named(activation))
            width = wider
        self.discriminator = nn.Sequential(*layers, nn.Linear(width, 1, bias=bias))
        # Kept only where it differs: what was computed of earlier networks keeps its name.
        form = {"activation": activation, "norm": norm, "bias": bias}
        if form != {"activation": "relu", "norm": "none", "bias": True}:
            self.form: dict[str, Any] = form
        names = getattr(net, "feature_layers", ())
        self.feature_layers = tuple(f"net.{name}" for name in names)

    @property
    def settings(self) -> dict[str, Any]:
        """What builds this network again."""
        return {"net": self.net, "hidden": list(self.hidden), **getattr(self, "form", {})}

    @property
    def head(self) -> nn.Linear:
        """The classifier's last linear layer."""
        return find_head(self.net)

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's logits `(N, K)`."""
        logits: Tensor = logits_of(self.net(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return what the discriminator reads, the input of the classifier's head, `(N, D)`."""
        return outputs(self.net, images).features

    def of_features(self, features: Tensor) -> Tensor:
        """Return the discriminator's logits `(N,)` of features `(N, D)`."""
        logits: Tensor = self.discriminator(features)
        return logits[:, 0]

    def discriminate(self, out: Outputs) -> Tensor:
        """Return the discriminator's logits `(N,)` of what a forward pass gave."""
        return self.of_features(out.features)

    def discriminator_logits(self, images: Tensor) -> Tensor:
        """Return the discriminator's logits `(N,)` of images `(N, C, H, W)`."""
        return self.of_features(self.features(images))
