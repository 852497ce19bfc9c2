"""Reading weights, without trusting the file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError, notify
from robust_ood.models.harmless import harmless_values, refused_name
from robust_ood.models.heads import candidates, likely_head
from robust_ood.models.joint_head import cut_joint_head
from robust_ood.models.key_maps import KEY_MAPS, find_key_map, rename
from robust_ood.models.matching import (
    Match,
    best,
    is_average,
    matches,
    variants,
    without_any_prefix,
    without_prefixes,
)
from robust_ood.models.misfit import (
    check,
    check_agreement,
    has_weights,
    listed,
    note_weights,
    of_part,
)
from robust_ood.models.outlier_class import OutlierClass
from robust_ood.models.wrap import Wrapped
from robust_ood.models.zoo import PREFIX, WEIGHTS, located
from robust_ood.texts import first_sentence

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "weights",
    "params",
    "module",
    "shadow",
)
"""Names under which training code stores a state dict, besides the optimiser's and other things."""

_ZIP = b"PK\x03\x04"
"""How torch knows a zip archive."""


@typed
def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the content of a checkpoint file: tensors and plain values; pickled code is refused.

    Args:
        path: of the file, or `zoo:NAME` for the weights of a network that comes with the package.

    Raises: `UserError` naming the file and what is wrong: missing, truncated, foreign, or holding
        code, which is not run.
    """
    if str(path).startswith(PREFIX):
        path = located(path) / WEIGHTS
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"checkpoint: {path} is a folder; accepted: a file, or the folder of an export "
            "(network.json)"
        )
    if not path.is_file():
        raise UserError(f"checkpoint: no such file: {path}")
    try:
        content = _read(path)
    except ImportError as error:
        raise UserError(
            f"checkpoint: reading {path} needs the package safetensors; "
            "pip install 'robust-ood[safetensors]'"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, refused_name(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = first_sentence(error, 160)
        raise UserError(f"checkpoint: {path} is damaged or no checkpoint ({reason})") from error
    except Exception as error:
        # safetensors and torch raise classes of their own for damaged files
        raise UserError(f"checkpoint: {path} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint: {path} holds a {type(content).__name__}, not a state dict")
    return content


def _refusal(path: Path, culprit: str | None) -> str:
    """Say why a file is refused, and what its owner can do."""
    thing = "something other than tensors and plain values"
    if culprit is not None:
        thing = f"a {culprit}, which is neither a tensor nor a plain value"
    return (
        f"checkpoint: {path} holds {thing}; refused, because making it would run code (of a whole "
        "pickled network, save the state_dict() instead; of other things, save the weights alone: "
        "torch.save(net.state_dict(), FILE))"
    )


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    check_sums(path)
    with harmless_values():
        return torch.load(path, map_location="cpu", weights_only=True)


def check_sums(path: Path | str) -> None:
    """Raise `zipfile.BadZipFile` for a file whose content is not what its checksums say.

    torch writes the checksums (CRC-32) of each tensor and does not look at them when it reads.
    Files of the old form, which is no zip archive, and those written without checksums pass.
    """
    with Path(path).open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    with zipfile.ZipFile(path) as archive:
        has_sums = any(record.CRC for record in archive.infolist())
        if not has_sums:  # torch.serialization.set_crc32_options(False)
            return
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


@typed
def network_state(
    content: Mapping[str, Any], source: Path | str = "checkpoint"
) -> dict[str, Tensor]:
    """Return the network's tensors, of any shape, by name, from the content of a checkpoint file.

    Understands our training checkpoints (`state_dict` with keys `net.*`), state dicts, those nested
    under `state_dict`, `model`, `net` and other usual names, and the prefixes `module.` of
    DataParallel, `_orig_mod.` of `torch.compile` and `model.` of other people's Lightning modules.
    """
    *_, shortest = without_prefixes(_tensors(content, source, averaged=False))
    return shortest


def _tensors(
    content: Mapping[str, Any], source: Path | str, *, averaged: bool
) -> dict[str, Tensor]:
    """Return the tensors of a file; those of a running average where it has one and that is asked.

    Raises: `UserError` where there are none.
    """
    averages = {}
    for name, container in content.items():
        if isinstance(container, Mapping) and is_average(str(name)):
            tensors = _nested_tensors(container)
            if tensors:
                averages[str(name)] = tensors
    plain = {}
    if not averaged or not averages:
        plain = _nested_tensors(content)
    if not plain and not averages:
        raise UserError(f"checkpoint: {source} holds no weights")
    if not averages:
        return plain
    name = next(iter(averages))
    # A few numbers at the top are no weights.
    if averaged or len(plain) < len(averages[name]) // 2:
        if not averaged:
            notify(f"checkpoint: {source} holds only averaged weights ({name}), which are taken")
        return averages[name]
    notify(
        f"checkpoint: {source} also holds averaged weights ({name}); the others are taken, and "
        "--averaged true (averaged=True) takes the average"
    )
    return plain


def _nested_tensors(content: Mapping[str, Any], depth: int = 2) -> dict[str, Tensor]:
    """Return the tensors of the first container that has any, or else those at this level."""
    if depth > 0:
        for name in _CONTAINERS:
            container = content.get(name)
            if isinstance(container, Mapping):
                tensors = _nested_tensors(container, depth - 1)
                if tensors:
                    return tensors
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


@typed
def load_weights(
    net: nn.Module,
    weights: str | Path | Mapping[str, Any],
    key_map: str | Mapping[str, str] | None = None,
    source: Path | str | None = None,
    *,
    averaged: bool = False,
    new_head: bool = False,
) -> nn.Module:
    """Load weights into a network, all of them or none, and return the network.

    Prefixes before the network's keys are found and taken off, whatever they are, and so are those
    of `torch.compile` and DataParallel inside them. Keys that belong to something else, such as a
    loss, are left out, and a warning names them. A `Wrapped` network takes the weights of what it
    wraps, too; an `OutlierClass` also those of a published head of K + M outputs; a network with a
    `separate_part` those of that part alone, where the network below has weights of its own.

    Args:
        net: the network.
        weights: a checkpoint file, or the content of one.
        key_map: how its keys become the network's: the name of one of `KEY_MAPS`, or regular
            expressions and replacements as `key_maps.rename` takes them, such as `{r"linear\\.":
            "head."}`. By default the keys as they are, or, where they do not fit, those of
            `KEY_MAPS` that are for this network.
        source: what messages call the content of a file.
        averaged: take the running average of the weights that the file holds beside them
            (`state_dict_ema`, `model_ema`, ...).
        new_head: keep the network's own head where the file's is of another number of classes, to
            fine-tune; a message says so.

    Raises:
        UserError: unreadable file, weights of another network (the first that are missing or of
            another shape are named), no average where one is wanted, quantised, sparse or empty
            ones, or an impossible key map.
    """
    if source is None:
        source = "the mapping" if isinstance(weights, Mapping) else str(weights)
    content = weights if isinstance(weights, Mapping) else read_checkpoint(weights)
    tensors = _tensors(content, source, averaged=averaged)
    if new_head:
        tensors = _with_own_head(net, tensors, source)
    if isinstance(net, OutlierClass):
        joint = cut_joint_head(net, tensors)
        if joint is not None:
            load_weights(net.net, joint.classes, key_map, source)
            net.outlier.load_state_dict(joint.outliers)
            note_weights(net)
            return net
    found = []
    for target in _targets(net):
        readings = _readings(*target, tensors, key_map)
        found.append((best(readings, averaged=averaged), target[0]))
    match, inner = min(found, key=lambda pair: pair[0].rank)
    check(match, inner, source, tensors)
    if averaged and not _is_average(content, match):
        raise UserError(f"averaged: {source} holds no averaged weights (state_dict_ema, ...)")
    inner.load_state_dict(_converted(inner.state_dict(), match.state, source))
    _report(match, inner, source)
    note_weights(net)
    return net


def _targets(net: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return what a file may hold the weights of: networks, and the part of each that is meant."""
    targets = [(net, "")]
    if isinstance(net, Wrapped):
        targets.append((net.module, ""))
    part = getattr(net, "separate_part", None)
    if part is not None and has_weights(net.get_submodule("net")):
        targets.append((net, f"{part}."))
    return targets


