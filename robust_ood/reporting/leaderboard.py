"""The leaderboard: what results prove of networks and detectors under threats, re-checked.

A row is a network x detector x threat, where a threat is a norm, a radius and the attacked side. It
comes from a folder of results whose files are sealed by `hashes.json`. What a folder states is
computed again as far as that is possible; `docs/leaderboard.md` has the rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from robust_ood.errors import UserError
from robust_ood.evaluation import Results, Row
from robust_ood.metrics import auroc
from robust_ood.reporting.report_data import ReportData, SetScores, read_folders
from robust_ood.texts import radius_text
from robust_ood.writing import replace_file

HASHES = "hashes.json"
RESULTS = "results.json"
SCHEMA = 1
TOLERANCE = 1e-6
"""Of an AUROC that is computed again from the stored scores."""
SIDES = ("both", "in", "out", "none")
"""Which side is attacked, in the order of the rows."""


@dataclass(frozen=True)
class Standing:
    """A row of the leaderboard; AUROC and accuracy in [0, 1].

    weights: fingerprint of the network. attacked: "none", "in", "out" or "both". near, far: the
    lowest AUROC that is known, with its interval, and the clean one; near_sets, far_sets: the names
    of the sets that it is the mean of. form: how images were made, where the evaluation says so:
    "8 x 8 pixels, grey"; "" for images as they are. accuracy: under the same norm
    and radius, clean where nothing is attacked. certified: what no attack makes worse (far).
    sanity: what the checks of the evaluation said. attack: what was run, steps x restarts. images:
    the fewest of the in-distribution set and an OOD group.
    """

    network: str
    weights: str
    detector: str
    id: str
    form: str
    near_sets: tuple[str, ...]
    far_sets: tuple[str, ...]
    threat: str
    norm: str
    radius: float
    attacked: str
    near: float | None
    near_interval: tuple[float, float] | None
    clean_near: float | None
    far: float | None
    far_interval: tuple[float, float] | None
    clean_far: float | None
    accuracy: float | None
    certified: float | None
    sanity: str
    attack: str
    images: int
    minutes: float
    folder: str

    @property
    def subject(self) -> tuple[object, ...]:
        """What the row is about: a stronger attack on the same replaces it."""
        return (self.weights, self.detector, self.images_of, self.norm, self.radius, self.attacked)

    @property
    def images_of(self) -> tuple[object, ...]:
        """Which images the row is about: only rows of the same ones compare."""
        return (self.id, self.form, self.near_sets, self.far_sets)

    @property
    def lowest(self) -> float:
        """The lower of the AUROCs of both groups."""
        return min(value for value in (self.near, self.far) if value is not None)


def seal(folder: Path) -> Path:
    """Write the SHA-256 of a folder's results and scores into `hashes.json`, and return its path.

    Raises: `UserError` where the folder has no results.
    """
    names = [RESULTS]
    for cell in Results.read(folder).cells:
        names += cell.files
    hashes = {}
    for name in dict.fromkeys(names):
        hashes[name] = _hash(folder, name)
    path = folder / HASHES
    content = {"schema": SCHEMA, "sha256": hashes}
    replace_file(path, json.dumps(content, indent=1) + "\n")
    return path


def standings(folders: Sequence[Path], weights: Mapping[str, str] | None = None) -> list[Standing]:
    """Return the rows of folders, re-checked, the strongest attack of each subject, best first.

    Those of the same images are together, then those of a norm and radius; rows with both sides
    attacked come first, and clean ones last.

    Args:
        folders: with a `results.json`, its store and its `hashes.json` each.
        weights: fingerprints of networks that are at hand, such as those of the zoo, by name. A
            row that carries such a name must be of those weights.

    Raises:
        UserError: a folder without hashes, a file that is not the hashed one, a network whose
            weights have no fingerprint or another one, an AUROC that the scores do not give.
    """
    kept: dict[tuple[object, ...], Standing] = {}
    for folder in folders:
        for standing in _of_folder(folder, weights or {}):
            before = kept.get(standing.subject)
            if before is None or replaces(standing, before):
                kept[standing.subject] = standing

    def position(standing: Standing) -> tuple[Any, ...]:
        side = SIDES.index(standing.attacked)
        threat = (standing.attacked == "none", standing.norm, standing.radius, side)
        return (
            standing.images_of,
            *threat,
            -standing.lowest,
            standing.network,
            standing.detector,
        )

    return sorted(kept.values(), key=position)


def replaces(new: Standing, old: Standing) -> bool:
    """Return whether a row takes the place of another of the same subject.

    Under attack the lower AUROC is nearer to the truth, which no attack goes below. It counts on at
    least as many images, or where its whole interval lies below the other's AUROC, so that few
    images do not win by luck. Without attack, more images are better.
    """
    if new.attacked == "none":
        return new.images > old.images
    for group in ("far", "near"):
        value = getattr(new, group)
        other = getattr(old, group)
        if value is None or other is None:
            continue
        interval = getattr(new, f"{group}_interval")
        if new.images >= old.images:
            return bool(value < other)
        return interval is not None and bool(interval[1] < other)
    return False


def as_json(rows: Sequence[Standing]) -> str:
    """Return the rows as JSON, whose fields are those of `Standing`."""
    content = {"schema": SCHEMA, "rows": [asdict(row) for row in rows]}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _of_folder(folder: Path, weights: Mapping[str, str]) -> Iterator[Standing]:
    _check_hashes(folder)
    data = read_folders([folder])
    if not data.results.complete:
        raise UserError(f"leaderboard: {folder} is of an interrupted evaluation; let it finish")
    networks = data.results.environment.get("networks") or {}
    for model in data.models:
        if model not in networks:
            raise UserError(
                f"leaderboard: {folder} states no fingerprint of the weights of {model} "
                "(environment.networks); robust-ood evaluate writes it"
            )
        if weights.get(model, networks[model]) != networks[model]:
            raise UserError(
                f"leaderboard: {folder}: the weights of {model} are not those of the zoo"
            )
    for row in data.sets:
        _check_auroc(folder, data, row)
    for lines in _by_subject(data.means).values():
        yield _standing(folder, data, lines, networks)


def _check_hashes(folder: Path) -> None:
    """Raise `UserError` unless the files of a folder are those of its `hashes.json`."""
    path = folder / HASHES
    if not path.is_file():
        raise UserError(
            f"leaderboard: {folder} has no {HASHES}; robust-ood leaderboard {folder} --seal true "
            "writes it"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        hashes = dict(content["sha256"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"leaderboard: {path} is damaged; seal the folder again") from error
    if RESULTS not in hashes:
        raise UserError(f"leaderboard: {path} has no hash of {RESULTS}; seal the folder again")
    for name, expected in hashes.items():
        parts = str(name).replace("\\", "/").split("/")
        # A file of others must not make the leaderboard read elsewhere.
        if parts[0] == "" or ".." in parts:
            raise UserError(f"leaderboard: {path} names a file outside of the folder: {name}")
        if _hash(folder, name) != expected:
            raise UserError(f"leaderboard: {folder / name} is not the file that was sealed")
    for cell in Results.read(folder).cells:
        for name in cell.files:
            if name not in hashes:
                raise UserError(f"leaderboard: {path} has no hash of {name}; seal the folder again")


def _hash(folder: Path, name: str) -> str:
    try:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"leaderboard: {folder / name} cannot be read ({error.strerror})"
        ) from error


def _check_auroc(folder: Path, data: ReportData, row: Row) -> None:
    """Raise `UserError` unless a row's AUROC is that of the scores in the folder."""
    attack_of = {"id": "none", row.group: "none"}
    if row.attacked in ("in", "both"):
        attack_of["id"] = row.attack
    if row.attacked in ("out", "both"):
        attack_of[row.group] = row.attack
    inliers = _scores(data, row, attack_of["id"], "id", row.id)
    outliers = _scores(data, row, attack_of[row.group], row.group, row.ood)
    if inliers is None or outliers is None:
        raise UserError(
            f"leaderboard: {folder} lacks the scores of {row.model}, {row.detector} on {row.ood}; "
            "send its store, too"
        )
    value = float(auroc(torch.from_numpy(inliers.values), torch.from_numpy(outliers.values)))
    if not abs(value - row.auroc) <= TOLERANCE:
        raise UserError(
            f"leaderboard: {folder}: {row.model}, {row.detector}, {row.attack} ({row.attacked}) on "
            f"{row.ood} states AUROC {row.auroc:.6f}; its scores give {value:.6f}"
        )


