"""Names of other people's weights, turned into ours by anchored regular expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from robust_ood.errors import UserError, unknown_name


class KeyMap(NamedTuple):
    """How to rename the weights of a published network for one of ours.

    network: our class. origin: whose weights they are. patterns: as `rename` takes them.
    """

    network: str
    origin: str
    patterns: Mapping[str, str]


KEY_MAPS: dict[str, KeyMap] = {
    "resnet20": KeyMap(
        "ThinResNet",
        "akamaster/pytorch_resnet_cifar10, resnet20 to resnet1202",
        {r"linear\.": "head."},
    ),
    "openood-resnet18": KeyMap(
        "ResNet18",
        "Jingkang50/OpenOOD, ResNet18_32x32",
        {r"fc\.": "head."},
    ),
    "kuangliu-resnet18": KeyMap(
        "ResNet18",
        "kuangliu/pytorch-cifar, ResNet18, and others derived from it, such as TRADES",
        {r"linear\.": "head."},
    ),
    "outlier-exposure-wrn": KeyMap(
        "WideResNet",
        "hendrycks/outlier-exposure, CIFAR/models/wrn.py, and others derived from "
        "xternalz/WideResNet-pytorch",
        {
            r"block([123])\.layer\.(\d+)\.convShortcut\.": r"group\1.\2.shortcut.",
            r"block([123])\.layer\.(\d+)\.": r"group\1.\2.",
            r"bn1\.": "bn.",
            r"fc\.": "head.",
        },
    ),
    "aloe-densenet": KeyMap(
        "DenseNet",
        "jfc43/robust-ood-detection, CIFAR/models/densenet.py, jfc43/informative-outlier-mining, "
        "models/densenet.py, and others derived from andreasveit/densenet-pytorch",
        {
            r"block([123])\.layer\.(\d+)\.": r"block\1.\2.",
            r"trans([12])\.(bn|conv)1\.": r"transition\1.\2.",
            r"bn1\.": "bn.",
            r"fc\.": "head.",
        },
    ),
}
"""The known key maps by name."""


def find_key_map(name: str) -> Mapping[str, str]:
    """Return the patterns of a known key map. Raises: `UserError` with the nearest known name."""
    if name not in KEY_MAPS:
        raise unknown_name("key_map", name, KEY_MAPS)
    return KEY_MAPS[name].patterns


def rename(state: Mapping[str, Tensor], patterns: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights under other names.

    Args:
        state: weights by key.
        patterns: regular expressions that match the start of a key, each with the replacement of
            the match (`\\1` is its first group). The first one that matches a key is used; a key
            that none matches keeps its name.

    Raises:
        UserError: an invalid regular expression, or two keys that get the same name.
    """
    names = {}
    try:
        compiled = {re.compile(pattern): new for pattern, new in patterns.items()}
        for key in state:
            names[key] = _renamed(key, compiled)
    except (re.error, IndexError) as error:
        raise UserError(
            f"key_map: expected regular expressions and replacements, got {dict(patterns)} "
            f"({error})"
        ) from error
    old_names: dict[str, str] = {}
    renamed = {}
    for key, value in state.items():
        name = names[key]
        if name in old_names:
            raise UserError(f"key_map: {old_names[name]} and {key} would both become {name}")
        old_names[name] = key
        renamed[name] = value
    return renamed


def _renamed(key: str, patterns: Mapping[re.Pattern[str], str]) -> str:
    for pattern, replacement in patterns.items():
        match = pattern.match(key)
        if match is not None:
            return match.expand(replacement) + key[match.end() :]
    return key
