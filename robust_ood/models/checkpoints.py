"""Reading weights, without trusting the file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.errors import UserError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file: tensors and plain values only; pickled code is refused, not run.

    Raises: `UserError` naming the file and what is wrong: missing, truncated, foreign, or holding code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"checkpoint: reading {path} needs the package safetensors") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"checkpoint: {path} holds something other than tensors and plain values; refused") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__
        raise UserError(f"checkpoint: {path} is damaged or no checkpoint ({reason})") from error
    except Exception as error:
        # safetensors and torch raise classes of their own for damaged files
        raise UserError(f"checkpoint: {path} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint: {path} holds a {type(content).__name__}, not a state dict")
    return content


def network_state(content: Mapping[str, Any], source: Path | str = "checkpoint") -> dict[str, Tensor]:
    """Return the network's tensors out of what a checkpoint file holds.

    Understands our training checkpoints (`state_dict` with keys `net.*`), state dicts, those nested under
    `state_dict` or `model`, and the prefixes `module.` of DataParallel and `_orig_mod.` of `torch.compile`.
    """
    return list(_readings(_tensors(content, source)))[-1]


def _tensors(content: Mapping[str, Any], source: Path | str) -> dict[str, Tensor]:
    for nest in ("state_dict", "model"):
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"checkpoint: {source} holds no weights")
    return tensors


def _readings(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors as they are, then without the prefixes that trainers and wrappers add."""
    yield tensors
    for prefix in ("net.", "module.", "_orig_mod."):
        inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if inside and (prefix == "net." or len(inside) == len(tensors)):
            tensors = inside
            yield tensors


def _differing(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return the keys that only one side has, and those whose shape or kind of number differs."""
    # The normalisation is a setting of ours, not learned, and old files lack BatchNorm's counter.
    missing = [
        key
        for key in own
        if key not in state and not key.startswith("normalize.") and not key.endswith("num_batches_tracked")
    ]
    unlike = [
        key
        for key, value in own.items()
        if key in state
        and (value.shape != state[key].shape or value.is_floating_point() != state[key].is_floating_point())
    ]
    return missing + [key for key in state if key not in own] + unlike


def load_weights(
    net: nn.Module,
    weights: str | Path | Mapping[str, Any],
    key_map: Mapping[str, str] | None = None,
    source: Path | str | None = None,
) -> nn.Module:
    """Load weights into a network, all of them or none, and return the network.

    The prefixes that `network_state` knows are taken off only where the network's own keys do without them, so that a
    network which itself has a part called `net` or `module` gets back what it saved.

    Args:
        net: the network.
        weights: a checkpoint file, or the content of one.
        key_map: parts of keys to replace, old to new, such as `{"linear.": "head."}`.
        source: what messages call the content of a file.

    Raises:
        UserError: unreadable file, weights of another network (the first differing keys are named), or quantised,
            sparse or empty ones.
    """
    if source is None:
        source = "the mapping" if isinstance(weights, Mapping) else str(weights)
    content = weights if isinstance(weights, Mapping) else read_checkpoint(Path(weights))
    own = net.state_dict()
    readings = [_renamed(reading, key_map or {}) for reading in _readings(_tensors(content, source))]
    state = min(readings, key=lambda reading: len(_differing(own, reading)))
    differing = _differing(own, state)
    if differing:
        shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        raise UserError(
            f"checkpoint: {source} holds another network than {type(net).__name__}: "
            f"{len(differing)} of {len(own)} weights differ or are missing ({shown})"
        )
    net.load_state_dict(_converted(own, state, source))
    return net


def _renamed(state: dict[str, Tensor], key_map: Mapping[str, str]) -> dict[str, Tensor]:
    for old, new in key_map.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


def _converted(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path | str) -> dict[str, Tensor]:
    """Return every weight in the network's own type, before the first one is loaded: a failure must change nothing."""
    converted = {}
    for key, value in own.items():
        try:
            converted[key] = torch.empty_like(value).copy_(state.get(key, value))
        except (RuntimeError, NotImplementedError) as error:
            raise UserError(f"checkpoint: {source}: {key} is no ordinary dense tensor") from error
    return converted
