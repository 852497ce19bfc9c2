"""`robust-ood search`: a detector's settings, chosen on validation sets, as a config."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table
from torch import Tensor, nn

from robust_ood import attacks, detectors
from robust_ood.attacks import Attack, attack_score
from robust_ood.cli.configs import with_includes
from robust_ood.cli.evaluate_checks import choose_device
from robust_ood.cli.messages import parse_arguments, user_errors
from robust_ood.cli.networks import add_network_arguments, find_parts, load
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.preconditions import check_classes
from robust_ood.cli.quiet import quiet
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.detectors import Detector
from robust_ood.detectors.registry import REGISTRY
from robust_ood.detectors.search import Scorer, SearchResult, Trial, clean_score, search
from robust_ood.errors import UserError
from robust_ood.settings import Part, PartSpec, read_part
from robust_ood.writing import replace_file

Specs = list[str | dict[str, Any]]
SHOWN = 10
"""Trials of each detector that the terminal shows; the files have all."""


@dataclass(frozen=True)
class Candidate:
    """A detector whose settings are to be chosen.

    Args:
        name: registered, or an import path.
        label: what results call it.
        settings: those that are not searched.
        ranges: the values to try, by setting.
    """

    name: str
    label: str
    settings: Mapping[str, Any]
    ranges: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def points(self) -> list[dict[str, Any]]:
        """Return the settings of every point of the grid."""
        combinations = product(*self.ranges.values())
        return [dict(zip(self.ranges, values, strict=True)) for values in combinations]


def parser() -> ArgumentParser:
    """Return the parser of the search command."""
    register_types()
    parser = CommandParser(
        prog="robust-ood search", description="Choose detectors' settings on validation sets."
    )
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="YAML file with the data; several compose")
    add("--include", type=list[str], default=[], help="config files that this one builds on")
    add_network_arguments(parser)
    add("--output", type=Path, default=Path("search"), help="folder of detectors.yaml, search.json")
    add(
        "--detectors",
        type=Specs,
        default=["odin"],
        help="names, or name, settings that stay fixed, and `ranges` to try instead of the paper's",
    )
    add("--metric", type=Literal["auroc", "fpr95"], default="auroc", help="what is best")
    add(
        "--attack",
        type=dict[str, Any] | str | None,
        default=None,
        help="choose by the metric with both sides under this attack (default: clean)",
    )
    add("--limit", type=int | None, default=None, help="use only so many images of each set")
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_class_arguments(OODData, "data")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Choose settings and return the exit code."""
    quiet()
    commands = parser()
    config = parse_arguments(commands, with_includes(arguments))
    if config.limit is not None and config.limit < 1:
        raise UserError(f"limit: expected a number of images >= 1, got {config.limit}")
    candidates = read_candidates(config.detectors)
    attack = _read_attack(config.attack)
    device = choose_device(config.device)
    check_writable(config.output)
    with user_errors(dict(config.items())):
        built = commands.instantiate(config)
    data: OODData = built.data
    validation = data.inliers("validation")
    foreign = data.validation_ood_sets()
    if not foreign:
        raise UserError(
            "data.validation_ood: not given; the search needs OOD images that are in no test set"
        )
    net, _ = find_parts(
        load(config.checkpoint, built.get("net"), config.key_map), validation.image_shape
    )
    check_classes(net, data, "validation")
    net.to(device)
    loaders = Loaders(
        inliers=_collect(data, [validation], config.limit),
        outliers=_collect(data, foreign, config.limit),
        tests=_test_loaders(data),
    )
    console = Console()
    results = {}
    for candidate in candidates:
        results[candidate.label] = choose(
            candidate, net, data, loaders, config.metric, attack, console
        )
        _show(candidate, results[candidate.label], console)
    write(config.output, candidates, results, config.metric)
    console.print(f"wrote {config.output / 'detectors.yaml'} and {config.output / 'search.json'}")
    return 0


@dataclass(frozen=True)
class Loaders:
    """Batches of the validation sets, and of the test sets that they may not share images with."""

    inliers: Iterable[Any]
    outliers: Iterable[Any]
    tests: list[Iterable[Any]]


def read_candidates(specs: Sequence[PartSpec]) -> list[Candidate]:
    """Return the detectors to search, each with its ranges.

    Raises: `UserError` for a detector without ranges, a range that is no list, a duplicate label.
    """
    candidates: list[Candidate] = []
    labels: set[str] = set()
    for spec in specs:
        candidate = _read_candidate(read_part("detectors", spec))
        if candidate.label in labels:
            raise UserError(
                f"detectors: {candidate.label!r} is duplicated; give one of them another 'label'"
            )
        labels.add(candidate.label)
        candidates.append(candidate)
    if not candidates:
        raise UserError("detectors: none given")
    return candidates


def _read_candidate(detector: Part) -> Candidate:
    settings = dict(detector.settings)
    ranges = settings.pop("ranges", None)
    field_name = f"detectors.{detector.name}.ranges"
    if ranges is None:
        ranges = _registered_ranges(detector.name, settings)
    if not isinstance(ranges, Mapping) or not ranges:
        raise UserError(
            f"{field_name}: not given, and no paper's ranges are registered; write "
            f"{{name: {detector.name}, ranges: {{SETTING: [VALUE, VALUE]}}}}"
        )
    for name, values in ranges.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"{field_name}.{name}: expected a list of values, got {values!r}")
    return Candidate(detector.name, detector.label or detector.name, settings, ranges)


