"""Names of attacks, of regions and of step rules, for configs, the command line and Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from robust_ood.arguments import typed
from robust_ood.attacks.apply import Attack
from robust_ood.attacks.patches import Patch, patch
from robust_ood.attacks.pgd import PGD
from robust_ood.attacks.published import aloe_mahalanobis, aloe_softmax, apgd, fgsm
from robust_ood.attacks.quantised import Quantised
from robust_ood.attacks.resolution import LowResolution
from robust_ood.attacks.square import Square
from robust_ood.attacks.suite import standard
from robust_ood.attacks.targeted import Targeted
from robust_ood.attacks.universal import Universal
from robust_ood.errors import UserError
from robust_ood.regions import L1, L2, Linf, Region, Unbounded, region_of
from robust_ood.rules import AutoPGD, Rule, Steepest
from robust_ood.settings import Part, PartSpec, UnknownSettingError, configured, read_part
from robust_ood.texts import shown

T = TypeVar("T")


def pgd_low_resolution(region: Region, *, size: int, **settings: Any) -> LowResolution:
    """Return PGD at a lower resolution; `size` is the perturbation's height and width.

    Source: Fort 2022, Sec. 3.4.
    """
    return LowResolution(configured("", PGD, region, settings=settings), size)


def standard_of(region: Region) -> Attack:
    """Return the standard suite of a region's norm and radius.

    Source: `standard` names its members' papers.
    """
    return standard(region.radius, region.name)


def targeted(region: Region, *, classes: int = 9, **settings: Any) -> Targeted:
    """Return Auto-PGD towards each of the likeliest classes.

    Source: Croce and Hein 2020 (APGD-T of AutoAttack).
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
    "patch": patch,
    "universal": Universal,
    "standard": standard_of,
    "aloe-softmax": aloe_softmax,
    "aloe-mahalanobis": aloe_mahalanobis,
    "transfer-msp": partial(PGD, objective="msp", keep="objective"),
    "transfer-softmax": partial(PGD, objective="softmax", keep="objective"),
    "transfer-unmoved": partial(PGD, objective="unmoved", keep="objective"),
}
"""Attacks by the names that configs use; each takes a region first."""

REGIONS: dict[str, Callable[..., Region]] = {
    "Linf": Linf,
    "L2": L2,
    "L1": L1,
    "Unbounded": Unbounded,
    "patch": Patch,
}
RULES: dict[str, Callable[..., Rule]] = {"steepest": Steepest, "auto": AutoPGD}
DEFAULT_NORM = "Linf"
DEFAULT_RADIUS = "8/255"


def build(attack: PartSpec, /, **settings: Any) -> Attack:
    """Return an attack as configs write it.

        build("pgd", radius="8/255", steps=10)
        build({"name": "pgd", "radius": "8/255", "steps": 10})

    Args:
        attack: a registered name, the import path of a class of your own, or a mapping with `name`
            (or `class_path` and `init_args`) and settings.
        settings: further settings: `norm` (Linf) and `radius` (8/255), or `region` for a region of
            your own; others are the attack's.

    Raises:
        UserError: unknown name (with the nearest known one), a bad radius, or a setting that the
            attack does not have.
    """
    written = read_part("attacks", attack)
    return _evaluated(replace(written, settings={**written.settings, **settings}))


@typed
def build_all(specs: Sequence[PartSpec]) -> dict[str, Attack]:
    """Return attacks by label from a config's list, each as `build` takes it.

    A mapping may also have a `label`; by default it is the name, with the radius where one is
    given.
    """
    attacks: dict[str, Attack] = {}
    for spec in specs:
        attack = read_part("attacks", spec)
        label = attack.label
        if label is None and "radius" in attack.settings:
            label = f"{attack.name}-{attack.settings['radius']}"
        elif label is None:
            label = attack.name
        if label in attacks:
            raise UserError(f"attacks: {label!r} is duplicated; give one of them another 'label'")
        attacks[label] = _evaluated(attack)
    return attacks


def _evaluated(attack: Part) -> Attack:
    """Return an attack that an evaluation can use."""
    made = make_attack("attacks", f"attacks.{attack.name}", attack)
    if attack.name not in REGISTRY:
        _require_attack("attacks", attack.name, made)
    return made


def make_attack(name_field: str, field: str, attack: Part) -> Attack:
    """Return the attack that a config names; a setting that is None takes its default.

    Args:
        name_field: the config field of its name, for messages.
        field: the config field of its settings.
        attack: its name and settings as a config writes them; `quantise: true` rounds what it
            gives to 8 bits a pixel (see `Quantised`).
    """
    settings = {name: value for name, value in attack.settings.items() if value is not None}
    quantise = settings.pop("quantise", False)
    if not isinstance(quantise, bool):
        raise UserError(f"{field}.quantise: expected true or false, got {shown(quantise)}")
    made = _made(field, attack.maker(name_field, REGISTRY), attack.name, settings)
    if not quantise:
        return made
    try:
        return Quantised(made)
    except UserError as error:
        raise UserError(f"{field}.{error}") from error


def _made(field: str, make: Callable[..., Attack], name: str, settings: dict[str, Any]) -> Attack:
    takes_region = "region" in inspect.signature(make).parameters
    if takes_region:
        make = partial(make, region=_take_region(field, settings))
    if name in REGISTRY and isinstance(settings.get("rule"), str | Mapping):
        settings["rule"] = _make(f"{field}.rule", settings["rule"], RULES)
    try:
        return configured(field, make, settings=settings)
    except UnknownSettingError as error:
        accepted = error.known
        if takes_region:
            accepted = tuple(dict.fromkeys(("norm", "radius", "quantise", *accepted)))
        raise UnknownSettingError(field, error.name, accepted) from error


_OF_AN_ATTACK = ("settings", "keeps_clean", "on_score", "on_label")
"""What an evaluation asks of an attack; see `attacks.Attack`."""


def _require_attack(field: str, name: str, made: object) -> None:
    """Refuse an object of the user's that no evaluation could use."""
    missing = [member for member in _OF_AN_ATTACK if not hasattr(made, member)]
    if missing:
        raise UserError(
            f"{field}: {name!r} makes no attack: its {type(made).__name__} lacks "
            f"{', '.join(missing)} (docs/tutorials/add_an_attack.md)"
        )


def _take_region(field: str, settings: dict[str, Any]) -> Region:
    """Return the region that an attack's settings name, and remove what names it."""
    size: dict[str, Any] = {}
    for name in ("norm", "radius"):
        if name in settings:
            size[name] = settings.pop(name)
    region = settings.pop("region", None)
    if region is None:
        if size.get("norm") == L1.name and "radius" not in size:
            raise UserError(
                f"{field}.radius: not given; an L1 radius is a sum over all pixels, such as 12 for "
                "images of 32 x 32"
            )
        size = {"norm": DEFAULT_NORM, "radius": DEFAULT_RADIUS, **size}
        return configured(field, region_of, settings=size)
    if size:
        raise UserError(
            f"{field}.region: given together with {' and '.join(size)}; a region has its own"
        )
    if isinstance(region, Region):
        return region
    return _make(f"{field}.region", region, REGIONS)


def _make(field: str, spec: PartSpec, registry: Mapping[str, Callable[..., T]]) -> T:
    part = read_part(field, spec)
    return configured(field, part.maker(field, registry), settings=part.settings)
