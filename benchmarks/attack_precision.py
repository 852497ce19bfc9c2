"""How strong attacks in bfloat16 are beside the same in float32, through every registered detector.

    python benchmarks/attack_precision.py --weights cifar10_resnet20.th --root arrays \\
        --folder runs/attack_precision

Each detector is attacked through itself (PGD, inliers and outliers), once in each precision,
whatever `needs_float32` says; true scores are float32 in both.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, images_of, networks, parser

from robust_ood import detectors
from robust_ood.attacks import PGD, attack_score
from robust_ood.data import EvaluationLoader, load_set
from robust_ood.metrics import auroc
from robust_ood.regions import Linf

SETTINGS: dict[str, dict[str, Any]] = {"safe-spot": {"method": "fgsm", "attack_steps": 3}}
LEVELS = (1, 4)  # radii in pixel levels


def main() -> int:
    made = parser(__doc__, limit=100, output="docs/results/attack_precision.md")
    made.add_argument("--steps", type=int, default=10)
    made.add_argument("--checkpoint", action="append", help="a network, NAME=PATH")
    made.add_argument(
        "--detectors", nargs="+", default=[n for n in detectors.REGISTRY if n != "deep-ensemble"]
    )
    options = made.parse_args()
    nets = networks(options)
    settings = {name: getattr(options, name) for name in ("limit", "steps", "device")}
    parts = Parts(options.folder, settings, total=len(nets) * len(options.detectors))
    inliers = images_of("cifar10_test", options.root, options.limit, options.device)[0]
    outliers = images_of("cifar100_test", options.root, options.limit, options.device)[0]
    rows = []
    for label, net in nets.items():
        for name in options.detectors:
            part = parts(
                f"{label}-{name}",
                lambda name=name, net=net: measure(name, net, options, inliers, outliers),
            )
            rows += [[label, name, level, *shown(part[str(level)])] for level in LEVELS]
    header = [
        "network",
        "detector",
        "radius x 255",
        "AUROC float32",
        "bfloat16",
        "lost",
        "mean score moved, share",
    ]
    intro = (
        f"PGD, {options.steps} steps through the detector itself, on {options.limit} CIFAR-10 "
        f"test images (lowered) and {options.limit} of CIFAR-100 (raised). *lost*: bfloat16's "
        "AUROC minus float32's, above 0 where bfloat16 is weaker. The last column is how far "
        "bfloat16 moved the mean true score, relative to float32: ID, OOD."
    )
    write_page(
        options.output, "Attacks in bfloat16 against float32", [intro, "", *table(header, rows)]
    )
    return 0


def measure(
    name: str, net: nn.Module, options: argparse.Namespace, inliers: Tensor, outliers: Tensor
) -> dict[str, Any]:
    """Return AUROCs and mean shifts of true scores by radius and precision."""
    detector = detectors.build(name, net, **SETTINGS.get(name, {}))
    detector.fit(
        EvaluationLoader(load_set("cifar10_train", options.root), batch_size=256, limit=2000)
    )
    with torch.no_grad():
        clean = detector(inliers).mean(), detector(outliers).mean()
    found: dict[str, Any] = {}
    for level in LEVELS:
        for precision in ("float32", "bfloat16"):
            attack = PGD(Linf(level / 255), steps=options.steps, precision=precision)
            low = attack_score(detector, inliers, attack, 1).values
            high = attack_score(detector, outliers, attack, -1).values
            shifts = [float(clean[0] - low.mean()), float(high.mean() - clean[1])]
            found.setdefault(str(level), {})[precision] = {
                "auroc": auroc(low, high),
                "shifts": shifts,
            }
    return found


def shown(pair: dict[str, Any]) -> list[str]:
    whole, half = pair["float32"], pair["bfloat16"]
    shares = [
        f"{b / max(a, 1e-12):.4f}" for a, b in zip(whole["shifts"], half["shifts"], strict=True)
    ]
    return [
        f"{whole['auroc']:.4f}",
        f"{half['auroc']:.4f}",
        f"{half['auroc'] - whole['auroc']:+.4f}",
        ", ".join(shares),
    ]


if __name__ == "__main__":
    sys.exit(main())
