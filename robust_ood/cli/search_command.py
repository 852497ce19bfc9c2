"""`robust-ood search`: a detector's settings, chosen on validation sets, as a config."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as RichProgress
from rich.table import Table
from torch import Tensor, nn

from robust_ood import attacks, detectors
from robust_ood.attacks import Attack, attack_score
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.configs import with_includes
from robust_ood.cli.evaluate_checks import choose_device
from robust_ood.cli.interrupts import STOPPED, stopped_by_signals
from robust_ood.cli.messages import user_errors
from robust_ood.cli.networks import add_network_arguments, find_parts, load
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.preconditions import check_classes
from robust_ood.cli.quiet import quiet
from robust_ood.cli.search_store import StoredScorer
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.detectors import Detector
from robust_ood.detectors.fitting import Split
from robust_ood.detectors.registry import REGISTRY, Ranges
from robust_ood.detectors.search import Scorer, SearchResult, Trial, clean_score, search
from robust_ood.errors import UserError
from robust_ood.evaluation.grid_checks import refuse_unfitted
from robust_ood.settings import PartSpec, read_part
from robust_ood.writing import replace_file

SHOWN = 10
"""How many trials of each detector the terminal shows; the files have all."""


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
        """Return the searched settings of every point: all combinations of the ranges."""
        points = []
        for values in product(*self.ranges.values()):
            points.append(dict(zip(self.ranges, values, strict=True)))
        return points


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
        type=list[str | dict[str, Any]],
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
    attack: Attack | None = None
    scorer: Scorer = clean_score
    if config.attack is not None:
        attack = _read_attack(config.attack)
        scorer = partial(_attacked_score, attack)
    device = choose_device(config.device)
    check_writable(config.output)
    # What is wrong with the settings is said before anything is built or read.
    with user_errors(dict(config.items())):
        built = commands.instantiate(config)
    data: OODData = built.data
    validation = data.inliers("validation")
    outlier_sets = data.validation_ood_sets()
    if not outlier_sets:
        raise UserError(
            "data.validation_ood: not given; the search needs OOD images that are in no test set"
        )
    loaded = load(config.checkpoint, built.get("net"), config.key_map, averaged=config.averaged)
    net, _ = find_parts(loaded, validation.input_shape)
    check_classes(net, data, "validation")
    net.to(device)
    loaders = _make_loaders(data, outlier_sets, config.limit)
    stored = StoredScorer(scorer, net, attack, config.output)
    subject = Subject(data, net, loaders, stored)
    try:
        with stopped_by_signals():
            results = _search(candidates, subject, config.metric, config.output)
    except KeyboardInterrupt:
        print("stopped: what is done is kept; the same command computes the rest", file=sys.stderr)
        return STOPPED
    write(config.output, candidates, results, config.metric)
    Console().print(f"wrote {config.output / 'detectors.yaml'} and {config.output / 'search.json'}")
    return 0


@dataclass(frozen=True)
class Subject:
    """What is searched on: the data, the network, its images, and what scores them."""

    data: OODData
    net: nn.Module
    loaders: Loaders
    scorer: StoredScorer


def _search(
    candidates: Sequence[Candidate],
    subject: Subject,
    metric: Literal["auroc", "fpr95"],
    folder: Path,
) -> dict[str, SearchResult]:
    """Return the outcome of each detector's search, and print it."""
    console = Console()
    results = {}
    for candidate in candidates:
        # All points are fitted together, so that they share their passes over the data.
        detectors_by_point = _make_detectors(candidate, subject.net)
        _fit(list(detectors_by_point.values()), subject.data)
        result = choose(
            candidate, detectors_by_point, subject.loaders, metric, subject.scorer, console
        )
        results[candidate.label] = result
        _show(candidate, result, console, folder)
    scorer = subject.scorer
    if scorer.stored:
        total = scorer.stored + scorer.computed
        console.print(f"continued: {scorer.stored} of {total} batches were scored before")
    return results


@dataclass(frozen=True)
class Loaders:
    """Batches of the validation sets, and of the test sets that they may not share images with."""

    inliers: Iterable[Any]
    outliers: Iterable[Any]
    tests: list[Iterable[Any]]


def _make_loaders(data: OODData, outlier_sets: Sequence[Any], limit: int | None) -> Loaders:
    test_sets = []
    if data.names["test"]:
        test_sets.append(data.inliers("test"))
    for _, images in data.ood_sets():
        test_sets.append(images)
    return Loaders(
        inliers=_read_batches(data, [data.inliers("validation")], limit),
        outliers=_read_batches(data, outlier_sets, limit),
        tests=[data.evaluation_loader(images) for images in test_sets],
    )


def read_candidates(specs: Sequence[PartSpec]) -> list[Candidate]:
    """Return the detectors to search, each with its ranges.

    Raises: `UserError` for a detector without ranges, a range that is no list, a duplicate label.
    """
    candidates: dict[str, Candidate] = {}
    for spec in specs:
        candidate = _read_candidate(spec)
        label = candidate.label
        if label in candidates:
            raise UserError(f"detectors: {label!r} is duplicated; give one of them another 'label'")
        candidates[label] = candidate
    if not candidates:
        raise UserError("detectors: none given")
    return list(candidates.values())