def _with_own_head(
    net: nn.Module, tensors: dict[str, Tensor], source: Path | str
) -> dict[str, Tensor]:
    """Return a file's tensors with the network's own head in place of one of other classes."""
    name = likely_head(net, candidates(net))
    if name is None:
        return tensors
    layer = net.get_submodule(name)
    label = name.removeprefix("module.")
    replaced = dict(tensors)
    for part, value in layer.state_dict().items():
        for key, tensor in tensors.items():
            is_head = key == f"{label}.{part}" or key.endswith(f".{label}.{part}")
            same_features = tensor.shape[1:] == value.shape[1:]
            if is_head and same_features and tensor.shape != value.shape:
                replaced[key] = value
                if part == "weight":
                    notify(
                        f"checkpoint: {source}: its head gives {len(tensor)} classes, and that of "
                        f"the network {len(value)}; {label} begins anew"
                    )
    return replaced


def _is_average(content: Mapping[str, Any], match: Match) -> bool:
    names = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
    return is_average(match.prefix) or any(is_average(name) for name in names)


def _report(match: Match, net: nn.Module, source: Path | str) -> None:
    """Say what of a file was left out, except what our own training keeps beside the network."""
    if not match.left_out or match.prefix == "net.":
        return
    count = len(match.left_out)
    entries = "1 entry is" if count == 1 else f"{count} entries are"
    notify(
        f"checkpoint: {source}: {entries} no weight of {type(net).__name__} and left out "
        f"({listed(match.left_out)})"
    )


