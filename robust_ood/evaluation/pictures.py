"""Pictures: what some figures need a network and images for, computed on a few images while both
are at hand.

A picture is arrays in the folder of results, `figures/*.npz`. `robust-ood report` draws them
without either.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.attacks import PGD, Attack, attack_score
from robust_ood.attacks.objectives import Direction
from robust_ood.data import ImageSet, OODData, to_float
from robust_ood.detectors import Detector
from robust_ood.errors import UserError, unknown_name
from robust_ood.evaluation.curves import concatenate, trace
from robust_ood.evaluation.fingerprints import code_version, fingerprint
from robust_ood.evaluation.picture_files import (
    Arrays,
    Picture,
    read_pictures,
    remove_picture,
    write_picture,
)
from robust_ood.modes import evaluating
from robust_ood.perturb import minimize
from robust_ood.randomness import generator
from robust_ood.regions import NORMS, Linf, Region, Unbounded

FEW = 64  # images of each side whose scores are followed
SHOWN = 4  # images of each side that are shown, or around which the score is mapped
SHIFT_SIZES = (0.001, 0.01)
_TRACED, _TRACE_STEPS = 32, 10  # images of each side along an attack, which costs a gradient a step
_MAP_POINTS = 13

Progress = Callable[[str], None]
Keys = dict[tuple[str, str], str]
"""By kind and detector, the fingerprint of everything that determines a picture."""


class Side(NamedTuple):
    """Images of one side: "in", or the group of an OOD set, "near" or "far"."""

    name: str
    images: Tensor
    sets: tuple[str, ...]


class Scene(NamedTuple):
    """What the pictures are made of.

    many: for each side, `FEW` images of its first set. shown: `SHOWN` inliers, and as many outliers
    from the OOD sets in turn. attack, label: the attack of the largest radius, if any. batch_size:
    images scored at a time.
    """

    many: Sequence[Side]
    shown: Sequence[Side]
    attack: Attack | None
    label: str
    batch_size: int

    @property
    def region(self) -> Region:
        """The attack's region; without an attack, Linf 8/255."""
        settings = self.attack.settings() if self.attack is not None else None
        return NORMS[settings["norm"]](settings["radius"]) if settings else Linf(8 / 255)


def kinds_of(wanted: bool | Sequence[str]) -> list[str]:
    """Return the kinds that a setting asks for: all, none, or those it names.

    Raises: `UserError` for an unknown kind.
    """
    if isinstance(wanted, bool):
        return list(KINDS) if wanted else []
    for name in wanted:
        if name not in KINDS:
            raise unknown_name("figures", name, KINDS)
    return list(dict.fromkeys(wanted))


def set_scene(
    data: OODData,
    attacks: Mapping[str, Attack],
    limit: int | None = None,
    device: torch.device | str = "cpu",
) -> Scene:
    """Return the few images and the attack of the largest radius that pictures are made of.

    Args:
        data: the test part is the in-distribution; `near` and `far` are the OOD sets.
        attacks: attacks by label.
        limit: use only the first so many images of each set.
        device: where to compute.
    """
    few, shown = min(FEW, limit or FEW), min(SHOWN, limit or SHOWN)
    inliers, ood = data.inliers("test"), data.ood_sets()
    firsts = dict(reversed(ood))  # of several sets of a group, the first
    many = [Side("in", _take(inliers, few, device), (inliers.name,))]
    many += [
        Side(g, _take(firsts[g], few, device), (firsts[g].name,))
        for g in ("near", "far")
        if g in firsts
    ]
    turns = [
        (group, images, turn)
        for turn in range(shown)
        for group, images in ood
        if turn < len(images)
    ][:shown]
    others = [
        (group, images.name, _take(images, turn + 1, device)[turn:])
        for group, images, turn in turns
    ]
    sides = [Side("in", many[0].images[:shown], (inliers.name,) * len(many[0].images[:shown]))]
    for group in ("near", "far"):
        own = [(name, image) for where, name, image in others if where == group]
        if own:
            sides.append(
                Side(group, torch.cat([image for _, image in own]), tuple(name for name, _ in own))
            )
    label, attack = max(
        attacks.items(), key=lambda item: item[1].settings()["radius"], default=("none", None)
    )
    return Scene(many, sides, attack, label, data.evaluation_batch_size)


