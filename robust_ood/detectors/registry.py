"""Short names of detectors, for configs and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import nn

from robust_ood.detectors.contract import Detector, OutputsDetector
from robust_ood.detectors.logits import Energy, MaxLogit
from robust_ood.detectors.perturbed import ODIN, PRO
from robust_ood.detectors.softmax import GEN, MSP, Entropy
from robust_ood.errors import UserError, unknown_name
from robust_ood.settings import configured


class Entry(NamedTuple):
    """A registered detector: how to make it from a network, and the paper it is from."""

    make: Callable[..., Detector]
    paper: str


def pro(
    net: nn.Module,
    score: Callable[..., OutputsDetector],
    steps: int = 3,
    step_size: float = 1e-3,
    clip: bool = False,
    units: Literal["pixels", "normalised"] = "pixels",
    **settings: Any,
) -> PRO:
    """Return PRO over a score of a network; `settings` go to the score."""
    return PRO(score(net, **settings), steps, step_size, clip=clip, units=units)


REGISTRY: dict[str, Entry] = {
    "msp": Entry(MSP, "Hendrycks and Gimpel 2017"),
    "entropy": Entry(Entropy, "Hendrycks and Gimpel 2017; PRO Sec. 5.1"),
    "gen": Entry(GEN, "Liu et al. 2023"),
    "maxlogit": Entry(MaxLogit, "Hendrycks et al. 2022"),
    "energy": Entry(Energy, "Liu et al. 2020"),
    "odin": Entry(ODIN, "Liang et al. 2018; ALOE Eq. 6-7"),
    "pro-msp": Entry(partial(pro, score=MSP), "PRO Alg. 1"),
    "pro-msp-t": Entry(partial(pro, score=partial(MSP, temperature=10.0)), "PRO Alg. 1"),
    "pro-ent": Entry(partial(pro, score=Entropy), "PRO Alg. 1"),
    "pro-gen": Entry(partial(pro, score=GEN), "PRO Alg. 1"),
}


def build(name: str, net: nn.Module, /, **settings: Any) -> Detector:
    """Return the detector registered under `name` for a network.

    Raises:
        UserError: unknown name (with the nearest known one), or a setting that the detector does not have.
    """
    if name not in REGISTRY:
        raise unknown_name("detectors", name, REGISTRY)
    return configured(f"detectors.{name}", REGISTRY[name].make, net, settings=settings)


def build_all(specs: list[str | dict[str, Any]], net: nn.Module) -> dict[str, Detector]:
    """Return detectors by label from a config's list.

    Args:
        specs: names, or mappings with `name`, optionally `label` (default: the name), and settings:
            `[msp, {name: pro-msp, steps: 5, label: pro-5}]`.
        net: classifier.
    """
    built: dict[str, Detector] = {}
    for spec in specs:
        settings: Mapping[str, Any] = {"name": spec} if isinstance(spec, str) else spec
        if "name" not in settings:
            raise UserError(f"detectors: {dict(settings)} has no 'name'")
        label = str(settings.get("label", settings["name"]))
        if label in built:
            raise UserError(f"detectors: {label!r} stands twice; give one of them another 'label'")
        rest = {key: value for key, value in settings.items() if key not in ("name", "label")}
        built[label] = build(str(settings["name"]), net, **rest)
    return built
