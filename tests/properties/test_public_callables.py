"""What every public function and class does with a wrong argument: a result, or one line that names it.

`VALID` has valid arguments for each. One argument after the other is replaced by values of other
types and by numbers without meaning. Whatever happens then is no error from deep inside.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_ood import (
    attacks,
    certify,
    data,
    detectors,
    evaluation,
    models,
    regions,
    rules,
)
from robust_ood.errors import UserError
from robust_ood.evaluation import curves
from tests.test_public_names import MODULES, names_of

REGION = regions.Linf(8 / 255)
IMAGES = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])
LOGITS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
SCORES = torch.tensor([0.5, 0.2, 0.9])


class Net(nn.Module):
    """A convolution and a head, for images of 6 x 6 pixels."""

    feature_layers = ("conv",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).relu().mean((2, 3)))


with torch.random.fork_rng():
    torch.manual_seed(0)
    NET = Net().eval()
    FLOW = models.Glow(6, 3, levels=1, steps=1, hidden=4)
    FLOW.train()(IMAGES)
    FLOW.eval()
    AUTO_ENCODER = models.AutoEncoder(6, (4,), latent_size=3).eval()
    WORDS = models.WordFeatures(torch.rand(2, 4), torch.rand(1, 4), 2.0, ("a", "b"), ("c",))
JOINT = models.OutlierClass(NET)
DISCRIMINATED = models.Discriminated(NET)
MSP = detectors.MSP(NET)
PGD = attacks.PGD(REGION, steps=1)
Arguments = dict[str, Any]


def arrays(folder: Path) -> str:
    path = folder / "set.npz"
    np.savez(path, images=np.zeros((4, 6, 6, 3), np.uint8), labels=np.array([0, 1, 2, 3]))
    return str(path)


def image_set(folder: Path) -> data.ImageSet:
    return data.load_arrays(Path(arrays(folder)))


def trained(folder: Path) -> str:
    """Save a checkpoint of a small network of ours."""
    net = models.ThinResNet(8, 4)
    return str(models.export(net, folder / "exported"))


def weights_file(folder: Path) -> str:
    """Save a small network's weights."""
    path = folder / "weights.pt"
    torch.save(NET.state_dict(), path)
    return str(path)


def grid_settings(folder: Path) -> Arguments:
    """Return valid arguments of `Grid`, with data in memory."""
    others = folder / "others.npz"
    np.savez(others, images=np.full((4, 6, 6, 3), 200, np.uint8))
    sets = data.OODData(
        num_classes=4, test=arrays(folder), near=[str(others)], evaluation_batch_size=2
    )
    return {
        "data": sets, "attacks": {"pgd": PGD}, "store": evaluation.FolderStore(folder / "cells"),
        "limit": 2, "device": "cpu", "sanity": False, "progress": None, "batch_size": 2, "chunk": 4,
        "save_attacked": "npz", "transfer": ["model/msp"],
    }  # fmt: skip


def fitting(**more: Any) -> Arguments:
    return {"loader": [(IMAGES, LABELS)], "validation": None, "outliers": None, **more}


_ATTACKING: Arguments = {"images": IMAGES, "attack": PGD, "indices": torch.arange(3)}
_TRACE: Arguments = {"detector": MSP, "images": IMAGES, "attack": PGD, "direction": 1}
_TRAINING: Arguments = {"net": NET, "optimization": None, "compile": False, "seed": 0}
_IN_LOOP: Arguments = {**_TRAINING, "inlier_attack": PGD, "attack_mode": "eval"}
_SIZES: Arguments = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
_PUBLISHED: Arguments = {
    "region": REGION,
    "steps": 2,
    "step_size": 0.01,
    "seed": 0,
    "precision": "auto",
}
_LONG: Arguments = {
    "region": REGION, "steps": 2, "restarts": 1, "objective": "score", "loss": "cross_entropy",
    "seed": 0, "precision": "auto",
}  # fmt: skip
_SCORE_PAIR: Arguments = {"id_scores": SCORES, "ood_scores": SCORES - 0.1}


def run_of(direction: int) -> curves.ScoreTrace:
    return curves.trace(MSP, IMAGES, PGD, direction)


_BOUNDED: Arguments = {"net": NET, "images": IMAGES, "radius": 0.01, "temperature": 1.0}
_LOGITS_BOUNDED: Arguments = {"net": NET, "images": IMAGES, "radius": 0.01}
_SMOOTHED: Arguments = {
    "net": NET, "sigma": 0.25, "n0": 10, "n": 20, "alpha": 0.05, "seed": 0, "batch_size": 64,
}  # fmt: skip
_CERTIFIED: Arguments = {"id_lower": SCORES, "ood_upper": SCORES - 0.1}
_RAMPS: Arguments = {"weight_ramp": (0.0, 0.3), "radius_ramp": (0.0, 0.3)}


def convnet(classes: int, **settings: Any) -> models.ConvNet:
    return models.ConvNet((4, 4), (1, 2), 1, (8,), classes, image_size=6, **settings).eval()


