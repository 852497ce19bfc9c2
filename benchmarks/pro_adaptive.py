"""PRO under an attacker who knows it, beside the scores that it is made of.

    python benchmarks/pro_adaptive.py --weights cifar10_resnet20.th --checkpoint ALOE=last.ckpt \\
        --root ARRAYS --folder runs/pro_adaptive

Clean, attacked through MSP and attacked through PRO. The scores of each detector, attack and set
are saved in `--folder` and not computed again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from page import table, write_page
from torch import Tensor
from workbench import FAR, NEAR, Parts, networks, parser

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, transferred
from robust_ood.data import EvaluationLoader, load_set
from robust_ood.evaluation.scoring import Scorer
from robust_ood.metrics import auroc

DETECTORS = {
    "MSP": detectors.MSP,
    "PRO-MSP": lambda net: detectors.PRO(detectors.MSP(net)),
    "GEN": detectors.GEN,
    "PRO-GEN": lambda net: detectors.PRO(detectors.GEN(net)),
}
RADII = ("1/255", "3/255")
SETS = ("cifar10_test", *NEAR, *FAR)


def attacks_of(steps: int) -> dict[str, PGD | None]:
    found: dict[str, PGD | None] = {"clean": None}
    for radius in RADII:
        adaptive = PGD(Linf(radius), steps=steps)
        found[f"{radius} through MSP"] = transferred(adaptive, "msp")
        found[f"{radius} through itself"] = adaptive
    return found


def main() -> None:
    arguments = parser(__doc__, limit=200, output="docs/results/pro_adaptive.md")
    arguments.add_argument(
        "--checkpoint",
        action="append",
        metavar="NAME=PATH",
        help="another network; may be repeated",
    )
    arguments.add_argument("--steps", type=int, default=20, help="steps of PGD")
    chosen = arguments.parse_args()
    nets, attacks = networks(chosen), attacks_of(chosen.steps)
    parts = Parts(
        chosen.folder,
        {"limit": chosen.limit, "steps": chosen.steps},
        len(nets) * len(DETECTORS) * len(attacks) * len(SETS),
    )
    loaders = {
        name: EvaluationLoader(load_set(name, chosen.root), batch_size=100, limit=chosen.limit)
        for name in SETS
    }
    device = torch.device(chosen.device)
    scores: dict[tuple[str, ...], Tensor] = {}
    for net_name, net in nets.items():
        for name, make in DETECTORS.items():
            detector = make(net).to(device)
            for label, attack in attacks.items():
                for images, loader in loaders.items():
                    name_of_part = f"{net_name}-{name}-{label}-{images}".replace("/", "of").replace(
                        " ", "-"
                    )
                    part = parts(
                        name_of_part, partial(measure, detector, attack, images, loader, device)
                    )
                    scores[net_name, name, label, images] = torch.tensor(part["scores"])
    write(chosen, list(nets), list(attacks), scores)


def measure(
    detector: detectors.Detector,
    attack: PGD | None,
    images: str,
    loader: EvaluationLoader,
    device: torch.device,
) -> dict[str, Any]:
    """Return the detector's scores of one set."""
    direction = 1 if images == "cifar10_test" else -1
    scored = Scorer(device).score({"it": detector}, loader, attack, direction)
    return {"scores": scored.scores["it"].tolist()}


def write(
    chosen: Any, nets: list[str], attacks: list[str], scores: dict[tuple[str, ...], Tensor]
) -> None:
    def mean(group: tuple[str, ...], *key: str) -> str:
        areas = [auroc(scores[(*key, "cifar10_test")], scores[(*key, one)]) for one in group]
        return f"{sum(areas) / len(areas):.3f}"

    lines = [
        f"The first {chosen.limit} images of each set; AUROC of CIFAR-10 against the near sets "
        f"({', '.join(NEAR)}) and the far ones ({', '.join(FAR)}), means. PRO takes 3 steps of "
        f"0.001. Inliers and outliers are both attacked, by PGD in Linf with {chosen.steps} "
        "steps from a random start: through MSP, as one who does not know the detector would, "
        "its images handed over as they are; or through the detector itself, where each step "
        "differentiates the score at the point that PRO moves the image to (and, in a second "
        "run, the score without PRO), and the true score chooses among all iterates.",
        "",
    ]
    for net in nets:
        for group_name, group in (("near", NEAR), ("far", FAR)):
            rows = [
                (name, *(mean(group, net, name, label) for label in attacks)) for name in DETECTORS
            ]
            lines += [f"## {net}, {group_name}", "", *table(("detector", *attacks), rows)]
    write_page(chosen.output, "PRO under an adaptive attacker", lines)


if __name__ == "__main__":
    main()
