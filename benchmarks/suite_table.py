"""Every detector of the registry under the standard suite and under each of its members.

    python benchmarks/suite_table.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/suite_table

On a CIFAR-10 ResNet-20: AUROC of CIFAR-10 against CIFAR-100 and SVHN, half each, with both sides
attacked, beside the ALOE paper's attacks as published. Each detector's numbers are saved in
`--folder`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detector_table import LEFT_OUT, Sets, fitted
from page import table, write_page
from torch import Tensor
from workbench import Parts, images_of, networks, parser

from robust_ood import Linf, detectors
from robust_ood.attacks import aloe_mahalanobis, aloe_softmax, attack_score, standard
from robust_ood.attacks.objectives import Direction
from robust_ood.metrics import auroc
from robust_ood.modes import evaluating

OOD = ("cifar100_test", "svhn_test")


def main() -> None:
    arguments = parser(__doc__, limit=40, output="docs/results/attack_suite.md")
    arguments.add_argument("--radius", type=float, default=1 / 255, help="Linf radius")
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    arguments.add_argument("--only", nargs="*", help="detectors; all by default")
    chosen = arguments.parse_args()
    (net,) = networks(chosen).values()
    names = chosen.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    settings = {"radius": chosen.radius, "limit": chosen.limit, "fit": chosen.fit}
    parts = Parts(chosen.folder, settings, len(names))
    inliers, _ = images_of("cifar10_test", chosen.root, chosen.limit, chosen.device)
    outliers = torch.cat(
        [images_of(name, chosen.root, chosen.limit // 2, chosen.device)[0] for name in OOD]
    )
    missing = [name for name in names if not (chosen.folder / f"{name}.json").exists()]
    ready = fitted(missing, net, Sets(chosen.root, chosen.limit, chosen.fit))
    found = {}
    for name in names:
        detector = ready[name].to(chosen.device) if name in ready else None
        found[name] = parts(name, partial(measure, detector, inliers, outliers, chosen.radius))
    write(chosen, found)


def measure(
    detector: detectors.Detector, inliers: Tensor, outliers: Tensor, radius: float
) -> dict[str, Any]:
    """Return the AUROCs (clean, each member, the suite, the published attacks) and the wins."""
    low, high = under(detector, inliers, radius, 1), under(detector, outliers, radius, -1)
    # A member that has nothing against one side leaves it clean.
    names = list(dict.fromkeys([*low, *high]))
    areas = {
        name: auroc(low.get(name, low["clean"]), high.get(name, high["clean"])) for name in names
    }
    return {"auroc": areas, "wins": {"in": wins(low, 1), "out": wins(high, -1)}}


def under(
    detector: detectors.Detector, images: Tensor, radius: float, direction: Direction
) -> dict[str, Tensor]:
    """Return the worst scores by member; those of the suite are the worst of all members'."""
    suite = standard(radius)
    with evaluating(detector), torch.no_grad():
        worst = {"clean": detector(images)}
        for candidate in suite.on_score(detector, images, direction, torch.arange(len(images))):
            before, found = worst.get(candidate.member, worst["clean"]), detector(candidate.images)
            worst[candidate.member] = direction * torch.minimum(
                direction * before, direction * found
            )
    worst["suite"] = direction * torch.stack(
        [direction * scores for scores in worst.values()]
    ).amin(0)
    published = {
        "published, Alg. 1": aloe_softmax(Linf(radius)),
        "published, Alg. 2": aloe_mahalanobis(Linf(radius)),
    }
    for name, attack in published.items():
        worst[name] = attack_score(detector, images, attack, direction).values
    return {name: scores.cpu() for name, scores in worst.items()}


def wins(worst: dict[str, Tensor], direction: Direction) -> dict[str, int]:
    """Return for how many images each member is the first whose score is the worst."""
    members = [name for name in worst if name != "suite" and not name.startswith("published")]
    first = torch.stack([direction * worst[name] for name in members]).argmin(0)
    return {name: int((first == place).sum()) for place, name in enumerate(members)}


def write(chosen: Any, found: dict[str, dict[str, Any]]) -> None:
    members = list(standard(chosen.radius).on_detectors)
    columns = ["clean", "published, Alg. 1", "published, Alg. 2", *members, "suite"]
    weaker = [
        f"{name} ({column})"
        for name, part in found.items()
        for column, area in part["auroc"].items()
        if area < part["auroc"]["suite"] - 1e-6
    ]
    order = sorted(found, key=lambda name: -found[name]["auroc"]["suite"])
    lines = [
        f"ResNet-20, {chosen.limit} CIFAR-10 test images against {chosen.limit // 2} each of "
        "CIFAR-100 and SVHN, both sides attacked in Linf with radius "
        f"{chosen.radius * 255:g}/255; detectors fitted on {chosen.fit:,} training images. AUROC "
        "under the ALOE paper's attacks as published (transferred), under each member of the "
        "standard suite (own restarts, the clean image kept where nothing is worse) and under "
        "the suite. Sorted by the last.",
        "",
        "No attack of the table is stronger than the suite on any detector."
        if not weaker
        else f"Stronger than the suite: {', '.join(weaker)}.",
        "",
        *table(
            ("detector", *columns),
            [
                (name, *(_number(found[name]["auroc"].get(column)) for column in columns))
                for name in order
            ],
        ),
        "Which member found the kept image, inliers + outliers (of equals, the first member "
        "counts):",
        "",
        *table(
            ("detector", "clean", *members),
            [
                (
                    name,
                    *(
                        f"{found[name]['wins']['in'].get(member, 0)} + "
                        f"{found[name]['wins']['out'].get(member, 0)}"
                        for member in ("clean", *members)
                    ),
                )
                for name in order
            ],
        ),
    ]
    write_page(chosen.output, "The standard suite and its members", lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
