"""Every detector of the registry on each network, clean and attacked through its own score.

    nice -n 10 python benchmarks/detector_table.py --weights cifar10_resnet20.th \\
        --checkpoint ALOE=last.ckpt --root ARRAYS --folder runs/detector_table

The best detectors are attacked by the standard suite, too. Each detector's scores are saved in
`--folder`, the cheapest first; the same command continues. `--estimate` times a step of each and
says how long the rest takes.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, networks, parser

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, ScoreAttack, standard
from robust_ood.data import EvaluationLoader, ImageSet, load_set
from robust_ood.errors import UserError
from robust_ood.evaluation.scoring import Scorer
from robust_ood.metrics import auroc

INLIERS = "cifar10_test"
OOD = ("cifar100_test", "svhn_test")
STEPS = 20
RESTARTS = 2
ATTACKS: dict[str, ScoreAttack | None] = {
    "clean": None,
    "1/255": PGD(Linf("1/255"), steps=STEPS, restarts=RESTARTS),
    "3/255": PGD(Linf("3/255"), steps=STEPS, restarts=RESTARTS),
}
SUITE_RADIUS = "1/255"
SETTINGS: dict[str, dict[str, Any]] = {"safe-spot": {"method": "fgsm", "attack_steps": 5}}
# Made of several networks; the same as pro-msp; of networks with dropout, with a class of outliers,
# with words, or of images.
LEFT_OUT = (
    "deep-ensemble",
    "pro",
    "mc-dropout",
    "outlier-class",
    "zero-shot",
    "neglabel",
    "likelihood",
    "complexity",
    "reconstruction",
)
HELD_OUT = 2000  # the last test images, for the temperature
TIMED = 16  # images whose attack is timed


class Sets:
    """The test sets, and the images that detectors are fitted on."""

    def __init__(self, root: Path, limit: int, fit: int) -> None:
        self.limit = limit
        self.fit = fit
        self.root = root
        self.inliers = load_set(INLIERS, root)
        self.ood = {name: load_set(name, root) for name in OOD}

    def loader(self, images: ImageSet, limit: int) -> EvaluationLoader:
        return EvaluationLoader(images, batch_size=128, limit=limit)

    def sides(self, limit: int) -> dict[str, EvaluationLoader]:
        """Return `limit` inliers, and as many outliers, half of each set."""
        found = {INLIERS: self.loader(self.inliers, limit)}
        for name, images in self.ood.items():
            found[name] = self.loader(images, limit // len(self.ood))
        return found

    def training(self, limit: int | None = None) -> EvaluationLoader:
        return EvaluationLoader(
            load_set("cifar10_train", self.root), batch_size=250, limit=limit or self.fit
        )

    def held_out(self) -> EvaluationLoader:
        last = torch.arange(len(self.inliers) - HELD_OUT, len(self.inliers)).numpy()
        return EvaluationLoader(self.inliers.subset(last), batch_size=250)

    def outliers(self) -> EvaluationLoader:
        return EvaluationLoader(
            load_set("outliers_tinyimagenet", self.root), batch_size=250, limit=1000
        )


def fitted(names: list[str], net: nn.Module, sets: Sets) -> dict[str, detectors.Detector]:
    """Return the detectors, all fitted in shared passes."""
    chosen = {name: detectors.build(name, net, **SETTINGS.get(name, {})) for name in names}
    detectors.fit(
        chosen.values(), sets.training(), validation=sets.held_out(), outliers=sets.outliers()
    )
    return chosen


class Measurement:
    """Detectors of one network, what one step of an attack on each costs, and their scores."""

    def __init__(self, net_name: str, net: nn.Module, sets: Sets, chosen: Any) -> None:
        self.net_name = net_name
        self.net = net
        self.sets = sets
        self.device = torch.device(chosen.device)
        self.folder: Path = chosen.folder
        self.fits: dict[str, detectors.Detector] = {}

    def prepare(self, names: list[str]) -> None:
        """Fit, together, those that are still to be measured."""
        missing = []
        for name in names:
            if not (self.folder / f"{self.net_name}-{name}.json").exists():
                missing.append(name)
        self.fits.update(fitted(missing, self.net, self.sets))

    def detector(self, name: str) -> detectors.Detector:
        if name not in self.fits:
            self.fits.update(fitted([name], self.net, self.sets))
        return self.fits[name].to(self.device)

    def costs(self) -> dict[str, Any]:
        """Return the seconds of one step of an attack on one image, by detector."""
        images = self.sets.loader(self.sets.inliers, TIMED)
        seconds = {}
        for name in self.fits:
            scorer = Scorer(self.device)
            step = PGD(Linf("1/255"), steps=2)
            ready = {"it": self.detector(name)}
            scorer.score(ready, images, step)  # the first is slower
            begin = time.process_time()
            scorer.score(ready, images, step)
            seconds[name] = (time.process_time() - begin) / (2 * TIMED)
        return {"of a step": seconds}

    def scores(self, name: str) -> dict[str, Any]:
        """Return scores by attack and set; each side is attacked through the detector."""
        scores = {}
        for label, attack in ATTACKS.items():
            scores.update(self._under(name, label, attack))
        return {"scores": scores}

    def under_the_suite(self, name: str) -> dict[str, Any]:
        return {"scores": self._under(name, "suite", standard(SUITE_RADIUS))}

    def _under(self, name: str, label: str, attack: ScoreAttack | None) -> dict[str, list[float]]:
        detector = self.detector(name)
        scores = {}
        for images, loader in self.sets.sides(self.sets.limit).items():
            direction = 1 if images == INLIERS else -1
            scored = Scorer(self.device).score({"it": detector}, loader, attack, direction)
            scores[f"{label} {images}"] = scored.scores["it"].tolist()
        return scores


def area(scores: dict[str, list[float]], inliers: str, outliers: str) -> float:
    """Return the AUROC of inliers under one attack against outliers under another one."""
    below: list[float] = []
    for name in OOD:
        below += scores[f"{outliers} {name}"]
    return auroc(Tensor(scores[f"{inliers} {INLIERS}"]), Tensor(below))


def columns(scores: dict[str, list[float]]) -> list[float]:
    """Return AUROCs: clean; then by radius, inliers attacked, outliers attacked, and both."""
    areas = [area(scores, "clean", "clean")]
    for label in list(ATTACKS)[1:]:
        areas += [
            area(scores, label, "clean"),
            area(scores, "clean", label),
            area(scores, label, label),
        ]
    return areas


def attacked(part: dict[str, Any]) -> float:
    """Return the AUROC with both sides attacked at the suite's radius."""
    return area(part["scores"], SUITE_RADIUS, SUITE_RADIUS)


