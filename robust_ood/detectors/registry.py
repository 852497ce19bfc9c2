"""Names of detectors, for configs and the command line, with papers and the ranges searched there.

A detector of a network is made from the network and its settings. A wrapper is made from a score of
the network, which `score` names as a config does; settings that the wrapper itself does not have
are those of its score: `{name: pro-gen, steps: 5, gamma: 0.1}`. Any of them may have a `network`,
which it then reads in place of the one under evaluation: `{name: msp, network: other.pt}`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from robust_ood.arguments import typed
from robust_ood.deprecation import warn_renamed
from robust_ood.detectors.activations import ASH, DICE, SCALE, ReAct, Shaped
from robust_ood.detectors.adascale import AdaScale
from robust_ood.detectors.compose import DeepEnsemble, Mean, Standardize
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.coverage import NAC
from robust_ood.detectors.densities import GMM, PNML
from robust_ood.detectors.discriminator import DiscriminatorScore
from robust_ood.detectors.dropout import FeatureDropout, MCDropout
from robust_ood.detectors.extremes import CombOOD
from robust_ood.detectors.generative import Complexity, Likelihood, ReconstructionError
from robust_ood.detectors.geometry import FDBD, NCI, SHE
from robust_ood.detectors.gradients import GradientNorm, GradNorm, GradUncertainty
from robust_ood.detectors.gram import Gram
from robust_ood.detectors.kernel_pca import KernelPCA
from robust_ood.detectors.logits import Energy, MaxLogit, OutlierExposureScore
from robust_ood.detectors.mahalanobis import (
    MAGNITUDES,
    LayerNoise,
    Mahalanobis,
    RelativeMahalanobis,
)
from robust_ood.detectors.neighbours import KNN
from robust_ood.detectors.openmax import OpenMax
from robust_ood.detectors.other_networks import other_network
from robust_ood.detectors.outlier_class import OutlierClassScore
from robust_ood.detectors.perturbed import IODIN, ODIN, PRO, InputNoise
from robust_ood.detectors.rank_feat import RankFeat, RankWeight
from robust_ood.detectors.rectified import LTS, VRA, LINe, OptFS
from robust_ood.detectors.relations import NNGuide, Relation
from robust_ood.detectors.ross import ROSS
from robust_ood.detectors.safe_spot import SafeSpot
from robust_ood.detectors.smoothing import Smoothed
from robust_ood.detectors.softmax import GEN, MSP, Entropy, KLMatching
from robust_ood.detectors.subspace import Residual, ViM
from robust_ood.detectors.weiper import WeiPer
from robust_ood.detectors.wrapper import Wrapper
from robust_ood.detectors.zero_shot import ZeroShot
from robust_ood.errors import UserError, unknown_name
from robust_ood.models import load_network
from robust_ood.models.wrap import Network
from robust_ood.settings import (
    PartSpec,
    UnknownSettingError,
    configured,
    import_path,
    read_part,
)

Ranges = Mapping[str, Sequence[Any]]
"""Values to try, by setting."""


@dataclass(frozen=True)
class Registered:
    """A registered detector.

    Args:
        make: the class or function; its first argument is the network or, of a wrapper, the score.
        paper: where it is from.
        ranges: the ranges of its settings that the paper, or OpenOOD, searches.
        score: of a wrapper, the score that it takes where the config names none.
        defaults: settings under this name that differ from the class's own.
    """

    make: Callable[..., Detector]
    paper: str
    ranges: Ranges = field(default_factory=dict)
    score: PartSpec | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> Ranges:
        """The old name of `ranges`."""
        warn_renamed("REGISTRY[...].grid", "REGISTRY[...].ranges")
        return self.ranges

    def build(self, place: str, net: Network, settings: Mapping[str, Any]) -> Detector:
        """Return the detector of a network.

        Args:
            place: the config field, for messages.
            net: classifier.
            settings: what the config says of it.
        """
        settings = {**self.defaults, **settings}
        if self.score is None:
            return configured(place, self.make, net, settings=settings)
        score = settings.pop("score", self.score)
        # The first parameter is the score itself; what the wrapper does not have is the score's.
        parameters = list(inspect.signature(self.make).parameters)[1:]
        wrapper_settings: dict[str, Any] = {}
        score_settings: dict[str, Any] = {}
        for name, value in settings.items():
            if name in parameters:
                wrapper_settings[name] = value
            else:
                score_settings[name] = value
        try:
            wrapped = _nested("score", score, net, score_settings)
        except UnknownSettingError as error:
            raise UnknownSettingError(place, error.name, [*error.known, *parameters]) from error
        except UserError as error:
            raise UserError(f"{place}.{error}" if place else str(error)) from error
        return configured(place, self.make, wrapped, settings=wrapper_settings)


def mean(net: nn.Module, scores: Sequence[PartSpec] = ("msp", "mahalanobis")) -> Mean:
    """Return the mean of standardised scores, each named as a config does.

    Source: Fort Eq. 8. Each score may have a `network` of its own, and a `label`.
    """
    members: dict[str, Detector] = {}
    for spec in scores:
        part = read_part("scores", spec)
        label = part.label or part.name
        if label in members:
            if part.label is not None:
                raise UserError(f"scores: {label!r} is duplicated; give one another 'label'")
            label = f"{label}-{len(members) + 1}"
        members[label] = Standardize(_make("", part.name, net, part.settings))
    return Mean(members.values(), list(members))


def ensemble(
    net: nn.Module,
    checkpoints: Sequence[Path | str],
    score: Literal["entropy", "msp"] = "entropy",
    sizes: Sequence[int | None] | None = None,
) -> DeepEnsemble:
    """Return the ensemble of a network and those of other checkpoints; see `DeepEnsemble`."""
    networks = [net]
    for checkpoint in checkpoints:
        networks.append(load_network(Path(checkpoint)))
    return DeepEnsemble(networks, score, sizes)


_PERCENTILES = {"percentile": (65, 70, 75, 80, 85, 90, 95)}
_PRO: Ranges = {"step_size": (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3), "steps": (1, 2, 3, 5)}
_PRO_GEN: Ranges = {
    "gamma": (0.01, 0.1, 0.3, 0.5),
    "top": (10, 50, 100),
    "step_size": (3e-4, 5e-4, 8e-4, 10e-4),
    "steps": (1, 2, 3, 5),
}
_GEN: Ranges = {
    "gamma": (0.01, 0.1, 0.5, 1, 2, 5, 10),
    "top": (10, 50, 100, 200, 500, 1000),
}
_ADASCALE: Ranges = {"lowest": (60, 65, 70, 75), "highest": (75, 80, 85, 90, 95, 99)}
_ODIN: Ranges = {"temperature": (1, 10, 100, 1000), "magnitude": (0.0004, 0.0014, 0.0028)}

REGISTRY: dict[str, Registered] = {
    # of the softmax and the logits
    "msp": Registered(MSP, "Hendrycks and Gimpel 2017"),
    "msp-t": Registered(MSP, "Guo et al. 2017", defaults={"temperature": "fit"}),
    "entropy": Registered(Entropy, "Hendrycks and Gimpel 2017; PRO Sec. 5.1"),
    "gen": Registered(GEN, "Liu et al. 2023", _GEN),
    "maxlogit": Registered(MaxLogit, "Hendrycks et al. 2022"),
    "energy": Registered(Energy, "Liu et al. 2020"),
    "oe-score": Registered(OutlierExposureScore, "Hendrycks et al. 2019"),
    "outlier-class": Registered(OutlierClassScore, "Chen et al. 2021"),
    "discriminator": Registered(DiscriminatorScore, "Azizmalayeri et al. 2022"),
    "openmax": Registered(
        OpenMax,
        "Bendale and Boult 2016",
        {"tail": (10, 20, 30, 40, 50), "top": (1, 3, 5, 10, 15, 20)},
    ),
    "kl-matching": Registered(KLMatching, "Hendrycks et al. 2022"),
    # of features
    "mahalanobis": Registered(Mahalanobis, "Lee et al. 2018; ALOE Eq. 8; Fort Eq. 3-4"),
    "mahalanobis-layers": Registered(
        LayerNoise,
        "Lee et al. 2018; ALOE Eq. 8-10",
        {"magnitude": MAGNITUDES},
        score={"name": "mahalanobis", "layers": "all"},
        defaults={"magnitude": 0.0014},
    ),
    "relative-mahalanobis": Registered(RelativeMahalanobis, "Ren et al. 2021; Fort Eq. 5"),
    "knn": Registered(KNN, "Sun et al. 2022", {"neighbours": (50, 100, 200, 500, 1000)}),
    "vim": Registered(ViM, "Wang et al. 2022", {"dimensions": (16, 32, 64, 128, 256, 512)}),
    "residual": Registered(Residual, "Wang et al. 2022"),
    "gram": Registered(Gram, "Sastry and Oore 2020"),
    "she": Registered(
        SHE, "Zhang et al. 2023", {"metric": ("inner_product", "cosine", "euclidean")}
    ),
    "fdbd": Registered(FDBD, "Liu and Qin 2024", {"divisor": ("distance", "length")}),
    "nci": Registered(NCI, "Liu and Qin 2025", {"alpha": (0.0001, 0.001, 0.01, 0.1)}),
    "nnguide": Registered(NNGuide, "Park et al. 2023", {"neighbours": (10, 100)}),
    "relation": Registered(Relation, "Kim et al. 2023", {"power": (1.0, 2.0, 4.0, 6.0, 8.0)}),
    "gmm": Registered(GMM, "Mukhoti et al. 2023"),
    "pnml": Registered(PNML, "Bibas et al. 2021"),
    "cop": Registered(
        KernelPCA,
        "Fang et al. 2024",
        {"explained": (0.7, 0.85, 0.99)},
        defaults={"kernel": "cosine", "explained": 0.85},
    ),
    "corp": Registered(
        KernelPCA,
        "Fang et al. 2024",
        {"explained": (0.5, 0.7, 0.8), "gamma": (1.0, 2.0, 3.0)},
    ),
    "nac": Registered(NAC, "Liu et al. 2024"),
    "combood": Registered(CombOOD, "Rajasekaran et al. 2024"),
    # of changed features or weights
    "react": Registered(ReAct, "Sun et al. 2021", {"percentile": (85, 90, 95, 99)}, "energy"),
    "ash-p": Registered(ASH, "Djurisic et al. 2023", _PERCENTILES, "energy", {"variant": "P"}),
    "ash-b": Registered(ASH, "Djurisic et al. 2023", _PERCENTILES, "energy", {"variant": "B"}),
    "ash-s": Registered(ASH, "Djurisic et al. 2023", _PERCENTILES, "energy", {"variant": "S"}),
    "scale": Registered(SCALE, "Xu et al. 2024", _PERCENTILES, "energy"),
    "dice": Registered(DICE, "Sun and Li 2022", {"percentile": (10, 30, 50, 70, 90)}, "energy"),
    "adascale-a": Registered(AdaScale, "Regmi 2025", _ADASCALE, defaults={"variant": "A"}),
    "adascale-l": Registered(AdaScale, "Regmi 2025", _ADASCALE, defaults={"variant": "L"}),
    "vra": Registered(
        VRA, "Xu et al. 2023", {"low": (1, 5, 10, 15, 60), "high": (85, 90, 95, 99)}, "energy"
    ),
    "lts": Registered(LTS, "Djurisic et al. 2024", score="energy"),
    "optfs": Registered(OptFS, "Zhao et al. 2024"),
    "line": Registered(
        LINe, "Ahn et al. 2023", {"neurons": (10, 90), "weights": (10, 90)}, "energy"
    ),
    "rankfeat": Registered(RankFeat, "Song et al. 2022"),
    "rankweight": Registered(RankWeight, "Song et al. 2024"),
    "weiper": Registered(WeiPer, "Granz et al. 2024"),
    "mc-dropout": Registered(MCDropout, "Gal and Ghahramani 2016"),
    "feature-dropout": Registered(FeatureDropout, "Gal and Ghahramani 2016"),
    # of networks that model images
    "likelihood": Registered(Likelihood, "Nalisnick et al. 2019"),
    "complexity": Registered(Complexity, "Serra et al. 2020"),
    "reconstruction": Registered(ReconstructionError, "Liang et al., Sec. 2.4"),
    # of gradients
    "gradnorm": Registered(GradNorm, "Huang et al. 2021"),
    "grad-uncertainty": Registered(GradUncertainty, "Lee and AlRegib 2020"),
    "gradient-norm": Registered(GradientNorm, "Grathwohl et al. 2020"),
    # of moved images
    "odin": Registered(ODIN, "Liang et al. 2018; ALOE Eq. 6-7", _ODIN),
    "iodin": Registered(IODIN, "OpenOOD v1.5", _ODIN),
    "input-noise": Registered(
        InputNoise,
        "Lee et al. 2018",
        {"magnitude": MAGNITUDES},
        score="mahalanobis",
        defaults={"magnitude": 0.0014},
    ),
    "pro": Registered(PRO, "PRO Alg. 1", _PRO, "msp"),
    "pro-msp": Registered(PRO, "PRO Alg. 1", _PRO, "msp"),
    "pro-msp-t": Registered(
        PRO,
        "PRO Alg. 1",
        {"temperature": (0.01, 0.1, 10, 100, 1000), **_PRO},
        score={"name": "msp", "temperature": 10.0},
    ),
    "pro-ent": Registered(PRO, "PRO Alg. 1", {**_PRO, "steps": (1, 3, 5, 7)}, "entropy"),
    "pro-gen": Registered(PRO, "PRO Alg. 1", _PRO_GEN, "gen"),
    "safe-spot": Registered(
        SafeSpot, "safe spots paper, Sec. 3.6", {"share": (0.1, 0.3, 0.5, 0.7, 0.9)}
    ),
    "ross": Registered(ROSS, "ROSS 2026", score="msp"),
    "smoothed": Registered(
        Smoothed, "Chiang et al. 2020; Cohen et al. 2019", score="msp", defaults={"sigma": 0.25}
    ),
    # of words
    "zero-shot": Registered(ZeroShot, "Fort Eq. 6-7; Ming et al. 2022"),
    "neglabel": Registered(
        ZeroShot,
        "Jiang et al. 2024",
        {"groups": (1, 20, 100)},
        defaults={"rule": "softmax", "scale": 100.0, "groups": 100},
    ),
    # of several scores or networks
    "mean": Registered(mean, "Fort Eq. 8"),
    "deep-ensemble": Registered(ensemble, "Lakshminarayanan et al. 2017; OOD-attack paper App. F"),
}
"""Detectors by the names that configs use."""


@typed
def build(name: str, net: Network, /, **settings: Any) -> Detector:
    """Return a detector of a network.

    Args:
        name: a registered name, or the import path of a user's own class (`my_module.MyScore`),
            which takes the network first. A subclass of `Wrapper` takes a `score` instead.
        net: classifier.
        settings: the detector's own settings, or those of the score that it wraps; `network`, a
            checkpoint or a mapping, is what it reads in place of `net`.

    Raises:
        UserError: unknown name (with the nearest known one), a path that cannot be imported, or a
            setting that the detector does not have.
    """
    return _make(f"detectors.{name}", name, net, settings)


@typed
def build_all(specs: Sequence[PartSpec], net: Network) -> dict[str, Detector]:
    """Return detectors by label from a config's list.

    Args:
        specs: names, or mappings with `name`, optionally `label` (default: the name), and settings:
            `[msp, {name: pro-msp, steps: 5, label: pro-5}, {name: mine.MyScore, top: 3}]`.
        net: classifier.
    """
    detectors: dict[str, Detector] = {}
    for spec in specs:
        part = read_part("detectors", spec)
        label = part.label or part.name
        if label in detectors:
            raise UserError(f"detectors: {label!r} is duplicated; give one of them another 'label'")
        detectors[label] = build(part.name, net, **part.settings)
    return detectors


def _nested(
    place: str, spec: PartSpec, net: Network, settings: Mapping[str, Any] | None = None
) -> Detector:
    """Return the score that another detector is made of, with further settings of its own."""
    part = read_part(place, spec)
    return _make("", part.name, net, {**part.settings, **(settings or {})})


def _make(place: str, name: str, net: Network, settings: Mapping[str, Any]) -> Detector:
    """Build a detector by its registered name or import path.

    place: the config field, for messages; empty inside another detector, which names it.
    """
    if "network" in settings:
        field = f"{place}.network" if place else "network"
        net = other_network(field, settings["network"], net)
        settings = {key: value for key, value in settings.items() if key != "network"}
    if name in REGISTRY:
        return REGISTRY[name].build(place, net, settings)
    if "." not in name:
        raise unknown_name("detectors" if place else "score", name, REGISTRY)
    make = import_path(place or "score", name)
    wraps = isinstance(make, type) and issubclass(make, (Wrapper, Shaped))
    registered = Registered(make, "", score="energy" if wraps else None)
    detector = registered.build(place, net, settings)
    if not isinstance(detector, Detector):
        raise UserError(
            f"{place or 'score'}: {name!r} makes a {type(detector).__name__}, not a Detector"
        )
    return detector
