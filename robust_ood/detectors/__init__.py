"""Detectors: images to scores, higher = more in-distribution."""

from robust_ood.detectors.activations import ASH, DICE, SCALE, ReAct
from robust_ood.detectors.attack_surface import AttackSurface, Surrogate, surface_of
from robust_ood.detectors.compose import DeepEnsemble, Mean, Resized, Standardize
from robust_ood.detectors.contract import Detector, OutputsDetector
from robust_ood.detectors.fitting.passes import fit
from robust_ood.detectors.generative import Complexity, Likelihood, ReconstructionError
from robust_ood.detectors.gradients import GradientNorm, GradNorm
from robust_ood.detectors.gram import Gram
from robust_ood.detectors.logits import Energy, MaxLogit, OutlierExposureScore
from robust_ood.detectors.mahalanobis import LayerNoise, Mahalanobis, RelativeMahalanobis
from robust_ood.detectors.neighbours import KNN
from robust_ood.detectors.outlier_class import OutlierClassScore
from robust_ood.detectors.perturbed import ODIN, PRO, InputNoise
from robust_ood.detectors.registry import REGISTRY, build, build_all
from robust_ood.detectors.ross import ROSS
from robust_ood.detectors.safe_spot import SafeSpot
from robust_ood.detectors.search import search
from robust_ood.detectors.smoothing import Smoothed
from robust_ood.detectors.softmax import GEN, MSP, Entropy, KLMatching
from robust_ood.detectors.subspace import Residual, ViM
from robust_ood.detectors.wrapper import Wrapper
from robust_ood.detectors.zero_shot import ZeroShot

__all__ = [
    "ASH",
    "DICE",
    "GEN",
    "KNN",
    "MSP",
    "ODIN",
    "PRO",
    "REGISTRY",
    "ROSS",
    "SCALE",
    "AttackSurface",
    "Complexity",
    "DeepEnsemble",
    "Detector",
    "Energy",
    "Entropy",
    "GradNorm",
    "GradientNorm",
    "Gram",
    "InputNoise",
    "KLMatching",
    "LayerNoise",
    "Likelihood",
    "Mahalanobis",
    "MaxLogit",
    "Mean",
    "OutlierClassScore",
    "OutlierExposureScore",
    "OutputsDetector",
    "ReAct",
    "ReconstructionError",
    "RelativeMahalanobis",
    "Residual",
    "Resized",
    "SafeSpot",
    "Smoothed",
    "Standardize",
    "Surrogate",
    "ViM",
    "Wrapper",
    "ZeroShot",
    "build",
    "build_all",
    "fit",
    "search",
    "surface_of",
]
