"""Pictures: arrays of figures, kept in `figures/*.npz` of a folder of results.

They are computed while network and images are at hand; `robust-ood report` draws them without
either.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.kinds import KINDS, PictureRequest
from robust_ood.evaluation.picture_schema import check_drawing, checked_facts
from robust_ood.evaluation.scene import FEW, Arrays, Scene
from robust_ood.evaluation.terminal import Progress
from robust_ood.evaluation.versions import code_version
from robust_ood.modes import evaluating
from robust_ood.names import as_path, digest_of
from robust_ood.texts import first_sentence, printable
from robust_ood.writing import replace_file

_DAMAGED = (
    OSError,
    ValueError,  # also what msgspec refuses
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    RecursionError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Picture:
    """One kind of picture of one detector.

    about: settings, `sets` (the names of the image sets by side), and `failed`, the reason, where
    there are no arrays. key: the fingerprint of everything that determines it. label, settings: of
    the `PictureRequest`.
    """

    kind: str
    model: str
    detector: str
    arrays: Arrays = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """The detector, with the label where there is one."""
        if self.label:
            return f"{self.detector}, {self.label}"
        return self.detector

    @property
    def request(self) -> PictureRequest:
        """What asked for it."""
        return PictureRequest(self.kind, self.settings, self.label)


def write_picture(folder: Path | str, picture: Picture) -> Path:
    """Write a picture into `figures/` of a folder of results, in place of an earlier one."""
    path = _path(folder, picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "kind": picture.kind,
        "model": picture.model,
        "detector": picture.detector,
        "key": picture.key,
        "label": picture.label,
        "settings": dict(picture.settings),
        "about": dict(picture.about),
    }
    content = io.BytesIO()
    # Text as an array without dimensions, which needs no pickle.
    arrays: dict[str, Any] = {**picture.arrays, "picture": np.array(json.dumps(facts))}
    np.savez_compressed(content, **arrays)
    replace_file(path, content.getvalue())
    return path


def remove_picture(folder: Path | str, picture: Picture) -> None:
    """Remove the picture of that kind, label, network and detector from a folder of results."""
    _path(folder, picture).unlink(missing_ok=True)


def _path(folder: Path | str, picture: Picture) -> Path:
    name: tuple[str, ...] = (picture.kind, picture.model, picture.detector)
    if picture.label:
        name = (*name, picture.label)
    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(name)).strip("-").lower()[:80]
    # Tells names apart that differ in signs only.
    suffix = digest_of(json.dumps(name))
    return as_path(folder, "folder") / "figures" / f"{words}-{suffix}.npz"


def read_pictures(folder: Path | str) -> list[Picture]:
    """Return the pictures of a folder of results, ordered by the names of their files.

    Raises: `UserError` for a file that is no picture, naming what is wrong in it.
    """
    return list(map(_read, sorted((as_path(folder, "folder") / "figures").glob("*.npz"))))


def _read(path: Path) -> Picture:
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = checked_facts(json.loads(str(arrays.pop("picture"))), arrays)
    except _DAMAGED as error:
        reason = printable(first_sentence(error, 80))
        raise UserError(f"figures: {path} is damaged ({reason}); remove it") from error
    return Picture(
        facts.kind,
        facts.model,
        facts.detector,
        arrays,
        facts.about,
        facts.key,
        facts.label,
        facts.settings,
    )


def images_needed(folder: Path | str, requests: Sequence[PictureRequest]) -> int:
    """Return how many images of each side pictures need: those requested, and those in a folder."""
    counts = [FEW]
    for request in requests:
        counts.append(request.most)
    for picture in read_pictures(folder):
        if _is_known(picture):
            counts.append(picture.request.most)
    return max(counts)


def draw(
    model: str,
    detectors: Mapping[str, Detector],
    scene: Scene,
    requests: Sequence[PictureRequest],
    *,
    made: Container[str] = (),
    progress: Progress | None = None,
) -> Iterator[Picture]:
    """Yield each picture of each detector that it applies to, but for those whose keys are `made`.

    One that cannot be made, as for a score without gradient, has no arrays and says why.
    """
    progress = progress or Progress()
    keys = _Keys(model, detectors, scene)
    for name, detector in detectors.items():
        for request in requests:
            if not KINDS[request.kind].applies(detector):
                continue
            key = keys(request, name)
            if key in made:
                continue
            progress.begin(f"{model}: figure {request.kind} of {name}")
            arrays, facts = _drawn(request, detector, scene.first(request.most))
            yield Picture(
                request.kind, model, name, arrays, facts, key, request.label, request.settings
            )


def _drawn(
    request: PictureRequest, detector: Detector, scene: Scene
) -> tuple[Arrays, Mapping[str, Any]]:
    """Return arrays and facts of a picture; no arrays, and why, where there are none."""
    try:
        with evaluating(detector):
            arrays, facts = request.draw(detector, scene)
        check_drawing(request.kind, arrays, facts)
    except (RuntimeError, ValueError) as error:
        return {}, {"failed": " ".join(str(error).split())}
    return arrays, facts


def draw_into(
    folder: Path | str,
    model: str,
    detectors: Mapping[str, Detector],
    scene: Scene,
    requests: Sequence[PictureRequest],
    progress: Progress | None = None,
) -> int:
    """Draw what a folder of results lacks of a network's pictures, and return how many that were.

    Pictures of these detectors that show something else by now are removed, also of kinds that are
    not drawn again.
    """
    keys = _Keys(model, detectors, scene)
    made = set()
    for picture in read_pictures(folder):
        made.add(picture.key)
        if picture.model != model or picture.detector not in detectors:
            continue
        if not _is_known(picture) or keys(picture.request, picture.detector) != picture.key:
            remove_picture(folder, picture)
    count = 0
    for picture in draw(model, detectors, scene, requests, made=made, progress=progress):
        write_picture(folder, picture)
        count += 1
    return count


def _is_known(picture: Picture) -> bool:
    """Return whether a picture's settings are those of its kind today."""
    try:
        picture.request.configured  # noqa: B018
    except UserError:
        return False
    return True


class _Keys:
    """Returns the key of a requested picture of a detector."""

    def __init__(self, model: str, detectors: Mapping[str, Detector], scene: Scene) -> None:
        self._shared = [model, code_version("pictures")]
        self._scene = scene
        self._scenes: dict[int, str] = {}  # fingerprints by the number of images
        self._subjects = {name: fingerprint(detector) for name, detector in detectors.items()}

    def __call__(self, request: PictureRequest, detector: str) -> str:
        count = request.most
        if count not in self._scenes:
            self._scenes[count] = fingerprint(self._scene.first(count))
        parts = [request.kind, detector, self._subjects[detector], *self._shared]
        parts.append(self._scenes[count])
        if request.settings:
            parts.append(fingerprint(request.configured))
        return fingerprint(parts)
