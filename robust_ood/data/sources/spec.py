"""What a config says of a set: where its images come from, and what form they are brought to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robust_ood.data.sources.corruptions import CORRUPTIONS
from robust_ood.data.sources.form import Channels, ImageForm, ResizePolicy, require_within
from robust_ood.errors import UserError, unknown_name
from robust_ood.settings import configured
from robust_ood.texts import shown

_PATHS_AND_NAMES = ("source", "name", "labels", "base", "exclude")


@dataclass(frozen=True)
class SetSpec:
    """A set of images, where its name or path alone does not say enough.

    Args:
        source: an embedded set, a catalogue entry (`svhn`, `cifar10/train`), a path, absolute or
            relative to the data root (array file, folder of images or of class folders, image
            list, tar shards by a range `{000..146}` or `*`, folder of a Hugging Face data set),
            `hf:` and the name of one, or the class path of a `torch.utils.data.Dataset`.
        name: what the set is called in results; by default the name of its source.
        size: side of the images in pixels; the data's `size` by default.
        policy: how images of other sizes become that size: "resize" (shorter side, then centre
            crop), "stretch", "center_crop" or "random_crop" (at the original resolution, one fixed
            place for each image).
        shorter: length in pixels of the shorter side before the centre crop of "resize"; `size` by
            default.
        bits: of a value in image files of more than 8 bits, in 8..16 (12 where values reach 4095);
            16 by default.
        channels: 1 for grey images, 3 for RGB; the data's `channels` by default.
        labels: `.npy` of integer labels for a source without its own.
        base: folder that an image list's paths are relative to.
        exclude: text file of indices to leave out, one a line, counted from 0 (`robust-ood data
            overlap` writes them).
        count: use only this many images, drawn once by `seed`.
        seed: seed of `count` and of "random_crop".
        max_unreadable: share of the images that may turn out to be unreadable, in [0, 1].
        arguments: keyword arguments that a class path is called with, or those of
            `datasets.load_dataset` and the columns `image` and `label`.
        cache: read images once where they fit into memory. False reads them each time, which a data
            set with random transforms in `__getitem__` needs: its draws from the global generators
            of torch, NumPy and Python are keyed by epoch and step, so they resume exactly; draws
            from generators of its own do not.
        corruption: corrupt the images, as CIFAR-10-C and ImageNet-C do: `gaussian_noise`, `fog`,
            `jpeg_compression`, ... (docs/data.md). Their draws are keyed by `seed` and the image.
        severity: of the corruption, 1 (mild) to 5; 3 by default.

    Paths may begin with `~`, the user's home.
    """

    source: str
    name: str | None = None
    size: int | None = None
    policy: ResizePolicy = "resize"
    shorter: int | None = None
    bits: int | None = None
    channels: Channels | None = None
    labels: str | None = None
    base: str | None = None
    exclude: str | None = None
    count: int | None = None
    seed: int = 0
    max_unreadable: float = 0.01
    arguments: dict[str, Any] = field(default_factory=dict)
    cache: bool = True
    corruption: str | None = None
    severity: int | None = None

    # jsonargparse's restricted types (PositiveInt, ClosedUnitInterval) would check only what a
    # config or the command line says; these checks also hold in Python.
    def __post_init__(self) -> None:
        for key in _PATHS_AND_NAMES:
            object.__setattr__(self, key, _checked_text(key, getattr(self, key)))
        if self.source is None:
            raise UserError("source: expected a set's name or path, got None")
        require_within("count", self.count, 1, sys.maxsize, "images")
        share = self.max_unreadable
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UserError(f"max_unreadable: expected a share in [0, 1], got {share!r}")
        if self.corruption is not None and self.corruption not in CORRUPTIONS:
            raise unknown_name("corruption", self.corruption, CORRUPTIONS)
        require_within("severity", self.severity, 1, 5, "its steps")
        if self.severity is not None and self.corruption is None:
            raise UserError("severity: given without a corruption")
        self.form(None, 3)  # checks `size`, `policy`, `shorter`, `bits` and `channels`

    def form(self, size: int | None, channels: Channels) -> ImageForm:
        """Return the form of this set's images.

        Args:
            size: side in pixels where the set states none; None for none at all.
            channels: where the set states none.
        """
        if self.size is not None:
            size = self.size
        if self.channels is not None:
            channels = self.channels
        return ImageForm(size, self.policy, self.shorter, self.seed, self.bits, channels)


def _checked_text(key: str, text: object) -> str | None:
    """Return a name or path as text; an empty one is refused, because it would be a folder."""
    if text is None:
        return None
    if not isinstance(text, str | Path):
        raise UserError(f"{key}: expected a name or path, got {shown(text)}")
    if text == "":
        raise UserError(f"{key}: is empty; expected a name or path, or leave it out")
    return str(text)


SetSource = str | dict[str, Any] | SetSpec
"""A set as configs and Python write it: a name or path, or settings as a mapping or `SetSpec`."""


def read_set(field: str, given: SetSource | Path) -> str | SetSpec:
    """Return a set as it was written: its name or path, or its settings checked.

    Args:
        field: the dotted name of where it was written, for messages: `data.far[0]`.
        given: what was written.

    Raises:
        UserError: neither a name nor settings, a setting that does not exist (with the nearest that
            does), or a value that does not fit.
    """
    if isinstance(given, SetSpec):
        return given
    if isinstance(given, str | Path):
        return _read_name(field, str(given))
    if not isinstance(given, Mapping):
        raise UserError(
            f"{field}: expected a set's name or path, or a mapping with 'source' and settings, got "
            f"{shown(given)}"
        )
    settings = dict(given)
    if "class_path" in settings and "source" not in settings:
        settings = _without_class_path(field, settings)
    return configured(field, SetSpec, settings=settings)


def comparable_sets(value: Any) -> Any:
    """Return a value of `data` with sets in their shortest form, however they were written.

    Settings that are as by default are left out, and a set without settings is its source. A list
    is one of sets; other values come back as they are.
    """
    if isinstance(value, list):
        return [comparable_sets(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    settings = dict(value)
    if "class_path" in settings and isinstance(settings.get("init_args"), Mapping):
        settings = dict(settings["init_args"])
    if "source" not in settings:
        return value
    defaults = vars(SetSpec("any"))
    short = {}
    for name, setting in settings.items():
        if name not in defaults or setting != defaults[name]:
            short[name] = setting
    return short["source"] if list(short) == ["source"] else short


def _read_name(field: str, name: str) -> str:
    if not name.strip():
        raise UserError(f"{field}: is empty; expected a set's name or path")
    # What the parser could not read as a list or a mapping is text to it.
    if name.lstrip().startswith(("[", "{")):
        raise UserError(
            f"{field}: expected a set's name or path, or a mapping with 'source' and settings, got "
            f"{shown(name)}"
        )
    return name


def _without_class_path(field: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a set in the longer form, `{class_path: SetSpec, init_args: {}}`."""
    class_path = settings.pop("class_path")
    if str(class_path).rpartition(".")[2] != SetSpec.__name__:
        raise UserError(
            f"{field}.class_path: expected robust_ood.data.SetSpec, got {shown(class_path)}; a "
            "class of images is named by `source`, and `arguments` are those of its constructor"
        )
    init_args = settings.pop("init_args", None) or {}
    if not isinstance(init_args, Mapping):
        raise UserError(
            f"{field}.init_args: expected a mapping of settings, got {shown(init_args)}"
        )
    return {**settings, **init_args}


def located(root: Path | str, path: Path | str) -> Path:
    """Return a path of the settings: relative to the data's root, with `~` for the user's home."""
    return _at_home(Path(root)) / _at_home(Path(path))


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # of a user who does not exist: the name of a file, then
        return path
