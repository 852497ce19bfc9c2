"""Any classifier, with normalisation in front and its head and feature layers named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robust_ood.deprecation import warn_renamed
from robust_ood.errors import UserError
from robust_ood.models.normalize import Normalize
from robust_ood.models.outputs import find_head, find_layers, submodule


class Wrapped(nn.Module):
    """Somebody's classifier behind our contract: images in [0, 1] to logits.

    Args:
        module: the classifier.
        mean, std: normalisation of its inputs, one value a channel in pixel fractions; None where
            the module expects pixels or normalises itself.
        head: name of its last linear layer; by default the one registered last, until `find_layers`
            is called.
        layers: names of the submodules that are its conventional feature maps; none until
            `find_layers` is called.
    """

    pretrained = False
    """Whether the module comes with its weights, so that no file is needed."""

    def __init__(
        self,
        module: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise UserError(f"module: expected a torch.nn.Module, got a {type(module).__name__}")
        if (mean is None) != (std is None):
            raise UserError("mean and std: one is given without the other")
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.module = module
        for name in layers:
            submodule(module, name)
        self._searches_head = head is None
        self.pretrained = bool(getattr(module, "pretrained", False))
        self.head_name = _head_name(module, head)
        self.feature_layers: tuple[str, ...] = _inside(layers)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        head = self.module.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    def find_layers(self, image_shape: Sequence[int]) -> str:
        """Find the head and feature layers that were not named, and return all of them in words.

        Args:
            image_shape: channels, height and width of the images, without channels three; one
                forward pass of blank ones is made.

        Raises:
            UserError: the module cannot take such images, or gives something else than logits `(N,
                K)`.
        """
        found = find_layers(self.module, image_shape)
        if self._searches_head and found.head is not None:
            self.head_name = found.head
        layers_given = bool(self.feature_layers)
        if not layers_given:
            self.feature_layers = _inside(found.layers)
        doubt = ""
        if found.head != self.head_name:
            doubt = ", whose output is not the logits: detectors that read its weights may be wrong"
        head = f"{self.head_name} ({self.head.in_features} to {self.head.out_features}"
        head_origin = "found" if self._searches_head else "given"
        layers = ", ".join(name.removeprefix("module.") for name in self.feature_layers) or "none"
        layers_origin = "given" if layers_given else "found"
        inputs = "pixels" if isinstance(self.normalize, nn.Identity) else "normalised images"
        return (
            f"{type(self.module).__name__}, fed {inputs}: head {head}, {head_origin}){doubt}; "
            f"feature layers {layers} ({layers_origin})"
        )

    def find_parts(self, image_shape: Sequence[int]) -> str:
        """Call `find_layers`, under its former name."""
        warn_renamed("Wrapped.find_parts", "Wrapped.find_layers")
        return self.find_layers(image_shape)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)` of images `(N, C, H, W)` in [0, 1]."""
        logits: Tensor = self.module(self.normalize(images))
        return logits


def _head_name(module: nn.Module, head: str | None) -> str:
    """Return the name of a classifier's head: the given, or the linear layer registered last."""
    layer = find_head(module) if head is None else submodule(module, head, "head")
    if not isinstance(layer, nn.Linear):
        raise UserError(f"head: {head} is a {type(layer).__name__}, not a linear layer")
    names: dict[nn.Module, str] = {member: name for name, member in module.named_modules()}
    return names[layer]


def _inside(layers: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a wrapped module's layers have in the network around it."""
    return tuple(f"module.{name}" for name in layers)


def wrap(
    module: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | None = None,
    layers: Sequence[str] = (),
) -> Wrapped:
    """Return `Wrapped(...)`; see there."""
    return Wrapped(module, mean, std, head, layers)
