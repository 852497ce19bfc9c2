"""Detectors: images to scores, higher = more in-distribution."""

from robust_ood.detectors.contract import Detector, OutputsDetector, Wrapper
from robust_ood.detectors.logits import Energy, MaxLogit
from robust_ood.detectors.perturbed import ODIN, PRO, InputNoise
from robust_ood.detectors.registry import REGISTRY, build, build_all
from robust_ood.detectors.softmax import GEN, MSP, Entropy

__all__ = [
    "GEN",
    "MSP",
    "ODIN",
    "PRO",
    "REGISTRY",
    "Detector",
    "Energy",
    "Entropy",
    "InputNoise",
    "MaxLogit",
    "OutputsDetector",
    "Wrapper",
    "build",
    "build_all",
]
