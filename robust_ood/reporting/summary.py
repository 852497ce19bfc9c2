"""What survived, in words made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from robust_ood.evaluation import Accuracy, Row
from robust_ood.reporting.source import Source

KEPT, CHANCE = 0.9, 0.5  # AUROC that counts as kept; that of a coin


def sentences(source: Source) -> list[str]:
    """Return the findings, one sentence or two each, the most important first."""
    found = [_protocol(source)]
    for model in source.models:
        for group in source.groups:
            found += [
                _fate(source, model, group),
                *(_reach(source, model, group, norm) for norm in source.norms),
            ]
    found += [_best(source, group) for group in source.groups if _comparable(source)]
    found += _accuracy(source)
    found += _uncertainty(source)
    return [sentence for sentence in found if sentence]


def caveats(source: Source) -> list[str]:
    """Return why numbers of this report should not be compared, or not be trusted yet."""
    found = []
    if not source.results.complete:
        found.append(
            "The evaluation did not finish: rows are missing. Start it again; it computes only what is missing."
        )
    if not _comparable(source):
        several = " / ".join(", ".join(models) for models in _protocols(source))
        found.append(
            f"Models were evaluated under different attacks or on different images ({several}): compare with care."
        )
    # Older results call it "checks".
    if any(env.get("sanity", env.get("checks")) is False for _, env in source.environments):
        found.append(
            "The sanity checks were switched off: nothing has looked for masked gradients or attacks that fail."
        )
    return found


def _protocols(source: Source) -> list[list[str]]:
    """Return the models by what they were evaluated on and under."""
    found: dict[frozenset[object], list[str]] = {}
    for model in source.models:
        rows = [row for row in source.sets if row.model == model]
        what = {(row.attack, row.norm, row.radius, row.steps, row.restarts, row.id, row.ood, row.n_id, row.n_ood)
                for row in rows}  # fmt: skip
        found.setdefault(frozenset(what), []).append(model)
    return list(found.values())


def _comparable(source: Source) -> bool:
    return len(_protocols(source)) <= 1


def _protocol(source: Source) -> str:
    rows = source.sets
    attacks = list(dict.fromkeys(row.attack for row in rows if row.attack != "none"))
    n_id, n_ood = (
        max((row.n_id for row in rows), default=0),
        max((row.n_ood for row in rows), default=0),
    )
    ids, oods = dict.fromkeys(row.id for row in rows), dict.fromkeys(row.ood for row in rows)
    text = (
        f"{_count(len(source.models), 'network')} and {_count(len(source.detectors), 'detector')} were scored on "
        f"{n_id:,} in-distribution images ({', '.join(ids)}) against up to {n_ood:,} images of each of "
        f"{_count(len(oods), 'OOD set')} ({', '.join(oods)}), clean"
    )
    return text + (f" and under {_listed(attacks)}." if attacks else "; no attack was run.")


def _fate(source: Source, model: str, group: str) -> str:
    """Say what became of a model's detectors on a group of OOD sets."""
    worst = [row for name in source.detectors if (row := source.worst(model, name, group))]
    if not worst:
        return ""
    begin = f"{model}, {group} OOD, strongest attack on both sides: "
    if len(worst) == 1:
        verdict = (
            "kept"
            if worst[0].auroc >= KEPT
            else "below chance"
            if worst[0].auroc < CHANCE
            else "weakened"
        )
        return f"{begin}{_moved(source, worst[0])}, {verdict}."
    fates = (
        ("keep", f"an AUROC of at least {KEPT}", [row for row in worst if row.auroc >= KEPT]),
        (
            "end",
            f"between {CHANCE} and {KEPT}",
            [row for row in worst if CHANCE <= row.auroc < KEPT],
        ),
        ("fall", "below chance", [row for row in worst if row.auroc < CHANCE]),
    )
    parts = []
    for verb, where, rows in fates:
        if rows:
            who = (
                f"all {len(worst)} detectors"
                if len(rows) == len(worst)
                else f"{len(rows)} of {len(worst)} detectors"
            )
            parts.append(f"{who} {verb}{'s' * (len(rows) == 1)} {where} ({_moves(source, rows)})")
    return begin + "; ".join(parts) + "."