def one_logit() -> models.ConvNet:
    return convnet(1, nonpositive_head=True)


def gated() -> models.Gated:
    return models.Gated(NET, one_logit()).eval()


def certified() -> certify.ScoreBounds:
    return certify.score_bounds(MSP, IMAGES, radius=0.05, sigma=0.25, draws=60, alpha=0.05)


# By name, the callable's valid arguments; those that need files get a folder.
VALID: dict[str, Arguments | Callable[[Path], Arguments]] = {
    # regions and the engine
    "regions.L1": {"radius": 0.5, "clip": True},
    "regions.L2": {"radius": 0.5, "clip": True},
    "regions.Linf": {"radius": 0.1, "clip": True},
    "regions.Unbounded": {"radius": math.inf, "clip": True},
    "regions.Fraction": {"value": "8/255", "field": "radius"},
    "regions.region_of": {"norm": "Linf", "radius": "8/255"},
    "perturb.minimize": {
        "objective": lambda x: x.flatten(1).sum(1), "images": IMAGES, "region": REGION, "steps": 1,
        "step_size": 0.01, "rule": rules.Steepest(), "start": IMAGES, "keep": "best",
        "judge": lambda x: x.flatten(1).sum(1), "trace": True,
    },
    "rules.Langevin": {"noise": 0.01, "seed": 0, "keys": ("test", 1)},
    "rules.Steepest": {"momentum": 0.5, "decay": "cosine"},
    "rules.AutoPGD": {"inertia": 0.75, "progress": 0.75},
    "rules.Optimizer": {"kind": torch.optim.Adam, "options": {}},
    "randomness.derive_seed": {"seed": 1},
    "randomness.generator": {"seed": 1, "device": "cpu"},
    "randomness.generators": {"seed": 1, "indices": [0, 1]},
    "randomness.seed_torch": {"seed": 1, "device": torch.device("cpu")},
    "modes.ordinary": {"tensor": IMAGES},
    # losses and metrics
    "losses.wide": {"tensor": LOGITS},
    "losses.cross_entropy": {"logits": LOGITS, "labels": LABELS},
    "losses.cross_entropy_to_uniform": {"logits": LOGITS},
    "losses.difference_of_logits_ratio": {"logits": LOGITS, "labels": LABELS},
    "losses.entropy": {"logits": LOGITS},
    "losses.finite_logs": {"log_probabilities": LOGITS},
    "losses.log_odds": {"logits": LOGITS, "labels": LABELS},
    "losses.margin": {"logits": LOGITS, "labels": LABELS},
    "metrics.AUROC": {},
    "metrics.FPR95": {},
    "metrics.OODMetrics": {},
    "metrics.aupr_in": _SCORE_PAIR,
    "metrics.aupr_out": _SCORE_PAIR,
    "metrics.auroc": _SCORE_PAIR,
    "metrics.rate_interval": {"count": 3, "total": 10, "level": 0.9},
    "metrics.mean_rate_interval": {"counts": [3, 0], "totals": [10, 5], "level": 0.9},
    "metrics.auroc_interval": {"id_scores": SCORES, "ood_scores": [SCORES - 0.1], "level": 0.9},
    "metrics.fpr_interval": {
        "id_scores": SCORES, "ood_scores": [SCORES - 0.1], "tpr": 0.9, "level": 0.9,
    },
    "metrics.delong_test": {
        "id_scores": [SCORES, SCORES], "ood_scores": [[SCORES], [SCORES]], "level": 0.9,
    },
    "metrics.paired_bootstrap": {
        "id_scores": [[SCORES], [SCORES]], "ood_scores": [[[SCORES]], [[SCORES]]],
        "samples": 10, "level": 0.9, "seed": 0,
    },
    "metrics.holm": {"p_values": [0.1, 0.2]},
    "metrics.bootstrap_intervals": {
        **_SCORE_PAIR, "generator": torch.Generator(), "samples": 10, "level": 0.9,
    },
    "metrics.deployed_rates": {"threshold": 0.5, **_SCORE_PAIR},
    "metrics.deployed_threshold": {"clean_id_scores": SCORES, "tpr": 0.9},
    "metrics.detection_error": _SCORE_PAIR,
    "metrics.fpr95": _SCORE_PAIR,
    "metrics.fpr95_ood_positive": _SCORE_PAIR,
    "metrics.fpr_at_tpr": {**_SCORE_PAIR, "tpr": 0.9},
    "metrics.ood_metrics": {**_SCORE_PAIR, "clean_id_scores": SCORES},
    # bounds and certificates
    "bounds.confidence_upper": lambda folder: {
        "net": gated(), "images": IMAGES, "radius": 0.01, "temperature": 1.0, "norm": "Linf",
    },
    "bounds.gate_bounds": lambda folder: {
        "gated": gated(), "images": IMAGES, "radius": 0.01, "norm": "Linf",
    },
    "bounds.guaranteed_auroc": {"inliers": SCORES, "outliers": SCORES - 0.1},
    "bounds.energy_lower": _BOUNDED,
    "bounds.energy_upper": _BOUNDED,
    "bounds.msp_lower": _BOUNDED,
    "bounds.msp_upper": _BOUNDED,
    "bounds.logit_bounds": _LOGITS_BOUNDED,
    "bounds.logit_differences_upper": _LOGITS_BOUNDED,
    "bounds.logit_gap_upper": _LOGITS_BOUNDED,
    "bounds.score_bounds": {"detector": MSP, "images": IMAGES, "radius": 0.01},
    "certify.SmoothedClassifier": _SMOOTHED,
    "certify.smoothed_classifier": _SMOOTHED,
    "certify.bonferroni": {"alpha": 0.001, "bounds": 10},
    "certify.certified_auroc": _CERTIFIED,
    "certify.certified_detection_error": _CERTIFIED,
    "certify.certified_fpr95": _CERTIFIED,
    "certify.certified_rates": lambda folder: {
        "inliers": certified(), "outliers": certified(), "attacked": "both",
    },
    "certify.clopper_pearson_lower": {"successes": 5, "trials": 10, "alpha": 0.05},
    "certify.draws_needed": {"radius": 0.1, "sigma": 0.25, "alpha": 0.001, "quantile": 0.5},
    "certify.score_bounds": {
        "detector": MSP, "images": IMAGES, "norm": "L2", "radius": 0.05, "sigma": 0.25,
        "draws": 60, "alpha": 0.05, "quantile": 0.5, "seed": 0, "indices": torch.arange(3),
        "batch_size": 64,
    },
    "detectors.DiscriminatorScore": {"net": DISCRIMINATED},
    "detectors.OutlierClassScore": {"net": JOINT},
    "detectors.ROSS": {
        "detector": MSP, "sigma": 0.1, "draws": 4, "weight": 0.05, "quantile": 0.5, "seed": 0,
        "gradient_draws": 2,
    },
    "detectors.Smoothed": {
        "detector": MSP, "sigma": 0.1, "draws": 4, "quantile": 0.5, "seed": 0,
        "gradient_draws": 2,
    },
    "models.ConvNet": {
        "channels": (4, 4), "strides": (1, 2), "pooling": 1, "hidden": (8,), "num_classes": 4,
        "nonpositive_head": False, "image_size": 8, **_SIZES,
    },
    "models.Discriminated": {
        "net": NET, "hidden": (8,), "activation": "relu", "norm": "none", "bias": True,
    },
    "models.NeuralODENet": {"net": NET, "width": 4, "num_classes": 3, "time": 1.0, "steps": 2},
    "models.OutlierClass": {"net": NET, "outliers": 2},
    "models.PreActResNet": {
        "depth": 18, "num_classes": 4, "activation": "relu", "padding": "symmetric", **_SIZES,
    },
    "models.Gated": lambda folder: {"classifier": NET, "gate": one_logit(), "shift": 0.0},
    "models.MixtureRatio": {
        "image_shape": (3, 6, 6), "components": 2, "directions": 4, "prior_ratio": 1.0,
    },
    "training.CCU": {
        **_TRAINING, "image_size": 6, "components": 2, "directions": 4, "prior_ratio": 1.0,
        "outlier_weight": 1.0, "density_weight": 1.0, "mixture_learning_rate": 1e-5,
        "mixture_images": 10, "smallest_scale": 1e-6,
    },
    "training.GOOD": lambda folder: {
        **_TRAINING, "net": convnet(4), "radius": 0.01, "quantile": 0.8, "outlier_weight": 1.0,
        **_RAMPS,
    },
    "training.ProoD": lambda folder: {
        **_TRAINING, "net": convnet(4), "discriminator": one_logit(), "radius": 0.01,
        "part": "both", "bias_shift": 3.0, "outlier_weight": 1.0, "bound_weight": 1.0, **_RAMPS,
    },
    # detectors
    "detectors.ASH": {"scored": NET, "percentile": 90.0, "variant": "S"},
    "detectors.AdaScale": {
        "net": NET, "variant": "A", "lowest": 75.0, "highest": 85.0, "weight": 10.0, "pixels": 0.1,
        "magnitude": 0.1,
    },
    "detectors.DICE": {"scored": NET, "percentile": 90.0},
    "detectors.DeepEnsemble": {"networks": [NET, NET], "score": "entropy", "sizes": [None, 8]},
    "detectors.Energy": {"net": NET, "temperature": 1.0},
    "detectors.Entropy": {"net": NET, "layers": ()},
    "detectors.FeatureDropout": {"net": NET, "rate": 0.5, "draws": 2, "seed": 0},
    "detectors.MCDropout": {"net": NET, "draws": 2, "seed": 0},
    "detectors.NAC": {"net": NET, "alpha": 100.0, "bins": 50, "filled": 50.0},
    "detectors.RankFeat": {"net": NET, "layers": "conv", "temperature": 1.0},
    "detectors.RankWeight": {
        "net": NET, "weights": "conv", "layers": "conv", "temperature": 1.0,
    },
    "detectors.OpenMax": {"net": NET, "tail": 5, "top": 2},
    "detectors.WeiPer": {
        "net": NET, "repeats": 2, "distance": 2.0, "bins": 10, "smoothing": 3,
        "logit_weight": 1.0, "msp_weight": 1.0, "seed": 0,
    },
    "detectors.FDBD": {"net": NET, "divisor": "distance"},
    "detectors.GMM": {"net": NET, "covariance": "class", "shrinkage": "auto"},
    "detectors.KernelPCA": {
        "net": NET, "kernel": "cosine", "explained": 0.8, "gamma": 1.0, "random_features": 8,
        "seed": 0,
    },
    "detectors.CombOOD": {
        "net": NET, "layers": "conv", "neighbours": 2, "bank_size": 10, "regularisation": 1.0,
        "index": "exact", "probes": 2,
    },
    "detectors.LINe": {"scored": NET, "neurons": 10.0, "weights": 10.0, "threshold": 1.0},
    "detectors.LTS": {"scored": NET, "percentile": 95.0},
    "detectors.NCI": {"net": NET, "alpha": 0.1},
    "detectors.NNGuide": {"net": NET, "neighbours": 2, "bank_size": 10},
    "detectors.OptFS": {"net": NET},
    "detectors.PNML": {"net": NET, "normalize": True},
    "detectors.Relation": {"net": NET, "power": 2.0, "bank_size": 10},
    "detectors.SHE": {"net": NET, "metric": "cosine"},
    "detectors.VRA": {
        "scored": NET, "low": 10.0, "high": 90.0, "below": "zero", "shift": 0.1,
    },
    "detectors.GEN": {"net": NET, "gamma": 0.1, "top": 100},
    "detectors.GradUncertainty": {"net": NET},
    "detectors.GradientNorm": {"net": NET, "reach": 0.02, "probes": 2},
    "detectors.GradNorm": {"net": NET, "temperature": 1.0, "reference": False},
    "detectors.Gram": {
        "net": NET, "layers": "conv", "powers": (1, 2), "classes": "labels", "held_out": 0.1,
        "definition": "authors",
    },
    "detectors.IODIN": {"net": NET, "temperature": 1000.0, "magnitude": 0.01, "clip": False},
    "detectors.InputNoise": {
        "detector": MSP, "magnitude": 0.01, "clip": False, "zero_is_positive": False,
    },
    "detectors.KLMatching": {"net": NET},
    "detectors.KNN": {"net": NET, "neighbours": 2, "bank_size": 10, "normalize": True},
    "detectors.LayerNoise": {
        "detector": detectors.Mahalanobis(NET), "magnitude": 0.01, "clip": False,
    },
    "detectors.MSP": {"net": NET, "temperature": 1.0},
    "detectors.Mahalanobis": {
        "net": NET, "layers": "conv", "shrinkage": "auto", "reference": False,
    },
    "detectors.MaxLogit": {"net": NET, "layers": ()},
    "detectors.Mean": {"detectors": [MSP]},
    "detectors.ODIN": {
        "net": NET, "temperature": 1000.0, "magnitude": 0.01, "clip": False, "reference": False,
    },
    "detectors.OutlierExposureScore": {"net": NET, "layers": ()},
    "detectors.PRO": {
        "detector": MSP, "steps": 1, "step_size": 0.01, "clip": False, "units": "pixels",
    },
    "detectors.ReAct": {"scored": NET, "percentile": 90.0, "threshold": 1.0},
    "detectors.RelativeMahalanobis": {"net": NET, "layers": "conv", "shrinkage": "auto"},
    "detectors.Residual": {"net": NET, "dimensions": 2},
    "detectors.Resized": {"net": NET, "size": 8},
    "detectors.SCALE": {"scored": NET, "percentile": 85.0},
    "detectors.SafeSpot": {
        "net": NET, "radius": 0.1, "norm": "Linf", "method": "fgsm", "share": 0.5,
        "attack_radius": 0.1, "attack_steps": 1, "steps": 1, "seed": 0,
    },
    "detectors.Standardize": {"detector": MSP},
    "detectors.ViM": {"net": NET, "dimensions": 2},
    "detectors.build": {"name": "msp", "net": NET},
    "detectors.build_all": {"specs": ["msp"], "net": NET},
    "detectors.Likelihood": {"net": FLOW},
    "detectors.Complexity": {"net": FLOW, "code": "deflate"},
    "detectors.ReconstructionError": {"net": AUTO_ENCODER, "p": 2.0, "distance": "norm"},
    "detectors.ZeroShot": {"encoder": NET, "words": WORDS, "rule": "max", "scale": 2.0,
                           "groups": 1, "seed": 0},
    "models.AutoEncoder": {
        "image_size": 8, "widths": (4,), "latent_size": 3, "channels": 3,
    },
    "models.Glow": {
        "image_size": 4, "channels": 1, "levels": 1, "steps": 1, "hidden": 2, "affine": True,
        "bits": 8,
    },
    "training.Flow": {"net": FLOW, "optimization": None, "compile": False, "seed": 0},
    "training.AutoEncoder": {
        "net": AUTO_ENCODER, "input_noise": 0.1, "optimization": None, "compile": False, "seed": 0,
    },
    "detectors.search": {
        "factory": lambda temperature: detectors.MSP(NET, temperature),
        "grid": {"temperature": [1.0]}, "id_validation": [IMAGES], "ood_validation": [1 - IMAGES],
        "metric": "auroc", "test_sets": [], "scorer": lambda detector, images, side: detector(images),
        "on_trial": lambda trial: None,
    },
    "detectors.fit": {"detectors": [detectors.KNN(NET, 2)], **fitting()},
    "detectors.surface_of": {"detector": MSP},
    "statistics.Average": {},
    "statistics.BinCounts": {"bins": 3},
    "statistics.ClassCovariances": {"classes": 3},
    "statistics.ClassExtremes": {"classes": 3},
    "statistics.ClassMeans": {"classes": 3},
    "statistics.ClassMoments": {"classes": 3},
    "statistics.RightMeans": {"classes": 3},
    "statistics.LargestOfClasses": {"classes": 3, "size": 2},
    "statistics.Sample": {"size": 3},
    "statistics.double": {"tensor": IMAGES},
    "statistics.require_all": {"counts": SCORES, "problem": "counts: none of {}"},
    "safe_spots.attack": {
        "net": NET, "images": IMAGES, "labels": LABELS, "radius": 0.1, "norm": "Linf", "steps": 1,
        "smoothing": None, "seed": 0, "indices": torch.arange(3), "check": True,
    },
    "safe_spots.search": {
        "net": NET, "images": IMAGES, "radius": 0.1, "norm": "Linf", "method": "full",
        "labels": LABELS, "steps": 1, "step_size": 0.01, "attack_radius": 0.1, "attack_steps": 1,
        "attacks": 1, "keep": "last", "smoothing": None, "seed": 0, "indices": torch.arange(3),
        "check": True,
    },
    # errors, whose texts the package itself makes
    # training and callbacks
    "training.ADV": _IN_LOOP,
    "training.ALOE": {**_IN_LOOP, "outlier_attack": PGD, "outlier_weight": 0.5},
    "training.AOE": {**_IN_LOOP, "outlier_weight": 0.5},
    "training.ConfidenceGAN": {
        **_TRAINING, "beta": 1.0, "image_size": 8, "latent_size": 5, "width": 4,
        "generator": None, "discriminator": None, "gan_optimization": None,
    },
    "training.JEM": {
        **_TRAINING, "steps": 2, "step_size": 0.25, "noise": 0.005, "input_noise": 0.015,
        "buffer_size": 10, "restart_probability": 0.05, "generative_weight": 1.0,
        "weight_ramp": (0.0, 0.3), "energy_limit": 1e4,
    },
    "training.GaussianNoise": {**_TRAINING, "sigma": 0.1},
    "training.Method": {
        **_IN_LOOP, "outlier_attack": PGD, "outlier_weight": 0.5, "weight_perturbation": 0.01,
    },
    "training.OE": {**_TRAINING, "outlier_weight": 0.5},
    "training.Optimization": {
        "learning_rate": 0.1, "optimizer": "sgd", "scheduler": "cosine", "interval": "step",
        "monitor": "val/robust_auroc", "decay_all": True,
    },
    "training.SafeSpotAware": {
        **_IN_LOOP, "spot_search": PGD, "outlier_weight": 0.5, "safe_spot_weight": 0.5,
    },
    "training.Standard": _TRAINING,
    "training.ACET": {**_IN_LOOP, "outlier_attack": PGD, "outlier_weight": 0.5},
    "training.NTOM": {"net": JOINT, "outlier_weight": 1.0, "optimization": None, "seed": 0},
    "training.ATOM": {
        "net": JOINT, "inlier_attack": None, "outlier_attack": PGD, "outlier_weight": 1.0,
        "attack_mode": "eval", "optimization": None, "seed": 0,
    },
    "training.ATD": {
        "net": DISCRIMINATED, "inlier_attack": PGD, "outlier_attack": None, "outlier_weight": 0.5,
        "fake_weight": 0.5, "candidates": 4, "statistics_images": 20, "optimization": None,
        "seed": 0, "weight_perturbation": 0.0,
    },
    "training.RATIO": {**_IN_LOOP, "outlier_attack": PGD, "outlier_weight": 0.5},
    "training.HALO": {
        **_IN_LOOP, "outlier_attack": PGD, "outlier_weight": 0.5, "consistency_weight": 3.0,
        "helper": None, "helper_weight": 0.5,
    },
    "training.EnergyMargin": {
        **_IN_LOOP, "outlier_attack": PGD, "outlier_weight": 0.5, "inlier_margin": -3.0,
        "outlier_margin": -1.0,
    },
    "callbacks.Averaging": {"decay": 0.9},
    "callbacks.HardOutliers": {"pool": 4, "skip": 0.1},
    "callbacks.Checkpoints": {
        "every_n_steps": 10, "every_n_minutes": 1.0, "keep": 2, "keep_every_n_steps": 10,
        "monitor": None,
    },
    "callbacks.Dashboard": {},
    "callbacks.Stopwatch": {},
    "callbacks.EpochLines": {"minutes": 10.0},
    "callbacks.Guards": {"attacks_every_n_steps": 10, "limit": 5},
    "callbacks.MetricsFile": lambda folder: {"folder": folder},
    "callbacks.RobustValidation": {
        "detectors": ["msp"], "attacks": [], "every_n_epochs": 1, "limit": 5,
    },
    "callbacks.recent": lambda folder: {"folder": folder},
    # attacks
    "attacks.Budget": {
        "region": REGION, "steps": 1, "step_size": 0.01, "random_start": True, "rule": None,
    },
    "attacks.BudgetConfig": {
        "name": "pgd", "norm": "Linf", "radius": 0.1, "steps": 1, "step_size": 0.01,
        "random_start": True, "start_noise": 2.0, "early_steps": [], "replays": None,
    },
    "attacks.TrainingBudget": {
        "region": REGION, "steps": 1, "step_size": 0.01, "random_start": True, "rule": None,
        "start_noise": 2.0, "early_steps": [], "replays": None,
    },
    "attacks.EncoderAttack": {
        "region": REGION, "steps": 1, "learning_rate": 0.1, "random_start": True, "seed": 0,
        "restarts": 1,
    },
    "attacks.Patch": {
        "radius": 1.0, "clip": True, "side": 3, "share": None, "position": "random", "seed": 0,
        "trial": 0,
    },
    "attacks.PatchAttack": {
        "attack": attacks.PGD(attacks.Patch(side=3), steps=1), "positions": 2,
    },
    "attacks.Universal": {
        "region": regions.Linf(0.1), "steps": 1, "batch_size": 2, "images": 4, "seed": 0,
        "precision": "float32",
    },
    "attacks.patch": {
        "side": 3, "share": None, "position": "center", "radius": 1.0, "positions": 1, "steps": 1,
        "seed": 0,
    },
    "attacks.LowResolution": {"attack": PGD, "size": 3},
    "attacks.Quantised": {"attack": PGD},
    "attacks.PGD": {
        "region": REGION, "steps": 1, "step_size": 0.01, "restarts": 1, "random_start": True,
        "objective": "score", "loss": "cross_entropy", "keep": "best", "rule": None, "noise": 0.0,
        "noise_draws": 1,
    },
    "attacks.Square": {"region": REGION, "queries": 3, "share": 0.8, "seed": 0},
    "attacks.Suite": {"on_detectors": {"pgd": PGD}, "on_classifiers": {"pgd": PGD}},
    "attacks.Targeted": {"attack": PGD, "classes": 2},
    "attacks.aloe_mahalanobis": _PUBLISHED,
    "attacks.aloe_softmax": _PUBLISHED,
    "attacks.apgd": _LONG,
    "attacks.attack_labels": {"net": NET, "labels": LABELS, **_ATTACKING},
    "attacks.attack_score": {"detector": MSP, "direction": 1, **_ATTACKING},
    "attacks.budget_of": {"field": "inlier_attack", "attack": PGD},
    "attacks.build": {"attack": "fgsm"},
    "attacks.build_all": {"specs": ["fgsm"]},
    "attacks.encoder": {"net": NET, "code": "features"},
    "attacks.fgsm": {"region": REGION, "random_start": False, "seed": 0, "precision": "auto"},
    "attacks.lower_score": {
        "detector": MSP, "inliers": IMAGES, "attack": PGD, "indices": torch.arange(3),
    },
    "attacks.mape": {"codes": LOGITS, "targets": LOGITS},
    "attacks.misclassify": {"net": NET, "labels": LABELS, **_ATTACKING},
    "attacks.raise_score": {
        "detector": MSP, "outliers": IMAGES, "attack": PGD, "indices": torch.arange(3),
    },
    "attacks.standard": {"radius": 0.1, "norm": "Linf"},
    "attacks.transferred": {"attack": PGD, "source": "msp"},
    # data
    "data.EvaluationLoader": lambda folder: {
        "images": image_set(folder), "batch_size": 2, "limit": 2, "rank": 0, "world": 1,
        "reading": None,
    },
    "data.OODData": lambda folder: {
        "train": None, "test": arrays(folder), "near": [], "far": [], "root": folder, "size": None,
        "num_classes": 4, "batch_size": 2,
    },
    "data.Reading": {"workers": 0, "pin": False, "device": None},
    "data.ReadingOptions": {"workers": 0, "memory_limit": 10**6, "on_device": False},
    "data.SetSpec": {"source": "digits", "name": "digits", "size": 8, "count": 3, "seed": 0},
    "data.TrainingLoader": lambda folder: {
        "inliers": image_set(folder), "outliers": None, "batch_size": 2, "outlier_batch_size": 0,
        "seed": 0, "rank": 0, "world": 1, "reading": None,
    },
    "data.load_arrays": lambda folder: {"path": arrays(folder), "name": "set"},
    "data.load_set": lambda folder: {
        "spec": arrays(folder), "root": folder, "field": "data", "size": None,
        "memory_limit": 10**6,
    },
    "data.to_float": {"images": torch.zeros(2, 3, 6, 6, dtype=torch.uint8)},
    # networks
    "models.DCGANDiscriminator": {"image_size": 8, "width": 4, "channels": 3},
    "models.DCGANGenerator": {"image_size": 8, "latent_size": 5, "width": 4, "channels": 3},
    "models.VGG": {
        "depth": 11, "width": 2, "hidden": (4,), "num_classes": 4, "dropout": 0.1,
        "image_size": 32, **_SIZES,
    },
    "models.DenseNet": {"depth": 10, "growth": 4, "num_classes": 4, **_SIZES},
    "models.Normalize": _SIZES,
    "models.ResNet18": {"num_classes": 4, "width": 4, **_SIZES},
    "models.ResNet34": {"num_classes": 4, "width": 4, **_SIZES},
    "models.SpatialTransformerNet": {"num_classes": 4, "features": 8, **_SIZES},
    "models.ThinResNet": {"depth": 8, "num_classes": 4, **_SIZES},
    "models.WideResNet": {
        "depth": 10, "width": 1, "num_classes": 4, "dropout": 0.1, "padding": "symmetric", **_SIZES,
    },
    "models.Wrapped": {"module": NET, "head": "head", "layers": ("conv",), **_SIZES},
    "models.count_classes": {"net": NET, "image_shape": (6, 6)},
    "models.describe": {"net": NET},
    "models.export": lambda folder: {
        "net": models.ThinResNet(8, 4), "folder": folder / "out", "format": "pt", "training": None,
        "class_names": (),
    },
    "models.find_head": {"net": NET},
    "models.find_layers": {"net": NET, "image_shape": (6, 6)},
    "models.read_checkpoint": lambda folder: {"path": weights_file(folder)},
    "models.pretrained": {"name": "digits-aloe"},
    "models.read_card": {"name": "digits-aloe"},
    "models.zoo_names": {},
    "models.load_network": lambda folder: {"path": trained(folder), "net": None, "key_map": None},
    "models.load_weights": {"net": NET, "weights": NET.state_dict(), "key_map": None, "source": None},
    "models.network_state": {"content": NET.state_dict(), "source": "checkpoint"},
    "models.outputs": {"net": NET, "images": IMAGES, "layers": ("conv",)},
    "models.rebuild": {"description": models.describe(models.ThinResNet(8, 4))},
    "models.wrap": {"module": NET, "head": "head", "layers": ("conv",), **_SIZES},
    # evaluation and reports
    "evaluation.Grid": grid_settings,
    "evaluation.FolderStore": lambda folder: {"folder": folder},
    "evaluation.print_results": {"results": evaluation.Results()},
    "curves.curve": {
        "inliers": run_of(1), "outliers": run_of(-1), "sizes": [0.0, 0.01], "norm": "Linf",
    },
    "curves.loss_of_auroc": {
        "inliers": run_of(1), "outliers": run_of(-1), "size": 0.01, "norm": "Linf",
    },
    "curves.scores_at": {"run": run_of(1), "size": 0.01, "norm": "Linf"},
    "curves.trace": _TRACE,
    "curves.concatenate": {"runs": [run_of(1), run_of(1)]},
    "sanity.check": {
        "detector": MSP, "inliers": IMAGES, "outliers": IMAGES * 0.5, "name": "detector",
        "limit": 2,
    },
    "reporting.check_installed": {},
    # guards
    "deployment.Preprocessing": {
        "height": 32, "width": 32, "channels": 3, "policy": "resize", "shorter": None, "bits": None,
    },
    "deployment.conformal_threshold": {
        "scores": torch.arange(60.0), "accept": 0.9, "confidence": 0.9,
    },
    "deployment.images_needed": {"accept": 0.9, "confidence": 0.9},
    "deployment.watch": {
        "calibration": np.arange(50.0), "scores": np.arange(40.0), "threshold": 1.0, "window": 20,
        "false_alarm": 0.01,
    },
}  # fmt: skip

