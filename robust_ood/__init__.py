"""Train, attack and honestly evaluate adversarially robust out-of-distribution detectors."""

from robust_ood import attacks, detectors, losses, metrics, models
from robust_ood.perturb import minimize
from robust_ood.regions import L2, Linf, Unbounded

__all__ = ["L2", "Linf", "Unbounded", "attacks", "detectors", "losses", "metrics", "minimize", "models"]
