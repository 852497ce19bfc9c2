"""Every detector of the registry on each network, clean and attacked through its own score.

    python benchmarks/detector_table.py --weights cifar10_resnet20.th \\
        --checkpoint ALOE=last.ckpt --root ARRAYS --folder runs/detector_table

The tables are sorted. Each detector's scores are saved in `--folder`, and not computed again.
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
from robust_ood.attacks import PGD
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
# Made of several networks; the same as pro-msp; of networks with dropout, with words, or of images.
LEFT_OUT = (
    "deep-ensemble",
    "pro",
    "mc-dropout",
    "zero-shot",
    "likelihood",
    "complexity",
    "reconstruction",
)
HELD_OUT = 2000  # the last test images, for the temperature
# Detectors with many passes for each score are measured on half the images.
DEAR = ("pro-msp", "pro-msp-t", "pro-ent", "pro-gen", "safe-spot")


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
        for images, count in ((INLIERS, limit), *((ood, limit // 2) for ood in sets.ood)):
            loader = sets.loader(sets.ood.get(images, sets.inliers), count)
            direction = 1 if images == INLIERS else -1
            scored = Scorer(device).score({"it": detector}, loader, attack, direction)
            scores[f"{label} {images}"] = scored.scores["it"].tolist()
    return {"scores": scores}


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
    chosen = arguments.parse_args()
    device, nets = torch.device(chosen.device), networks(chosen)
    sets = Sets(chosen.root, chosen.limit, chosen.fit)
    names = chosen.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    parts = Parts(chosen.folder, {"limit": chosen.limit, "fit": chosen.fit}, len(nets) * len(names))
    tables = {}
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
    write(chosen, tables)


def write(chosen: Any, tables: dict[str, dict[str, dict[str, Any]]]) -> None:
    lines = [
        f"AUROC of CIFAR-10 against the near sets ({', '.join(NEAR)}) and the far ones "
        f"({', '.join(FAR)}), means over the sets; the first {chosen.limit} images of CIFAR-10 "
        f"and {chosen.limit // 2} of each other set, half as many for {', '.join(DEAR)}. "
        f"Detectors are fitted on {chosen.fit:,} training images, the temperature on the last "
        f"{HELD_OUT:,} test images, the weights of the layers also on 1,000 auxiliary outliers; "
        "other settings are the registry's, but the safe spot is searched by S-FGSM and attacked "
        "in 5 steps. Inliers and outliers are both attacked through the detector's own score, by "
        "PGD in Linf: 1/255 with 10 steps and 3/255 with 20, random start, step 2.5 radius / "
        "steps. Sorted by the mean at 1/255.",
        "",
    ]
    header = ("detector", "near, clean", "1/255", "3/255", "far, clean", "1/255", "3/255")
    for name, parts in tables.items():
        lines += [f"## {name}", "", *table(header, rows(parts))]
    write_page(chosen.output, "Every detector, clean and attacked through itself", lines)


if __name__ == "__main__":
    main()
