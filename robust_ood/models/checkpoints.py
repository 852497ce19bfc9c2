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

from robust_ood.errors import UserError
from robust_ood.models.key_maps import KEY_MAPS, find_key_map, rename
from robust_ood.models.wrap import Wrapped
from robust_ood.texts import first_sentence

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "weights",
    "params",
)
"""Names under which training code stores a state dict, besides the optimiser's and other things."""

_ZIP = b"PK\x03\x04"
"""How torch knows a zip archive."""

_PREFIXES: tuple[str, ...] = ("net.", "module.", "_orig_mod.", "model.")
"""Prefixes of keys by our training, DataParallel, `torch.compile` and other Lightning modules."""


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the content of a checkpoint file: tensors and plain values; pickled code is refused.

    Raises: `UserError` naming the file and what is wrong: missing, truncated, foreign, or holding
        code, which is not run.
    """
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
        raise UserError(
            f"checkpoint: {path} holds something other than tensors and plain values; refused "
            "(of a whole pickled network, save the state_dict() instead)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = first_sentence(error, 160)
        raise UserError(f"checkpoint: {path} is damaged or no checkpoint ({reason})") from error
    except Exception as error:
        # safetensors and torch raise classes of their own for damaged files
        raise UserError(f"checkpoint: {path} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint: {path} holds a {type(content).__name__}, not a state dict")
    return content


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    check_sums(path)
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


def network_state(
    content: Mapping[str, Any], source: Path | str = "checkpoint"
) -> dict[str, Tensor]:
    """Return the network's tensors, of any shape, by name, from the content of a checkpoint file.

    Understands our training checkpoints (`state_dict` with keys `net.*`), state dicts, those nested
    under `state_dict`, `model`, `net` and other usual names, and the prefixes `module.` of
    DataParallel, `_orig_mod.` of `torch.compile` and `model.` of other people's Lightning modules.
    """
    *_, shortest = _without_prefixes(_tensors(content, source))
    return shortest


def _tensors(content: Mapping[str, Any], source: Path | str) -> dict[str, Tensor]:
    tensors = _nested_tensors(content)
    if not tensors:
        raise UserError(f"checkpoint: {source} holds no weights")
    return tensors


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


def _without_prefixes(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors as they are, then with one prefix after the other removed."""
    prefixes = _PREFIXES
    while True:
        yield tensors
        shorter = _without_prefix(tensors, prefixes)
        if shorter is None:
            return
        tensors = shorter
        prefixes = _PREFIXES[1:]  # our training adds its own prefix once, outermost


def _without_prefix(
    tensors: dict[str, Tensor], prefixes: tuple[str, ...]
) -> dict[str, Tensor] | None:
    """Return the tensors without the first prefix that they have; None where they have none."""
    for prefix in prefixes:
        prefixed = [key for key in tensors if key.startswith(prefix)]
        # What is beside `net.` in our checkpoints belongs to the training method.
        if prefixed and (prefix == "net." or len(prefixed) == len(tensors)):
            return {key.removeprefix(prefix): tensors[key] for key in prefixed}
    return None


def _differing(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys that only one side has, and those whose shape or kind of number differs."""
    missing = []
    different = []
    for key, value in expected.items():
        if key not in state:
            # The normalisation is a setting, not learned, and old files lack BatchNorm's counter.
            if not key.startswith("normalize.") and not key.endswith("num_batches_tracked"):
                missing.append(key)
        elif _kind_of(value) != _kind_of(state[key]):
            different.append(key)
    unexpected = [key for key in state if key not in expected]
    return missing + unexpected + different


def _kind_of(tensor: Tensor) -> tuple[torch.Size, bool]:
    return tensor.shape, tensor.is_floating_point()


def load_weights(
    net: nn.Module,
    weights: str | Path | Mapping[str, Any],
    key_map: str | Mapping[str, str] | None = None,
    source: Path | str | None = None,
) -> nn.Module:
    """Load weights into a network, all of them or none, and return the network.

    The prefixes that `network_state` knows are removed only where the network's own keys do not
    have them, so that a network which itself has a module called `net` or `module` can load what
    it saved. A `Wrapped` network takes the weights of what it wraps, too.

    Args:
        net: the network.
        weights: a checkpoint file, or the content of one.
        key_map: how its keys become the network's: the name of one of `KEY_MAPS`, or regular
            expressions and replacements as `key_maps.rename` takes them, such as `{r"linear\\.":
            "head."}`. By default the keys as they are, or, where they do not fit, those of
            `KEY_MAPS` that are for this network.
        source: what messages call the content of a file.

    Raises:
        UserError: unreadable file, weights of another network (the first differing keys are named),
            quantised, sparse or empty ones, or an impossible key map.
    """
    if source is None:
        source = "the mapping" if isinstance(weights, Mapping) else str(weights)
    content = weights if isinstance(weights, Mapping) else read_checkpoint(weights)
    expected = net.state_dict()
    readings = list(_without_prefixes(_tensors(content, source)))
    candidates = list(_renamed(net, readings, key_map))
    if isinstance(net, Wrapped):
        candidates += [_with_prefix("module.", candidate) for candidate in candidates]
    state = min(candidates, key=lambda candidate: len(_differing(expected, candidate)))
    differing = _differing(expected, state)
    if differing:
        kind = type(net.module if isinstance(net, Wrapped) else net).__name__
        first = ", ".join(differing[:3])
        more = ", ..." if len(differing) > 3 else ""
        raise UserError(
            f"checkpoint: {source} holds another network than {kind}: "
            f"{len(differing)} names or shapes differ from its {len(expected)} weights "
            f"({first}{more})"
        )
    net.load_state_dict(_converted(expected, state, source))
    return net


def _with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _renamed(
    net: nn.Module, readings: list[dict[str, Tensor]], key_map: str | Mapping[str, str] | None
) -> Iterator[dict[str, Tensor]]:
    """Yield the readings under the names that the network may know them by."""
    if key_map is not None:
        patterns = find_key_map(key_map) if isinstance(key_map, str) else key_map
        for reading in readings:
            yield rename(reading, patterns)
        return
    yield from readings
    for published in KEY_MAPS.values():
        if published.network != type(net).__name__:
            continue
        for reading in readings:
            with suppress(UserError):  # a map that gives two keys one name is not for these weights
                yield rename(reading, published.patterns)


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
