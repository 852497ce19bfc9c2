"""What a study's file says: methods, seeds, one budget for all, and how they are evaluated."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from robust_ood.cli.bounds import check_name
from robust_ood.cli.configs import find_config, read_config, with_includes
from robust_ood.cli.train_checks import run_seed
from robust_ood.errors import UserError, unknown_name, unknown_setting
from robust_ood.texts import shown

Clock = Literal["wall", "processor"]
Settings = dict[str, Any]

_OF_THE_STUDY = {
    "ckpt_path": "runs are continued by themselves",
    "output": "runs have folders of their own",
    "seed_everything": "seeds are those of the study",
    "trainer.max_epochs": "the study's budget says how long",
    "trainer.max_steps": "the study's budget says how long",
    "trainer.max_time": "the study's budget says how long",
}
"""Settings of a training that the study itself sets."""
_OF_THE_EVALUATION = {
    "checkpoint": "the study's networks are evaluated",
    "models": "the study's networks are evaluated",
    "output": "results have folders of their own",
}


@dataclass(frozen=True)
class Budget:
    """How long each network trains; the same for all methods.

    minutes: of training, turned into a number of steps by a short trial of each method. steps: or
    that number itself. trial_steps: steps of the trial. clock: whose minutes; "processor" is for
    CPUs that other programs use, too.
    """

    minutes: float | None = None
    steps: int | None = None
    trial_steps: int = 30
    clock: Clock = "wall"


@dataclass(frozen=True)
class WarmStart:
    """The method that a network is trained by first, for a share of the budget in (0, 1)."""

    method: str
    share: float


@dataclass(frozen=True)
class StudyMethod:
    """A method of a study: settings of its training, and of its evaluation beside the study's."""

    name: str
    train: Settings
    evaluate: Settings = field(default_factory=dict)
    warm_start: WarmStart | None = None


@dataclass(frozen=True)
class Study:
    """Methods and seeds, trained under one budget and evaluated alike.

    train, evaluate: settings of all trainings and evaluations. reference: the method that the
    others are compared with.
    """

    methods: dict[str, StudyMethod]
    seeds: list[int]
    budget: Budget
    train: Settings
    evaluate: Settings
    reference: str

    def settings_of(self, method: str) -> list[Settings]:
        """Return what a method's training is made of, file by file, later ones overriding."""
        layers = []
        for settings in (self.train, self.methods[method].train):
            for name in settings.get("include", []):
                for path in with_includes(["-c", name])[1::2]:
                    layers.append(_without_includes(read_config(Path(path))))
            layers.append(_without_includes(settings))
        return layers


def read_study(path: Path) -> Study:
    """Return the study that a file describes.

    Raises: `UserError` naming the key for whatever is missing, unknown or impossible.
    """
    content = read_config(path, "study")
    _refuse_unknown("study", content, [item.name for item in fields(Study)])
    folder = path.parent
    methods = {}
    for name, spec in _mapping("methods", content.get("methods"), required=True).items():
        methods[name] = _method(str(name), spec, folder)
    for method in methods.values():
        if method.warm_start is not None:
            _check_warm_start(method, methods)
    reference = content.get("reference", next(iter(methods)))
    if reference not in methods:
        raise unknown_name("reference", str(reference), methods)
    return Study(
        methods=methods,
        seeds=_seeds(content.get("seeds", [0])),
        budget=_budget(content.get("budget")),
        train=_part("train", content.get("train"), folder, _OF_THE_STUDY),
        evaluate=_part("evaluate", content.get("evaluate"), folder, _OF_THE_EVALUATION),
        reference=reference,
    )


def _method(name: str, spec: Any, folder: Path) -> StudyMethod:
    key = f"methods.{name}"
    check_name("methods", name)
    if "/" in name or "\\" in name:
        raise UserError(f"methods: {shown(name)} has a slash; expected a name")
    given = _mapping(key, spec, required=True)
    _refuse_unknown(key, given, ["train", "evaluate", "warm_start"])
    warm_start = None
    if given.get("warm_start") is not None:
        warm_start = _warm_start(f"{key}.warm_start", given["warm_start"])
    return StudyMethod(
        name,
        _part(f"{key}.train", given.get("train"), folder, _OF_THE_STUDY),
        _part(f"{key}.evaluate", given.get("evaluate"), folder, _OF_THE_EVALUATION),
        warm_start,
    )


