"""Attacks on detectors, classifiers and encoders: settings and objectives for the engine."""

from robust_ood.attacks.apply import (
    Attack,
    Attacked,
    Candidate,
    LabelAttack,
    ScoreAttack,
    Settings,
    attack_labels,
    attack_score,
    lower_score,
    misclassify,
    raise_score,
)
from robust_ood.attacks.budget import Budget
from robust_ood.attacks.encoder import EncoderAttack, encoder, mape
from robust_ood.attacks.in_loop import BudgetConfig, InLoopAttack, budget_of
from robust_ood.attacks.patches import Patch, PatchAttack, patch
from robust_ood.attacks.pgd import PGD
from robust_ood.attacks.published import aloe_mahalanobis, aloe_softmax, apgd, fgsm, transferred
from robust_ood.attacks.quantised import Quantised
from robust_ood.attacks.registry import REGISTRY, build, build_all
from robust_ood.attacks.resolution import LowResolution
from robust_ood.attacks.square import Square
from robust_ood.attacks.suite import Suite, standard
from robust_ood.attacks.targeted import Targeted
from robust_ood.attacks.training_budget import TrainingBudget
from robust_ood.attacks.universal import Universal

__all__ = [
    "PGD",
    "REGISTRY",
    "Attack",
    "Attacked",
    "Budget",
    "BudgetConfig",
    "Candidate",
    "EncoderAttack",
    "InLoopAttack",
    "LabelAttack",
    "LowResolution",
    "Patch",
    "PatchAttack",
    "Quantised",
    "ScoreAttack",
    "Settings",
    "Square",
    "Suite",
    "Targeted",
    "TrainingBudget",
    "Universal",
    "aloe_mahalanobis",
    "aloe_softmax",
    "apgd",
    "attack_labels",
    "attack_score",
    "budget_of",
    "build",
    "build_all",
    "encoder",
    "fgsm",
    "lower_score",
    "mape",
    "misclassify",
    "patch",
    "raise_score",
    "standard",
    "transferred",
]