def _take(images: ImageSet, count: int, device: torch.device | str) -> Tensor:
    return to_float(images.take(torch.arange(min(count, len(images)))).images.to(device))


def draw(
    model: str,
    detectors: Mapping[str, Detector],
    scene: Scene,
    kinds: Sequence[str],
    *,
    made: Container[str] = (),
    progress: Progress = lambda step: None,
) -> Iterator[Picture]:
    """Yield a picture of each kind for each detector, but for those whose keys are among those
    `made`.

    One that cannot be made, as for a score without gradient, has no arrays and says why.
    """
    keys = _keys(model, detectors, scene)
    yield from _drawn(model, detectors, scene, _wanted(keys, kinds, made), progress)


def _wanted(keys: Keys, kinds: Sequence[str], made: Container[str]) -> Keys:
    return {place: key for place, key in keys.items() if place[0] in kinds and key not in made}


def _drawn(
    model: str, detectors: Mapping[str, Detector], scene: Scene, wanted: Keys, progress: Progress
) -> Iterator[Picture]:
    for (kind, name), key in wanted.items():
        progress(f"{model}: figure {kind} of {name}")
        try:
            with evaluating(detectors[name]):
                arrays, about = KINDS[kind](detectors[name], scene)
        except (RuntimeError, ValueError) as error:
            arrays, about = {}, {"failed": " ".join(str(error).split())}
        yield Picture(kind, model, name, arrays, about, key)


def _keys(model: str, detectors: Mapping[str, Detector], scene: Scene) -> Keys:
    """Return the key of every kind of picture of each detector."""
    code, material = (
        code_version("evaluation/pictures.py", "evaluation/curves.py"),
        fingerprint(scene),
    )
    marks = {name: fingerprint(detector) for name, detector in detectors.items()}
    return {
        (kind, name): fingerprint([kind, model, name, code, material, mark])
        for name, mark in marks.items()
        for kind in KINDS
    }


def draw_into(
    folder: Path,
    model: str,
    detectors: Mapping[str, Detector],
    scene: Scene,
    kinds: Sequence[str],
    progress: Progress = lambda step: None,
) -> int:
    """Draw what a folder of results does not have yet of the pictures of a network, and return how
    many that were.

    Pictures of these detectors that show something else by now are removed, also of kinds that are
    not drawn again.
    """
    keys, there = _keys(model, detectors, scene), read_pictures(folder)
    for picture in there:
        if (
            picture.model == model
            and keys.get((picture.kind, picture.detector), picture.key) != picture.key
        ):
            remove_picture(folder, picture)
    made = {picture.key for picture in there}
    count = 0
    for picture in _drawn(model, detectors, scene, _wanted(keys, kinds, made), progress):
        write_picture(folder, picture)
        count += 1
    return count


Made = tuple[Arrays, Mapping[str, Any]]


def shift(detector: Detector, scene: Scene) -> Made:
    """Return the score shifts `g(x + delta) - g(x)`, `(sizes, N)` a side, under one sign step that
    lowers the score.

    Source: PRO paper, Sec. 3.2 and Fig. 3 (and 7, for size 0.001): inliers and outliers get the
    same perturbation, which is neither projected nor clipped.
    """
    arrays: dict[str, NDArray[Any]] = {"sizes": np.array(SHIFT_SIZES)}
    for side in scene.many:
        rows = [
            torch.cat(
                [_shifted(detector, part, size) for part in _batches(side.images, scene.batch_size)]
            )
            for size in SHIFT_SIZES
        ]
        arrays[side.name] = _array(torch.stack(rows))
    return arrays, {"sets": _names(scene.many)}


def _shifted(detector: Detector, images: Tensor, size: float) -> Tensor:
    moved = minimize(
        detector.surrogate, images, Unbounded(clip=False), steps=1, step_size=size, keep="last"
    ).images
    with torch.no_grad():
        after: Tensor = detector(moved) - detector(images)
    return after