def _read_candidate(spec: PartSpec) -> Candidate:
    part = read_part("detectors", spec)
    settings = dict(part.settings)
    ranges = settings.pop("ranges", None)
    if ranges is None:
        ranges = _registered_ranges(part.name, settings)
    ranges_field = f"detectors.{part.name}.ranges"
    if not isinstance(ranges, Mapping) or not ranges:
        raise UserError(
            f"{ranges_field}: not given, and no paper's ranges are registered; write "
            f"{{name: {part.name}, ranges: {{SETTING: [VALUE, VALUE]}}}}"
        )
    for name, values in ranges.items():
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"{ranges_field}.{name}: expected a list of values, got {values!r}")
    return Candidate(part.name, part.label or part.name, settings, ranges)


def _registered_ranges(name: str, settings: Mapping[str, Any]) -> Ranges:
    """Return the paper's ranges of the settings that the config does not fix."""
    if name not in REGISTRY:
        return {}
    registered = REGISTRY[name].ranges
    return {setting: registered[setting] for setting in registered if setting not in settings}


def choose(
    candidate: Candidate,
    detectors_by_point: Mapping[str, Detector],
    loaders: Loaders,
    metric: Literal["auroc", "fpr95"],
    scorer: Scorer,
    console: Console,
) -> SearchResult:
    """Return the outcome of one detector's search.

    Args:
        candidate: the detector and its ranges.
        detectors_by_point: ready to score, by `_key` of each point.
        loaders: validation and test sets.
        metric: what is best.
        scorer: how images are scored, clean or attacked.
        console: where progress is shown.
    """
    count = len(detectors_by_point)
    with RichProgress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{escape(candidate.label)}: {count} points", total=count)

        def advance(trial: Trial) -> None:
            bar.advance(task)

        return search(
            lambda **settings: detectors_by_point[_key(settings)],
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
        points = [{"settings": trial.settings, metric: trial.value} for trial in result.trials]
        trials.append(
            {
                "detector": candidate.label,
                "best": result.settings,
                metric: result.value,
                "trials": points,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    head = f"# Chosen by robust-ood search: the best {metric} on validation sets.\n"
    text = yaml.safe_dump({"detectors": chosen}, sort_keys=False)
    replace_file(folder / "detectors.yaml", head + text)
    replace_file(folder / "search.json", json.dumps(trials, indent=1) + "\n")


def _read_attack(spec: PartSpec) -> Attack:
    if isinstance(spec, Mapping):
        spec = dict(spec)
    try:
        (attack,) = attacks.build_all([spec]).values()
    except UserError as error:  # which names the list of an evaluation
        raise UserError(str(error).replace("attacks", "attack", 1)) from error
    if not math.isfinite(attack.settings()["radius"]):
        raise UserError("attack: no radius; accepted: attacks within an Linf, L2 or L1 radius")
    refuse_unfitted("attack", attack)
    return attack


def _attacked_score(
    attack: Attack, detector: Detector, images: Tensor, side: Literal[1, -1]
) -> Tensor:
    """Return the true scores `(N,)` after the attack through the detector."""
    return attack_score(detector, images, attack, side).values


def _read_batches(data: OODData, sets: Sequence[Any], limit: int | None) -> list[Tensor]:
    """Return the batches of several sets, `(N, C, H, W)` each."""
    # Held in memory: every point scores them.
    batches = []
    for images in sets:
        for batch in data.evaluation_loader(images, limit):
            batches.append(batch.images)
    return batches


def _make_detectors(candidate: Candidate, net: nn.Module) -> dict[str, Detector]:
    """Return the detector of every point, by the point's `_key`."""
    made: dict[str, Detector] = {}
    for point in candidate.points():
        settings = {**candidate.settings, **point}
        made[_key(point)] = detectors.build(candidate.name, net, **settings)
    return made


def _fit(candidates: Sequence[Detector], data: OODData) -> None:
    """Fit the detectors of all points in shared passes over the training images."""
    # Most detectors learn nothing: no training images are read for them.
    unfitted = [detector for detector in candidates if not detector.fitted]
    if not unfitted:
        return
    splits: set[Split] = set()
    for detector in unfitted:
        splits.update(detector.learns_from)
    validation = None
    if "validation" in splits:
        validation = data.evaluation_loader(data.inliers("validation"))
    outliers = None
    if "outliers" in splits:
        images = data.outliers()
        if images is not None:
            outliers = data.evaluation_loader(images)
    train = data.evaluation_loader(data.inliers("train"))
    detectors.fit(unfitted, train, validation=validation, outliers=outliers)


def _key(settings: Mapping[str, Any]) -> str:
    """Return what identifies a point: settings may be unhashable, such as lists of layers."""
    return repr(sorted(settings.items()))


def _show(candidate: Candidate, result: SearchResult, console: Console, folder: Path) -> None:
    trials = result.ordered()
    title = f"{escape(candidate.label)}: {result.metric} of {len(trials)} points, best first"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for name in (*candidate.ranges, result.metric):
        table.add_column(escape(name), justify="right")
    for trial in trials[:SHOWN]:
        values = [escape(str(trial.settings[name])) for name in candidate.ranges]
        table.add_row(*values, f"{trial.value:.4f}")
    console.print(table)
    if len(trials) > SHOWN:
        file = folder / "search.json"
        console.print(f"{SHOWN} of {len(trials)} points shown; all are in {file}", soft_wrap=True)