def _scores(data: ReportData, row: Row, attack: str, group: str, images: str) -> SetScores | None:
    for scores in data.scores(row.model, row.detector, attack):
        if (scores.group, scores.images) == (group, images):
            return scores
    return None


def _by_subject(means: Sequence[Row]) -> dict[tuple[object, ...], list[Row]]:
    """Return the means of near and far sets that belong to one row of the leaderboard."""
    lines: dict[tuple[object, ...], list[Row]] = {}
    for row in means:
        lines.setdefault(_subject(row), []).append(row)
    return lines


def _subject(row: Row) -> tuple[str, ...]:
    return (row.model, row.detector, row.id, row.attack, row.attacked)


def _standing(
    folder: Path, data: ReportData, rows: Sequence[Row], networks: Mapping[str, str]
) -> Standing:
    first = rows[0]
    groups = {row.group: row for row in rows}
    near = groups.get("near")
    far = groups.get("far")
    threat = "none"
    attack = "none"
    if first.attacked != "none":
        threat = f"{radius_text(first.norm, first.radius)}, {_WORDS[first.attacked]}"
        attack = f"{first.attack}, {first.steps} x {first.restarts}"
    certified = None
    if far is not None:
        certified = far.lower
    images = [first.n_id]
    for row in rows:
        images.append(row.n_ood)
    return Standing(
        network=first.model,
        weights=networks[first.model],
        detector=first.detector,
        id=first.id,
        form=_form(data),
        near_sets=_sets(data, near),
        far_sets=_sets(data, far),
        threat=threat,
        norm=first.norm,
        radius=first.radius,
        attacked=first.attacked,
        near=_value(near),
        near_interval=_interval(data, near),
        clean_near=_clean(data, near),
        far=_value(far),
        far_interval=_interval(data, far),
        clean_far=_clean(data, far),
        accuracy=_accuracy(data, first),
        certified=certified,
        sanity=_sanity(data, first),
        attack=attack,
        images=min(images),
        minutes=round(sum(row.seconds for row in rows) / 60, 2),
        folder=folder.resolve().name,
    )