def hours(costs: dict[str, float], names: list[str], limit: int) -> float:
    """Return the processor hours of the attacks on the named detectors."""
    steps = 2 * limit * STEPS * RESTARTS * (len(ATTACKS) - 1)
    return sum(costs[name] for name in names) * steps / 3600


def arguments() -> Any:
    made = parser(__doc__, limit=256, output="docs/results/detectors.md")
    made.add_argument(
        "--checkpoint",
        action="append",
        metavar="NAME=PATH",
        help="another network; may be repeated",
    )
    made.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    made.add_argument("--only", nargs="*", help="detectors; all by default")
    made.add_argument("--best", type=int, default=10, help="how many the suite attacks")
    made.add_argument("--estimate", action="store_true", help="only time a step of each")
    return made.parse_args()


def main() -> None:
    chosen = arguments()
    nets = networks(chosen)
    sets = Sets(chosen.root, chosen.limit, chosen.fit)
    names = chosen.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    settings = {"limit": chosen.limit, "fit": chosen.fit, "steps": STEPS, "restarts": RESTARTS}
    total = len(nets) * (1 + len(names) + chosen.best)
    parts = Parts(chosen.folder, settings, total)
    tables = {}
    for net_name, net in nets.items():
        measurement = Measurement(net_name, net, sets, chosen)
        measurement.prepare(names)
        costs = parts(f"{net_name}-costs", measurement.costs)["of a step"]
        order = sorted(names, key=lambda name: costs.get(name, 0.0))
        left = [name for name in measurement.fits if name in costs]
        print(f"{net_name}: about {hours(costs, left, chosen.limit):.1f} h of PGD left", flush=True)
        if not chosen.estimate:
            tables[net_name] = tables_of(measurement, order, parts, chosen.best)
    if not chosen.estimate:
        write(chosen, tables)