def _readings(
    net: nn.Module,
    part: str,
    tensors: dict[str, Tensor],
    key_map: str | Mapping[str, str] | None,
) -> list[Match]:
    """Return the readings of tensors under the names that a part of the network may have."""
    expected = of_part(net.state_dict(), part)
    found: list[Match] = []
    if key_map is not None:
        patterns = key_map
        if isinstance(patterns, str):
            patterns = find_key_map(patterns)
            if KEY_MAPS[str(key_map)].network == type(net).__name__:
                check_agreement(KEY_MAPS[str(key_map)], net)
        for reading in without_prefixes(tensors):
            found += matches(expected, rename(reading, patterns))
        return found
    for variant in variants(tensors):
        found += matches(expected, variant)
    if not all(match.problems for match in found):
        return found
    for published in KEY_MAPS.values():
        if published.network == type(net).__name__:
            readings = list(_mapped(expected, tensors, published.patterns))
            if any(not match.problems for match in readings):
                check_agreement(published, net)
            found += readings
    return found


def _mapped(
    expected: Mapping[str, Tensor], tensors: dict[str, Tensor], patterns: Mapping[str, str]
) -> Iterator[Match]:
    """Yield the readings of tensors whose keys are another code's, whatever is before them."""
    for variant in variants(tensors):
        readings = [("", reading) for reading in without_prefixes(variant)]
        readings += without_any_prefix(expected, variant)
        for prefix, reading in readings:
            with suppress(UserError):  # a map that makes two keys one is not for these weights
                for match in matches(expected, rename(reading, patterns)):
                    yield match._replace(prefix=prefix + match.prefix)


def _converted(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str
) -> dict[str, Tensor]:
    """Return the weights in the network's own types, each before any is loaded.

    A failure must leave the network as it was.
    """
    converted = {}
    for key, value in expected.items():
        try:
            converted[key] = torch.empty_like(value).copy_(state.get(key, value))
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(f"checkpoint: {source}: {key} is no ordinary dense tensor") from error
    return converted
