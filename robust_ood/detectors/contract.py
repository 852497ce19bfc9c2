"""What every detector promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from robust_ood.models import Outputs, outputs


class Detector(nn.Module, ABC):
    """Images to scores: float32, finite, one per image, images independent of each other, higher = more in-distribution.

    A detector that needs in-distribution statistics overrides `fit` and keeps what it learns in buffers. A detector
    whose score is not, or not usefully, differentiable overrides `surrogate`.
    """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)` in [0, 1]."""

    def surrogate(self, images: Tensor) -> Tensor:
        """Return a differentiable stand-in for the score, `(N,)`, for attackers; the score itself by default."""
        scores: Tensor = self(images)
        return scores

    @property
    def exact_surrogate(self) -> bool:
        """Whether the surrogate orders images exactly as the score does, so that no attack needs to compare both."""
        return type(self).surrogate is Detector.surrogate

    @property
    def surrogates(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """All stand-ins that an attack should follow: `surrogate`, then others that may lead further on some images."""
        return (self.surrogate,)

    def fit(self, loader: Iterable[Any]) -> Detector:
        """Learn from in-distribution batches what the score needs; nothing unless a detector says otherwise."""
        return self

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifiers that the score reads, each once: what the published softmax attacks differentiate."""
        found: dict[int, nn.Module] = {}
        for child in self.children():
            parts = child.networks if isinstance(child, Detector) else ()
            found.update((id(net), net) for net in parts)
        return tuple(found.values())


class OutputsDetector(Detector):
    """A detector that reads only what one forward pass of one classifier gives.

    `score(outputs)` lets many such detectors share that pass.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        layers: names of the submodules whose feature maps the score reads besides logits and penultimate features.
    """

    def __init__(self, net: nn.Module, layers: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.net = net
        self.layers = layers

    @abstractmethod
    def score(self, out: Outputs) -> Tensor:
        """Return scores `(N,)`, float32, higher = more in-distribution, of a forward pass."""

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the differentiable stand-in, `(N,)`, of a forward pass; the score itself by default."""
        return self.score(out)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)` in [0, 1]."""
        return self.score(outputs(self.net, images, self.layers))

    def surrogate(self, images: Tensor) -> Tensor:
        """Return a differentiable stand-in for the score, `(N,)`, for attackers."""
        return self.surrogate_score(outputs(self.net, images, self.layers))

    @property
    def exact_surrogate(self) -> bool:
        """Whether the surrogate orders images exactly as the score does."""
        return type(self).surrogate_score is OutputsDetector.surrogate_score

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)


class Wrapper(Detector):
    """A detector that changes what another one sees or says.

    Args:
        detector: the wrapped detector; in-distribution statistics are its own to learn.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    @property
    def exact_surrogate(self) -> bool:
        """Whether the wrapped detector's surrogate is exact: a wrapper asks it at the very point it scores."""
        return self.detector.exact_surrogate

    def fit(self, loader: Iterable[Any]) -> Detector:
        """Fit the wrapped detector."""
        self.detector.fit(loader)
        return self
