"""Short names of detectors, for configs and the command line, with their papers and the ranges that
those search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import nn

from robust_ood.detectors.activations import ASH, DICE, SCALE, ReAct
from robust_ood.detectors.compose import DeepEnsemble, Mean, Standardize
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.gradients import GradNorm
from robust_ood.detectors.gram import Gram
from robust_ood.detectors.layers import Layers
from robust_ood.detectors.logits import Energy, MaxLogit, OutlierExposureScore
from robust_ood.detectors.mahalanobis import (
    MAGNITUDES,
    LayerNoise,
    Mahalanobis,
    RelativeMahalanobis,
)
from robust_ood.detectors.neighbours import KNN
from robust_ood.detectors.perturbed import ODIN, PRO, InputNoise
from robust_ood.detectors.safe_spot import SafeSpot
from robust_ood.detectors.softmax import GEN, MSP, Entropy, KLMatching
from robust_ood.detectors.subspace import Residual, ViM
from robust_ood.errors import UserError, unknown_name
from robust_ood.models import load_network
from robust_ood.settings import configured

Spec = str | Mapping[str, Any]
Grid = Mapping[str, Sequence[Any]]


class Entry(NamedTuple):
    """A registered detector: how to make it from a network, the paper it is from, and the ranges
    searched there.
    """

    make: Callable[..., Detector]
    paper: str
    grid: Grid = MappingProxyType({})


def pro(
    net: nn.Module,
    score: Spec = "msp",
    steps: int = 3,
    step_size: float = 1e-3,
    clip: bool = False,
    units: Literal["pixels", "normalised"] = "pixels",
    **settings: Any,
) -> PRO:
    """Return PRO over a score of a network; `settings` go to the score."""
    return PRO(
        _built("score", score, net, settings),
        steps=steps,
        step_size=step_size,
        clip=clip,
        units=units,
    )


def over(
    net: nn.Module, wrapper: Callable[..., Detector], score: Spec = "energy", **settings: Any
) -> Detector:
    """Return a wrapper of a score of a network, which `score` names as a config does."""
    return wrapper(_built("score", score, net), **settings)


def all_layers(
    net: nn.Module, layers: Layers = "all", magnitude: float = 0.0014, **settings: Any
) -> LayerNoise:
    """Return ALOE's Mahalanobis detector: all the network's layers, each read after a step of its
    own.
    """
    return LayerNoise(configured("", Mahalanobis, net, layers, settings=settings), magnitude)


def mean(net: nn.Module, scores: Sequence[Spec] = ("msp", "mahalanobis")) -> Mean:
    """Return the mean of standardised scores of a network, each named as a config does."""
    return Mean([Standardize(_built("scores", score, net)) for score in scores])


def ensemble(net: nn.Module, checkpoints: Sequence[Path | str], **settings: Any) -> DeepEnsemble:
    """Return the ensemble of a network and those of other checkpoints."""
    networks = [net, *(load_network(Path(path)) for path in checkpoints)]
    return configured("", DeepEnsemble, networks, settings=settings)


_SHAPING = (65, 70, 75, 80, 85, 90, 95)
_PRO: Grid = {"step_size": (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3), "steps": (1, 2, 3, 5)}
_PRO_GEN: Grid = {
    "gamma": (0.01, 0.1, 0.3, 0.5),
    "top": (10, 50, 100),
    "step_size": (3e-4, 5e-4, 8e-4, 10e-4),
    "steps": (1, 2, 3, 5),
}

REGISTRY: dict[str, Entry] = {
    "msp": Entry(MSP, "Hendrycks and Gimpel 2017"),
    "msp-t": Entry(partial(MSP, temperature="fit"), "Guo et al. 2017"),
    "entropy": Entry(Entropy, "Hendrycks and Gimpel 2017; PRO Sec. 5.1"),
    "gen": Entry(
        GEN,
        "Liu et al. 2023",
        {"gamma": (0.01, 0.1, 0.5, 1, 2, 5, 10), "top": (10, 50, 100, 200, 500, 1000)},
    ),
    "maxlogit": Entry(MaxLogit, "Hendrycks et al. 2022"),
    "energy": Entry(Energy, "Liu et al. 2020"),
    "oe-score": Entry(OutlierExposureScore, "Hendrycks et al. 2019"),
    "kl-matching": Entry(KLMatching, "Hendrycks et al. 2022"),
    "mahalanobis": Entry(Mahalanobis, "Lee et al. 2018; ALOE Eq. 8; Fort Eq. 3-4"),
    "mahalanobis-layers": Entry(
        all_layers, "Lee et al. 2018; ALOE Eq. 8-10", {"magnitude": MAGNITUDES}
    ),
    "relative-mahalanobis": Entry(RelativeMahalanobis, "Ren et al. 2021; Fort Eq. 5"),
    "knn": Entry(KNN, "Sun et al. 2022", {"neighbours": (50, 100, 200, 500, 1000)}),
    "vim": Entry(ViM, "Wang et al. 2022", {"dimensions": (16, 32, 64, 128, 256, 512)}),
    "residual": Entry(Residual, "Wang et al. 2022"),
    "gram": Entry(Gram, "Sastry and Oore 2020"),
    "react": Entry(
        partial(over, wrapper=ReAct), "Sun et al. 2021", {"percentile": (85, 90, 95, 99)}
    ),
    "ash-p": Entry(
        partial(over, wrapper=partial(ASH, variant="P")),
        "Djurisic et al. 2023",
        {"percentile": _SHAPING},
    ),
    "ash-b": Entry(
        partial(over, wrapper=partial(ASH, variant="B")),
        "Djurisic et al. 2023",
        {"percentile": _SHAPING},
    ),
    "ash-s": Entry(
        partial(over, wrapper=partial(ASH, variant="S")),
        "Djurisic et al. 2023",
        {"percentile": _SHAPING},
    ),
    "scale": Entry(partial(over, wrapper=SCALE), "Xu et al. 2024", {"percentile": _SHAPING}),
    "dice": Entry(
        partial(over, wrapper=DICE), "Sun and Li 2022", {"percentile": (10, 30, 50, 70, 90)}
    ),
    "gradnorm": Entry(GradNorm, "Huang et al. 2021"),
    "odin": Entry(
        ODIN,
        "Liang et al. 2018; ALOE Eq. 6-7",
        {"temperature": (1, 10, 100, 1000), "magnitude": (0.0004, 0.0014, 0.0028)},
    ),
    "input-noise": Entry(
        partial(over, wrapper=partial(InputNoise, magnitude=0.0014), score="mahalanobis"),
        "Lee et al. 2018",
        {"magnitude": MAGNITUDES},
    ),
    "pro": Entry(pro, "PRO Alg. 1", _PRO),
    "pro-msp": Entry(partial(pro, score="msp"), "PRO Alg. 1", _PRO),
    "pro-msp-t": Entry(
        partial(pro, score={"name": "msp", "temperature": 10.0}),
        "PRO Alg. 1",
        {"temperature": (0.01, 0.1, 10, 100, 1000), **_PRO},
    ),
    "pro-ent": Entry(partial(pro, score="entropy"), "PRO Alg. 1", {**_PRO, "steps": (1, 3, 5, 7)}),
    "pro-gen": Entry(partial(pro, score="gen"), "PRO Alg. 1", _PRO_GEN),
    "safe-spot": Entry(
        SafeSpot, "safe spots paper, Sec. 3.6", {"share": (0.1, 0.3, 0.5, 0.7, 0.9)}
    ),
    "mean": Entry(mean, "Fort Eq. 8"),
    "deep-ensemble": Entry(ensemble, "Lakshminarayanan et al. 2017; OOD-attack paper App. F"),
}
"""Detectors by the names that configs use."""


def build(name: str, net: nn.Module, /, **settings: Any) -> Detector:
    """Return the detector registered under `name` for a network.

    Raises:
        UserError: unknown name (with the nearest known one), or a setting that the detector does
            not have.
    """
    return _make(f"detectors.{name}", name, net, settings)


def _make(field: str, name: str, net: nn.Module, settings: Mapping[str, Any]) -> Detector:
    if name not in REGISTRY:
        raise unknown_name("detectors" if field else "score", name, REGISTRY)
    return configured(field, REGISTRY[name].make, net, settings=settings)


def _built(
    field: str, spec: Spec, net: nn.Module, settings: Mapping[str, Any] | None = None
) -> Detector:
    """Return the part of a detector that a config names, by a name or a mapping with `name` and
    settings.
    """
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in given:
        raise UserError(f"{field}: {given} has no 'name'")
    given |= settings or {}
    return _make("", str(given.pop("name")), net, given)


def build_all(specs: list[str | dict[str, Any]], net: nn.Module) -> dict[str, Detector]:
    """Return detectors by label from a config's list.

    Args:
        specs: names, or mappings with `name`, optionally `label` (default: the name), and settings:
            `[msp, {name: pro-msp, steps: 5, label: pro-5}, {name: react, score: maxlogit,
            percentile: 95}]`.
        net: classifier.
    """
    built: dict[str, Detector] = {}
    for spec in specs:
        settings: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "name" not in settings:
            raise UserError(f"detectors: {settings} has no 'name'")
        label = str(settings.pop("label", settings["name"]))
        if label in built:
            raise UserError(f"detectors: {label!r} stands twice; give one of them another 'label'")
        built[label] = build(str(settings.pop("name")), net, **settings)
    return built
