"""What survived, in sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from robust_ood.evaluation import Row
from robust_ood.reporting.accuracy import accuracy_sentences
from robust_ood.reporting.decisions import threshold_words
from robust_ood.reporting.doubts import is_doubted
from robust_ood.reporting.numbers import percent, rate
from robust_ood.reporting.report_data import ReportData
from robust_ood.texts import radius_text

KEPT = 0.9  # from this AUROC on, a detector counts as robust
CHANCE = 0.5  # the AUROC of a coin

MOST_NAMED = 4  # detectors that a sentence names before it counts the others


def sentences(data: ReportData) -> list[str]:
    """Return the findings, the most important first."""
    findings = [_protocol(data)]
    for model in data.models:
        for group in data.groups:
            findings.append(_fate(data, model, group))
            findings.append(_deployed(data, model, group))
            for norm in data.norms:
                findings.append(_reach(data, model, group, norm))
    if _comparable(data):
        for group in data.groups:
            findings.append(_best(data, group))
    accuracies = data.results.classification
    findings += accuracy_sentences(accuracies, comparable=_comparable(data))
    findings.append(_uncertainty(data))
    findings.append(_training(data))
    return [sentence for sentence in findings if sentence]


def caveats(data: ReportData) -> list[str]:
    """Return why numbers of this report should not be compared, or not be trusted yet."""
    reasons = []
    if not data.results.complete:
        reasons.append(
            "The evaluation did not finish: rows are missing. Start it again; it computes only "
            "what is missing."
        )
    if not _comparable(data):
        protocols = " / ".join(map(", ".join, _models_by_protocol(data)))
        reasons.append(
            "Models were evaluated under different attacks or on different images "
            f"({protocols}): compare with care."
        )
    if any(setting is False for setting in sanity_settings(data)):
        reasons.append(
            "The sanity checks were switched off: nothing looked for masked gradients or attacks "
            "that fail."
        )
    return reasons


def sanity_settings(data: ReportData) -> list[object]:
    """Return, for each folder, whether the sanity checks ran; None where it does not say."""
    settings: list[object] = []
    for _, entries in data.environments:
        # Older results call it "checks".
        settings.append(entries.get("sanity", entries.get("checks")))
    return settings


def _models_by_protocol(data: ReportData) -> list[list[str]]:
    """Return the models in groups with the same attacks and the same numbers of images."""
    protocols: dict[frozenset[object], list[str]] = {}
    for model in data.models:
        protocol = frozenset(_protocol_of(row) for row in data.sets if row.model == model)
        protocols.setdefault(protocol, []).append(model)
    return list(protocols.values())


def _protocol_of(row: Row) -> tuple[object, ...]:
    budget = (row.attack, row.norm, row.radius, row.steps, row.restarts)
    images = (row.id, row.ood, row.n_id, row.n_ood)
    return (*budget, *images)


def _comparable(data: ReportData) -> bool:
    return len(_models_by_protocol(data)) <= 1


def _protocol(data: ReportData) -> str:
    """Say what was evaluated, on which images and under which attacks."""
    attacks: dict[str, None] = {}  # each once, in order; so for the sets
    inlier_sets: dict[str, None] = {}
    ood_sets: dict[str, None] = {}
    inliers = 0
    outliers = 0
    for row in data.sets:
        if row.attack != "none":
            attacks[row.attack] = None
        inlier_sets[row.id] = None
        ood_sets[row.ood] = None
        inliers = max(inliers, row.n_id)
        outliers = max(outliers, row.n_ood)
    text = (
        f"{_networks(data)} and {_count(len(data.detectors), 'detector')} "
        f"were scored on {inliers:,} in-distribution images ({', '.join(inlier_sets)}) against up "
        f"to {outliers:,} images of each of {_count(len(ood_sets), 'OOD set')} "
        f"({', '.join(ood_sets)}), clean"
    )
    if not attacks:
        return f"{text}; no attack was run."
    return f"{text} and under {_listed(list(attacks))}."


def _networks(data: ReportData) -> str:
    """Return how many networks there are, and how many recipes of several checkpoints."""
    single = len(data.models) - len(data.checkpoints)
    clauses = []
    if data.checkpoints:
        total = sum(map(len, data.checkpoints.values()))
        clauses.append(f"{_count(len(data.checkpoints), 'recipe')} of {total} checkpoints")
    if single or not clauses:
        clauses.append(_count(single, "network"))
    return ", ".join(clauses)


def _fate(data: ReportData, model: str, group: str) -> str:
    """Say what became of a model's detectors on a group of OOD sets."""
    worst = _worst_rows(data, [model], group)
    if not worst:
        return ""
    beginning = f"{model}, {group} OOD, strongest attack on both sides: "
    if len(worst) == 1:
        return f"{beginning}{_moved(data, worst[0])}, {_verdict(worst[0])}."
    clauses = []
    for fate, verb, level in (
        ("kept", "keep", f"an AUROC of at least {KEPT}"),
        ("weakened", "end", f"between {CHANCE} and {KEPT}"),
        ("below chance", "fall", "below chance"),
    ):
        rows = [row for row in worst if _verdict(row) == fate]
        if rows:
            subject = _subject(rows, worst, verb)
            clauses.append(f"{subject} {level} ({_moves(data, rows)})")
    return beginning + "; ".join(clauses) + "."


