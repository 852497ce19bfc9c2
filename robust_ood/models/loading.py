"""From a file, whatever kind of file it is, to a network that is ready to be evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.checkpoints import load_weights, read_checkpoint
from robust_ood.models.description import rebuild
from robust_ood.models.export import find_manifest, load_export, read_manifest
from robust_ood.models.jax_weights import is_jax_file, load_jax_weights


@typed
def load_network(
    path: Path | str,
    net: nn.Module | None = None,
    key_map: str | Mapping[str, str] | None = None,
    *,
    averaged: bool = False,
) -> nn.Module:
    """Return the network of a file, in eval mode, on the CPU.

    Args:
        path: a training run's checkpoint, an export (its folder, or either of its files), any state
            dict that `load_weights` reads, a `.npz` file of the vision transformers' authors, or
            `zoo:NAME` for a network that comes with the package.
        net: the network to load into; by default the one that the file or its `network.json`
            describes.
        key_map, averaged: as in `load_weights`.

    Raises:
        UserError: an unreadable file, one that describes no network while none is given, or one of
            another network.
    """
    path = Path(path)
    manifest = find_manifest(path)
    if manifest is not None:
        if net is None:
            return load_export(manifest)
        path = manifest.with_name(read_manifest(manifest)["weights"])
    unnamed = UserError(
        f"net: {path} does not say which network it holds; name it with --net, or in the config"
    )
    if is_jax_file(path):
        if net is None:
            raise unnamed
        if key_map is not None or averaged:
            raise UserError(f"checkpoint: {path} (.npz) takes neither a key map nor an average")
        return load_jax_weights(net, path).eval()
    content = read_checkpoint(path)
    if net is None:
        if "network" not in content:
            raise unnamed
        net = rebuild(content["network"])
    return load_weights(net, content, key_map, source=path, averaged=averaged).eval()
