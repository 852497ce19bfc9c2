"""Every detector of the registry on each network, clean and attacked through its own score.

    python benchmarks/detector_table.py --weights cifar10_resnet20.th \\
        --checkpoint ALOE=last.ckpt --root ARRAYS --folder runs/detector_table

The tables are sorted, and the best detectors of each are attacked by the standard suite. Each
detector's scores are saved in `--folder`, and not computed again. On one core, 256 images a set
take an hour or two a network, and each of the suite's detectors some ten minutes more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from page import table, write_page
from torch import Tensor, nn
from workbench import FAR, NEAR, Parts, networks, parser

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, standard
from robust_ood.data import EvaluationLoader, ImageSet, load_set
from robust_ood.evaluation.scoring import Scorer
from robust_ood.metrics import auroc

INLIERS = "cifar10_test"
ATTACKS = {
    "clean": None,
    "1/255": PGD(Linf("1/255"), steps=10),
    "3/255": PGD(Linf("3/255"), steps=20),
}
SETTINGS: dict[str, dict[str, Any]] = {"safe-spot": {"method": "fgsm", "attack_steps": 5}}
# Made of several networks; the same as pro-msp; of networks with dropout, with words, with an
# outlier class, or of images.
LEFT_OUT = (
    "outlier-class",
    "deep-ensemble",
    "pro",
    "mc-dropout",
    "zero-shot",
    "likelihood",
    "complexity",
    "reconstruction",
)
HELD_OUT = 2000  # the last test images, for the temperature
# Detectors with many passes for each score are measured on half the images, and last.
DEAR = ("feature-dropout", "nac", "ross", "pro-msp", "pro-msp-t", "pro-ent", "pro-gen", "safe-spot")
SUITE_SETS = ("cifar100_test", "svhn_test")


class Sets:
    """The test sets, and the images that detectors are fitted on."""

    def __init__(self, root: Path, limit: int, fit: int) -> None:
        self.limit, self.fit, self.root = limit, fit, root
        self.inliers = load_set("cifar10_test", root)
        self.ood = {name: load_set(name, root) for name in (*NEAR, *FAR)}

    def loader(self, images: ImageSet, limit: int) -> EvaluationLoader:
        return EvaluationLoader(images, batch_size=250, limit=limit)

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


def measure(
    name: str, get: Callable[[], detectors.Detector], sets: Sets, device: torch.device
) -> dict[str, Any]:
    """Return the detector's scores by attack and set; both sides are attacked through it."""
    detector, scores = get().to(device), {}
    limit = sets.limit // 2 if name in DEAR else sets.limit
    for label, attack in ATTACKS.items():
        for images in (INLIERS, *sets.ood):
            loader = sets.loader(sets.ood.get(images, sets.inliers), limit)
            direction = 1 if images == INLIERS else -1
            scored = Scorer(device).score({"it": detector}, loader, attack, direction)
            scores[f"{label} {images}"] = scored.scores["it"].tolist()
    return {"scores": scores}


