"""Names of other people's weights, turned into ours by anchored regular expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from robust_ood.errors import UserError, unknown_name


class KeyMap(NamedTuple):
    """How the weights of one published network become those of one of ours.

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
    "outlier-exposure-wrn": KeyMap(
        "WideResNet",
        "hendrycks/outlier-exposure, CIFAR/models/wrn.py, and others that come from xternalz/WideResNet-pytorch",
        {
            r"block([123])\.layer\.(\d+)\.convShortcut\.": r"group\1.\2.shortcut.",
            r"block([123])\.layer\.(\d+)\.": r"group\1.\2.",
            r"bn1\.": "bn.",
            r"fc\.": "head.",
        },
    ),
    "aloe-densenet": KeyMap(
        "DenseNet",
        "jfc43/robust-ood-detection, CIFAR/models/densenet.py, and others that come from andreasveit/densenet-pytorch",
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
        patterns: regular expressions that must match from the start of a key on, each with what
            takes the place of the match (`\\1` is its first group). The first that matches a key
            counts; keys that none matches stay.

    Raises:
        UserError: a pattern that is no regular expression, or two keys that become one.
    """
    try:
        compiled = [(re.compile(pattern), new) for pattern, new in patterns.items()]
        names = {key: _renamed(key, compiled) for key in state}
    except (re.error, IndexError) as error:
        raise UserError(
            f"key_map: {dict(patterns)} is not regular expressions and replacements ({error})"
        ) from error
    if len(set(names.values())) < len(names):
        seen: dict[str, str] = {}
        first, second = next(
            (seen[new], old) for old, new in names.items() if seen.setdefault(new, old) != old
        )
        raise UserError(f"key_map: {first} and {second} would both become {names[second]}")
    return {names[key]: value for key, value in state.items()}


def _renamed(key: str, patterns: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in patterns:
        if found := pattern.match(key):
            return found.expand(new) + key[found.end() :]
    return key
