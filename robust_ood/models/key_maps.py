"""Names of other people's weights, turned into ours by anchored regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from robust_ood.errors import UserError, unknown_name
from robust_ood.models.published_maps import (
    deepmind_preact_resnet,
    deepmind_wide_resnet,
    interval_network,
    prood,
)


class KeyMap(NamedTuple):
    """How to rename the weights of a published network for one of ours.

    network: our class. origin: whose weights they are. patterns: as `rename` takes them.
    sign: a regular expression that the keys of such a file hold, and those of the other maps do
    not, so that messages can name the family of a file. settings: what the network must be built
    with, where the shapes of the weights do not show it.
    """

    network: str
    origin: str
    patterns: Mapping[str, str]
    sign: str = ""
    settings: Mapping[str, Any] = {}


KEY_MAPS: dict[str, KeyMap] = {
    "resnet20": KeyMap(
        "ThinResNet",
        "akamaster/pytorch_resnet_cifar10, resnet20 to resnet1202",
        {r"linear\.": "head."},
        r"^(?!.*layer4\.)(?=.*layer3\.0\.conv1).*linear\.",
    ),
    "openood-resnet18": KeyMap(
        "ResNet18",
        "Jingkang50/OpenOOD, ResNet18_32x32",
        {r"fc\.": "head."},
        r"layer4\.0\.shortcut\.1\..*fc\.",
    ),
    "kuangliu-resnet18": KeyMap(
        "ResNet18",
        "kuangliu/pytorch-cifar, ResNet18, and others derived from it, such as TRADES, HAT, HALO",
        {r"linear\.": "head."},
        r"^(?!.*base_model\.)(?=.*layer4\.0\.shortcut\.1\.).*linear\.",
    ),
    "lrr-resnet18": KeyMap(
        "ResNet18",
        "RobustBench/robustbench, Diffenderfer2021Winning_LRR, and others with torchvision's names",
        {r"(layer[234]\.0)\.downsample\.": r"\1.shortcut.", r"fc\.": "head."},
        r"layer4\.0\.downsample\.",
    ),
    "hat-preact-resnet": KeyMap(
        "PreActResNet",
        "imrahulr/hat, preact-resnet18 and 34, and others derived from it, such as HALO",
        {r"(layer\d\.\d+)\.shortcut\.0\.": r"\1.shortcut.", r"linear\.": "head."},
        r"layer4\.0\.shortcut\.0\.(?!.*layer4\.0\.shortcut\.1\.).*linear\.",
        {"padding": "symmetric"},
    ),
    "deepmind-preact-resnet": KeyMap(
        "PreActResNet",
        "RobustBench/robustbench, DMPreActResNet, such as Rade2021Helper_R18_extra",
        deepmind_preact_resnet(),
        r"layer_3\.0\.batchnorm_0\.",
        {"padding": "same"},
    ),
    "deepmind-wrn": KeyMap(
        "WideResNet",
        "RobustBench/robustbench, DMWideResNet, such as Rebuffi2021Fixing_70_16_cutmix_extra",
        deepmind_wide_resnet(),
        r"^(?!.*odefunc\.).*layer\.2\.block\.0\.batchnorm_0\.",
        {"padding": "same"},
    ),
    "good-xl": KeyMap(
        "ConvNet",
        "j-cb/GOOD, CNN_IBP of size XL",
        interval_network(5, (6, 7, 8)),
        r"(?<!detector\.)\bL8\.weight",
        {"nonpositive_head": False, "pooling": 1},
    ),
    "good-l": KeyMap(
        "ConvNet",
        "j-cb/GOOD, CNN_IBP of size L (MNIST)",
        interval_network(5, (6, 7)),
        r"^(?!.*\bL8\.)(?=.*\bC5\.).*\bL7\.weight",
        {"nonpositive_head": False, "pooling": 1},
    ),
    "prood-discriminator": KeyMap(
        "ConvNet",
        "AlexMeinke/Provable-OOD-Detection, CNN_IBP of size S, ProoD-Disc",
        interval_network(3, (4, 5)),
        r"(?<!detector\.)\bL5\.weight",
        {"nonpositive_head": True, "pooling": 2},
    ),
    "prood": KeyMap(
        "Gated",
        "AlexMeinke/Provable-OOD-Detection, JointModel of a ResNet18 and a CNN_IBP of size S",
        prood(),
        r"base_model\..*detector\.C1\.",
    ),
    "atd-discriminator": KeyMap(
        "Discriminated",
        "rohban-lab/ATD, the discriminator DNet_best_* alone",
        {r"main\.": "discriminator."},
        r"main\.11\.weight",
    ),
    "aros": KeyMap(
        "NeuralODENet",
        "AdaptiveMotorControlLab/AROS, the layers after the robust network",
        {
            r"1\.fc0\.linear\.weight": "flow.projection",
            r"2\.0\.odefunc\.fc1\._layer\.": "flow.field.",
            r"2\.1\.fc0\.": "flow.head.",
        },
        r"odefunc\.fc1\._layer\.",
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
        r"block3\.layer\.0\.convShortcut\.",
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
        r"trans1\.conv1\.",
    ),
}
"""The known key maps by name."""


def find_key_map(name: str) -> Mapping[str, str]:
    """Return the patterns of a known key map. Raises: `UserError` with the nearest known name."""
    if name not in KEY_MAPS:
        raise unknown_name("key_map", name, KEY_MAPS)
    return KEY_MAPS[name].patterns


def find_family(keys: Iterable[str]) -> str | None:
    """Return the name of the key map whose files have such keys; None where none is known."""
    text = " ".join(sorted(keys))
    for name, known in KEY_MAPS.items():
        if known.sign and re.search(known.sign, text):
            return name
    return None


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
