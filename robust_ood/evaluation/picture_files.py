"""Where pictures lie: `figures/*.npz` in a folder of results."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.errors import UserError
from robust_ood.writing import replace_file

Arrays = Mapping[str, NDArray[Any]]
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Picture:
    """One kind of picture of one detector.

    about: settings, `sets` (the names of the image sets by side), and `failed`, the reason, where
    there are no arrays.
    key: the fingerprint of everything that determines it.
    """

    kind: str
    model: str
    detector: str
    arrays: Arrays = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


def write_picture(folder: Path, picture: Picture) -> Path:
    """Write a picture, in one move, into `figures/` of a folder of results, in place of an earlier
    one of its name.
    """
    path = _path(folder, picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "kind": picture.kind,
        "model": picture.model,
        "detector": picture.detector,
    }
    about |= {"key": picture.key, "about": dict(picture.about)}
    content = io.BytesIO()
    arrays: dict[str, Any] = {**picture.arrays, "picture": np.array(json.dumps(about))}
    np.savez_compressed(content, **arrays)
    replace_file(path, content.getvalue())
    return path


def remove_picture(folder: Path, picture: Picture) -> None:
    """Remove the picture of that kind, network and detector from a folder of results."""
    _path(folder, picture).unlink(missing_ok=True)


def _path(folder: Path, picture: Picture) -> Path:
    name = (picture.kind, picture.model, picture.detector)
    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(name)).strip("-").lower()[:80]
    mark = hashlib.blake2b(
        json.dumps(name).encode(), digest_size=4
    ).hexdigest()  # of names that differ in signs only
    return folder / "figures" / f"{words}-{mark}.npz"


def read_pictures(folder: Path) -> list[Picture]:
    """Return the pictures of a folder of results, ordered by the names of their files.

    Raises: `UserError` for a file that is no picture.
    """
    return [_read(path) for path in sorted((folder / "figures").glob("*.npz"))]


def _read(path: Path) -> Picture:
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(str(arrays.pop("picture")))
        return Picture(
            facts["kind"], facts["model"], facts["detector"], arrays, facts["about"], facts["key"]
        )
    except _DAMAGE as error:
        raise UserError(
            f"figures: {path} is damaged ({' '.join(str(error).split())[:80]}); remove it"
        ) from error
