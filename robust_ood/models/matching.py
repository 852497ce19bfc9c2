"""Which of a file's tensors are a network's weights, under whatever names they were saved.

Training code puts prefixes before a network's keys (`module.`, `backbone.`, `1.` of a Sequential
that normalises first), inside of them (`_orig_mod.` of a compiled part), and other things beside
them. Every prefix under which some of the network's keys are found is tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from robust_ood.errors import UserError

_USUAL: tuple[str, ...] = ("", "net.", "module.", "_orig_mod.", "model.")
"""Prefixes of keys by our training, DataParallel, `torch.compile` and other Lightning modules."""

_AVERAGE = r"(^|[._])(ema|swa|avg|average|averaged)([._]|$)"
"""How containers and prefixes of a running average of the weights are called."""


class Match(NamedTuple):
    """A reading of a file for a network.

    prefix: what was taken off the keys. state: tensors by the network's keys. left_out: the file's
    other keys. problems: in words, what keeps it from being the network's. misfits: how many of the
    network's own weights are among them.
    """

    prefix: str
    state: dict[str, Tensor]
    left_out: list[str]
    problems: list[str]
    misfits: int

    @property
    def rank(self) -> tuple[bool, int, int, bool, bool, int, int]:
        """What makes one reading better than another: smaller is better."""
        unusual = self.prefix not in _USUAL
        count = len(self.problems)
        average = is_average(self.prefix)
        size = len(self.prefix)
        return count > 0, self.misfits, count, average, unusual, size, len(self.left_out)


def is_average(name: str) -> bool:
    """Whether a container or prefix is called as a running average of weights is."""
    return re.search(_AVERAGE, name, re.IGNORECASE) is not None


def variants(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield tensors as they are, and without what wrappers of parts put inside their keys."""
    yield tensors
    for pattern in (r"_orig_mod\.", r"(_orig_mod|(?<=\.)module)\."):
        shorter = {re.sub(pattern, "", key): value for key, value in tensors.items()}
        if len(shorter) == len(tensors) and shorter.keys() != tensors.keys():
            yield shorter


def without_prefixes(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors as they are, then with one usual prefix after the other removed."""
    prefixes = _USUAL[1:]
    while True:
        yield tensors
        shorter = _without_prefix(tensors, prefixes)
        if shorter is None:
            return
        tensors = shorter
        prefixes = _USUAL[2:]  # our training adds its own prefix once, outermost


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


def matches(expected: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> Iterator[Match]:
    """Yield the readings of tensors by their keys, one for each prefix; problems included."""
    for prefix in _prefixes(expected, tensors):
        inside = {}
        for key, value in tensors.items():
            if key.startswith(prefix):
                name = key.removeprefix(prefix)
                inside[name] = _laid_out(value, expected.get(name))
        beside = [key for key in tensors if not key.startswith(prefix)]
        foreign = [key for key in inside if key not in expected]
        belonging = [key for key in foreign if _belongs(key, expected)]
        left_out = beside + [prefix + key for key in foreign if key not in belonging]
        problems = _problems(expected, inside)
        misfits = len(problems)
        for key in belonging:
            problems.append(f"{key}: {_shape(inside[key])} in the file only")
        yield Match(prefix, inside, left_out, problems, misfits)


def _laid_out(value: Tensor, wanted: Tensor | None) -> Tensor:
    """Return the weights of a 1 x 1 convolution as those of the linear layer in its place."""
    if wanted is not None and value.shape == (*wanted.shape, 1, 1):
        return value.flatten(1)
    return value


def without_any_prefix(
    expected: Mapping[str, Tensor], tensors: dict[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each prefix that some of the network's keys have, and the tensors without it.

    Other keys stay as they are.
    """
    for prefix in _prefixes(expected, tensors):
        shorter = {key.removeprefix(prefix): value for key, value in tensors.items()}
        if prefix and len(shorter) == len(tensors):
            yield prefix, shorter


def _prefixes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes, "" included, under which any of the network's keys is found."""
    prefixes = {""}
    for key in tensors:
        parts = key.split(".")
        for count in range(1, len(parts)):
            if ".".join(parts[count:]) in expected:
                prefixes.add(".".join(parts[:count]) + ".")
    return sorted(prefixes)


def _problems(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Say which weights are missing, and which have another shape or kind of number."""
    missing = []
    different = []
    for key, value in expected.items():
        if key not in state:
            # The normalisation is a setting, not learned, and old files lack BatchNorm's counter.
            if "normalize." not in key and not key.endswith("num_batches_tracked"):
                missing.append(f"{key}: {_shape(value)}, not in the file")
        elif value.shape != state[key].shape:
            different.append(f"{key}: {_shape(state[key])} in the file, {_shape(value)} expected")
        elif value.is_floating_point() != state[key].is_floating_point():
            different.append(f"{key}: {_kind(state[key])} in the file, {_kind(value)} expected")
    return missing + different


def _belongs(key: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether a key that the network does not have is of a network like it, only larger.

    `layer1.5.weight` is for a network that has a `layer1`, and `fc2.weight` for one with `fc1`;
    `criterion.weight` and `n_averaged` are of something else.
    """
    name = _unnumbered(key)
    return any(_unnumbered(other) == name for other in expected)


def _unnumbered(key: str) -> str:
    return key.partition(".")[0].rstrip("0123456789")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def best(found: list[Match], *, averaged: bool) -> Match:
    """Return the best of several readings.

    Args:
        found: at least one.
        averaged: whether an average is wanted where there are several.

    Raises:
        UserError: two that fit alike, under prefixes that do not say which is meant, and whose
            values differ.
    """
    ranked = sorted(found, key=lambda match: match.rank)
    if averaged:
        averages = [match for match in ranked if is_average(match.prefix) and not match.problems]
        if averages:
            return averages[0]
    first = ranked[0]
    if first.problems or first.prefix in _USUAL:
        return first
    for other in ranked[1:]:
        alike = not other.problems and not is_average(other.prefix)
        if alike and not _equal(first, other):
            raise UserError(
                f"checkpoint: holds two networks of this kind, under {first.prefix!r} and "
                f"{other.prefix!r}; choose one by a key map, such as "
                f"{{{re.escape(first.prefix)!r}: ''}}"
            )
    return first


def _equal(first: Match, other: Match) -> bool:
    for key, value in first.state.items():
        if key in other.state and not torch.equal(value, other.state[key]):
            return False
    return True
