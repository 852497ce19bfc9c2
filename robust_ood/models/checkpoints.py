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

_NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights", "params")
"""Under which names training code puts a state dict, besides the optimiser's and other things."""

_PREFIXES: tuple[str, ...] = ("net.", "module.", "_orig_mod.", "model.")
"""What our training, DataParallel, `torch.compile` and other people's Lightning modules put before
every key.
"""


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the content of a checkpoint file: tensors and plain values only; pickled code is
    refused, not run.

    Raises: `UserError` naming the file and what is wrong: missing, truncated, foreign, or holding
    code.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"checkpoint: {path} is a folder; accepted: a file, or the folder of an export (network.json)"
        )
    if not path.is_file():
        raise UserError(f"checkpoint: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(
            f"checkpoint: reading {path} needs the package safetensors; pip install 'robust-ood[safetensors]'"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint: {path} holds something other than tensors and plain values; refused "
            "(of a whole pickled network, save the state_dict() instead)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__
        raise UserError(f"checkpoint: {path} is damaged or no checkpoint ({reason})") from error
    except Exception as error:
        # safetensors and torch raise classes of their own for damaged files
        raise UserError(f"checkpoint: {path} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint: {path} holds a {type(content).__name__}, not a state dict")
    return content


def network_state(
    content: Mapping[str, Any], source: Path | str = "checkpoint"
) -> dict[str, Tensor]:
    """Return the network's tensors, of any shape, by name, out of what a checkpoint file holds.

    Understands our training checkpoints (`state_dict` with keys `net.*`), state dicts, those nested
    under `state_dict`, `model`, `net` and other usual names, and the prefixes `module.` of
    DataParallel, `_orig_mod.` of `torch.compile` and `model.` of other people's Lightning modules.
    """
    return list(_readings(_tensors(content, source)))[-1]


def _tensors(content: Mapping[str, Any], source: Path | str) -> dict[str, Tensor]:
    tensors = _nested(content)
    if not tensors:
        raise UserError(f"checkpoint: {source} holds no weights")
    return tensors


def _nested(content: Mapping[str, Any], depth: int = 2) -> dict[str, Tensor]:
    """Return the tensors of the first nest that has any, or else those at this level."""
    for nest in _NESTS if depth else ():
        inside = content.get(nest)
        if isinstance(inside, Mapping) and (tensors := _nested(inside, depth - 1)):
            return tensors
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _readings(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors as they are, then without the prefixes that trainers and wrappers add, one
    after the other.
    """
    yield tensors
    prefixes = _PREFIXES
    while True:
        for prefix in prefixes:
            inside = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            # What is beside `net.` in our checkpoints belongs to the training method.
            if inside and (prefix == "net." or len(inside) == len(tensors)):
                tensors, prefixes = inside, _PREFIXES[1:]
                yield tensors
                break
        else:
            return


def _differing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys that only one side has, and those whose shape or kind of number differs."""
    # The normalisation is a setting of ours, not learned, and old files lack BatchNorm's counter.
    missing = [
        key
        for key in own
        if key not in state
        and not key.startswith("normalize.")
        and not key.endswith("num_batches_tracked")
    ]
    unlike = [
        key
        for key, value in own.items()
        if key in state
        and (
            value.shape != state[key].shape
            or value.is_floating_point() != state[key].is_floating_point()
        )
    ]
    return missing + [key for key in state if key not in own] + unlike


def load_weights(
    net: nn.Module,
    weights: str | Path | Mapping[str, Any],
    key_map: str | Mapping[str, str] | None = None,
    source: Path | str | None = None,
) -> nn.Module:
    """Load weights into a network, all of them or none, and return the network.

    The prefixes that `network_state` knows are taken off only where the network's own keys do
    without them, so that a network which itself has a part called `net` or `module` gets back what
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
    own = net.state_dict()
    readings = list(_renamings(net, list(_readings(_tensors(content, source))), key_map))
    if isinstance(net, Wrapped):
        readings += [
            {f"module.{key}": value for key, value in reading.items()} for reading in readings
        ]
    state = min(readings, key=lambda reading: len(_differing(own, reading)))
    differing = _differing(own, state)
    if differing:
        kind = type(net.module if isinstance(net, Wrapped) else net).__name__
        shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        raise UserError(
            f"checkpoint: {source} holds another network than {kind}: "
            f"{len(differing)} names or shapes differ from its {len(own)} weights ({shown})"
        )
    net.load_state_dict(_converted(own, state, source))
    return net


def _renamings(
    net: nn.Module, readings: list[dict[str, Tensor]], key_map: str | Mapping[str, str] | None
) -> Iterator[dict[str, Tensor]]:
    """Yield the readings under the names that the network may know them by."""
    if key_map is not None:
        patterns = find_key_map(key_map) if isinstance(key_map, str) else key_map
        yield from (rename(reading, patterns) for reading in readings)
        return
    yield from readings
    for known in KEY_MAPS.values():
        if known.network == type(net).__name__:
            for reading in readings:
                with suppress(
                    UserError
                ):  # a map that makes one key of two is not for these weights
                    yield rename(reading, known.patterns)


def _converted(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str
) -> dict[str, Tensor]:
    """Return every weight in the network's own type, before the first one is loaded: a failure must
    change nothing.
    """
    converted = {}
    for key, value in own.items():
        try:
            converted[key] = torch.empty_like(value).copy_(state.get(key, value))
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(f"checkpoint: {source}: {key} is no ordinary dense tensor") from error
    return converted