_WORDS = {"in": "inliers", "out": "outliers", "both": "both sides"}


def _form(data: ReportData) -> str:
    """Return the size and colours that the evaluation's settings give to its images."""
    config = data.results.environment.get("config") or {}
    settings = config.get("data") or {}
    words = []
    if settings.get("size") is not None:
        words.append(f"{settings['size']} x {settings['size']} pixels")
    if settings.get("channels") == 1:
        words.append("grey")
    return ", ".join(words)


def _sets(data: ReportData, mean: Row | None) -> tuple[str, ...]:
    """Return the names of the OOD sets that a mean is of, sorted."""
    if mean is None:
        return ()
    subject = _subject(mean)
    names = set()
    for row in data.sets:
        if row.group == mean.group and _subject(row) == subject:
            names.add(row.ood)
    return tuple(sorted(names))


def _value(row: Row | None) -> float | None:
    return None if row is None else row.auroc


def _interval(data: ReportData, row: Row | None) -> tuple[float, float] | None:
    return None if row is None else data.interval(row)


def _clean(data: ReportData, row: Row | None) -> float | None:
    if row is None:
        return None
    clean = data.clean(row)
    return _value(clean)


def _accuracy(data: ReportData, row: Row) -> float | None:
    """Return the lowest accuracy under a row's threat; clean where inliers are not attacked."""
    threat = (row.norm, row.radius)
    clean = []
    attacked = []
    for record in data.results.classification:
        if record.model != row.model:
            continue
        if record.attack == "none":
            clean.append(record.accuracy)
        elif (record.norm, record.radius) == threat:
            attacked.append(record.accuracy)
    if row.attacked in ("in", "both"):
        return min(attacked, default=None)
    return min(clean, default=None)


def _sanity(data: ReportData, row: Row) -> str:
    """Return what the sanity checks of the evaluation said of a network and detector."""
    if not data.results.environment.get("sanity"):
        return "not checked"
    subject = f"{row.model}, {row.detector}:"
    alarms = [warning for warning in data.results.warnings if warning.startswith(subject)]
    if alarms:
        return f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}"
    return "no alarm"
