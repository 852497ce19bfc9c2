"""What detectors withstand besides Linf: L1, L2, patches, one perturbation for all, transfer, PNG.

    nice -n 5 python benchmarks/attack_modes.py --weights cifar10_resnet20.th \\
        --checkpoint ALOE=zoo:cifar10-aloe-resnet20 --root ARRAYS --folder runs/attack_modes

Each mode attacks both sides of each detector of each network; the transferred images are those of
the same detector on the other network. Each part is kept in `--folder` when it is done, and the
same command continues. `--page` writes the page of the modes that are done.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detector_table import Sets, fitted
from page import table, write_page
from torch import Tensor
from workbench import Parts, images_of, networks, parser

from robust_ood.attacks import Universal, attack_score, build
from robust_ood.attacks.objectives import Direction
from robust_ood.detectors import Detector
from robust_ood.metrics import auroc
from robust_ood.regions import Linf

INLIERS = "cifar10_test"
OOD = {"near": "cifar100_test", "far": "svhn_test"}
REFERENCE = "Linf 1/255"
ROUNDED = "Linf 1/255, 8 bits"
STEPS = 20
LONGER = 30  # of Auto-PGD in L1 and of a patch, which PGD reaches more slowly
# By label: what a config says. A sum of 12 over all pixels is the usual radius in L1 for images of
# 32 x 32 in [0, 1], and .5 in L2; Auto-PGD, because steepest steps in L1 move one pixel each.
MODES: dict[str, dict[str, Any]] = {
    REFERENCE: {"name": "pgd", "radius": "1/255", "steps": STEPS},
    "L2 0.5": {"name": "pgd", "norm": "L2", "radius": 0.5, "steps": STEPS},
    "L1 12": {"name": "apgd", "norm": "L1", "radius": 12, "steps": LONGER},
    "patch, 6 x 6 px": {"name": "patch", "side": 6, "steps": LONGER},
    ROUNDED: {"name": "pgd", "radius": "1/255", "steps": STEPS, "quantise": True},
}
UNIVERSAL = "universal, Linf 8/255"
TRANSFER = "transferred, Linf 8/255"
LARGE = {"name": "pgd", "radius": "8/255", "steps": STEPS}
# What is most important first, so that a killed run has whole modes.
ALL = ("clean", REFERENCE, "L2 0.5", "L1 12", TRANSFER, UNIVERSAL, "patch, 6 x 6 px", ROUNDED)
FITTING = 512  # images of each side that the universal perturbation is found on
UNIVERSAL_STEPS = 100
CHANCE = 0.5


class Measurement:
    """Detectors of all networks, and the images that are attacked through them."""

    def __init__(self, options: Any) -> None:
        self.nets = networks(options)
        self.detectors: dict[str, dict[str, Detector]] = {}
        self.universals: dict[tuple[str, str], Universal] = {}  # by network and detector
        sets = Sets(options.root, options.limit, options.fit)
        for name, net in self.nets.items():
            self.detectors[name] = fitted(options.only, net, sets)
        read = partial(images_of, root=options.root, device=options.device)
        self.images: dict[str, Tensor] = {"in": read(INLIERS, limit=options.limit)[0]}
        for kind, spec in OOD.items():
            self.images[kind] = read(spec, limit=options.limit // len(OOD))[0]
        self.fitting = [
            read(spec, limit=FITTING)[0] for spec in ("cifar10_train", "outliers_tinyimagenet")
        ]

    def areas(self, net: str, name: str, mode: str) -> dict[str, float]:
        """Return the AUROC of each OOD set, with both sides attacked in a mode."""
        scores = {}
        for kind, images in self.images.items():
            direction: Direction = 1 if kind == "in" else -1
            scores[kind] = self.scores(net, name, mode, images, direction)
        return {kind: auroc(scores["in"], scores[kind]) for kind in OOD}

    def scores(
        self, net: str, name: str, mode: str, images: Tensor, direction: Direction
    ) -> Tensor:
        """Return the scores `(N,)` of images `(N, C, H, W)` that a mode has attacked."""
        detector = self.detectors[net][name]
        if mode == "clean":
            with torch.no_grad():
                return detector(images)
        if mode == TRANSFER:
            (other,) = set(self.nets) - {net}
            source = self.detectors[other][name]
            moved = attack_score(source, images, build(dict(LARGE)), direction).images
            with torch.no_grad():
                return detector(moved)
        attack = build(dict(MODES[mode])) if mode in MODES else self.universal(net, name)
        return attack_score(detector, images, attack, direction).values

    def universal(self, net: str, name: str) -> Universal:
        """Return the perturbations for a detector, found on images that are not scored."""
        if (net, name) not in self.universals:
            attack = Universal(Linf(8 / 255), steps=UNIVERSAL_STEPS, images=FITTING)
            self.universals[net, name] = attack.fit(self.detectors[net][name], *self.fitting)
        return self.universals[net, name]


Areas = dict[tuple[str, str, str], dict[str, float]]
"""AUROC by OOD set, of each network, detector and mode."""


def done(found: Areas) -> list[str]:
    """Return the modes that were measured, in the page's order."""
    measured = {mode for _, _, mode in found}
    return [mode for mode in ("clean", *MODES, UNIVERSAL, TRANSFER) if mode in measured]