def _deployed(data: ReportData, model: str, group: str) -> str:
    """Say what the detectors accept at their thresholds, clean and under the strongest attack."""
    rows = [row for row in _worst_rows(data, [model], group) if row.threshold_set is not None]
    if not rows:
        return ""
    rows.sort(key=lambda row: row.fpr_deployed - row.tpr_deployed)
    clauses = []
    for row in rows[:MOST_NAMED]:
        clean = data.clean(row)
        before = "" if clean is None else f"{_accepted(clean)}, attacked "
        # Each checkpoint of a recipe has a threshold of its own.
        words = threshold_words(data, row)
        threshold = f" ({words})" if words else ""
        clauses.append(f"{row.detector}{threshold} {before}{_accepted(row)}")
    if len(rows) > MOST_NAMED:
        clauses.append(f"{len(rows) - MOST_NAMED} more in the tables")
    origin = str(rows[0].threshold_set)
    if origin == rows[0].id:
        origin += ", the tested images themselves"
    return (
        f"{model}, {group} OOD, deployed with the threshold that accepts 95 % of {origin}: "
        f"share of inliers and of OOD accepted, clean and with both sides attacked: "
        f"{'; '.join(clauses)}."
    )


def _accepted(row: Row) -> str:
    return f"{percent(row.tpr_deployed)} and {percent(row.fpr_deployed)}"


def _worst_rows(data: ReportData, models: Iterable[str], group: str) -> list[Row]:
    """Return the worst mean of each network and detector that was attacked."""
    rows = []
    for model in models:
        for detector in data.detectors:
            row = data.worst(model, detector, group)
            if row is not None:
                rows.append(row)
    return rows


def _verdict(row: Row) -> str:
    if row.auroc >= KEPT:
        return "kept"
    if row.auroc < CHANCE:
        return "below chance"
    return "weakened"


def _subject(rows: Sequence[Row], total: Sequence[Row], verb: str) -> str:
    """Return how many of all detectors, with the verb in the right number."""
    ending = "s" if len(rows) == 1 else ""
    if len(rows) == len(total):
        return f"all {len(total)} detectors {verb}{ending}"
    return f"{len(rows)} of {len(total)} detectors {verb}{ending}"


