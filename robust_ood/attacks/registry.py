"""Short names of attacks, for configs and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from robust_ood.attacks.apply import ScoreAttack
from robust_ood.attacks.pgd import PGD, fgsm
from robust_ood.errors import UserError, unknown_name
from robust_ood.regions import NORMS, Region
from robust_ood.settings import configured

REGISTRY: dict[str, Callable[..., ScoreAttack]] = {
    "pgd": PGD,
    "pgd-softmax": partial(PGD, objective="softmax"),
    "fgsm": fgsm,
}


def region_of(norm: str, radius: float | str) -> Region:
    """Return the region that a config names by norm and radius."""
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    return NORMS[norm](radius)  # type: ignore[arg-type]  # Region reads "8/255" itself


def build(name: str, /, *, norm: str = "Linf", radius: float | str = "8/255", **settings: Any) -> ScoreAttack:
    """Return the attack registered under `name`.

    Raises:
        UserError: unknown name (with the nearest known one), a bad radius, or a setting that the attack does not have.
    """
    if name not in REGISTRY:
        raise unknown_name("attacks", name, REGISTRY)
    field = f"attacks.{name}"
    region = configured(field, region_of, settings={"norm": norm, "radius": radius})
    return configured(field, REGISTRY[name], region, settings=settings)


def build_all(specs: list[str | dict[str, Any]]) -> dict[str, ScoreAttack]:
    """Return attacks by label from a config's list: names, or mappings with `name`, optionally `label`, and settings."""
    built: dict[str, ScoreAttack] = {}
    for spec in specs:
        settings: Mapping[str, Any] = {"name": spec} if isinstance(spec, str) else spec
        if "name" not in settings:
            raise UserError(f"attacks: {dict(settings)} has no 'name'")
        default = f"{settings['name']}-{settings['radius']}" if "radius" in settings else settings["name"]
        label = str(settings.get("label", default))
        if label in built:
            raise UserError(f"attacks: {label!r} stands twice; give one of them another 'label'")
        rest = {key: value for key, value in settings.items() if key not in ("name", "label")}
        built[label] = build(str(settings["name"]), **rest)
    return built
