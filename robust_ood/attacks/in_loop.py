"""Attacks inside training: a budget, written in the same form as an evaluation's attack.

While training, an attack is one run to its last iterate, so only its budget counts. What else an
evaluation may set (restarts, objective, ...) is no setting here, and a `PGD` object that sets it
is refused rather than read in part.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from robust_ood.attacks.budget import Budget
from robust_ood.attacks.patches import Patch
from robust_ood.attacks.pgd import PGD
from robust_ood.attacks.registry import REGISTRY, make_attack
from robust_ood.attacks.training_budget import TrainingBudget
from robust_ood.deprecation import warn_renamed
from robust_ood.errors import UserError
from robust_ood.regions import Fraction
from robust_ood.settings import Part, configured, read_part


@dataclass(frozen=True)
class BudgetConfig:
    """An in-loop attack as a config writes it: `{name: pgd, radius: 8/255, steps: 10}`.

    The same text is an attack of an evaluation. Null means the attack's own default.

    Args:
        name: pgd, fgsm or apgd, or the import path of a function that returns such an attack.
        norm: Linf, L2 or L1; Linf by default.
        radius: in pixel fractions; 8/255 by default.
        region: a region of your own in place of norm and radius, as a name (an import path) with
            settings.
        steps: gradient steps, >= 1, or aloe: floor(255 radius + 1); 10 by default.
        step_size: size of a step in the norm; by default steps shrink from the radius to zero.
        random_start: begin at a random point of the region; true by default.
        rule: how a gradient becomes a step, as a name with settings; see `Budget`.
        start_noise: noise of so many radii before a single step, which is then not clipped around
            the image: 2 in N-FGSM. Of training alone; see `TrainingBudget`.
        early_steps: fewer steps until a share of the run, as in `[[0.3, 1], [0.6, 3]]`. Of training
            alone.
        replays: times in a row that a batch is trained, whose own gradient takes the attack's
            steps: "free" adversarial training. Of training alone.
    """

    name: str = "pgd"
    norm: str | None = None
    radius: float | Fraction | None = None
    region: str | dict[str, Any] | None = None
    steps: int | Literal["aloe"] | None = None
    step_size: float | Fraction | None = None
    random_start: bool | None = None
    rule: str | dict[str, Any] | None = None
    start_noise: float | None = None
    early_steps: list[tuple[float, int]] | None = None
    replays: int | None = None

    @staticmethod
    def can_be(value: object) -> bool:
        """Whether a value may be given in place of this: a config's form, or an attack."""
        known = isinstance(value, BudgetConfig | Mapping | Budget)
        return known or hasattr(value, "settings")

    def part(self) -> Part:
        """Return the same as a part."""
        settings = {name: getattr(self, name) for name in BUDGET_SETTINGS}
        name = settings.pop("name")
        return Part(name, settings)


if TYPE_CHECKING:
    InLoopAttack = Budget | BudgetConfig | str
    """What training methods accept: a `Budget`, a `PGD`, or either as a config has it."""
else:
    # What jsonargparse reads: what a config may write.
    InLoopAttack = BudgetConfig | str
    """What training methods accept: a `Budget`, a `PGD`, or either as a config has it."""

IN_LOOP_NAMES = ("pgd", "fgsm", "apgd")
"""The registered attacks that are a budget and nothing else."""

BUDGET_SETTINGS = tuple(field.name for field in fields(BudgetConfig))
_OF_TRAINING = ("start_noise", "early_steps", "replays")
"""Those that an evaluation's attack has not."""
_OF_BUDGET = {field.name for field in fields(Budget)}
_PGD_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(PGD).parameters.items()
    if name not in _OF_BUDGET
}
EVALUATION_SETTINGS = tuple(_PGD_DEFAULTS)
"""The settings of `PGD` that are for evaluations alone."""


def budget_of(field: str, attack: InLoopAttack | Mapping[str, Any] | None) -> Budget | None:
    """Return the budget of an in-loop attack, or None for none.

    Warns where all its steps together are shorter than its radius.

    Args:
        field: the setting's name, for messages.
        attack: a budget; a `PGD` whose other settings are the defaults; or either as a config
            writes it.

    Raises:
        UserError: not such an attack, or one with settings that are for evaluations alone.
    """
    if attack is None:
        return None
    chosen: Any = attack
    if isinstance(attack, str | Mapping | BudgetConfig):
        part = attack.part() if isinstance(attack, BudgetConfig) else read_part(field, attack)
        if part.name in REGISTRY and part.name not in IN_LOOP_NAMES:
            raise _no_budget(f"{field}.name", part.name)
        chosen = _made(f"{field}.name", field, part)
    if not isinstance(chosen, Budget):
        raise _no_budget(field, type(chosen).__name__)
    budget = _plain_budget(field, chosen)
    budget.warn_if_short(field)
    return budget


def _made(name_field: str, field: str, part: Part) -> Any:
    """Return what an in-loop attack names, with the settings that only training has."""
    settings = dict(part.settings)
    of_training = {}
    for name in _OF_TRAINING:
        value = settings.pop(name, None)
        if value is not None:
            of_training[name] = value
    attack: Any = make_attack(name_field, field, replace(part, settings=settings))
    if not of_training or not isinstance(attack, Budget):
        return attack
    budget = _plain_budget(field, attack)
    given = {name: getattr(budget, name) for name in _OF_BUDGET}
    return configured(field, TrainingBudget, settings={**given, **of_training})