def _reach(data: ReportData, model: str, group: str, norm: str) -> str:
    """Say up to which radius a model's detectors keep their AUROC, or else stay above chance."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for detector in data.detectors:
        points = data.by_radius(model, detector, group, norm)
        attacked = [point for point in points if point[0] > 0]
        if len(attacked) > 1:
            curves[detector] = attacked
    for level in (KEPT, CHANCE):
        detectors_by_radius: dict[float, list[str]] = {}
        for detector, points in curves.items():
            detectors_by_radius.setdefault(_furthest(points, level), []).append(detector)
        nowhere = detectors_by_radius.pop(0.0, [])
        if detectors_by_radius:
            text = (
                f"{model}, {group} OOD, by radius: an AUROC of at least {level} stays with "
                f"{_reached(detectors_by_radius, norm)}"
            )
            if nowhere:
                text += f"; {_count(len(nowhere), 'detector')} at no radius"
            return f"{text}."
    return ""


def _reached(detectors_by_radius: Mapping[float, Sequence[str]], norm: str) -> str:
    clauses = []
    for radius, detectors in sorted(detectors_by_radius.items()):
        clauses.append(f"{_listed(detectors)} up to {radius_text(norm, radius)}")
    return _listed(clauses)


def _furthest(points: Sequence[tuple[float, float]], level: float) -> float:
    """Return the radius up to which the AUROC reaches a level, 0 where it does at none."""
    furthest = 0.0
    for radius, auroc in points:
        if auroc < level:
            break
        furthest = radius
    return furthest


def _moves(data: ReportData, rows: Sequence[Row]) -> str:
    """Return the AUROCs of detectors, clean and attacked, the best first."""
    ordered = sorted(rows, key=lambda row: -row.auroc)
    moves = []
    for row in ordered[:MOST_NAMED]:
        moves.append(_moved(data, row))
    text = ", ".join(moves)
    if len(ordered) > MOST_NAMED:
        text += f" and {len(ordered) - MOST_NAMED} more"
    return text


def _moved(data: ReportData, row: Row) -> str:
    clean = data.clean(row)
    if clean is None:
        return f"{row.detector} {spread(data, row)}"
    return f"{row.detector} {spread(data, clean)} → {spread(data, row)}"


def spread(data: ReportData, row: Row, metric: str = "auroc") -> str:
    """Return a metric, and its deviation where it is a mean over checkpoints."""
    text = rate(getattr(row, metric))
    deviation = data.deviation(row, metric)
    if deviation is not None:
        text += f" ± {rate(deviation)}"
    return text


def _best(data: ReportData, group: str) -> str:
    """Say which pair of network and detector is the most robust one."""
    rows = _worst_rows(data, data.models, group)
    if len(rows) < 2:
        return ""
    best = max(rows, key=lambda row: row.auroc)
    if best.auroc < CHANCE:
        return (
            f"Under its strongest attack on {group} OOD, no pair of network and detector stays "
            "above chance."
        )
    text = f"Best under its strongest attack on {group} OOD: "
    equal = [row for row in rows if rate(row.auroc) == rate(best.auroc)]
    if len(equal) > 1:
        pairs = f"{len(equal)} of {len(rows)} pairs of network and detector"
        return f"{text}{pairs}, all at {rate(best.auroc)}."
    text += f"{best.model} with {best.detector}, {spread(data, best)}"
    interval = data.interval(best)
    if interval:
        low, high = interval
        text += f" (95 % interval {rate(low)} to {rate(high)})"
    if is_doubted(data, best.model, best.detector):
        text += ", but a sanity warning casts doubt on it"
    return text + "."


def _uncertainty(data: ReportData) -> str:
    widths = list(_interval_widths(data))
    if not widths:
        return ""
    return (
        f"The 95 % intervals of AUROC are up to {max(widths):.3f} wide: smaller differences may be "
        "due to the draw of the test images. They do not cover the randomness of training."
    )


def _training(data: ReportData) -> str:
    """Say what the deviations are."""
    if not data.checkpoints:
        return ""
    recipes = [f"{recipe}: {len(models)}" for recipe, models in data.checkpoints.items()]
    return (
        "±: sample standard deviation over the checkpoints of a recipe "
        f"({', '.join(recipes)}), the randomness of training."
    )


def _interval_widths(data: ReportData) -> Iterator[float]:
    for interval in data.results.intervals:
        low, high = interval.auroc
        yield high - low


def _count(number: int, noun: str) -> str:
    ending = "" if number == 1 else "s"
    return f"{number} {noun}{ending}"


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