def _reach(source: Source, model: str, group: str, norm: str) -> str:
    """Say up to which of several radii a model's detectors keep their AUROC, or where none does,
    stay above chance.
    """
    curves = {name: source.by_radius(model, name, group, norm) for name in source.detectors}
    attacked = {name: [point for point in curve if point[0] > 0] for name, curve in curves.items()}
    for level in (KEPT, CHANCE):
        reached: dict[float, list[str]] = {}
        for name, points in attacked.items():
            if len(points) > 1:
                reached.setdefault(_furthest(points, level), []).append(name)
        nowhere = reached.pop(0.0, [])
        if reached:
            parts = [
                f"{_listed(names)} up to {radius_text(norm, radius)}"
                for radius, names in sorted(reached.items())
            ]
            none = f"; {_count(len(nowhere), 'detector')} at no radius" if nowhere else ""
            return f"{model}, {group} OOD, by radius: an AUROC of at least {level} stays with {_listed(parts)}{none}."
    return ""


def _furthest(points: Sequence[tuple[float, float]], level: float) -> float:
    """Return the radius up to which the AUROC reaches a level, 0 where it does at none."""
    furthest = 0.0
    for radius, auroc in points:
        if auroc < level:
            break
        furthest = radius
    return furthest


def _moves(source: Source, rows: Sequence[Row]) -> str:
    shown = [_moved(source, row) for row in sorted(rows, key=lambda row: -row.auroc)]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _moved(source: Source, row: Row) -> str:
    clean = source.clean(row)
    return (
        f"{row.detector} {rate(clean.auroc)} → {rate(row.auroc)}"
        if clean
        else f"{row.detector} {rate(row.auroc)}"
    )


def _best(source: Source, group: str) -> str:
    every = [
        row for m in source.models for d in source.detectors if (row := source.worst(m, d, group))
    ]
    if len(every) < 2:
        return ""
    best = max(every, key=lambda row: row.auroc)
    equal = [row for row in every if rate(row.auroc) == rate(best.auroc)]
    text = f"Best under its strongest attack on {group} OOD: "
    if best.auroc < CHANCE:
        return f"Under its strongest attack on {group} OOD, no pair of network and detector stays above chance."
    if len(equal) > 1:
        return f"{text}{len(equal)} of {len(every)} pairs of network and detector, all at {rate(best.auroc)}."
    text += f"{best.model} with {best.detector}, {rate(best.auroc)}"
    interval = source.interval(best)
    if interval:
        text += f" (95 % interval {rate(interval[0])} to {rate(interval[1])})"
    if any(
        warning.startswith(f"{best.model}, {best.detector}:") for warning in source.results.warnings
    ):
        text += ", but a sanity warning doubts it"
    return text + "."


def _accuracy(source: Source) -> list[str]:
    """Say what robustness costs in clean accuracy, and what is left of accuracy under attack."""
    clean = {row.model: row for row in source.results.classification if row.attack == "none"}
    if not clean:
        return []
    hit: dict[str, Accuracy] = {}
    for row in source.results.classification:
        if row.attack != "none" and (
            row.model not in hit or row.accuracy < hit[row.model].accuracy
        ):
            hit[row.model] = row
    top = max(clean.values(), key=lambda row: row.accuracy) if _comparable(source) else None
    parts = []
    for model, row in clean.items():
        text = f"{model} {percent(row.accuracy)}"
        if top is not None and row is not top:
            text += f" ({100 * (row.accuracy - top.accuracy):+.1f} points)".replace(
                "-", "\N{MINUS SIGN}"
            )
        if model in hit:
            text += f", under {hit[model].attack} {percent(hit[model].accuracy)}"
        parts.append(text)
    return [f"Classification accuracy: {'; '.join(parts)}."]


def _uncertainty(source: Source) -> list[str]:
    widths = [one.auroc[1] - one.auroc[0] for one in source.results.intervals]
    if not widths:
        return []
    return [
        f"The 95 % intervals of AUROC are up to {max(widths):.3f} wide: smaller differences may be chance in the "
        "draw of test images. They do not cover the chance of training."
    ]


def rate(value: float) -> str:
    """Return a rate with three decimals."""
    return f"{value:.3f}"


def percent(value: float) -> str:
    """Return a share in percent with one decimal."""
    return f"{100 * value:.1f} %"


def radius_text(norm: str, radius: float) -> str:
    """Return norm and radius in words, an Linf radius in 255ths."""
    return f"{norm} {radius * 255:g}/255" if norm == "Linf" else f"{norm} {radius:g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