# What is no callable of a user's: protocols and abstract classes to derive from, context managers
# and modules that are run, and what needs a library's model collection, the network or a whole run.
LEFT_OUT = {
    "attacks.Attack", "attacks.LabelAttack", "attacks.ScoreAttack", "detectors.Detector",
    "detectors.OutputsDetector", "detectors.Wrapper", "detectors.AttackSurface",
    "statistics.Statistic", "evaluation.Store", "evaluation.Progress", "evaluation.ProgressBar",
    "evaluation.Results", "evaluation.evaluate", "evaluation.read_cell", "regions.Region",
    "rules.Rule", "callbacks.Diverged", "callbacks.Stopped", "errors.UserError",
    "models.HuggingFace", "models.RobustBench", "models.Timm", "models.Torchvision",
    "modes.differentiating",
    "models.EfficientNetLite0",  # as it is: weights of a package
    "reporting.write_encoder_report", "reporting.write_tables",
    "reporting.write_training_report",
    "modes.evaluating", "modes.mode", "data.ImageSet", "reporting.write_report", "errors.Notice",
    # Code that raises messages calls them, no user.
    "errors.nearest", "errors.notify", "errors.unknown_name", "errors.unknown_setting",
    "attacks.Settings",  # a dictionary
    "models.CLIP", "models.text_features", "sanity.check_bracket",
    # Not covered: their valid arguments need more than a table's entry.
    "deployment.Guard", "deployment.calibrate", "deployment.export_guard", "deployment.load_guard",
    "deployment.predict_files", "deployment.write_guard", "models.ImageText",
    "models.WordFeatures", "models.read_words",
}  # fmt: skip