def measure_suite(
    get: Callable[[], detectors.Detector], sets: Sets, limit: int, device: torch.device
) -> dict[str, Any]:
    """Return the scores under the standard suite at 1/255, and clean ones of the same images."""
    detector = get().to(device)
    scores = {}
    for label, attack in (("clean", None), ("suite", standard("1/255"))):
        for images, count in ((INLIERS, limit), *((name, limit // 2) for name in SUITE_SETS)):
            loader = sets.loader(sets.ood.get(images, sets.inliers), count)
            direction = 1 if images == INLIERS else -1
            scored = Scorer(device).score({"it": detector}, loader, attack, direction)
            scores[f"{label} {images}"] = scored.scores["it"].tolist()
    return {"scores": scores}


def suite_rows(parts: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return one row a detector: AUROC with no side attacked, each of them, and both."""
    lines = []
    for name, part in parts.items():
        sides = {}
        for label in ("clean", "suite"):
            outliers = [value for ood in SUITE_SETS for value in part["scores"][f"{label} {ood}"]]
            sides[label] = Tensor(part["scores"][f"{label} {INLIERS}"]), Tensor(outliers)
        clean, hit = sides["clean"], sides["suite"]
        pairs = (clean, (hit[0], clean[1]), (clean[0], hit[1]), hit)
        lines.append([name, *(f"{auroc(*pair):.3f}" for pair in pairs)])
    return sorted(lines, key=lambda line: line[-1], reverse=True)


def rows(parts: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return one row a detector: means of AUROCs, the most robust detector first."""

    def mean(scores: dict[str, list[float]], label: str, group: tuple[str, ...]) -> float:
        inliers = Tensor(scores[f"{label} {INLIERS}"])
        return sum(auroc(inliers, Tensor(scores[f"{label} {name}"])) for name in group) / len(group)

    cells = {
        name: [mean(part["scores"], label, group) for group in (NEAR, FAR) for label in ATTACKS]
        for name, part in parts.items()
    }
    order = sorted(cells, key=lambda name: -(cells[name][1] + cells[name][4]))
    return [[name, *(f"{value:.3f}" for value in cells[name])] for name in order]


def main() -> None:
    arguments = parser(__doc__, limit=128, output="docs/results/detectors.md")
    arguments.add_argument(
        "--checkpoint",
        action="append",
        metavar="NAME=PATH",
        help="another network; may be repeated",
    )
    arguments.add_argument("--fit", type=int, default=50_000, help="training images to fit on")
    arguments.add_argument("--only", nargs="*", help="detectors; all by default")
    arguments.add_argument("--suite", type=int, default=10, help="how many meet the suite")
    arguments.add_argument("--suite-limit", type=int, default=64, help="its images of each side")
    chosen = arguments.parse_args()
    device, nets = torch.device(chosen.device), networks(chosen)
    sets = Sets(chosen.root, chosen.limit, chosen.fit)
    names = chosen.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    names.sort(key=lambda name: name in DEAR)
    settings = {"limit": chosen.limit, "fit": chosen.fit, "suite": chosen.suite_limit}
    parts = Parts(chosen.folder, settings, len(nets) * (len(names) + chosen.suite))
    tables = {}
    suites = {}
    for net_name, net in nets.items():
        missing = [
            name for name in names if not (chosen.folder / f"{net_name}-{name}.json").exists()
        ]
        ready = fitted(missing, net, sets)
        tables[net_name] = {
            name: parts(
                f"{net_name}-{name}", partial(measure, name, partial(ready.get, name), sets, device)
            )
            for name in names
        }
        best = [line[0] for line in rows(tables[net_name])[: chosen.suite]]
        again = [
            name for name in best if not (chosen.folder / f"{net_name}-{name}-suite.json").exists()
        ]
        ready |= fitted([name for name in again if name not in ready], net, sets)
        suites[net_name] = {}
        for name in best:
            made = partial(
                measure_suite, partial(ready.get, name), sets, chosen.suite_limit, device
            )
            suites[net_name][name] = parts(f"{net_name}-{name}-suite", made)
    write(chosen, tables, suites)


def write(
    chosen: Any,
    tables: dict[str, dict[str, dict[str, Any]]],
    suites: dict[str, dict[str, dict[str, Any]]],
) -> None:
    lines = [
        f"AUROC of CIFAR-10 against the near sets ({', '.join(NEAR)}) and the far ones "
        f"({', '.join(FAR)}), means over the sets; the first {chosen.limit} images of CIFAR-10 "
        f"and of each other set, half as many for {', '.join(DEAR)}. "
        f"Detectors are fitted on {chosen.fit:,} training images, the temperature on the last "
        f"{HELD_OUT:,} test images, the weights of the layers also on 1,000 auxiliary outliers; "
        "other settings are the registry's, but the safe spot is searched by S-FGSM and attacked "
        "in 5 steps. Inliers and outliers are both attacked through the detector's own score, by "
        "PGD in Linf: 1/255 with 10 steps and 3/255 with 20, random start, steps that shrink from "
        "the radius to 0. Sorted by the mean at 1/255.",
        "",
    ]
    header = ("detector", "near, clean", "1/255", "3/255", "far, clean", "1/255", "3/255")
    for name, parts in tables.items():
        lines += [f"## {name}", "", *table(header, rows(parts))]
        lines += [
            f"The best of them under the standard suite at 1/255, {chosen.suite_limit} images of "
            f"CIFAR-10 against {chosen.suite_limit // 2} each of {' and '.join(SUITE_SETS)}:",
            "",
            *table(("detector", "clean", "inliers", "outliers", "both"), suite_rows(suites[name])),
        ]
    write_page(chosen.output, "Every detector, clean and attacked through itself", lines)


if __name__ == "__main__":
    main()
