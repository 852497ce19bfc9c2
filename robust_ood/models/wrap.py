"""Any classifier, with normalisation in front and its parts named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models.normalize import Normalize
from robust_ood.models.outputs import find_head, find_parts, submodule


class Wrapped(nn.Module):
    """Somebody's classifier behind our contract: images in [0, 1] to logits.

    Args:
        module: the classifier.
        mean, std: normalisation of its inputs, one value a channel in pixel fractions; None where
            the module wants pixels or normalises itself.
        head: name of its last linear layer; by default the one registered last, until `find_parts`
            has looked.
        layers: names of the submodules that are its conventional feature maps; none until
            `find_parts` has looked.
    """

    pretrained = False
    """Whether the weights are those that whoever built it wanted, so that no file is needed."""

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
            raise UserError(f"module: a {type(module).__name__}; accepted: a torch.nn.Module")
        if (mean is None) != (std is None):
            raise UserError("mean and std: one is given without the other")
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.module = module
        for name in layers:
            submodule(module, name)
        self._found_head = head is None
        self.pretrained = bool(getattr(module, "pretrained", False))
        named = find_head(module) if head is None else submodule(module, head, "head")
        if not isinstance(named, nn.Linear):
            raise UserError(f"head: {head} is a {type(named).__name__}, not a linear layer")
        self.head_name = next(name for name, part in module.named_modules() if part is named)
        self.feature_layers: tuple[str, ...] = tuple(f"module.{name}" for name in layers)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        head = self.module.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    def find_parts(self, image_shape: tuple[int, int]) -> str:
        """Look for what was not named, with one forward pass of blank images, and return what is
        now taken, in words.

        Args:
            image_shape: height and width of the images.

        Raises:
            UserError: the module cannot take such images, or gives something else than logits `(N,
                K)`.
        """
        parts = find_parts(self.module, image_shape)
        if self._found_head and parts.head is not None:
            self.head_name = parts.head
        layers, named = self.feature_layers, "given"
        if not layers:
            layers, named = tuple(f"module.{name}" for name in parts.layers), "found"
            self.feature_layers = layers
        head = f"{self.head_name} ({self.head.in_features} to {self.head.out_features}, "
        head += f"{'found' if self._found_head else 'given'})"
        if parts.head != self.head_name:
            head += ", whose output is not the logits: detectors that read its weights may be wrong"
        pixels = "pixels" if isinstance(self.normalize, nn.Identity) else "normalised images"
        names = ", ".join(name.removeprefix("module.") for name in layers) or "none"
        return f"{type(self.module).__name__}, fed {pixels}: head {head}; feature layers {names} ({named})"

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)` of images `(N, C, H, W)` in [0, 1]."""
        logits: Tensor = self.module(self.normalize(images))
        return logits


def wrap(
    module: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | None = None,
    layers: Sequence[str] = (),
) -> Wrapped:
    """Return `Wrapped(...)`; see there."""
    return Wrapped(module, mean, std, head, layers)
