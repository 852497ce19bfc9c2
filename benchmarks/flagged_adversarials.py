"""Share of images that fool the classifier which detectors take for OOD: the ALOE paper's Table 2.

    python benchmarks/flagged_adversarials.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/flagged

Finished parts are kept in `--folder`; the same command continues.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detector_table import Sets, fitted
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, images_of, networks, parser

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, misclassify
from robust_ood.modes import evaluating

NAMES = (
    "msp",
    "odin",
    "mahalanobis",
    "mahalanobis-layers",
    "energy",
    "gen",
    "knn",
    "gram",
    "pro-msp",
)


def main() -> None:
    arguments = parser(__doc__, limit=500, output="docs/results/flagged_adversarials.md")
    arguments.add_argument(
        "--checkpoint",
        action="append",
        metavar="NAME=PATH",
        help="another network; may be repeated",
    )
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    arguments.add_argument("--only", nargs="*", default=list(NAMES), help="detectors")
    chosen = arguments.parse_args()
    nets = networks(chosen)
    parts = Parts(
        chosen.folder, {"limit": chosen.limit, "fit": chosen.fit}, len(nets) * len(chosen.only)
    )
    images, labels = images_of("cifar10_test", chosen.root, chosen.limit, chosen.device)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for net_name, net in nets.items():
        missing = [
            name for name in chosen.only if not (chosen.folder / f"{net_name}-{name}.json").exists()
        ]
        fooling, fooled = (None, None) if not missing else attacked(net, images, labels)
        ready = fitted(missing, net, Sets(chosen.root, chosen.limit, chosen.fit))
        for name in chosen.only:
            detector = ready[name].to(chosen.device) if name in ready else None
            found[net_name, name] = parts(
                f"{net_name}-{name}", partial(measure, detector, images, fooling, fooled)
            )
    write(chosen, list(nets), found)


def attacked(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images after the paper's attack, 10 steps at 1/255, and which fool the network."""
    pgd = PGD(Linf(1 / 255), steps=10)
    pairs = zip(
        images.split(100), labels.split(100), torch.arange(len(images)).split(100), strict=True
    )
    found = torch.cat([misclassify(net, x, y, pgd, indices=i) for x, y, i in pairs])
    with torch.no_grad():
        return found, net(found).argmax(1) != labels


def measure(
    detector: detectors.Detector, images: Tensor, attacked: Tensor, fooled: Tensor
) -> dict[str, Any]:
    """Return the shares of attacked images below the threshold that accepts 95 % of clean ones."""
    with evaluating(detector), torch.no_grad():
        clean, after = (
            torch.cat([detector(x) for x in one.split(100)]) for one in (images, attacked)
        )
    threshold = clean.double().quantile(0.05, interpolation="lower")
    flagged = after < threshold
    return {
        "all": flagged.float().mean().item(),
        "fooled": flagged[fooled].float().mean().item() if fooled.any() else None,
        "count": int(fooled.sum()),
    }


def write(chosen: Any, nets: list[str], found: dict[tuple[str, str], dict[str, Any]]) -> None:
    lines = [
        f"The first {chosen.limit} CIFAR-10 test images after PGD on the classifier's "
        "cross-entropy (Linf 1/255, 10 steps, as in the paper's Table 2): the share that each "
        "detector takes for OOD, at its threshold that accepts 95 % of the clean images, so that "
        f"5 % are flagged anyway. Detectors are fitted on {chosen.fit:,} training images.",
        "",
    ]
    for net in nets:
        first = found[net, chosen.only[0]]["count"]
        rows = [
            (name, _share(found[net, name]["all"]), _share(found[net, name]["fooled"]))
            for name in chosen.only
        ]
        lines += [f"## {net}", "", f"{first} of the attacked images are misclassified.", ""]
        lines += table(("detector", "flagged, of all attacked", "of the misclassified ones"), rows)
    write_page(chosen.output, "Do detectors flag images that fool the classifier?", lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