def curves(detector: Detector, scene: Scene) -> Made:
    """Return each side's true scores and sizes of the perturbation along an attack out to twice the
    largest radius.

    Source: Fort 2022, Sec. 3.1, Fig. 3 and 7. Equal steps from the clean image; `evaluation.curves`
    reads them.
    """
    region = scene.region.scaled(2)
    attack = PGD(
        region, steps=_TRACE_STEPS, step_size=region.radius / _TRACE_STEPS, random_start=False
    )
    arrays: dict[str, NDArray[Any]] = {}
    for side in scene.many:
        direction: Direction = 1 if side.name == "in" else -1
        parts = _batches(side.images[:_TRACED], scene.batch_size)
        run = concatenate(trace(detector, part, attack, direction) for part in parts)
        arrays |= {f"{side.name}_{name}": _array(values) for name, values in run._asdict().items()}
    facts = {"norm": region.name, "radius": float(region.radius), "steps": _TRACE_STEPS}
    return arrays, {"sets": _names(scene.many), **facts}


def landscape(detector: Detector, scene: Scene) -> Made:
    """Return the scores at `x + a u + b v` for a and b on a square around each image shown,
    `(images, points, points)`.

    Source: PRO paper, Eq. 5.3 and Fig. 6. u and v are Gaussian directions of root mean square 1,
    the same for all images and detectors, so a and b are root mean square changes of the pixels.
    Pixels are clipped to [0, 1].
    """
    reach = (
        max(2 * float(scene.region.radius), 8 / 255) if scene.region.name == "Linf" else 32 / 255
    )
    offsets = torch.linspace(-reach, reach, _MAP_POINTS)
    maps, groups, sets = [], [], []
    for side in scene.shown:
        groups += [side.name] * len(side.images)
        sets += list(side.sets)
        maps += [_map(detector, image, offsets, scene.batch_size) for image in side.images]
    arrays = {"offsets": offsets.numpy(), "scores": _array(torch.stack(maps))}
    return arrays, {"groups": groups, "sets": sets}


def _map(detector: Detector, image: Tensor, offsets: Tensor, batch_size: int) -> Tensor:
    u, v = (
        (noise / noise.square().mean().sqrt()).to(image)
        for noise in (
            torch.randn(image.shape, generator=generator(0, "landscape", axis)) for axis in range(2)
        )
    )
    a, b = torch.meshgrid(offsets, offsets, indexing="xy")  # a along columns, b along rows
    weights = torch.stack([a.flatten(), b.flatten()], 1).to(image)  # (points^2, 2)
    with torch.no_grad():
        scores = [
            detector(
                (image + w[:, 0, None, None, None] * u + w[:, 1, None, None, None] * v).clamp(0, 1)
            )
            for w in _batches(weights, batch_size)
        ]
    return torch.cat(scores).view(len(offsets), len(offsets))


def strips(detector: Detector, scene: Scene) -> Made:
    """Return images before and after the attack of the largest radius, uint8 `(N, H, W, C)`, and
    their true scores.
    """
    if scene.attack is None:
        raise UserError("attacks: none given, so there is no attacked image to show")
    columns: dict[str, list[Tensor]] = {"clean": [], "attacked": [], "before": [], "after": []}
    groups, sets = [], []
    for side in scene.shown:
        groups += [side.name] * len(side.images)
        sets += list(side.sets)
        found = attack_score(detector, side.images, scene.attack, 1 if side.name == "in" else -1)
        with torch.no_grad():
            before = detector(side.images)
        columns["clean"].append(_pixels(side.images))
        columns["attacked"].append(_pixels(found.images))
        columns["before"].append(before)
        columns["after"].append(found.values)
    arrays = {name: _array(torch.cat(parts)) for name, parts in columns.items()}
    return arrays, {
        "groups": groups,
        "sets": sets,
        "attack": scene.label,
        **scene.attack.settings(),
    }


Kind = Callable[[Detector, Scene], Made]
KINDS: dict[str, Kind] = {
    "shift": shift,
    "curves": curves,
    "landscape": landscape,
    "strips": strips,
}


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _names(sides: Sequence[Side]) -> dict[str, str]:
    return {side.name: side.sets[0] for side in sides}


def _array(values: Tensor) -> NDArray[Any]:
    plain = values.detach().cpu()
    return np.asarray((plain.float() if plain.is_floating_point() else plain).numpy())


def _pixels(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
