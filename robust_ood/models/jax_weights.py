"""Weights of the vision transformers' authors, `.npz` files of JAX arrays, through timm."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_ood.errors import UserError, notify
from robust_ood.models.heads import candidates, likely_head
from robust_ood.models.wrap import Wrapped
from robust_ood.texts import first_sentence


def is_jax_file(path: Path | str) -> bool:
    """Return whether a file of weights is of that kind, by its name."""
    return Path(path).suffix == ".npz" and Path(path).is_file()


def load_jax_weights(net: nn.Module, path: Path | str, *, new_head: bool = False) -> nn.Module:
    """Load a file of AugReg, ViT or BiT into timm's network, all of it or nothing.

    timm names the arrays, and fits position embeddings to another resolution; nothing in the file
    is run. What it would leave random without a word is found here.

    Args:
        net: timm's network of `(N, C, H, W)`, also behind `wrap`.
        path: the file, such as AugReg's `L_16-i21k-...-res_384.npz`.
        new_head: keep the network's own head where the file's is of another number of classes.

    Raises:
        UserError: a network without such weights, or a file that lacks some of its weights.
    """
    module = net.module if isinstance(net, Wrapped) else net
    load: Any = getattr(module, "load_pretrained", None)
    if load is None:
        raise UserError(
            f"checkpoint: {path} holds JAX weights (.npz), which timm reads for its transformers "
            f"and BiT; {type(module).__name__} takes none; take --net Timm"
        )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(torch.nan)  # what the file does not hold stays so
            load(str(path))
        missing = [name for name, value in module.named_parameters() if bool(value.isnan().any())]
        head = likely_head(module, candidates(module))
        own = {f"{head}.weight", f"{head}.bias"}
        if new_head and missing and set(missing) <= own:
            notify(f"checkpoint: {path}: its head is of other classes; {head} begins anew")
            _put_back(module, {name: before[name] for name in missing})
        elif missing:
            raise _lacking(path, module, missing, own)
    except Exception as error:
        _put_back(module, before)
        if isinstance(error, UserError):
            raise
        raise UserError(_problem(path, module, error)) from error
    return net


def _put_back(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    module.load_state_dict(state, strict=False)


def _lacking(path: Path | str, module: nn.Module, missing: list[str], own: set[str]) -> UserError:
    """Return the error for weights that a file does not hold, or holds for other classes."""
    listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    advice = ""
    if set(missing) <= own:
        advice = "; its head is of other classes: set net.num_classes, or fine-tune (--init_from)"
    return UserError(
        f"checkpoint: {path} does not hold {len(missing)} of the weights of "
        f"{type(module).__name__} ({listed}){advice}"
    )


def _problem(path: Path | str, module: nn.Module, error: Exception) -> str:
    if isinstance(error, (zipfile.BadZipFile, OSError, EOFError)):
        return f"checkpoint: {path} is damaged or no .npz file ({first_sentence(error)})"
    reason = f"{type(error).__name__}: {first_sentence(error)}"
    return f"checkpoint: {path} holds another network than {type(module).__name__} ({reason})"
