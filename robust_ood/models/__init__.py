"""Networks: pixels in [0, 1] in, logits out."""

from robust_ood.models.checkpoints import load_network, read_checkpoint
from robust_ood.models.normalize import Normalize
from robust_ood.models.outputs import Outputs, count_classes, outputs
from robust_ood.models.wide_resnet import WideResNet

__all__ = ["Normalize", "Outputs", "WideResNet", "count_classes", "load_network", "outputs", "read_checkpoint"]
