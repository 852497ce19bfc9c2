"""Training methods as LightningModules. They hold objectives; the engine holds the attack loop."""

from robust_ood.training.method import Method
from robust_ood.training.methods import ADV, ALOE, AOE, OE, Standard
from robust_ood.training.optimization import SGD

__all__ = ["ADV", "ALOE", "AOE", "OE", "SGD", "Method", "Standard"]
