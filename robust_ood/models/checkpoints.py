"""Reading weights, without trusting the file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint: {path} is damaged or no checkpoint ({reason})") from error
    except Exception as error:
        # safetensors and torch raise classes of their own for damaged files
        raise UserError(f"checkpoint: {path} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint: {path} holds a {type(content).__name__}, not a state dict")
    return content


def network_state(content: Mapping[str, Any], source: Path | str = "checkpoint") -> dict[str, Tensor]:
    """Return the network's tensors out of what a checkpoint file holds.

    Understands our training checkpoints (`state_dict` with keys `net.*`), state dicts, those nested under `state_dict` or
    `model`, and the prefix `module.` of DataParallel.
    """
    for nest in ("state_dict", "model"):
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in ("net.", "module."):
        if any(key.startswith(prefix) for key in tensors):
            inside = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
            if prefix == "net." or len(inside) == len(tensors):
                tensors = inside
    if not tensors:
        raise UserError(f"checkpoint: {source} holds no weights")
    return tensors


def load_weights(
    net: nn.Module,
    weights: Path | Mapping[str, Any],
    key_map: Mapping[str, str] | None = None,
    source: Path | str = "checkpoint",
) -> nn.Module:
    """Load weights into a network, all of them or none, and return the network.

    Args:
        net: the network.
        weights: a checkpoint file, or the content of one.
        key_map: parts of keys to replace, old to new, such as `{"linear.": "head."}`.
        source: what messages call the content of a file.

    Raises:
        UserError: unreadable file, or weights of another network; the first differing keys are named.
    """
    if isinstance(weights, Path):
        source, weights = weights, read_checkpoint(weights)
    state = network_state(weights, source)
    for old, new in (key_map or {}).items():
        state = {key.replace(old, new): value for key, value in state.items()}
    own = net.state_dict()
    # Not learned: the normalisation is a setting of ours, and old files lack BatchNorm's counter.
    for key in own.keys() - state.keys():
        if key.startswith("normalize.") or key.endswith("num_batches_tracked"):
            state[key] = own[key]
    differing = [key for key in own if key not in state] + [key for key in state if key not in own]
    differing += [key for key in own if key in state and own[key].shape != state[key].shape]
    if differing:
        shown = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        raise UserError(
            f"checkpoint: {source} holds another network than {type(net).__name__}: "
            f"{len(differing)} of {len(own)} weights differ or are missing ({shown})"
        )
    net.load_state_dict(state)
    return net
