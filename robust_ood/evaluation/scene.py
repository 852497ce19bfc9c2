"""What some figures need a network and images for: a few images, and what is computed on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.attacks import PGD, Attack, LowResolution, attack_score
from robust_ood.attacks.apply import region_of_attack
from robust_ood.attacks.objectives import Direction
from robust_ood.attacks.universal import needs_fit
from robust_ood.data import ImageSet, OODData
from robust_ood.data.limits import limited
from robust_ood.data.transforms import as_float
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.curves import ScoreTrace, concatenate, loss_of_auroc, trace
from robust_ood.evaluation.picture_settings import CurveSettings
from robust_ood.perturb import minimize
from robust_ood.randomness import generator
from robust_ood.regions import NORMS, Linf, Region, Unbounded

FEW = 64  # images of each side whose scores are followed
SHOWN = 4  # images of each side that are shown, or around which the score is mapped
SHIFT_SIZES = (0.001, 0.01)
_MAP_POINTS = 13

Arrays = Mapping[str, NDArray[Any]]
Drawing = tuple[Arrays, Mapping[str, Any]]
"""The arrays of a picture, and what they are of."""


class Side(NamedTuple):
    """Images of one side: "in", or the group of an OOD set, "near" or "far".

    sets: the name of the set that all images are from, or of each image's set.
    """

    name: str
    images: Tensor
    sets: tuple[str, ...]

    @property
    def direction(self) -> Direction:
        """+1 where an attack lowers scores, -1 where it raises them."""
        return 1 if self.name == "in" else -1


class Scene(NamedTuple):
    """What the pictures are made of.

    many: for each side, `FEW` images of its first set, or more where pictures need them. shown:
    `SHOWN` inliers, and as many outliers from the OOD sets in turn. attack, label: the attack of
    the largest radius, if any. batch_size: images scored at a time.
    """

    many: Sequence[Side]
    shown: Sequence[Side]
    attack: Attack | None
    label: str
    batch_size: int

    def first(self, count: int) -> Scene:
        """Return the scene with at most so many images on each side of `many`."""
        many = []
        for side in self.many:
            many.append(side._replace(images=side.images[:count]))
        return self._replace(many=many)

    @property
    def region(self) -> Region:
        """The attack's region; without an attack, Linf 8/255."""
        if self.attack is None:
            return Linf(8 / 255)
        return region_of_attack(self.attack)


def set_scene(
    data: OODData,
    attacks: Mapping[str, Attack],
    limit: int | None = None,
    device: torch.device | str = "cpu",
    many: int = FEW,
) -> Scene:
    """Return the few images and the attack of the largest radius that pictures are made of.

    Args:
        data: the test part is the in-distribution; `near` and `far` are the OOD sets.
        attacks: attacks by label.
        limit: use only so many images of each set, those that are evaluated.
        device: where to compute.
        many: how many images of each side are followed.
    """
    inliers = data.inliers("test")
    sets = []
    for group, images in [("in", inliers), *data.ood_sets()]:
        sets.append((group, limited(images, limit)))
    firsts: dict[str, ImageSet] = {}
    for group, images in sets:
        firsts.setdefault(group, images)
    sides = []
    for group, images in firsts.items():
        pixels = _take(images, 0, min(many, limit or many), device)
        sides.append(Side(group, pixels, (images.name,)))
    shown = _shown(sets, min(SHOWN, limit or SHOWN), device)
    label = "none"
    attack = None
    # A universal perturbation is not made for the few images that are shown.
    ready = {name: given for name, given in attacks.items() if not needs_fit(given)}
    if ready:
        label, attack = max(ready.items(), key=_by_radius)
    return Scene(sides, shown, attack, label, data.evaluation_batch_size)


def _by_radius(labelled: tuple[str, Attack]) -> tuple[bool, float]:
    """Return the order of attacks: balls by radius, after patches, whose radius says little."""
    settings = labelled[1].settings()
    return settings["norm"] in NORMS, settings["radius"]


def _shown(
    sets: Sequence[tuple[str, ImageSet]], count: int, device: torch.device | str
) -> list[Side]:
    """Return `count` inliers, of the first set, and as many outliers from the other sets."""
    pixels: dict[str, list[Tensor]] = {}
    names: dict[str, list[str]] = {}
    for group, images, index in [*_in_turn(sets[:1], count), *_in_turn(sets[1:], count)]:
        image = _take(images, index, index + 1, device)  # (1, C, H, W); none where unreadable
        pixels.setdefault(group, []).append(image)
        names.setdefault(group, []).extend([images.name] * len(image))
    shown = []
    for group in dict.fromkeys(group for group, _ in sets):
        if names.get(group):
            shown.append(Side(group, torch.cat(pixels[group]), tuple(names[group])))
    return shown


