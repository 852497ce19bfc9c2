"""What a grid refuses, and what it says of its sets, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from robust_ood.attacks import Attack, Budget
from robust_ood.attacks.universal import needs_fit
from robust_ood.data import OODData
from robust_ood.data.limits import must_draw
from robust_ood.errors import UserError


def describe_draws(data: OODData, limit: int | None) -> Iterator[str]:
    """Say of which sets images are drawn, because the first ones are of few classes."""
    tested = [data.inliers("test"), *(images for _, images in data.ood_sets())]
    for images in [*tested, *data.shifted_sets()]:
        if must_draw(images, limit):
            yield (
                f"{images.name}: it is sorted by class, so the {limit} images that are used are "
                "drawn from all of them instead of the first ones"
            )


def check_count(field: str, number: int | None) -> None:
    """Raise `UserError` unless a number of images is absent or at least one."""
    if number is not None and number < 1:
        raise UserError(f"{field}: {number} is not a number of images >= 1")


def refuse_unfitted(field: str, attack: Attack) -> None:
    """Raise `UserError`, naming the field, for an attack that only an evaluation makes ready."""
    if needs_fit(attack):
        raise UserError(
            f"{field}: a universal perturbation is found by evaluations; expected another attack"
        )


def check_attacks(attacks: Mapping[str, Attack], field: str = "attacks") -> None:
    """Raise `UserError`, naming the field, for attacks, by label, that no row could describe."""
    if "none" in attacks:
        raise UserError(
            f"{field}: 'none' is the label of clean images; give the attack another 'label'"
        )
    for label, attack in attacks.items():
        if not hasattr(attack, "settings"):
            raise UserError(f"{field}.{label}: expected an attack, got a {type(attack).__name__}")
        if not math.isfinite(attack.settings()["radius"]):
            raise UserError(
                f"{field}.{label}: no radius; accepted: attacks within an Linf, L2 or L1 radius"
            )
        if isinstance(attack, Budget):
            attack.warn_if_short(f"{field}.{label}")
