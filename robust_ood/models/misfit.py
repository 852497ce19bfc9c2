"""What is said of a file whose weights are not the network's."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from weakref import WeakSet

from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models.key_maps import KEY_MAPS, KeyMap, find_family
from robust_ood.models.matching import Match

_with_weights: WeakSet[nn.Module] = WeakSet()
"""Networks whose weights were read from a file. It is no attribute: attributes name results."""


def note_weights(net: nn.Module) -> None:
    """Remember that a network's weights are those of a file."""
    _with_weights.add(net)


def has_weights(net: nn.Module) -> bool:
    """Return whether a network's weights are those of a file, or it says that they are its own."""
    return net in _with_weights or bool(getattr(net, "pretrained", False))


def check_agreement(known: KeyMap, net: nn.Module) -> None:
    """Raise `UserError` where a network is built otherwise than the one that a key map is for.

    Only settings are looked at that the weights' shapes do not show: with another one the weights
    would load, and give other logits than their authors'.
    """
    settings: Mapping[str, object] = getattr(net, "settings", {})
    for name, wanted in known.settings.items():
        parameter = inspect.signature(type(net)).parameters[name]
        value = settings.get(name, parameter.default)
        if value != wanted:
            text = str(wanted).lower() if isinstance(wanted, bool) else str(wanted)
            raise UserError(
                f"{name}: the weights of {_repository(known)} are for a {known.network} "
                f"with {name} {wanted!r}, got {value!r}; --net.{name} {text}"
            )


def check(match: Match, net: nn.Module, source: Path | str, keys: Iterable[str]) -> None:
    """Raise `UserError` for weights of another network.

    Args:
        match: the best reading of the file.
        net: the network.
        source: what messages call the file.
        keys: the file's own.
    """
    if not match.problems:
        return
    first = "; ".join(match.problems[:3])
    more = "; ..." if len(match.problems) > 3 else ""
    if match.left_out:
        more += f"; in the file, but not in the network: {listed(match.left_out)}"
    advice = _advice(match, net, list(keys))
    raise UserError(
        f"checkpoint: {source} holds another network than {type(net).__name__}: "
        f"{len(match.problems)} names or shapes differ from its {len(net.state_dict())} weights "
        f"({first}{more}){advice}"
    )


def _advice(match: Match, net: nn.Module, keys: Sequence[str]) -> str:
    """Return what may help: the family that the file is of, or another number of outputs."""
    if any("linear.parametrizations.weight" in key for key in keys):
        return (
            "; call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') on its "
            "parametrised layers before saving, so that the file holds the weights themselves"
        )
    name = find_family(keys)
    part = getattr(net, "separate_part", None)
    if name is not None and KEY_MAPS[name].network == type(net).__name__ and part is not None:
        return (
            f"; it seems to hold the {part} alone, beside which the network below needs weights of "
            "its own: --net.net RobustBench, or --net.net robust_ood.models.load_network"
        )
    if name is not None and KEY_MAPS[name].network != type(net).__name__:
        known = KEY_MAPS[name]
        return f"; its names are those of {_repository(known)}: --net {known.network}"
    if match.misfits <= 2 and any(_is_of_head(problem) for problem in match.problems):
        return (
            "; the head is of another number of classes: --net.num_classes, or, where the last "
            "outputs are classes of outliers, --net OutlierClass"
        )
    return ""


def _repository(known: KeyMap) -> str:
    return known.origin.partition(",")[0]


def _is_of_head(problem: str) -> bool:
    return problem.startswith("head.") and " expected" in problem


def listed(keys: Sequence[str]) -> str:
    """Return the first three keys."""
    more = ", ..." if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more


def of_part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of a part of a network; all of them for ""."""
    return {key: value for key, value in state.items() if key.startswith(part)}
