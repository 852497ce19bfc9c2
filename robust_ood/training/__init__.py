"""Training methods as LightningModules. They hold objectives; the engine holds the attack loop."""

from robust_ood.training.method import Method
from robust_ood.training.methods import ADV, ALOE, AOE, OE, Standard
from robust_ood.training.noise import GaussianNoise
from robust_ood.training.optimization import SGD
from robust_ood.training.safe_spots import SafeSpotAware

__all__ = [
    "ADV",
    "ALOE",
    "AOE",
    "OE",
    "SGD",
    "GaussianNoise",
    "Method",
    "SafeSpotAware",
    "Standard",
]