def _registered_ranges(name: str, fixed: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Return the papers' ranges of a detector's settings, without those that stay fixed."""
    ranges: dict[str, Sequence[Any]] = {}
    if name in REGISTRY:
        ranges.update(REGISTRY[name].ranges)
    for setting in fixed:
        ranges.pop(setting, None)
    return ranges


def choose(
    candidate: Candidate,
    net: nn.Module,
    data: OODData,
    loaders: Loaders,
    metric: Literal["auroc", "fpr95"],
    attack: Attack | None,
    console: Console,
) -> SearchResult:
    """Return the outcome of a detector's search: all its points are fitted in shared passes."""
    points = candidate.points()
    built: dict[str, Detector] = {}
    for point in points:
        settings = {**candidate.settings, **point}
        built[_key(point)] = detectors.build(candidate.name, net, **settings)
    _fit(list(built.values()), data)
    scorer: Scorer = clean_score
    if attack is not None:
        scorer = partial(_attacked_score, attack)
    with ProgressBar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{candidate.label}: {len(points)} points", total=len(points))

        def advance(trial: Trial) -> None:
            bar.advance(task)

        return search(
            lambda **settings: built[_key(settings)],
            candidate.ranges,
            loaders.inliers,
            loaders.outliers,
            metric=metric,
            test_sets=loaders.tests,
            scorer=scorer,
            on_trial=advance,
        )


def write(
    folder: Path,
    candidates: Sequence[Candidate],
    results: Mapping[str, SearchResult],
    metric: str,
) -> None:
    """Write the chosen settings as a config of `evaluate.py`, and all trials."""
    chosen = []
    trials = []
    for candidate in candidates:
        result = results[candidate.label]
        spec = {"name": candidate.name, **candidate.settings, **result.settings}
        if candidate.label != candidate.name:
            spec["label"] = candidate.label
        chosen.append(spec)
        record = {"detector": candidate.label, "best": result.settings, metric: result.value}
        tried = []
        for trial in result.trials:
            tried.append({"settings": trial.settings, metric: trial.value})
        record["trials"] = tried
        trials.append(record)
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# Chosen by robust-ood search: the best {metric} on validation sets.\n"
    text = yaml.safe_dump({"detectors": chosen}, sort_keys=False)
    replace_file(folder / "detectors.yaml", head + text)
    replace_file(folder / "search.json", json.dumps(trials, indent=1) + "\n")


def _read_attack(spec: PartSpec | None) -> Attack | None:
    if spec is None:
        return None
    if isinstance(spec, Mapping):
        spec = dict(spec)
    (attack,) = attacks.build_all([spec]).values()
    if not math.isfinite(attack.settings()["radius"]):
        raise UserError("attack: no radius; accepted: attacks within an Linf or L2 radius")
    return attack


def _attacked_score(
    attack: Attack, detector: Detector, images: Tensor, side: Literal[1, -1]
) -> Tensor:
    """Return the true scores `(N,)` after the attack through the detector."""
    return attack_score(detector, images, attack, side).values


def _collect(data: OODData, sets: Sequence[Any], limit: int | None) -> list[Tensor]:
    """Return the batches of several sets, read once."""
    batches = []
    for images in sets:
        for batch in data.evaluation_loader(images, limit):
            batches.append(batch.images)
    return batches


def _test_loaders(data: OODData) -> list[Iterable[Any]]:
    loaders: list[Iterable[Any]] = []
    if data.names["test"]:
        loaders.append(data.evaluation_loader(data.inliers("test")))
    for _, images in data.ood_sets():
        loaders.append(data.evaluation_loader(images))
    return loaders


def _fit(built: Sequence[Detector], data: OODData) -> None:
    """Fit all points of a grid in shared passes over the training images."""
    unfitted = []
    splits: set[str] = set()
    for detector in built:
        if not detector.fitted:
            unfitted.append(detector)
            splits.update(detector.learns_from)
    if not unfitted:
        return
    validation = None
    if "validation" in splits:
        validation = data.evaluation_loader(data.inliers("validation"))
    outliers = None
    outlier_images = data.outliers() if "outliers" in splits else None
    if outlier_images is not None:
        outliers = data.evaluation_loader(outlier_images)
    detectors.fit(
        unfitted,
        data.evaluation_loader(data.inliers("train")),
        validation=validation,
        outliers=outliers,
    )


def _key(settings: Mapping[str, Any]) -> str:
    return repr(sorted(settings.items()))


def _show(candidate: Candidate, result: SearchResult, console: Console) -> None:
    trials = result.ordered()
    title = f"{candidate.label}: {result.metric} of {len(trials)} points, best first"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for name in (*candidate.ranges, result.metric):
        table.add_column(name, justify="right")
    for trial in trials[:SHOWN]:
        values = [str(trial.settings[name]) for name in candidate.ranges]
        table.add_row(*values, f"{trial.value:.4f}")
    console.print(table)
