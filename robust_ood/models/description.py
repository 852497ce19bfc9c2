"""What a checkpoint says about its network, to build the network again without a config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from robust_ood.errors import UserError
from robust_ood.models.autoencoder import AutoEncoder
from robust_ood.models.convnet import ConvNet
from robust_ood.models.densenet import DenseNet
from robust_ood.models.discriminated import Discriminated
from robust_ood.models.efficientnet import EfficientNetLite0
from robust_ood.models.gated import Gated
from robust_ood.models.glow import Glow
from robust_ood.models.hugging_face import HuggingFace
from robust_ood.models.libraries import Timm, Torchvision
from robust_ood.models.mixtures import MixtureRatio
from robust_ood.models.neural_ode import NeuralODENet
from robust_ood.models.outlier_class import OutlierClass
from robust_ood.models.preact_resnet import PreActResNet
from robust_ood.models.resnet import ResNet18, ResNet34, ThinResNet
from robust_ood.models.spatial_transformer import SpatialTransformerNet
from robust_ood.models.vgg import VGG
from robust_ood.models.wide_resnet import WideResNet

BUILDABLE: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        AutoEncoder,
        ConvNet,
        DenseNet,
        Discriminated,
        EfficientNetLite0,
        Gated,
        Glow,
        HuggingFace,
        MixtureRatio,
        NeuralODENet,
        OutlierClass,
        PreActResNet,
        ResNet18,
        ResNet34,
        SpatialTransformerNet,
        ThinResNet,
        Timm,
        Torchvision,
        VGG,
        WideResNet,
    )
}
"""Networks that a checkpoint may name. A fixed list: a file must not choose what code runs."""


def describe(net: nn.Module) -> dict[str, Any] | None:
    """Return a network's class name and settings as plain values; None for a class not of ours."""
    if type(net) not in BUILDABLE.values():
        return None
    written: Any = net.settings
    settings = {}
    for name, value in written.items():
        if isinstance(value, nn.Module):  # a part of the network, such as a gate
            value = describe(value)
            if value is None:
                return None
        settings[name] = value
    return {"name": type(net).__name__, "settings": settings}


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """Return a network like the described one, with new weights.

    Raises: `UserError` for a description that names no network of ours, or settings that the
        network does not have.
    """
    malformed = UserError("checkpoint: its description of the network is malformed")
    if not isinstance(description, Mapping):
        raise malformed
    name = description.get("name")
    settings = description.get("settings", {})
    if not isinstance(settings, Mapping):
        raise malformed
    if not isinstance(name, str) or name not in BUILDABLE:
        raise UserError(f"checkpoint: describes a network {name!r}; known: {', '.join(BUILDABLE)}")
    kind = BUILDABLE[name]
    # A description must not cause a download.
    allowed = set(inspect.signature(kind).parameters) - {"weights", "pretrained", "folder"}
    unknown = set(settings) - allowed
    if unknown:
        raise UserError(
            f"checkpoint: {name} has no settings {', '.join(sorted(map(str, unknown)))}"
        )
    if kind is HuggingFace and not isinstance(settings.get("config"), Mapping):
        raise malformed
    parts = {}
    for field, value in settings.items():
        is_network = isinstance(value, Mapping) and set(value) == {"name", "settings"}
        parts[field] = rebuild(value) if is_network else value
    try:
        return kind(**parts)
    except UserError as error:
        raise UserError(f"checkpoint: {name}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"checkpoint: {name} cannot be built with {dict(settings)}") from error
