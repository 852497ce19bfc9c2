"""Training methods as LightningModules. They hold objectives; the engine holds the attack loop."""

from robust_ood.deprecation import moved
from robust_ood.training.ccu import CCU
from robust_ood.training.confidence import ACET, RATIO
from robust_ood.training.confidence_gan import ConfidenceGAN
from robust_ood.training.consistency import HALO
from robust_ood.training.discriminator import ATD
from robust_ood.training.energy import JEM
from robust_ood.training.energy_margin import EnergyMargin
from robust_ood.training.gated import ProoD
from robust_ood.training.generative import AutoEncoder, Flow
from robust_ood.training.good import GOOD
from robust_ood.training.method import Method
from robust_ood.training.methods import ADV, ALOE, AOE, OE, Standard
from robust_ood.training.noise import GaussianNoise
from robust_ood.training.optimization import Optimization
from robust_ood.training.outlier_class import ATOM, NTOM
from robust_ood.training.safe_spots import SafeSpotAware

__all__ = [
    "ACET",
    "ADV",
    "ALOE",
    "AOE",
    "ATD",
    "ATOM",
    "CCU",
    "GOOD",
    "HALO",
    "JEM",
    "NTOM",
    "OE",
    "RATIO",
    "AutoEncoder",
    "ConfidenceGAN",
    "EnergyMargin",
    "Flow",
    "GaussianNoise",
    "Method",
    "Optimization",
    "ProoD",
    "SafeSpotAware",
    "Standard",
]

__getattr__ = moved(__name__, {"SGD": "robust_ood.training.optimization.Optimization"})