def _in_turn(sets: Sequence[tuple[str, ImageSet]], count: int) -> list[tuple[str, ImageSet, int]]:
    """Return which images to show: the first of each set, then the second of each, and so on."""
    turns = []
    for index in range(count):
        for group, images in sets:
            if index < len(images):
                turns.append((group, images, index))
    return turns[:count]


def _take(images: ImageSet, start: int, stop: int, device: torch.device | str) -> Tensor:
    indices = torch.arange(start, min(stop, len(images)))
    return as_float(images.take(indices).images.to(device))


def shift(detector: Detector, scene: Scene) -> Drawing:
    """Return the score shifts `g(x + delta) - g(x)`, `(sizes, N)` a side, under one sign step.

    The step lowers the score. Source: PRO paper, Sec. 3.2 and Fig. 3 (and 7, for size 0.001):
    inliers and outliers get the same perturbation, which is neither projected nor clipped.
    """
    arrays: dict[str, NDArray[Any]] = {"sizes": np.array(SHIFT_SIZES)}
    for side in scene.many:
        batches = batches_of(side.images, scene.batch_size)
        rows = []
        for size in SHIFT_SIZES:
            shifts = [_shifted(detector, batch, size) for batch in batches]
            rows.append(torch.cat(shifts))
        arrays[side.name] = _array(torch.stack(rows))  # (sizes, N)
    return arrays, {"sets": _names(scene.many)}


def _shifted(detector: Detector, images: Tensor, size: float) -> Tensor:
    moved = minimize(
        detector.surrogate, images, Unbounded(clip=False), steps=1, step_size=size, keep="last"
    ).images
    with torch.no_grad():
        after: Tensor = detector(moved) - detector(images)
    return after


def curves(detector: Detector, scene: Scene, settings: CurveSettings | None = None) -> Drawing:
    """Return true scores and sizes of the perturbation along an attack, `(steps + 1, N)` a side.

    Source: Fort 2022, Sec. 3.1, Fig. 3 and 7; with `size`, Sec. 3.4. Equal steps from the clean
    image; `evaluation.curves` reads them. A side that is not attacked has its clean scores alone,
    `(1, N)`. Beside the arrays, `loss_of_auroc` has the numbers of his Tables 1 to 5 by group of
    OOD images: AUROC before, at Linf 1/255, and their difference.
    """
    settings = settings or CurveSettings()
    attack = settings.attack(scene.region)
    arrays: dict[str, NDArray[Any]] = {}
    runs: dict[str, ScoreTrace] = {}
    for side in scene.many:
        run = _side_trace(detector, side, attack, settings, scene.batch_size)
        for name, values in run._asdict().items():
            arrays[f"{side.name}_{name}"] = _array(values)
        runs[side.name] = run
    inliers = runs.pop("in")
    unmoved = inliers.scores[0]  # (N,): where the inliers are not attacked
    losses = {}
    for group, run in runs.items():
        moved = inliers if settings.attacked == "both" else unmoved
        losses[group] = loss_of_auroc(moved, run)
    reach = settings.reach(scene.region)
    facts = {
        "norm": reach.name,
        "radius": float(reach.radius),
        "steps": settings.steps,
        "attacked": settings.attacked,
        "loss_of_auroc": losses,
    }
    return arrays, {"sets": _names(scene.many), **facts}


def _side_trace(
    detector: Detector,
    side: Side,
    attack: PGD | LowResolution,
    settings: CurveSettings,
    batch_size: int,
) -> ScoreTrace:
    """Return the trace of one side's images, of one step where they are not attacked."""
    if side.name != "in" or settings.attacked == "both":
        batches = batches_of(side.images[: settings.images], batch_size)
        return concatenate(trace(detector, batch, attack, side.direction) for batch in batches)
    rows = []
    with torch.no_grad():
        for batch in batches_of(side.images[: settings.inliers or settings.images], batch_size):
            rows.append(detector(batch))
    scores = torch.cat(rows)[None]  # (1, N)
    return ScoreTrace(scores, torch.zeros_like(scores), torch.zeros_like(scores))


