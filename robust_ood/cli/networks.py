"""The network of a command: from a file, from a class that the user names, or both."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from robust_ood.errors import UserError
from robust_ood.models import Wrapped, load_network, wrap
from robust_ood.models.misfit import has_weights
from robust_ood.models.zoo import located
from robust_ood.settings import import_path


def add_network_arguments(parser: ArgumentParser, *, several: bool = False) -> None:
    """Add `--checkpoint`, `--net` and `--key_map`; `several` lets a list of files be given."""
    kind: Any = Path | None
    if several:
        kind = Path | list[Path] | None
    parser.add_argument(
        "--checkpoint",
        type=kind,
        default=None,
        help="file of weights: a run's checkpoint, an export, zoo:NAME, any other",
    )
    parser.add_subclass_arguments(
        nn.Module, "net", required=False, help="network (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--key_map",
        type=str | dict[str, str] | None,
        default=None,
        help="how the file names the network's weights: a known map, "
        "or regular expressions and replacements",
    )
    parser.add_argument(
        "--averaged",
        type=bool,
        default=False,
        help="take the running average of the weights (EMA) that the file holds beside them",
    )


def load(
    checkpoint: Path | None,
    net: nn.Module | None,
    key_map: str | Mapping[str, str] | None = None,
    *,
    averaged: bool = False,
) -> nn.Module:
    """Return the network with its weights, in eval mode.

    Args:
        checkpoint: file of weights; None where the network brings its own.
        net: what `--net` built, or None for the network that the file describes.
        key_map, averaged: as in `models.load_weights`.

    Raises:
        UserError: neither file nor network, something that is no network, or a network whose
            weights would be random.
    """
    if net is not None and not isinstance(net, nn.Module):
        raise UserError(f"net: expected a torch.nn.Module, got a {type(net).__name__}")
    if checkpoint is not None:
        return load_network(checkpoint, net, key_map, averaged=averaged)
    if averaged:
        raise UserError("averaged: true is for a checkpoint that holds an average; none is given")
    if net is None:
        raise UserError(
            "checkpoint: not given, and neither is a network with weights of its own (--net)"
        )
    if not has_weights(net):
        raise UserError(
            f"checkpoint: not given, and the weights of {type(net).__name__} would be random; "
            "a class that loads its own says so with an attribute `pretrained = True`"
        )
    return net.eval()


def find_parts(net: nn.Module, image_shape: tuple[int, ...]) -> tuple[nn.Module, str | None]:
    """Return the network with its head and feature layers known, and in words what they are.

    Networks that name their own, as ours do, come back as they are, with None.

    Args:
        net: the network.
        image_shape: channels, height and width of the images.
    """
    if not isinstance(net, Wrapped):
        if getattr(net, "feature_layers", ()) or not getattr(net, "classifies", True):
            return net, None
        net = wrap(net).eval()
    return net, net.find_layers(image_shape)


def name_of(checkpoint: Path | None, net: nn.Module | None) -> str:
    """Return what results call a network that nobody named."""
    if checkpoint is not None:
        path = located(checkpoint).resolve()
        if path.is_dir():
            return path.name
        return path.parent.name
    module = getattr(net, "module", net)
    return str(getattr(net, "settings", {}).get("name") or type(module).__name__)


_NO_CLASS = r"Import path (\S+) does not correspond to a subclass of Module"


def accept_factory(causes: Iterable[BaseException]) -> bool:
    """Let a function that builds a network stand where the class of one is expected.

    The parser takes a function only where it says that it returns a network, which few do; so it is
    said for them. Their arguments are checked as those of classes are.

    Args:
        causes: why the parser refused the settings.

    Returns:
        Whether that has changed something: the settings can then be read again.
    """
    for cause in causes:
        named = re.search(_NO_CLASS, str(cause))
        if named is None:
            continue
        function = inspect.unwrap(import_path("net", named[1]))
        if not isinstance(function, FunctionType):
            return False
        returned = function.__annotations__.get("return", Any)
        if returned is not Any and not isinstance(returned, str):
            return False
        function.__annotations__["return"] = nn.Module
        return True
    return False
