"""Attacks on detectors and classifiers. They hold settings and objectives; the engine holds the loop."""

from robust_ood.attacks.apply import LabelAttack, ScoreAttack, lower_score, misclassify, raise_score
from robust_ood.attacks.pgd import PGD, fgsm
from robust_ood.attacks.registry import REGISTRY, build, build_all

__all__ = [
    "PGD",
    "REGISTRY",
    "LabelAttack",
    "ScoreAttack",
    "build",
    "build_all",
    "fgsm",
    "lower_score",
    "misclassify",
    "raise_score",
]
