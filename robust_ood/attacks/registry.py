"""Short names of attacks, for configs and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from robust_ood.attacks.apply import Attack
from robust_ood.attacks.pgd import PGD, aloe_mahalanobis, aloe_softmax, apgd, fgsm
from robust_ood.attacks.resolution import LowResolution
from robust_ood.attacks.square import Square
from robust_ood.attacks.suite import standard
from robust_ood.attacks.targeted import Targeted
from robust_ood.errors import UserError, unknown_name
from robust_ood.regions import Region, region_of
from robust_ood.settings import configured


def pgd_low_resolution(region: Region, *, size: int, **settings: Any) -> LowResolution:
    """Return PGD at a lower resolution; `size` is the perturbation's height and width. Source: Fort
    2022, Sec. 3.4.
    """
    return LowResolution(configured("", PGD, region, settings=settings), size)


def standard_of(region: Region) -> Attack:
    """Return the standard suite of a region's norm and radius. Source: `standard` names its
    members' papers.
    """
    return standard(region.radius, region.name)


def targeted(region: Region, *, classes: int = 9, **settings: Any) -> Targeted:
    """Return Auto-PGD towards each of the likeliest classes. Source: Croce and Hein 2020 (APGD-T of
    AutoAttack).
    """
    return Targeted(configured("", apgd, region, settings=settings), classes)


REGISTRY: dict[str, Callable[..., Attack]] = {
    "pgd": PGD,
    "pgd-softmax": partial(PGD, objective="softmax"),
    "pgd-features": partial(PGD, objective="features"),
    "pgd-low-resolution": pgd_low_resolution,
    "fgsm": fgsm,
    "apgd": apgd,
    "targeted": targeted,
    "square": Square,
    "standard": standard_of,
    "aloe-softmax": aloe_softmax,
    "aloe-mahalanobis": aloe_mahalanobis,
    "transfer-msp": partial(PGD, objective="msp", keep="objective"),
    "transfer-softmax": partial(PGD, objective="softmax", keep="objective"),
    "transfer-unmoved": partial(PGD, objective="unmoved", keep="objective"),
}
"""Attacks by the names that configs use; each takes a region first."""


def build(
    name: str, /, *, norm: str = "Linf", radius: float | str = "8/255", **settings: Any
) -> Attack:
    """Return the attack registered under `name`.

    Raises:
        UserError: unknown name (with the nearest known one), a bad radius, or a setting that the
            attack does not have.
    """
    if name not in REGISTRY:
        raise unknown_name("attacks", name, REGISTRY)
    field = f"attacks.{name}"
    region = configured(field, region_of, settings={"norm": norm, "radius": radius})
    return configured(field, REGISTRY[name], region, settings=settings)


def build_all(specs: list[str | dict[str, Any]]) -> dict[str, Attack]:
    """Return attacks by label from a config's list: names, or mappings with `name`, `label`
    (optional), settings.
    """
    built: dict[str, Attack] = {}
    for spec in specs:
        settings: Mapping[str, Any] = {"name": spec} if isinstance(spec, str) else spec
        if "name" not in settings:
            raise UserError(f"attacks: {dict(settings)} has no 'name'")
        default = (
            f"{settings['name']}-{settings['radius']}" if "radius" in settings else settings["name"]
        )
        label = str(settings.get("label", default))
        if label in built:
            raise UserError(f"attacks: {label!r} stands twice; give one of them another 'label'")
        rest = {key: value for key, value in settings.items() if key not in ("name", "label")}
        built[label] = build(str(settings["name"]), **rest)
    return built
