"""Detectors: images to scores, higher = more in-distribution."""

from robust_ood.detectors.activations import ASH, DICE, SCALE, ReAct
from robust_ood.detectors.adascale import AdaScale
from robust_ood.detectors.attack_surface import AttackSurface, Surrogate, surface_of
from robust_ood.detectors.compose import DeepEnsemble, Mean, Resized, Standardize
from robust_ood.detectors.contract import Detector, OutputsDetector
from robust_ood.detectors.coverage import NAC
from robust_ood.detectors.densities import GMM, PNML
from robust_ood.detectors.discriminator import DiscriminatorScore
from robust_ood.detectors.dropout import FeatureDropout, MCDropout
from robust_ood.detectors.extremes import CombOOD
from robust_ood.detectors.fitting.passes import fit
from robust_ood.detectors.generative import Complexity, Likelihood, ReconstructionError
from robust_ood.detectors.geometry import FDBD, NCI, SHE
from robust_ood.detectors.gradients import GradientNorm, GradNorm, GradUncertainty
from robust_ood.detectors.gram import Gram
from robust_ood.detectors.kernel_pca import KernelPCA
from robust_ood.detectors.logits import Energy, MaxLogit, OutlierExposureScore
from robust_ood.detectors.mahalanobis import LayerNoise, Mahalanobis, RelativeMahalanobis
from robust_ood.detectors.neighbours import KNN
from robust_ood.detectors.openmax import OpenMax
from robust_ood.detectors.outlier_class import OutlierClassScore
from robust_ood.detectors.perturbed import IODIN, ODIN, PRO, InputNoise
from robust_ood.detectors.rank_feat import RankFeat, RankWeight
from robust_ood.detectors.rectified import LTS, VRA, LINe, OptFS
from robust_ood.detectors.registry import REGISTRY, build, build_all
from robust_ood.detectors.relations import NNGuide, Relation
from robust_ood.detectors.ross import ROSS
from robust_ood.detectors.safe_spot import SafeSpot
from robust_ood.detectors.search import search
from robust_ood.detectors.smoothing import Smoothed
from robust_ood.detectors.softmax import GEN, MSP, Entropy, KLMatching
from robust_ood.detectors.subspace import Residual, ViM
from robust_ood.detectors.weiper import WeiPer
from robust_ood.detectors.wrapper import Wrapper
from robust_ood.detectors.zero_shot import ZeroShot

__all__ = [
    "ASH",
    "DICE",
    "FDBD",
    "GEN",
    "GMM",
    "IODIN",
    "KNN",
    "LTS",
    "MSP",
    "NAC",
    "NCI",
    "ODIN",
    "PNML",
    "PRO",
    "REGISTRY",
    "ROSS",
    "SCALE",
    "SHE",
    "VRA",
    "AdaScale",
    "AttackSurface",
    "CombOOD",
    "Complexity",
    "DeepEnsemble",
    "Detector",
    "DiscriminatorScore",
    "Energy",
    "Entropy",
    "FeatureDropout",
    "GradNorm",
    "GradUncertainty",
    "GradientNorm",
    "Gram",
    "InputNoise",
    "KLMatching",
    "KernelPCA",
    "LINe",
    "LayerNoise",
    "Likelihood",
    "MCDropout",
    "Mahalanobis",
    "MaxLogit",
    "Mean",
    "NNGuide",
    "OpenMax",
    "OptFS",
    "OutlierClassScore",
    "OutlierExposureScore",
    "OutputsDetector",
    "RankFeat",
    "RankWeight",
    "ReAct",
    "ReconstructionError",
    "Relation",
    "RelativeMahalanobis",
    "Residual",
    "Resized",
    "SafeSpot",
    "Smoothed",
    "Standardize",
    "Surrogate",
    "ViM",
    "WeiPer",
    "Wrapper",
    "ZeroShot",
    "build",
    "build_all",
    "fit",
    "search",
    "surface_of",
]
