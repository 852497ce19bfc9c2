"""Key maps of the networks of papers on robust detection, whose names come in regular rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_BLOCK = {"batchnorm_0": "bn1", "conv_0": "conv1", "batchnorm_1": "bn2", "conv_1": "conv2"}
_PREACT_BLOCK = {
    "batchnorm_0": "bn1",
    "conv_2d_1": "conv1",
    "batchnorm_1": "bn2",
    "conv_2d_2": "conv2",
    "shortcut": "shortcut",
}


def deepmind_wide_resnet() -> dict[str, str]:
    """Return the names of Gowal et al.'s wide ResNets, as patterns of ours."""
    patterns = {r"init_conv\.": "conv1.", r"batchnorm\.": "bn.", r"logits\.": "head."}
    for number in range(3):
        for theirs, ours in {**_BLOCK, "shortcut": "shortcut"}.items():
            key = rf"layer\.{number}\.block\.(\d+)\.{theirs}\."
            patterns[key] = rf"group{number + 1}.\1.{ours}."
    return patterns


def deepmind_preact_resnet() -> dict[str, str]:
    """Return the names of Gowal et al.'s pre-activation ResNets, as patterns of ours."""
    patterns = {r"conv_2d\.": "conv1.", r"batchnorm\.": "bn.", r"logits\.": "head."}
    for number in range(4):
        for theirs, ours in _PREACT_BLOCK.items():
            key = rf"layer_{number}\.(\d+)\.{theirs}\."
            patterns[key] = rf"layer{number + 1}.\1.{ours}."
    return patterns


def interval_network(
    convolutions: int, layers: Sequence[int], theirs: str = "", ours: str = ""
) -> dict[str, str]:
    """Return the names of GOOD's and ProoD's networks, as patterns of `ConvNet`'s.

    Args:
        convolutions: how many; theirs count from 1.
        layers: numbers of the linear layers, the last of which is the head.
        theirs, ours: what stands before the names.
    """
    patterns = {}
    for number in range(1, convolutions + 1):
        patterns[rf"{theirs}C{number}\."] = rf"{ours}convolutions.{number - 1}.0."
    for place, number in enumerate(layers[:-1]):
        patterns[rf"{theirs}L{number}\."] = rf"{ours}hidden.{place}.0."
    patterns[rf"{theirs}L{layers[-1]}\."] = f"{ours}head."
    return patterns


def prood() -> dict[str, str]:
    """Return the names of ProoD's joint network, as patterns of `Gated`'s."""
    patterns = {r"base_model\.linear\.": "classifier.head.", r"base_model\.": "classifier."}
    discriminator: Mapping[str, str] = interval_network(3, (4, 5), r"detector\.", "gate.")
    return {**patterns, **discriminator}
