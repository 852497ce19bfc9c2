"""Detectors that change what another one sees or says."""

from __future__ import annotations

from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface, Surrogate, surface_of
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.fitting.passes import Rounds


class Wrapper(Detector):
    """A detector that changes what another one sees or says.

    Args:
        detector: the wrapped detector; in-distribution statistics are its own to learn.
    """

    @typed
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def attack_surface(self) -> AttackSurface:
        """Return what an attacker may use: the surrogate, exact where the wrapped one is.

        Of a wrapper with a surrogate of its own, nothing is known.
        """
        inherited = type(self).surrogate is Detector.surrogate
        exact = inherited and surface_of(self.detector).exact
        return AttackSurface((self.surrogate,), exact=exact)

    def learn(self) -> Rounds:
        """Fit the wrapped detector."""
        return self.detector.learn()


class _Unmoved(Wrapper):
    """A detector without its own movement of the images, for readers of the old name `unmoved`.

    It scores by the first surrogate that is not moved.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the values `(N,)` of the first surrogate."""
        return self._surrogates()[0](images)

    def attack_surface(self) -> AttackSurface:
        """Return the surrogates that are not moved."""
        return AttackSurface(self._surrogates(), exact=True)

    def _surrogates(self) -> tuple[Surrogate, ...]:
        unmoved = self.detector.attack_surface().unmoved
        assert unmoved is not None  # `without_movement` makes no other
        return unmoved


def without_movement(detector: Detector) -> Detector:
    """Return a detector that scores without the movement of its images, or the detector itself."""
    if detector.attack_surface().unmoved is None:
        return detector
    return _Unmoved(detector)