WRONG: dict[str, Any] = {
    "None": None,
    "a string": "wrong",
    "an empty string": "",
    "True": True,
    "NaN": math.nan,
    "negative": -1,
    "a fraction": 2.5,
    "infinite": math.inf,
    "an array": np.zeros((2, 3)),
    "a list": [1, "a", None],
    "an empty list": [],
    "a mapping": {"a": 1},
    "an object": object(),
    "float64": torch.rand(3, 3, 6, 6, dtype=torch.float64),
    "float16": torch.rand(3, 3, 6, 6).half(),
    "uint8": torch.zeros(3, 3, 6, 6, dtype=torch.uint8),
    "one image": torch.rand(3, 6, 6),
    "a number": torch.tensor(1.0),
    "empty": torch.empty(0),
    "NaN pixels": torch.full((3, 3, 6, 6), math.nan),
    "labels": torch.tensor([0, 7, 2]),
}


def public_callables() -> Iterator[tuple[str, Any]]:
    """Yield public functions and classes, by the last part of their module and their name."""
    seen = set()
    for path in MODULES[1:]:  # the first only repeats others
        module = import_module(path)
        for name in names_of(module):
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and value not in seen:
                seen.add(value)
                yield f"{path.rpartition('.')[2]}.{name}", value


CALLABLES = dict(public_callables())


