"""What the standard suite costs when it leaves settled images alone, and whether a number moves.

    python benchmarks/settled_images.py --weights cifar10_resnet20.th --root ARRAYS \\
        --checkpoint ALOE=runs/aloe/last.ckpt --folder runs/settled_images

Each detector is attacked twice on the same images, to the end and with the rule of
`robust_ood.evaluation.settled`; the bars are those of `--bars` clean images a set. The command
ends with an error where AUROC or FPR95 differ, of either side or of both. Each part is kept in
`--folder` when it is done.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import torch
from detector_table import Sets, fitted
from page import table, write_page
from torch import Tensor
from workbench import Parts, images_of, networks, parser

from robust_ood.attacks import attack_score, standard
from robust_ood.detectors import Detector
from robust_ood.metrics import deployed_threshold, ood_metrics
from robust_ood.texts import radius_text

OOD = ("cifar100_test", "svhn_test")
RADII = (1, 4, 8)
SAME = ("auroc", "fpr95", "detection_error")


def main() -> int:
    arguments = parser(__doc__, limit=32, output="docs/results/settled_images.md")
    arguments.add_argument("--checkpoint", nargs="*", metavar="NAME=PATH", help="more networks")
    arguments.add_argument("--only", nargs="+", default=["energy", "knn"], help="detectors")
    arguments.add_argument("--radii", nargs="+", type=int, default=list(RADII), help="of 255")
    arguments.add_argument("--bars", type=int, default=1000, help="clean images a set")
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    options = arguments.parse_args()
    settings = {"limit": options.limit, "bars": options.bars, "fit": options.fit}
    nets = networks(options)
    parts = Parts(options.folder, settings, len(nets) * len(options.only) * len(options.radii))
    inliers, _ = images_of("cifar10_test", options.root, options.bars, options.device)
    sets = [images_of(name, options.root, options.bars, options.device)[0] for name in OOD]
    lines = []
    for name, net in nets.items():
        ready = fitted(options.only, net, Sets(options.root, options.limit, options.fit))
        for label, detector in ready.items():
            for radius in options.radii:
                measured = partial(measure, detector, inliers, sets, radius / 255, options.limit)
                part = parts(f"{name}-{label}-{radius}", measured)
                lines.append([name, label, radius_text("Linf", radius / 255), part])
    return write(options, lines)


def measure(
    detector: Detector, inliers: Tensor, sets: list[Tensor], radius: float, limit: int
) -> dict[str, Any]:
    """Return seconds of both ways, the share of steps that the rule spared, and the metrics."""
    clean = scored(detector, inliers)
    others = torch.cat([scored(detector, images) for images in sets])
    threshold = deployed_threshold(clean)
    bars = {
        1: min(threshold, others.min().item()),
        -1: max(threshold, clean.max().item()),
    }
    attacked = {1: inliers[:limit], -1: torch.cat([images[: limit // 2] for images in sets])}
    suite = standard(radius)
    costs = suite.costs(detector)
    seconds = {"whole": 0.0, "short": 0.0}
    scores: dict[str, dict[int, Tensor]] = {"whole": {}, "short": {}}
    spent = 0
    for direction, images in attacked.items():
        for way, enough in (("whole", None), ("short", bars[direction])):
            begin = time.process_time()
            result = attack_score(detector, images, suite, direction, enough=enough)
            seconds[way] += time.process_time() - begin
            scores[way][direction] = result.values.cpu()
        attempts = dict(zip(result.members, result.attempts, strict=True))
        spent += sum(attempts.get(member, 0) * cost for member, cost in costs.items())
    total = sum(len(images) for images in attacked.values()) * sum(costs.values())
    metrics = {}
    for way, sides in scores.items():
        rows = [(sides[1], others), (clean, sides[-1]), (sides[1], sides[-1])]
        values = [ood_metrics(*row) for row in rows]
        metrics[way] = [[value[name] for name in SAME] for value in values]
    return {**seconds, "saved": 1 - spent / total, "metrics": metrics}


def scored(detector: Detector, images: Tensor) -> Tensor:
    """Return clean scores `(N,)`, batch by batch."""
    with torch.no_grad():
        return torch.cat([detector(batch).cpu() for batch in images.split(250)])


def write(options: Any, lines: list[list[Any]]) -> int:
    rows = []
    differ = []
    for net, label, radius, part in lines:
        whole, short = part["metrics"]["whole"], part["metrics"]["short"]
        if whole != short:
            differ.append(f"{net}, {label}, {radius}")
        ratio = part["whole"] / part["short"]
        spared = f"{100 * part['saved']:.0f} %"
        both = whole[2][0]
        seconds = f"{part['whole']:.0f}"
        rows.append([net, label, radius, f"{both:.3f}", seconds, f"{ratio:.2f}", spared])
    verdict = "AUROC, FPR95 and detection error are the same in every case."
    if differ:
        verdict = f"They differ in: {'; '.join(differ)}."
    header = ["network", "detector", "radius", "AUROC, both", "seconds", "faster by", "spared"]
    text = [
        f"{options.limit} inliers and outliers, attacked by the standard suite to the end, and "
        "without the images that are settled by the clean scores of "
        f"{options.bars:,} images a set. Seconds of a core that the whole takes; the ratio is of "
        "both in one run, above 1 where the rule is faster; the share of steps and queries that "
        "were spared.",
        "",
        verdict,
        "",
        *table(header, rows),
    ]
    write_page(options.output, "Settled images", text)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
