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
from robust_ood.errors import UserError, unknown_name
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.picture_schema import check_drawing, checked_facts
from robust_ood.evaluation.scene import KINDS, Arrays, Scene
from robust_ood.evaluation.terminal import Progress
from robust_ood.evaluation.versions import code_version
from robust_ood.modes import evaluating
from robust_ood.names import as_path, digest_of
from robust_ood.texts import first_sentence, printable
from robust_ood.writing import replace_file

Keys = dict[tuple[str, str], str]
"""By kind and detector, the fingerprint of everything that determines a picture."""
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
    there are no arrays. key: the fingerprint of everything that determines it.
    """

    kind: str
    model: str
    detector: str
    arrays: Arrays = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


def write_picture(folder: Path | str, picture: Picture) -> Path:
    """Write a picture into `figures/` of a folder of results, in place of an earlier one."""
    path = _path(folder, picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "kind": picture.kind,
        "model": picture.model,
        "detector": picture.detector,
        "key": picture.key,
        "about": dict(picture.about),
    }
    content = io.BytesIO()
    # Text as an array without dimensions, which needs no pickle.
    arrays: dict[str, Any] = {**picture.arrays, "picture": np.array(json.dumps(facts))}
    np.savez_compressed(content, **arrays)
    replace_file(path, content.getvalue())
    return path


def remove_picture(folder: Path | str, picture: Picture) -> None:
    """Remove the picture of that kind, network and detector from a folder of results."""
    _path(folder, picture).unlink(missing_ok=True)


def _path(folder: Path | str, picture: Picture) -> Path:
    name = (picture.kind, picture.model, picture.detector)
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
    return Picture(facts.kind, facts.model, facts.detector, arrays, facts.about, facts.key)


def kinds_of(figures: bool | Sequence[str]) -> list[str]:
    """Return the kinds of pictures that a setting asks for: all, none, or those it names.

    Raises: `UserError` for an unknown kind.
    """
    if isinstance(figures, bool):
        return list(KINDS) if figures else []
    for name in figures:
        if name not in KINDS:
            raise unknown_name("figures", name, KINDS)
    return list(dict.fromkeys(figures))


def draw(
    model: str,
    detectors: Mapping[str, Detector],
    scene: Scene,
    kinds: Sequence[str],
    *,
    made: Container[str] = (),
    progress: Progress | None = None,
) -> Iterator[Picture]:
    """Yield a picture of each kind for each detector, but for those whose keys are in `made`.

    One that cannot be made, as for a score without gradient, has no arrays and says why.
    """
    progress = progress or Progress()
    for (kind, name), key in _keys(model, detectors, scene).items():
        if kind not in kinds or key in made:
            continue
        progress.begin(f"{model}: figure {kind} of {name}")
        arrays: Arrays = {}
        facts: Mapping[str, Any]
        try:
            with evaluating(detectors[name]):
                arrays, facts = KINDS[kind](detectors[name], scene)
            check_drawing(kind, arrays, facts)
        except (RuntimeError, ValueError) as error:
            arrays = {}
            facts = {"failed": " ".join(str(error).split())}
        yield Picture(kind, model, name, arrays, facts, key)


def draw_into(
    folder: Path | str,
    model: str,
    detectors: Mapping[str, Detector],
    scene: Scene,
    kinds: Sequence[str],
    progress: Progress | None = None,
) -> int:
    """Draw what a folder of results lacks of a network's pictures, and return how many that were.

    Pictures of these detectors that show something else by now are removed, also of kinds that are
    not drawn again.
    """
    keys = _keys(model, detectors, scene)
    made = set()
    for picture in read_pictures(folder):
        made.add(picture.key)
        if picture.model == model:
            key = keys.get((picture.kind, picture.detector), picture.key)
            if key != picture.key:
                remove_picture(folder, picture)
    count = 0
    for picture in draw(model, detectors, scene, kinds, made=made, progress=progress):
        write_picture(folder, picture)
        count += 1
    return count


def _keys(model: str, detectors: Mapping[str, Detector], scene: Scene) -> Keys:
    """Return the key of every kind of picture of each detector."""
    shared = [model, code_version("pictures"), fingerprint(scene)]
    keys = {}
    for name, detector in detectors.items():
        subject = fingerprint(detector)
        for kind in KINDS:
            keys[kind, name] = fingerprint([kind, name, subject, *shared])
    return keys
