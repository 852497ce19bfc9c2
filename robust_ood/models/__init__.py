"""Networks: pixels in [0, 1] in, logits out."""

from robust_ood.models.checkpoints import load_weights, network_state, read_checkpoint
from robust_ood.models.densenet import DenseNet
from robust_ood.models.description import describe, load_network, rebuild
from robust_ood.models.normalize import Normalize
from robust_ood.models.outputs import Outputs, count_classes, find_head, outputs
from robust_ood.models.resnet import ResNet18, ThinResNet
from robust_ood.models.wide_resnet import WideResNet
from robust_ood.models.wrap import Wrapped, wrap

__all__ = [
    "DenseNet",
    "Normalize",
    "Outputs",
    "ResNet18",
    "ThinResNet",
    "WideResNet",
    "Wrapped",
    "count_classes",
    "describe",
    "find_head",
    "load_network",
    "load_weights",
    "network_state",
    "outputs",
    "read_checkpoint",
    "rebuild",
    "wrap",
]
