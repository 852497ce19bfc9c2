"""A classifier of traffic signs that turns and scales its input before it reads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.models.normalize import CIFAR_MEAN, CIFAR_STD, Normalize
from robust_ood.models.wide_resnet import check_settings

_POOLED = 4  # side of the maps that the linear layers read, whatever the size of the images


class SpatialTransformerNet(nn.Module):
    """Convolutions behind a spatial transformer, images `(N, 3, H, W)` to `(N, K)`.

    Source: Arcos-Garcia et al. 2018, in a form with one transformer, at the input, as the
    OOD-attack paper's classifier of GTSRB (App. B.3) has 128 features. The transformer is that of
    Jaderberg et al. 2015: an affine map of the pixels' places, predicted from the image; it begins
    as the identity.

    Args:
        num_classes: K.
        features: width of the layer before the head.
        mean, std: the normalisation that is the first layer.
    """

    feature_layers: tuple[str, ...] = ("block1", "block2", "block3")

    @typed
    def __init__(
        self,
        num_classes: int = 43,
        features: int = 128,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
    ) -> None:
        super().__init__()
        check_settings(num_classes, features=features)
        self.settings = {
            "num_classes": num_classes,
            "features": features,
            "mean": list(mean),
            "std": list(std),
        }
        self.normalize = Normalize(mean, std)
        self.localize = nn.Sequential(
            _block(len(mean), 32),
            _block(32, 64),
            nn.AdaptiveAvgPool2d(_POOLED),
            nn.Flatten(),
            nn.Linear(64 * _POOLED**2, 64),
            nn.ReLU(),
        )
        self.place = nn.Linear(64, 6)
        nn.init.zeros_(self.place.weight)
        with torch.no_grad():
            self.place.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        self.block1 = _block(len(mean), 64)
        self.block2 = _block(64, 128)
        self.block3 = _block(128, 256)
        self.reduce = nn.Linear(256 * _POOLED**2, features)
        self.head = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.transform(self.normalize(images))
        for name in self.feature_layers:
            maps = self.get_submodule(name)(maps)
        pooled = F.adaptive_avg_pool2d(maps, _POOLED).flatten(1)
        logits: Tensor = self.head(F.relu(self.reduce(pooled)))
        return logits

    def transform(self, images: Tensor) -> Tensor:
        """Return images `(N, 3, H, W)` sampled where the transformer looks."""
        affine = self.place(self.localize(images)).view(-1, 2, 3)
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)  # (N, H, W, 2)
        return F.grid_sample(images, grid, align_corners=False)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