def _no_budget(field: str, name: str) -> UserError:
    known = ", ".join(IN_LOOP_NAMES)
    return UserError(f"{field}: {name} belongs to evaluations; expected one of {known}")


def _plain_budget(field: str, attack: Budget) -> Budget:
    """Return a budget without what evaluations alone use, where that is as it is by default."""
    if isinstance(attack.region, Patch):
        raise UserError(f"{field}.region: patches belong to evaluations; accepted: Linf, L2, L1")
    if not isinstance(attack, PGD):
        return attack
    for setting, default in _PGD_DEFAULTS.items():
        if getattr(attack, setting) != default:
            raise UserError(evaluation_only(f"{field}.{setting}"))
    return Budget(attack.region, attack.steps, attack.step_size, attack.random_start, attack.rule)


def is_evaluation_setting(name: str) -> bool:
    """Return whether an attack has a setting of this name in evaluations alone."""
    return name == "label" or name in EVALUATION_SETTINGS


def evaluation_only(field: str) -> str:
    """Return the message for an evaluation's setting in an in-loop attack."""
    known = ", ".join(BUDGET_SETTINGS)
    return (
        f"{field}: belongs to evaluations; while training, an attack is one run to its last "
        f"iterate, with the settings {known}"
    )


# How run folders are written and compared
# ---------------------------------------------------------------------------------------------


def completed(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's settings in which in-loop attacks name the defaults that they took.

    A derived step size stays null: it follows the radius. So does an attack that is another's.

    Args:
        method: `model` of a run's settings, with `class_path` and `init_args`.
    """
    return _with_attacks(method, derived=False)


def comparable(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's settings in which equal in-loop attacks are equal, however written."""
    settings = _with_attacks(method, derived=True)
    arguments = settings.get("init_args") or {}
    if str(settings.get("class_path")).endswith(".ALOE") and not arguments.get("outlier_attack"):
        outlier_attack = arguments.get("inlier_attack")
        settings["init_args"] = {**arguments, "outlier_attack": outlier_attack}
    return settings


def _with_attacks(method: Mapping[str, Any], *, derived: bool) -> dict[str, Any]:
    settings = dict(method)
    arguments = dict(settings.get("init_args") or {})
    for name, value in arguments.items():
        if _is_attack(name, value):
            arguments[name] = _completed_attack(name, value, derived=derived)
    settings["init_args"] = arguments
    return settings


def _is_attack(name: str, value: Any) -> bool:
    if isinstance(value, Mapping):
        settings = {field.name for field in fields(BudgetConfig)}
        return (
            "steps" in value
            and bool({"radius", "region"} & set(value))
            and bool(settings >= set(value) - set(EVALUATION_SETTINGS))
        )
    return isinstance(value, str) and name.endswith(("attack", "search"))


def _completed_attack(name: str, attack: Any, *, derived: bool) -> Any:
    short = attack
    if isinstance(attack, Mapping):
        short = {"name": "pgd", **short_form(name, attack, warn=False)}
    try:
        part = read_part(name, short)
        budget = _made(name, name, part)
        accepted = inspect.signature(part.maker(name, REGISTRY)).parameters
    except UserError:
        return attack  # of a class that is not at hand: compared as it is written
    if not isinstance(budget, Budget):
        return attack
    settings = {setting: part.settings.get(setting) for setting in BUDGET_SETTINGS}
    settings["name"] = part.name
    if settings["region"] is None:
        settings["norm"] = budget.region.name
        settings["radius"] = budget.region.radius
    if derived:
        # What it does, not how it is written: `steps: aloe` of 1/255 is `steps: 2`.
        del settings["name"]
        return {
            **settings,
            "steps": budget.steps,
            "step_size": budget.step_size,
            "random_start": budget.random_start,
            "rule": repr(budget.rule),
            "early_steps": _pairs(settings["early_steps"]),
        }
    for setting in ("steps", "random_start"):
        if settings[setting] is None and setting in accepted:
            settings[setting] = getattr(budget, setting)
    return settings


def _pairs(early_steps: Any) -> list[list[float]] | None:
    """Return pairs as YAML has them, whether they were lists or tuples."""
    if not early_steps:
        return None
    return [list(pair) for pair in early_steps]


# The long form of the last release, which goes with the next one
# ---------------------------------------------------------------------------------------------


def short_form(field: str, attack: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """Return an in-loop attack without the long form's region and its settings without effect.

    Args:
        field: its config field, for the warning.
        attack: `{region: {class_path: robust_ood.Linf, init_args: {radius: ...}}, ...}`; anything
            else is returned as it is.
        warn: say that the form is deprecated.
    """
    settings = dict(attack)
    region = settings.get("region")
    if not isinstance(region, Mapping):
        return settings
    path = str(region.get("class_path", ""))
    kind = path.rpartition(".")[2]
    ours = path == "" or (path.startswith("robust_ood.") and kind in ("Linf", "L2"))
    rest = {
        name: value for name, value in region.items() if name not in ("class_path", "init_args")
    }
    size = {**(region.get("init_args") or {}), **rest}
    if not ours or "name" in region or not size.get("clip", True) or set(size) - {"radius", "clip"}:
        return settings
    del settings["region"]
    if warn:
        warn_renamed(f"{field}.region", f"{field}.norm and {field}.radius")
    if kind:
        settings["norm"] = kind
    if "radius" in size:
        settings["radius"] = size["radius"]
    for name in EVALUATION_SETTINGS:  # which a run's config.yaml had, and nothing read
        if name in settings and settings[name] == _PGD_DEFAULTS[name]:
            del settings[name]
    return settings
