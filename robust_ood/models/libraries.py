"""Networks of other libraries by name, behind our contract: torchvision and timm."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from robust_ood.errors import UserError
from robust_ood.models.wrap import Wrapped
from robust_ood.texts import first_sentence, shown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BY_HAND = "; or download weights by hand and give them as --checkpoint, without net.{}"


class Torchvision(Wrapped):
    """A classifier of `torchvision.models`, by name.

    Args:
        name: one of `torchvision.models.list_models()`, such as "resnet50".
        num_classes: K; by default that of the weights, or else the library's own, 1000.
        weights: weights that torchvision downloads, such as "DEFAULT" or "IMAGENET1K_V2"; None for
            random ones, to train or to load a checkpoint into.
        mean, std: normalisation, in pixel fractions; by default ImageNet's, which torchvision's
            weights are for.
        head, layers: as in `Wrapped`.
        norm: "batch" for the library's normalisation layers; "instance" for statistics of single
            images in their place, of a ResNet with small batches (the OOD-attack paper, App. B.2).
        size, checkpointed: as in `Wrapped`.

    Raises:
        UserError: a name or weights that torchvision does not have, a download that fails.
    """

    def __init__(  # noqa: PLR0913
        self,
        name: str,
        num_classes: int | None = None,
        weights: str | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        head: str | None = None,
        layers: Sequence[str] = (),
        norm: Literal["batch", "instance"] = "batch",
        size: int | None = None,
        checkpointed: bool = False,
    ) -> None:
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            raise unknown_model("torchvision", name, names)
        classes: dict[str, Any] = {}
        if num_classes is not None:
            classes["num_classes"] = num_classes
        if norm not in ("batch", "instance"):
            raise UserError(f"norm: expected 'batch' or 'instance', got {shown(norm)}")
        if norm == "instance":
            classes["norm_layer"] = partial(nn.InstanceNorm2d, affine=True)
        module = build_module(
            f"torchvision's {name}",
            lambda: models.get_model(name, weights=weights, **classes),
            _BY_HAND.format("weights") if weights else "",
        )
        super().__init__(module, mean, std, head, layers, size, checkpointed)
        self.pretrained = weights is not None
        self.settings = named_settings(self, name, num_classes, mean, std, head, layers)
        if norm != "batch":
            self.settings["norm"] = norm


class Timm(Wrapped):
    """A classifier of timm, by name; needs the package timm.

    Args:
        name: one of `timm.list_models()`, such as "resnet18" or "vit_base_patch16_224".
        num_classes: K; by default that of the weights, or else the library's own, 1000.
        pretrained: download the weights; otherwise they are random, to train or to load a
            checkpoint into.
        mean, std: normalisation, in pixel fractions; by default those that timm has for the model.
        head, layers: as in `Wrapped`.
        arguments: other arguments of `timm.create_model`, such as `{in_chans: 1, img_size: 64}`, or
            `{global_pool: avg}` for a transformer's mean token in place of its class token.
        size, checkpointed: as in `Wrapped`.

    Raises:
        UserError: no such package or model, an argument that the model does not take, or one that
            names files, a download that fails.
    """

    def __init__(  # noqa: PLR0913
        self,
        name: str,
        num_classes: int | None = None,
        pretrained: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
        layers: Sequence[str] = (),
        arguments: Mapping[str, Any] | None = None,
        size: int | None = None,
        checkpointed: bool = False,
    ) -> None:
        others = _checked_arguments(arguments)
        try:
            import timm
        except ImportError as error:
            raise UserError(
                "net: Timm needs the package timm; pip install 'robust-ood[timm]'"
            ) from error
        # Names with a colon would have timm read folders and hubs that the name chooses.
        if ":" in name or not timm.is_model(name):
            raise unknown_model("timm", name, timm.list_models())
        classes: dict[str, Any] = {}
        if num_classes is not None:
            classes["num_classes"] = num_classes
        module = build_module(
            f"timm's {name}",
            lambda: timm.create_model(name, pretrained=pretrained, **classes, **others),
            _BY_HAND.format("pretrained") if pretrained else "",
        )
        channels = int(others.get("in_chans", 3))
        if not mean:
            mean = _timms(module, "mean", IMAGENET_MEAN, channels)
        if not std:
            std = _timms(module, "std", IMAGENET_STD, channels)
        super().__init__(module, mean, std, head, layers, size, checkpointed)
        # With another number of classes, timm's head is new, and needs training or a checkpoint.
        config: Any = module.pretrained_cfg
        self.pretrained = pretrained and num_classes in (None, config.get("num_classes"))
        self.settings = named_settings(self, name, num_classes, mean, std, head, layers)
        if others:
            self.settings["arguments"] = others


def _timms(
    module: nn.Module, name: str, default: Sequence[float], channels: int
) -> Sequence[float]:
    """Return timm's mean or std of a model; for other images than RGB, the average of its three."""
    config: Any = module.pretrained_cfg
    values: Sequence[float] = config.get(name, default)
    if channels == len(values):
        return values
    return (sum(values) / len(values),) * channels


_OURS = ("model_name", "num_classes", "pretrained")


def _checked_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return timm's own arguments: those that name no file, and that are not ours to give.

    A checkpoint can describe a network with them, and must not choose files or downloads.
    """
    others = dict(arguments or {})
    for name, value in others.items():
        if name in _OURS or not isinstance(value, (bool, int, float, str, list, tuple, type(None))):
            raise UserError(f"arguments: {name} = {shown(value)} is not for timm's create_model")
        if re.search("path|dir|cfg|file|pretrained|scriptable", str(name)):
            raise UserError(f"arguments: {name} is not accepted; give weights as --checkpoint")
    return others


def unknown_model(library: str, name: str, names: list[str]) -> UserError:
    """Return the error for a name that a library of hundreds does not have, with a few near it."""
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    hint = f"it has {len(names)} others"
    if near:
        hint = f"the nearest are {', '.join(near)}"
    return UserError(f"name: unknown name {name!r} in {library}; {hint}")


def build_module(model: str, build: Callable[[], nn.Module], advice: str = "") -> nn.Module:
    """Return what a library builds.

    Args:
        model: the model, for messages.
        build: calls the library. Whatever it raises is about the name, weights or download.
        advice: what else a user can do, for messages.
    """
    try:
        return build()
    except Exception as error:
        reason = f"{type(error).__name__}: {first_sentence(error)}"
        raise UserError(f"net: cannot build {model} ({reason}){advice}") from error


def named_settings(
    net: Wrapped,
    name: str,
    num_classes: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    head: str | None,
    layers: Sequence[str],
) -> dict[str, Any]:
    """Return the constructor's settings as plain values, without those of a download."""
    settings = {
        "name": name,
        "num_classes": num_classes or net.head.out_features,
        "mean": list(mean),
        "std": list(std),
        "head": head,
        "layers": list(layers),
    }
    if net.size is not None:
        settings["size"] = net.size
    return settings
