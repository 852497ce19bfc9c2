"""Attacked images as files that any tool reads: arrays, or PNG with a list of labels.

The store has the images, chunk by chunk; here they become one file or one folder for each network,
detector, attack and set. What is there already is not written again.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robust_ood.attacks import Attack, Quantised
from robust_ood.errors import UserError
from robust_ood.evaluation.scoring import TestSet
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import Model, ScoreTask
from robust_ood.names import file_name, spreadsheet_cell
from robust_ood.texts import shown
from robust_ood.writing import in_place_of, replace_file

Form = Literal["npz", "png"]
FOLDER = "attacked"
"""In the folder of results."""
LAYOUT = 1
_COLUMNS = ("file", "index", "label", "score_clean", "score_attacked")


def check_form(form: str | None, attacks: Mapping[str, Attack]) -> None:
    """Refuse a form that there is not, and 8 bits for attacks whose images have more.

    Raises: `UserError` naming `save_attacked`.
    """
    if form is None:
        return
    if form not in get_args(Form):
        raise UserError(f"save_attacked: expected npz or png, got {shown(form)}")
    if not attacks:
        raise UserError("save_attacked: no attacks are given, so there are no images to save")
    for label, attack in attacks.items():
        if form == "png" and not isinstance(attack, Quantised):
            raise UserError(
                f"save_attacked: png keeps 8 bits a pixel, and images of {label} lie between two "
                "levels; give the attack quantise: true, or save npz"
            )


@dataclass
class _Saved:
    """The chunks of one set under one attack through one detector.

    stem: of the file or folder. clean, attacked: keys of the cells of scores; images: of the
    images; each in the order of the images.
    """

    stem: Path
    facts: dict[str, Any]
    class_names: tuple[str, ...]
    clean: list[str] = field(default_factory=list)
    attacked: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def is_stored(self, store: Store) -> bool:
        """Return whether all of it is computed."""
        keys = [*self.clean, *self.attacked, *self.images]
        return all(store.has(key) for key in keys)

    @property
    def about(self) -> str:
        """What the files say of themselves, and which cells they are of."""
        return json.dumps({**self.facts, "layout": LAYOUT, "cells": self.images})

    def column(self, store: Store, keys: Sequence[str], name: str) -> NDArray[Any]:
        """Return one array of all chunks, `(N,)`."""
        return np.concatenate([_read(store, key).arrays[name] for key in keys])

    def cells(self, store: Store) -> Iterator[Cell]:
        """Yield the images chunk by chunk: together they may not fit into memory."""
        for key in self.images:
            yield _read(store, key)


def write_attacked(
    folder: Path,
    form: Form,
    models: Sequence[Model],
    sets: Sequence[TestSet],
    attacks: Mapping[str, Attack],
    store: Store,
) -> list[Path]:
    """Write the attacked images that the store has, and return the files or lists of images.

    Args:
        folder: of the results; the files are in `attacked/MODEL/DETECTOR/ATTACK/`.
        form: "npz", or "png" for images of 8 bits.
        models: with the tasks that attacked the images.
        sets: those of the evaluation.
        attacks: by label.
        store: has images and scores.
    """
    written = []
    for model in models:
        for saved in _planned(folder / FOLDER, model, sets, attacks):
            if not saved.is_stored(store):
                continue
            write = _write_arrays if form == "npz" else _write_pictures
            written.append(write(saved, store))
    return written


def _planned(
    folder: Path, model: Model, sets: Sequence[TestSet], attacks: Mapping[str, Attack]
) -> list[_Saved]:
    """Return what there is to save of a network."""
    clean: dict[tuple[str, int], list[str]] = {}
    planned: dict[tuple[str, str, int], _Saved] = {}
    for task in model.tasks:
        if not isinstance(task, ScoreTask):
            continue
        for label, key in task.keys.items():
            if task.perturbation is None:
                clean.setdefault((label, task.set_index), []).append(key)
            elif task.keeps_images and task.attack in attacks:
                place = (label, task.attack, task.set_index)
                if place not in planned:
                    planned[place] = _empty(folder, task, label, sets[task.set_index])
                planned[place].attacked.append(key)
                planned[place].images.append(task.images_key(label))
    for (label, _, set_index), saved in planned.items():
        saved.clean = clean[label, set_index]
    return list(planned.values())


def _empty(folder: Path, task: ScoreTask, detector: str, test_set: TestSet) -> _Saved:
    assert task.perturbation is not None
    images = test_set.images
    parts = [file_name(part) for part in (task.model, detector, task.attack, images.name)]
    facts = {
        "model": task.model,
        "detector": detector,
        "attack": task.attack,
        "set": images.name,
        "group": test_set.group,
        "direction": test_set.direction,
        **task.perturbation.settings(),
    }
    return _Saved(folder.joinpath(*parts), facts, images.class_names)


def _read(store: Store, key: str) -> Cell:
    cell = store.read(key)
    if cell is None:
        raise UserError(f"save_attacked: {store.path(key) or key} is gone; run the command again")
    return cell


# Arrays
# ---------------------------------------------------------------------------------------------


def _write_arrays(saved: _Saved, store: Store) -> Path:
    """Write `images (N, H, W, C)` float32 in [0, 1], scores, labels, and what they are of."""
    path = saved.stem.with_name(f"{saved.stem.name}.npz")
    if _about_arrays(path) == saved.about:
        return path
    arrays: dict[str, Any] = {
        "labels": saved.column(store, saved.images, "labels").astype(np.int64),
        "indices": saved.column(store, saved.images, "indices").astype(np.int64),
        "scores_clean": saved.column(store, saved.clean, "scores").astype(np.float32),
        "scores_attacked": saved.column(store, saved.attacked, "scores").astype(np.float32),
        "about": np.array(saved.about),
    }
    for name, value in saved.facts.items():
        arrays[name] = np.array(value)
    if saved.class_names:
        arrays["class_names"] = np.array(saved.class_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_place_of(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
            archive.writestr(f"{name}.npy", content.getvalue())
        _stream_images(archive, saved, store, len(arrays["indices"]))
    return path


def _stream_images(archive: zipfile.ZipFile, saved: _Saved, store: Store, count: int) -> None:
    """Write `images` chunk by chunk."""
    first = next(saved.cells(store)).arrays["images"]
    channels, height, width = first.shape[1:]
    header = {
        "descr": "<f4",
        "fortran_order": False,
        "shape": (count, height, width, channels),
    }
    with archive.open("images.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for cell in saved.cells(store):
            images = cell.arrays["images"].transpose(0, 2, 3, 1)  # (n, H, W, C)
            member.write(np.ascontiguousarray(images, "<f4").tobytes())


def _about_arrays(path: Path) -> str | None:
    """Return what a file says of itself; None where there is none that can be read."""
    try:
        with np.load(path) as archive:
            return str(archive["about"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


# PNG
# ---------------------------------------------------------------------------------------------


def _write_pictures(saved: _Saved, store: Store) -> Path:
    """Write a folder of PNG, named by the images' places in their set, and the list of them.

    Beside it are the scores as CSV, and what the images are of as JSON, which is written last.
    """
    folder = saved.stem
    listed = _beside(folder, "txt")
    about = _beside(folder, "json")
    if listed.is_file() and _text(about) == saved.about:
        return listed
    folder.mkdir(parents=True, exist_ok=True)
    about.unlink(missing_ok=True)
    indices = saved.column(store, saved.images, "indices").tolist()
    names = [f"{index:08d}.png" for index in indices]
    for old in folder.glob("[0-9]*.png"):
        if old.name not in set(names):
            old.unlink()  # of an evaluation of more images
    remaining = iter(names)
    for cell in saved.cells(store):
        levels = np.rint(cell.arrays["images"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        for pixels in levels:  # (H, W, C)
            _write_picture(folder / next(remaining), pixels)
    labels = saved.column(store, saved.images, "labels").tolist()
    lines = []
    for name, label in zip(names, labels, strict=True):
        lines.append(f'"{folder.name}/{name}" {label}\n')
    replace_file(listed, "".join(lines))
    clean = saved.column(store, saved.clean, "scores").tolist()
    attacked = saved.column(store, saved.attacked, "scores").tolist()
    files = [spreadsheet_cell(f"{folder.name}/{name}") for name in names]
    _write_table(_beside(folder, "csv"), zip(files, indices, labels, clean, attacked, strict=True))
    replace_file(about, saved.about)
    return listed


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def _write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    content = io.BytesIO()
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]  # (H, W): Pillow's form of grey images
    Image.fromarray(pixels).save(content, format="PNG")
    replace_file(path, content.getvalue())


def _write_table(path: Path, rows: Any) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(_COLUMNS)
    writer.writerows(rows)
    replace_file(path, table.getvalue())
