"""Every detector of the registry on each network, clean and attacked through its own score.

    nice -n 10 python benchmarks/detector_table.py --weights cifar10_resnet20.th \\
        --checkpoint ALOE=last.ckpt --root ARRAYS --folder runs/detector_table

The best detectors are attacked by the standard suite, too. What is most important comes first: all
detectors at 1/255, the cheapest first, on each network; the suite on the best; then 3/255. Each
part is saved in `--folder` as soon as it is done; the same command continues. `--page` writes the
page from the parts that are there, `--estimate` times a step of each detector and says how long the
rest takes.
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
from robust_ood.attacks import PGD, ScoreAttack, Suite, standard
from robust_ood.attacks.objectives import Direction
from robust_ood.data import EvaluationLoader, ImageSet, load_set
from robust_ood.errors import UserError
from robust_ood.evaluation.scoring import Scorer
from robust_ood.metrics import auroc

INLIERS = "cifar10_test"
OOD = ("cifar100_test", "svhn_test")
STEPS = 20
RESTARTS = 2
SUITE_RADIUS = "1/255"
LARGER_RADIUS = "3/255"
STAGES = (SUITE_RADIUS, "suite", LARGER_RADIUS)  # the most important first


def attack_of(stage: str) -> Suite:
    """Return the attack of a stage; restarts are members, so that settled images are left alone."""
    if stage == "suite":
        return standard(SUITE_RADIUS)
    members: dict[str, ScoreAttack] = {}
    for seed in range(RESTARTS):
        members[f"restart {seed + 1}"] = PGD(Linf(stage), steps=STEPS, seed=seed)
    return Suite(members)


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
TIMED_STEPS = 4


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

    def __init__(
        self, net_name: str, net: nn.Module, sets: Sets, parts: Parts, device: str
    ) -> None:
        self.net_name = net_name
        self.net = net
        self.sets = sets
        self.parts = parts
        self.device = torch.device(device)
        self.fits: dict[str, detectors.Detector] = {}

    def part(self, name: str, stage: str) -> str:
        """Return the name of the part with a detector's scores."""
        return f"{self.net_name}-{name}-{stage.replace('/', '_of_')}"

    def kept(self, names: list[str], stage: str) -> dict[str, dict[str, Any]]:
        """Return the scores that are done, by detector."""
        found = {}
        for name in names:
            part = self.parts.kept(self.part(name, stage))
            if part is not None:
                found[name] = part["scores"]
        return found

    def missing(self, names: list[str], stage: str) -> list[str]:
        done = self.kept(names, stage)
        return [name for name in names if name not in done]

    def prepare(self, names: list[str]) -> None:
        """Fit, together, those that are not fitted yet."""
        new = [name for name in names if name not in self.fits]
        if new:
            self.fits.update(fitted(new, self.net, self.sets))

    def costs(self, names: list[str]) -> dict[str, float]:
        """Return the seconds of one step of an attack on one image, by detector."""
        images = self.sets.loader(self.sets.inliers, TIMED)
        seconds = {}
        self.prepare(names)
        for name in names:
            scorer = Scorer(self.device)
            steps = PGD(Linf(SUITE_RADIUS), steps=TIMED_STEPS)
            ready = {"it": self.fits[name].to(self.device)}
            begin = time.process_time()
            scorer.score(ready, images, steps)
            seconds[name] = (time.process_time() - begin) / (TIMED_STEPS * TIMED)
        return seconds

    def run(self, name: str, stage: str) -> dict[str, Any]:
        """Return a detector's scores by attack and set; each side is attacked through it."""
        return self.parts(self.part(name, stage), partial(self.scores, name, stage))

    def scores(self, name: str, stage: str) -> dict[str, Any]:
        first = self.parts.kept(self.part(name, SUITE_RADIUS))
        found: dict[str, list[float]] = {}
        if first is None:
            found = self._under(name, "clean", None, {})
        else:
            for label, values in first["scores"].items():
                if label.startswith("clean "):
                    found[label] = values
        return {"scores": {**found, **self._under(name, stage, attack_of(stage), bars(found))}}

    def _under(
        self, name: str, label: str, attack: ScoreAttack | None, enough: dict[int, float]
    ) -> dict[str, list[float]]:
        self.prepare([name])
        detector = self.fits[name].to(self.device)
        scores = {}
        for images, loader in self.sets.sides(self.sets.limit).items():
            direction: Direction = 1 if images == INLIERS else -1
            scored = Scorer(self.device).score(
                {"it": detector}, loader, attack, direction, enough.get(direction)
            )
            scores[f"{label} {images}"] = scored.scores["it"].tolist()
        return scores


