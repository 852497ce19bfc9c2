"""What is left of an attack once its images are saved as PNG files and read again.

    python benchmarks/eight_bit.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/eight_bit

Each detector is attacked twice on the same images, by PGD and by PGD with `quantise`; both images
are written to real files, read and scored. Each part is kept in `--folder` when it is done.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detector_table import Sets, fitted
from page import table, write_page
from PIL import Image
from torch import Tensor
from workbench import Parts, images_of, networks, parser

from robust_ood.attacks import attack_score, build
from robust_ood.data import to_float
from robust_ood.detectors import Detector
from robust_ood.metrics import auroc
from robust_ood.texts import radius_text

OOD = ("cifar100_test", "svhn_test")
STEPS = 20


def main() -> None:
    arguments = parser(__doc__, limit=128, output="docs/results/eight_bit.md")
    arguments.add_argument("--only", nargs="+", default=["msp", "energy", "knn"], help="detectors")
    arguments.add_argument("--radii", nargs="+", type=int, default=[1, 4], help="of 255")
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    options = arguments.parse_args()
    (net,) = networks(options).values()
    settings = {"limit": options.limit, "fit": options.fit}
    parts = Parts(options.folder, settings, len(options.only) * len(options.radii))
    inliers, _ = images_of("cifar10_test", options.root, options.limit, options.device)
    halves = [images_of(name, options.root, options.limit // 2, options.device)[0] for name in OOD]
    images = {1: inliers, -1: torch.cat(halves)}
    ready = fitted(options.only, net, Sets(options.root, options.limit, options.fit))
    rows = []
    for label, detector in ready.items():
        for radius in options.radii:
            made = partial(measure, detector, images, radius / 255)
            part = parts(f"{label}-{radius}", made)
            values = [
                f"{part[way]:.3f}" for way in ("clean", "plain", "plain read", "given", "read")
            ]
            rows.append([label, radius_text("Linf", radius / 255), *values])
    header = ["detector", "radius", "clean", "PGD", "its files", "PGD, quantised", "its files"]
    lines = [
        f"ResNet-20, {options.limit} CIFAR-10 test images against {options.limit // 2} each of "
        f"CIFAR-100 and SVHN, both sides attacked by PGD with {STEPS} steps in float32: AUROC of "
        "what the attack gives, and of the same images saved as PNG files and read again.",
        "",
        "A file rounds each pixel to 8 bits, by up to half of what an attack of 1/255 may change. "
        "With `quantise: true` the attack chooses among images that a file can hold.",
        "",
        *table(header, rows),
    ]
    write_page(options.output, "Attacked images in 8-bit files", lines)


def measure(detector: Detector, images: dict[int, Tensor], radius: float) -> dict[str, Any]:
    """Return AUROC clean, and before and after files, without and with `quantise`."""
    scores: dict[str, dict[int, Tensor]] = {}
    for direction, clean in images.items():
        with torch.no_grad():
            scores.setdefault("clean", {})[direction] = detector(clean)
            for names, quantise in ((("plain", "plain read"), False), (("given", "read"), True)):
                part = {"radius": radius, "steps": STEPS, "precision": "float32"}
                attack = build("pgd", **part, quantise=quantise)
                attacked = attack_score(detector, clean, attack, direction)
                scores.setdefault(names[0], {})[direction] = attacked.values
                again = detector(read_again(attacked.images))
                scores.setdefault(names[1], {})[direction] = again
    return {way: auroc(sides[1], sides[-1]) for way, sides in scores.items()}


def read_again(images: Tensor) -> Tensor:
    """Write images `(N, 3, H, W)` to PNG files, and return what the files hold."""
    read = []
    with tempfile.TemporaryDirectory() as folder:
        for index, image in enumerate(images):
            path = Path(folder) / f"{index}.png"
            levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            Image.fromarray(np.ascontiguousarray(levels)).save(path)
            with Image.open(path) as file:
                read.append(torch.from_numpy(np.array(file)).permute(2, 0, 1))
    return to_float(torch.stack(read)).to(images).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
