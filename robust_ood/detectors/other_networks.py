"""The network that a detector's settings name, where it is not the one under evaluation.

So one evaluation compares detectors of several networks, and a `Mean` joins them:

    {name: mean, scores: [mahalanobis, {name: mahalanobis, network: {checkpoint: B.pt, size: 224}}]}
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from robust_ood import models
from robust_ood.detectors.compose import Resized
from robust_ood.errors import UserError, unknown_name
from robust_ood.models import ImageText, load_network
from robust_ood.models.wrap import Network, as_network
from robust_ood.settings import (
    Part,
    PartSpec,
    UnknownSettingError,
    configured,
    import_path,
    read_part,
)
from robust_ood.texts import shown

_LOADED: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
"""Networks in use by what named them, so that detectors that name the same one share it."""


@dataclass(frozen=True)
class OtherNetwork:
    """A network as a detector's settings name it.

    Args:
        checkpoint: file of weights, as `--checkpoint` takes it; None where `net` brings its own,
            or for the network under evaluation.
        net: its class with settings, as `{class_path: Timm, init_args: {name: resnet50}}`; by
            default the network that the file describes.
        key_map, averaged: as in `models.load_weights`.
        size: height and width that it reads, in pixels; images are resized inside the network, so
            that attacks stay in the pixels of the evaluation. By default the images' own.
    """

    checkpoint: str | None = None
    net: str | dict[str, Any] | None = None
    key_map: str | dict[str, str] | None = None
    averaged: bool = False
    size: int | None = None

    def load(self, evaluated: nn.Module) -> nn.Module:
        """Return the network, in eval mode.

        Args:
            evaluated: the network under evaluation.

        Raises:
            UserError: nothing that names a network, or one whose weights would be random.
        """
        net = self._weighted(evaluated)
        if self.size is None:
            return net
        if isinstance(net, ImageText):
            raise UserError(f"size: {type(net).__name__} resizes its images itself; leave size out")
        return Resized(net, self.size)

    def _weighted(self, evaluated: nn.Module) -> nn.Module:
        net = None
        if self.net is not None:
            net = _build(self.net)
        if self.checkpoint is not None:
            return load_network(self.checkpoint, net, self.key_map, averaged=self.averaged)
        if self.averaged or self.key_map is not None:
            raise UserError("checkpoint: not given, and averaged and key_map are about its weights")
        if net is None and self.size is None:
            raise UserError("checkpoint: not given, and neither is net or size")
        if net is None:
            return evaluated
        if not getattr(net, "pretrained", False):
            raise UserError(
                f"checkpoint: not given, and the weights of {type(net).__name__} would be random"
            )
        return net.eval()


def other_network(field: str, spec: object, evaluated: Network) -> nn.Module:
    """Return the network that a detector's `network` names.

    Args:
        field: the config field, for messages.
        spec: a file of weights, or a mapping of the settings of `OtherNetwork`.
        evaluated: the network under evaluation.

    Raises:
        UserError: anything else, and whatever `OtherNetwork` refuses.
    """
    if isinstance(spec, str | os.PathLike):
        spec = {"checkpoint": os.fspath(spec)}
    if not isinstance(spec, Mapping):
        raise UserError(f"{field}: expected a file of weights, or a mapping, got {shown(spec)}")
    settings = dict(spec)
    if isinstance(settings.get("net"), Namespace):  # what jsonargparse makes of a class path
        settings["net"] = settings["net"].as_dict()
    try:
        network = configured(field, OtherNetwork, settings=settings)
    except UnknownSettingError as error:  # of the network, not of the detector around it
        raise UserError(str(error)) from error
    base = as_network(evaluated)
    key = json.dumps([id(base), _written(network.checkpoint), settings], default=str)
    loaded = _LOADED.get(key)
    if loaded is None:
        try:
            loaded = network.load(base)
        except UserError as error:
            raise UserError(f"{field}.{error}") from error
        if loaded is base:
            return base
        _LOADED[key] = loaded
    return loaded


def _written(path: str | None) -> int | None:
    """Return when a file was written; a network in memory is not that of a newer file."""
    if path is None or not os.path.exists(path):
        return None
    return os.stat(path).st_mtime_ns


def _build(spec: PartSpec) -> nn.Module:
    part = read_part("net", spec)
    try:
        net = configured("net", _class_of(part), settings=part.settings)
    except UnknownSettingError as error:
        raise UserError(str(error)) from error
    if not isinstance(net, nn.Module):
        raise UserError(f"net: {part.name!r} makes a {type(net).__name__}, not a torch.nn.Module")
    return net


def _class_of(part: Part) -> Any:
    """Return a class of ours by its name, or the user's by its import path."""
    if "." in part.name:
        return import_path("net", part.name)
    if part.name not in models.__all__:
        raise unknown_name("net", part.name, models.__all__)
    return getattr(models, part.name)