def bars(scores: dict[str, list[float]]) -> dict[int, float]:
    """Return, by direction, the score beyond which an image can no longer change an AUROC.

    An attacked inlier below all clean outliers is below all attacked ones, too: see
    `robust_ood.evaluation.settled`.
    """
    outliers: list[float] = []
    for name in OOD:
        outliers += scores[f"clean {name}"]
    return {1: min(outliers), -1: max(scores[f"clean {INLIERS}"])}


def area(scores: dict[str, list[float]], inliers: str, outliers: str) -> float:
    """Return the AUROC of inliers under one attack against outliers under another one."""
    below: list[float] = []
    for name in OOD:
        below += scores[f"{outliers} {name}"]
    return auroc(Tensor(scores[f"{inliers} {INLIERS}"]), Tensor(below))


def clean(scores: dict[str, list[float]]) -> float:
    return area(scores, "clean", "clean")


def attacked(scores: dict[str, list[float]], stage: str = SUITE_RADIUS) -> float:
    """Return the AUROC with both sides attacked."""
    return area(scores, stage, stage)


def columns(scores: dict[str, list[float]] | None, stage: str) -> list[str]:
    """Return the AUROCs with inliers, outliers, and both attacked, as text."""
    if scores is None:
        return ["-"] * 3
    sides = ((stage, "clean"), ("clean", stage), (stage, stage))
    return [f"{area(scores, *side):.3f}" for side in sides]


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
    made.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES, help="all by default")
    made.add_argument("--estimate", action="store_true", help="only time a step of each")
    made.add_argument("--page", action="store_true", help="only write the page of what is done")
    return made.parse_args()


def main() -> None:
    chosen = arguments()
    sets = Sets(chosen.root, chosen.limit, chosen.fit)
    names = chosen.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    settings = {"limit": chosen.limit, "fit": chosen.fit, "steps": STEPS, "restarts": RESTARTS}
    nets = networks(chosen)
    # A part for the costs, and one for each detector and radius; the best have one more.
    parts = Parts(chosen.folder, settings, len(nets) * (1 + 2 * len(names) + chosen.best))
    measurements = []
    for net_name, net in nets.items():
        measurements.append(Measurement(net_name, net, sets, parts, chosen.device))
    if chosen.estimate:
        for measurement in measurements:
            estimate(measurement, names, chosen)
        return
    if not chosen.page:
        for stage in STAGES:
            for measurement in measurements:
                if stage in chosen.stages:
                    run_stage(measurement, stage, names, chosen.best)
    write(chosen, measurements, names)


def run_stage(measurement: Measurement, stage: str, names: list[str], best: int) -> None:
    """Attack all detectors, the cheapest first, or the best ones by the suite."""
    missing = measurement.missing(names, stage)
    if stage == "suite":
        missing = measurement.missing(best_of(measurement, names, best), stage)
    if not missing:
        return
    print(f"{measurement.net_name}, {stage}: fitting {len(missing)} detectors", flush=True)
    measurement.prepare(missing)
    costs = measurement.costs(missing)
    for name in sorted(missing, key=lambda name: costs[name]):
        try:
            measurement.run(name, stage)
        except UserError as error:
            # One detector that cannot be attacked leaves hours of others alone.
            print(f"{measurement.net_name}, {name}: {error}", flush=True)


def best_of(measurement: Measurement, names: list[str], count: int) -> list[str]:
    """Return the detectors with the largest AUROC, both sides attacked, the best first."""
    found = measurement.kept(names, SUITE_RADIUS)
    return sorted(found, key=lambda name: -attacked(found[name]))[:count]