def is_record(value: Any) -> bool:
    """Return whether a class only holds what it is given."""
    if not inspect.isclass(value):
        return False
    plain = dataclasses.is_dataclass(value) and not hasattr(value, "__post_init__")
    return plain or (issubclass(value, tuple) and hasattr(value, "_fields"))


def call(function: Any, arguments: Arguments) -> Any:
    if function is dict:
        return function(**arguments)
    signature = inspect.signature(function)
    given = []
    named = {}
    for name, value in arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.POSITIONAL_ONLY:
            given.append(value)
        else:
            named[name] = value
    return function(*given, **named)


def test_every_public_callable_has_valid_arguments_here():
    """Whoever adds one adds its arguments to `VALID`."""
    needed = {name for name, value in CALLABLES.items() if not is_record(value)}
    assert needed - LEFT_OUT - set(VALID) == set()
    assert set(VALID) - set(CALLABLES) == set()
    assert LEFT_OUT - set(CALLABLES) == set()


# Errors that name what an argument becomes, or the setting that it is in a config.
SAID_AS = {
    "attack_radius": "radius",
    "bias_shift": "shift",
    "image_size": "image_shape",
    "inliers": ("images", "id_scores"),
    "outliers": ("images", "ood_scores"),
    "path": ("set", "checkpoint"),
    "attack_steps": "steps",
    "spec": "data",
    "value": "radius",
    "weights": "checkpoint",
    "description": "checkpoint",
    "content": "checkpoint",
}