def tables_of(
    measurement: Measurement, names: list[str], parts: Parts, best: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the parts of one network: of all detectors under PGD, of the best under the suite."""
    found = {}
    for name in names:
        try:
            found[name] = parts(f"{measurement.net_name}-{name}", partial(measurement.scores, name))
        except UserError as error:
            # One detector that cannot be attacked leaves hours of others alone.
            print(f"{measurement.net_name}, {name}: {error}", flush=True)
    ranked = sorted(found, key=lambda name: -attacked(found[name]))[:best]
    suite = {}
    for name in ranked:
        suite[name] = parts(
            f"{measurement.net_name}-suite-{name}", partial(measurement.under_the_suite, name)
        )
    return {"pgd": found, "suite": suite}


def finding(net_name: str, found: dict[str, dict[str, Any]]) -> str:
    """Return the finding on one network in a sentence."""
    ranked = sorted(found, key=lambda name: -attacked(found[name]))
    clean = sorted(found, key=lambda name: -columns(found[name]["scores"])[0])
    below = sum(attacked(part) < 0.5 for part in found.values())
    return (
        f"On {net_name}, {below} of {len(found)} detectors are below 0.5 when both sides are "
        f"attacked at 1/255; the best is {ranked[0]} with {attacked(found[ranked[0]]):.3f}, and "
        f"{clean[0]}, the best on clean images "
        f"({columns(found[clean[0]]['scores'])[0]:.3f}), has {attacked(found[clean[0]]):.3f}."
    )


def between(tables: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> list[str]:
    """Return how much the network counts, and how much the detector, in a sentence."""
    if len(tables) < 2:
        return []
    spreads = []
    for net_name, parts in tables.items():
        areas = sorted(attacked(part) for part in parts["pgd"].values())
        spreads.append(f"{areas[len(areas) // 2]:.3f} ({net_name})")
    return [f"The median detector's AUROC there is {' and '.join(spreads)}."]


def write(chosen: Any, tables: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> None:
    sentences = [finding(name, parts["pgd"]) for name, parts in tables.items()]
    lines = [
        " ".join([*sentences, *between(tables)]),
        "",
        f"AUROC of the first {chosen.limit} CIFAR-10 test images against {chosen.limit // 2} each "
        f"of {' and '.join(OOD)}. Detectors are fitted on {chosen.fit:,} training images, the "
        f"temperature on the last {HELD_OUT:,} test images, the weights of the layers also on "
        "1,000 auxiliary outliers; other settings are the registry's, but the safe spot is "
        "searched by S-FGSM and attacked in 5 steps. Inliers, outliers, or both are attacked "
        f"through the detector's own score, by PGD in Linf with {STEPS} steps, random start and "
        f"{RESTARTS} restarts, step 2.5 radius / steps. Sorted by both sides at 1/255.",
        "",
    ]
    header = ["detector", "clean"]
    for label in list(ATTACKS)[1:]:
        header += [f"in, {label}", f"out, {label}", f"both, {label}"]
    for name, parts in tables.items():
        found = parts["pgd"]
        order = sorted(found, key=lambda one: -attacked(found[one]))
        rows = []
        for one in order:
            rows.append([one, *(f"{value:.3f}" for value in columns(found[one]["scores"]))])
        lines += [f"## {name}", "", *table(header, rows), *suite_lines(parts)]
    write_page(chosen.output, "Every detector, clean and attacked through itself", lines)


def suite_lines(parts: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return the table of the best detectors under the standard suite."""
    suite = parts["suite"]
    areas = {name: area(part["scores"], "suite", "suite") for name, part in suite.items()}
    rows = []
    for name in sorted(areas, key=lambda name: -areas[name]):
        rows.append((name, f"{attacked(parts['pgd'][name]):.3f}", f"{areas[name]:.3f}"))
    return [
        f"The best {len(suite)} under the standard suite at {SUITE_RADIUS}, both sides attacked:",
        "",
        *table(("detector", "PGD", "suite"), rows),
    ]


if __name__ == "__main__":
    main()