def rows_of(found: Areas, net: str, names: list[str]) -> list[list[str]]:
    """Return the table's row of each mode."""
    rows = []
    for mode in done(found):
        cells = [mode]
        for name in names:
            cells.extend(f"{found[net, name, mode][kind]:.3f}" for kind in OOD)
        rows.append(cells)
    return rows


def withstood(found: Areas, net: str, names: list[str]) -> str:
    """Return in words which detectors stay above chance on both OOD sets, and in which modes."""
    said = []
    for mode in done(found)[1:]:
        above = [name for name in names if min(found[net, name, mode].values()) > CHANCE]
        if above:
            said.append(f"{mode} ({', '.join(above)})")
    return "; ".join(said) or "none of these attacks"


def findings(found: Areas, nets: list[str], names: list[str]) -> list[str]:
    """Return what the tables say, in a sentence a network and one of rounding."""
    lines = []
    for net in nets:
        withstands = withstood(found, net, names)
        lines.append(f"- On {net}, the AUROC stays above .5, near and far, under {withstands}.")
    changes = []
    for net, name, mode in found:
        if mode == ROUNDED:
            plain = found[net, name, REFERENCE]
            changes.extend(found[net, name, mode][kind] - plain[kind] for kind in OOD)
    if changes:
        lines.append(
            "- Where attacked images have to fit into 8-bit files, the AUROC is different by "
            f"{min(changes):+.3f} to {max(changes):+.3f}."
        )
    return [*lines, ""]


INTRODUCTION = """{limit} CIFAR-10 test images against {half} each of CIFAR-100 (near) and SVHN
(far). Both sides are attacked through the detector: outliers to look like inliers, and inliers like
outliers. AUROC after the attack.
"""
EXPLAINED = {
    REFERENCE: f"PGD with {STEPS} steps, the reference.",
    "L2 0.5": f"PGD with {STEPS} steps; a usual radius for images of 32 x 32 in [0, 1].",
    "L1 12": f"Auto-PGD with {LONGER} steps. 12 is AutoAttack's radius in L1, a sum over pixels: "
    "an eighth of the sum of 8/255, or twelve values moved from 0 to 1.",
    "patch, 6 x 6 px": "the pixels of one square are free, at a random place of each image; PGD "
    f"with {LONGER} steps.",
    ROUNDED: f"PGD with {STEPS} steps chooses among images that a file of 8 bits can hold "
    "(`quantise`).",
    UNIVERSAL: "one perturbation for all inliers and one for all outliers, found in "
    f"{UNIVERSAL_STEPS} steps on {FITTING} training images of CIFAR-10 and {FITTING} outliers of "
    "TinyImageNet.",
    TRANSFER: f"PGD with {STEPS} steps through the same detector on the other network; it never "
    "sees the network that is scored.",
}


def measured(options: Any, nets: list[str]) -> Areas:
    """Return the AUROC of all parts; with `--page`, of the modes whose parts are all kept."""
    parts = Parts(
        options.folder,
        {"limit": options.limit, "fit": options.fit},
        len(nets) * len(options.only) * len(ALL),
    )
    measurement = None if options.page else Measurement(options)
    found: Areas = {}
    for mode in ALL:
        of_mode: Areas = {}
        for net in nets:
            for name in options.only:
                file = "".join(c if c.isalnum() else "_" for c in f"{net}-{name}-{mode}")
                part = parts.kept(file)
                if measurement is not None:
                    part = parts(file, partial(measurement.areas, net, name, mode))
                if part is not None:
                    of_mode[net, name, mode] = part
        if len(of_mode) == len(nets) * len(options.only):
            found.update(of_mode)
    return found


def main() -> None:
    arguments = parser(__doc__, limit=128, output="docs/results/attack_modes.md")
    arguments.add_argument("--checkpoint", nargs="+", help="NAME=PATH, one other network")
    arguments.add_argument("--only", nargs="+", default=["msp", "energy", "knn"], help="detectors")
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    arguments.add_argument("--page", action="store_true", help="write the page of what is done")
    options = arguments.parse_args()
    nets = list(networks(options))
    if len(nets) != 2:
        raise SystemExit("--checkpoint: expected one network besides --weights, to transfer from")
    found = measured(options, nets)
    text = INTRODUCTION.format(limit=options.limit, half=options.limit // len(OOD))
    lines = [*text.splitlines(), ""]
    lines += [f"- *{mode}*: {EXPLAINED[mode]}" for mode in done(found)[1:]]
    lines += ["", *findings(found, nets, options.only)]
    header = ["attack", *(f"{name}, {kind}" for name in options.only for kind in OOD)]
    for net in nets:
        lines += [f"## {net}", "", *table(header, rows_of(found, net, options.only))]
    write_page(options.output, "Attack modes", lines)


if __name__ == "__main__":
    main()