def names(text: str, argument: str) -> bool:
    """Whether a message names an argument."""
    others = SAID_AS.get(argument, ())
    if isinstance(others, str):
        others = (others,)
    return any(name in text for name in (argument, *others))


def problem(function: Any, arguments: Arguments, name: str, value: Any) -> str | None:
    """Return how a call with a wrong argument fails otherwise than in a line that names it."""
    try:
        call(function, {**arguments, name: value})
    except (UserError, TypeError, ValueError) as error:
        text = str(error)
        if not names(text, name):
            return f"{type(error).__name__}: {text[:150]}"
        return f"several lines: {text[:150]}" if "\n" in text else None
    except Exception as error:  # whatever it is, it is reported
        return f"{type(error).__name__}: {str(error)[:150]}"
    return None


@pytest.mark.parametrize("name", VALID)
def test_a_wrong_argument_gives_a_result_or_one_line_that_names_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, entry = CALLABLES[name], VALID[name]
    arguments = entry(tmp_path) if callable(entry) else entry
    problems = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(function, arguments)
        for argument in arguments:
            for kind, wrong in WRONG.items():
                found = problem(function, arguments, argument, wrong)
                if found is not None:
                    problems.append(f"{argument}={kind}: {found}")
    assert not problems, "\n".join(problems)