def _part(key: str, given: Any, folder: Path, refused: Mapping[str, str]) -> Settings:
    """Return settings of a training or an evaluation, their includes found from the study."""
    settings = dict(_mapping(key, given))
    for name, reason in refused.items():
        section, _, setting = name.rpartition(".")
        inside = settings.get(section, {}) if section else settings
        if isinstance(inside, Mapping) and setting in inside:
            raise UserError(f"{key}.{name}: cannot be set in a study; {reason}")
    names = settings.get("include", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{key}.include: expected a list of config files, got {shown(names)}")
    found = []
    for name in names:
        beside = folder / name
        path = beside if beside.is_file() else find_config(Path(name))
        if not path.is_file():
            raise UserError(f"{key}.include: {name} is no file, neither here nor beside the study")
        found.append(str(path.resolve()))
    if found:
        settings["include"] = found
    return settings


def _warm_start(key: str, given: Any) -> WarmStart:
    settings = _mapping(key, given, required=True)
    _refuse_unknown(key, settings, ["method", "share"])
    share = settings.get("share", 0.5)
    if not _is_number(share) or not 0 < share < 1:
        raise UserError(f"{key}.share: {shown(share)} is not a share of the budget in (0, 1)")
    return WarmStart(str(settings.get("method")), float(share))


def _check_warm_start(method: StudyMethod, methods: Mapping[str, StudyMethod]) -> None:
    assert method.warm_start is not None
    key = f"methods.{method.name}.warm_start.method"
    first = method.warm_start.method
    if first not in methods:
        raise unknown_name(key, first, methods)
    if methods[first].warm_start is not None:
        raise UserError(f"{key}: {first} has a warm start itself; expected a method without")


def _budget(given: Any) -> Budget:
    settings = _mapping("budget", given, required=True)
    _refuse_unknown("budget", settings, [item.name for item in fields(Budget)])
    minutes = settings.get("minutes")
    steps = settings.get("steps")
    if (minutes is None) == (steps is None):
        raise UserError("budget: expected either minutes or steps of each network's training")
    if minutes is not None and (not _is_number(minutes) or not 0 < minutes < math.inf):
        raise UserError(f"budget.minutes: {shown(minutes)} is not a number of minutes > 0")
    for name in ("steps", "trial_steps"):
        count = settings.get(name)
        if count is not None and (not _is_whole(count) or not 1 <= count <= 10**9):
            raise UserError(f"budget.{name}: {shown(count)} is not a number of steps >= 1")
    clock = settings.get("clock", "wall")
    if clock not in get_args(Clock):
        raise unknown_name("budget.clock", str(clock), get_args(Clock))
    return Budget(**settings)


def _seeds(given: Any) -> list[int]:
    if not isinstance(given, list) or not given or not all(map(_is_whole, given)):
        raise UserError(f"seeds: expected a list of whole numbers, got {shown(given)}")
    if len(set(given)) < len(given):
        raise UserError(f"seeds: {shown(given)} has one twice")
    for seed in given:
        try:
            run_seed(seed)
        except UserError as error:
            raise UserError(f"seeds: {str(error).partition(': ')[2]}") from error
    return given


def _mapping(key: str, given: Any, *, required: bool = False) -> Settings:
    if given is None and not required:
        return {}
    if not isinstance(given, Mapping) or (required and not given):
        what = "nothing" if given is None else shown(given)
        raise UserError(f"{key}: expected a mapping of settings, got {what}")
    return dict(given)


def _refuse_unknown(key: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            prefix = "" if key == "study" else f"{key}."
            raise unknown_setting(f"{prefix}{name}", [f"{prefix}{accepted}" for accepted in known])


def _without_includes(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name != "include"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