def landscape(detector: Detector, scene: Scene) -> Drawing:
    """Return the scores at `x + a u + b v` on a square around each image, `(N, points, points)`.

    Source: PRO paper, Eq. 5.3 and Fig. 6. u and v are Gaussian directions of root mean square 1,
    the same for all images and detectors, so a and b are root mean square changes of the pixels.
    Pixels are clipped to [0, 1].
    """
    reach = 32 / 255
    if scene.region.name == "Linf":
        reach = max(2 * float(scene.region.radius), 8 / 255)
    offsets = torch.linspace(-reach, reach, _MAP_POINTS)
    maps = []
    for side in scene.shown:
        for image in side.images:
            maps.append(_map(detector, image, offsets, scene.batch_size))
    arrays = {"offsets": offsets.numpy(), "scores": _array(torch.stack(maps))}
    return arrays, _of_images(scene.shown)


def _map(detector: Detector, image: Tensor, offsets: Tensor, batch_size: int) -> Tensor:
    u = _direction(image, 0)
    v = _direction(image, 1)
    a, b = torch.meshgrid(offsets, offsets, indexing="xy")  # a along columns, b along rows
    weights = torch.stack([a.flatten(), b.flatten()], 1).to(image)  # (points^2, 2)
    scores = []
    with torch.no_grad():
        for batch in batches_of(weights, batch_size):
            along_u = batch[:, 0].view(-1, 1, 1, 1) * u  # (n, C, H, W)
            along_v = batch[:, 1].view(-1, 1, 1, 1) * v
            scores.append(detector((image + along_u + along_v).clamp(0, 1)))
    return torch.cat(scores).view(len(offsets), len(offsets))  # (points, points)


def _direction(image: Tensor, axis: int) -> Tensor:
    noise = torch.randn(image.shape, generator=generator(0, "landscape", axis))
    return (noise / noise.square().mean().sqrt()).to(image)


def strips(detector: Detector, scene: Scene) -> Drawing:
    """Return images `(N, H, W, C)` and scores before and after the attack of the largest radius."""
    if scene.attack is None:
        raise UserError("attacks: none given, so there is no attacked image to show")
    columns: dict[str, list[Tensor]] = {"clean": [], "attacked": [], "before": [], "after": []}
    for side in scene.shown:
        attacked = attack_score(detector, side.images, scene.attack, side.direction)
        with torch.no_grad():
            before = detector(side.images)
        columns["clean"].append(_pixels(side.images))
        columns["attacked"].append(_pixels(attacked.images))
        columns["before"].append(before)
        columns["after"].append(attacked.values)
    arrays = {}
    for name, batches in columns.items():
        arrays[name] = _array(torch.cat(batches))
    facts = {"attack": scene.label, **scene.attack.settings()}
    return arrays, {**_of_images(scene.shown), **facts}


def errors(detector: Detector, scene: Scene) -> Drawing:
    """Return the images that the score misplaces most, `(M, H, W, C)`, and their scores `(M,)`.

    These are the inliers with the lowest scores and the outliers with the highest, all clean.
    """
    chosen: list[Side] = []
    scores = []
    for side in scene.many:
        with torch.no_grad():
            batches = [detector(batch) for batch in batches_of(side.images, scene.batch_size)]
        values = side.direction * torch.cat(batches)  # (N,)
        worst = torch.argsort(values, stable=True)[:SHOWN]
        sets = side.sets * len(worst)  # all images are of one set
        chosen.append(Side(side.name, side.images[worst.to(side.images.device)], sets))
        scores.append(side.direction * values[worst])
    pixels = [_pixels(side.images) for side in chosen]
    arrays = {"clean": _array(torch.cat(pixels)), "scores": _array(torch.cat(scores))}
    return arrays, _of_images(chosen)


def batches_of(rows: Tensor, size: int) -> list[Tensor]:
    """Return rows `(N, ...)` in batches of at most so many."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _of_images(sides: Sequence[Side]) -> dict[str, list[str]]:
    """Return the side and the set of each image."""
    groups = []
    sets = []
    for side in sides:
        groups += [side.name] * len(side.images)
        sets += list(side.sets)
    return {"groups": groups, "sets": sets}


def _names(sides: Sequence[Side]) -> dict[str, str]:
    names = {}
    for side in sides:
        names[side.name] = side.sets[0]
    return names


def _array(values: Tensor) -> NDArray[Any]:
    values = values.detach().cpu()
    if values.is_floating_point():
        values = values.float()
    return np.asarray(values.numpy())


def _pixels(images: Tensor) -> Tensor:
    # (N, C, H, W) to (N, H, W, C)
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
