"""How PGD's strength grows with its steps: constant ones, and those that shrink (the default).

    python benchmarks/pgd_steps.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/pgd_steps

Scores that are rough, as the distance to the k-th neighbour is, show the difference. Finished parts
are kept in `--folder`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detector_table import Sets, fitted
from page import table, write_page
from workbench import Parts, images_of, networks, parser

from robust_ood import Linf
from robust_ood.attacks import PGD, attack_score
from robust_ood.detectors import Detector
from robust_ood.metrics import auroc

RADIUS = Linf("1/255")
STEPS = (20, 40, 100)


def main() -> None:
    arguments = parser(__doc__, limit=32, output="docs/results/pgd_steps.md")
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    arguments.add_argument("--only", nargs="+", default=["knn", "energy", "odin"])
    options = arguments.parse_args()
    (net,) = networks(options).values()
    inliers, _ = images_of("cifar10_test", options.root, options.limit)
    halves = []
    for name in ("cifar100_test", "svhn_test"):
        halves.append(images_of(name, options.root, options.limit // 2)[0])
    images = {1: inliers, -1: torch.cat(halves)}
    settings = {"limit": options.limit, "fit": options.fit}
    parts = Parts(options.folder, settings, len(options.only) * len(STEPS) * 2)
    ready = fitted(options.only, net, Sets(options.root, options.limit, options.fit))
    rows = []
    for name in options.only:
        for steps in STEPS:
            cells = []
            for kind, step_size in {
                "constant": 2.5 * RADIUS.radius / steps,
                "default": None,
            }.items():
                attack = PGD(RADIUS, steps=steps, step_size=step_size, restarts=2)
                part = parts(
                    f"{name}-{steps}-{kind}", partial(measured, ready[name], attack, images)
                )
                cells += [f"{part['inliers']:.3f}", f"{part['outliers']:.3f}"]
            rows.append((name, f"{steps} x 2", *cells))
    header = (
        "detector",
        "steps",
        *["constant: inliers", "outliers", "default: inliers", "outliers"],
    )
    lines = [
        f"ResNet-20, {options.limit} CIFAR-10 test images against {options.limit // 2} each of "
        "CIFAR-100 and SVHN; AUROC with that side attacked within Linf 1/255, lower is stronger. "
        "*Constant*: steps of 2.5 radius / steps. *Default*: steps with momentum that shrink from "
        "the radius to zero.",
        "",
        *table(header, rows),
    ]
    write_page(options.output, "PGD and its steps", lines)


def measured(detector: Detector, attack: PGD, images: dict[int, torch.Tensor]) -> dict[str, Any]:
    """Return the AUROC with inliers attacked, and with outliers attacked."""
    with torch.no_grad():
        inliers = detector(images[1])
        outliers = detector(images[-1])
    return {
        "inliers": auroc(attack_score(detector, images[1], attack, 1).values, outliers),
        "outliers": auroc(inliers, attack_score(detector, images[-1], attack, -1).values),
    }


if __name__ == "__main__":
    main()