def estimate(measurement: Measurement, names: list[str], chosen: Any) -> None:
    """Print the processor hours of each stage, where no image were settled before the end."""
    begin = time.process_time()
    measurement.prepare(names)
    fitting = time.process_time() - begin
    costs = measurement.costs(names)
    hours = {name: 2 * chosen.limit * cost / 3600 for name, cost in costs.items()}  # of a step
    for name in sorted(costs, key=lambda name: -costs[name]):
        radius = hours[name] * STEPS * RESTARTS
        suite = hours[name] * steps_of_the_suite(measurement.fits[name])
        print(f"{name}: {1000 * costs[name]:.2f} ms, {radius:.2f} h a radius, {suite:.2f} h suite")
    total = STEPS * RESTARTS * sum(hours.values())
    typical = sorted(hours.values())[len(hours) // 2]
    middle = chosen.best * typical * steps_of_the_suite(measurement.fits[names[0]])
    print(
        f"{measurement.net_name}: fitting {fitting / 60:.1f} min; {total:.1f} h a radius; about "
        f"{middle:.1f} h the suite on {chosen.best} detectors of median cost",
        flush=True,
    )


def steps_of_the_suite(detector: detectors.Detector) -> int:
    return sum(standard(SUITE_RADIUS).costs(detector).values())


def finding(measurement: Measurement, names: list[str]) -> list[str]:
    """Return the finding on one network, a sentence."""
    found = measurement.kept(names, SUITE_RADIUS)
    if not found:
        return []
    best = best_of(measurement, names, 1)[0]
    cleanest = max(found, key=lambda name: clean(found[name]))
    below = sum(attacked(scores) < 0.5 for scores in found.values())
    return [
        f"On {measurement.net_name}, {below} of {len(found)} detectors are below 0.5 when both "
        f"sides are attacked at {SUITE_RADIUS}; the best is {best} with "
        f"{attacked(found[best]):.3f}, and {cleanest}, the best on clean images "
        f"({clean(found[cleanest]):.3f}), has {attacked(found[cleanest]):.3f}."
    ]


def between(measurements: list[Measurement], names: list[str]) -> list[str]:
    """Return how much the network counts, and how much the detector, a sentence."""
    medians = []
    for measurement in measurements:
        areas = sorted(map(attacked, measurement.kept(names, SUITE_RADIUS).values()))
        if areas:
            medians.append(f"{areas[len(areas) // 2]:.3f} ({measurement.net_name})")
    if len(medians) < 2:
        return []
    return [f"The median detector's AUROC there is {' and '.join(medians)}."]


def write(chosen: Any, measurements: list[Measurement], names: list[str]) -> None:
    """Write the page of all parts that are done."""
    sentences: list[str] = []
    for measurement in measurements:
        sentences += finding(measurement, names)
    lines = [
        " ".join([*sentences, *between(measurements, names)]),
        "",
        f"AUROC of the first {chosen.limit} CIFAR-10 test images against {chosen.limit // 2} each "
        f"of {' and '.join(OOD)}. Detectors are fitted on {chosen.fit:,} training images, the "
        f"temperature on the last {HELD_OUT:,} test images, the weights of the layers also on "
        "1,000 auxiliary outliers; other settings are the registry's, but the safe spot is "
        "searched by S-FGSM and attacked in 5 steps. Inliers, outliers, or both are attacked "
        f"through the detector's own score, by PGD in Linf with {STEPS} steps, random start and "
        f"{RESTARTS} restarts, step 2.5 radius / steps. A restart, or a member of the suite, "
        "leaves images alone that can no longer change an AUROC: inliers below all clean outliers, "
        "and outliers above all clean inliers. Sorted by both sides at 1/255; a dash is not "
        "computed.",
        "",
    ]
    for measurement in measurements:
        lines += [f"## {measurement.net_name}", "", *rows_of(measurement, names)]
        lines += suite_lines(measurement, names)
    write_page(chosen.output, "Every detector, clean and attacked through itself", lines)


def rows_of(measurement: Measurement, names: list[str]) -> list[str]:
    """Return the table of one network."""
    header = ["detector", "clean"]
    for stage in (SUITE_RADIUS, LARGER_RADIUS):
        header += [f"in, {stage}", f"out, {stage}", f"both, {stage}"]
    near = measurement.kept(names, SUITE_RADIUS)
    far = measurement.kept(names, LARGER_RADIUS)
    rows = []
    for name in best_of(measurement, names, len(names)):
        areas = [*columns(near[name], SUITE_RADIUS), *columns(far.get(name), LARGER_RADIUS)]
        rows.append([name, f"{clean(near[name]):.3f}", *areas])
    return table(header, rows)


def suite_lines(measurement: Measurement, names: list[str]) -> list[str]:
    """Return the table of the best detectors under the standard suite."""
    near = measurement.kept(names, SUITE_RADIUS)
    suite = measurement.kept(names, "suite")
    if not suite:
        return []
    rows = []
    for name in sorted(suite, key=lambda name: -attacked(suite[name], "suite")):
        both = attacked(suite[name], "suite")
        rows.append((name, f"{attacked(near[name]):.3f}", f"{both:.3f}"))
    return [
        f"The best {len(suite)} under the standard suite at {SUITE_RADIUS}, both sides attacked:",
        "",
        *table(("detector", "PGD", "suite"), rows),
    ]


if __name__ == "__main__":
    main()
