"""The kinds of pictures, and how configs name them: `curves`, or `{name: curves, images: 128}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from robust_ood.detectors import Detector
from robust_ood.errors import UserError, unknown_name
from robust_ood.evaluation.picture_settings import CurveSettings, NoSettings, TransferSettings
from robust_ood.evaluation.scene import (
    FEW,
    Drawing,
    Scene,
    curves,
    errors,
    landscape,
    shift,
    strips,
)
from robust_ood.evaluation.transfer import is_ensemble, transfer
from robust_ood.settings import PartSpec, configured, read_part


class Kind(NamedTuple):
    """What draws pictures of a kind, of a detector, a scene and, where it has any, its settings.

    applies: whether there is such a picture of a detector.
    """

    draw: Callable[..., Drawing]
    settings: Callable[..., Any] = NoSettings
    applies: Callable[[Detector], bool] = lambda detector: True


KINDS: dict[str, Kind] = {
    "shift": Kind(shift),
    "curves": Kind(curves, CurveSettings),
    "landscape": Kind(landscape),
    "strips": Kind(strips),
    "errors": Kind(errors),
    "transfer": Kind(transfer, TransferSettings, is_ensemble),
}


@dataclass(frozen=True)
class PictureRequest:
    """A picture that a config asks for, of every detector that it applies to.

    settings: as written. label: tells several of a kind apart; empty where there is none.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def configured(self) -> Any:
        """The settings, checked.

        Raises: `UserError` for one that the kind does not have, and for a wrong value.
        """
        make = KINDS[self.kind].settings
        return configured(f"figures.{self.kind}", make, settings=self.settings)

    @property
    def most(self) -> int:
        """How many images of each side the picture needs."""
        return max(FEW, int(self.configured.most))

    def draw(self, detector: Detector, scene: Scene) -> Drawing:
        """Return the arrays, and what they are of."""
        kind = KINDS[self.kind]
        if kind.settings is NoSettings:
            return kind.draw(detector, scene)
        return kind.draw(detector, scene, self.configured)


def pictures_of(figures: bool | Sequence[PartSpec]) -> list[PictureRequest]:
    """Return the pictures that a setting asks for: all kinds, none, or those it names.

    Raises: `UserError` for an unknown kind, wrong settings, and two of a kind with one label.
    """
    if isinstance(figures, bool):
        return [PictureRequest(kind) for kind in KINDS] if figures else []
    requests: dict[tuple[str, str], PictureRequest] = {}
    for spec in figures:
        part = read_part("figures", spec)
        if part.name not in KINDS:
            raise unknown_name("figures", part.name, KINDS)
        request = PictureRequest(part.name, part.settings, part.label or "")
        request.configured  # noqa: B018
        earlier = requests.setdefault((request.kind, request.label), request)
        if earlier != request:
            raise UserError(
                f"figures: {part.name!r} is given twice; give one of them another 'label'"
            )
    return list(requests.values())
