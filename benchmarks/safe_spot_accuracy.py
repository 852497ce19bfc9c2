"""Accuracy on safe spots and under attack around them, as in the safe spots paper's Table 1.

    python benchmarks/safe_spot_accuracy.py --weights cifar10_resnet20.th \\
        --checkpoint S-FGSM+ADV=last.ckpt --root ARRAYS --folder runs/safe_spot_accuracy

Finished batches are saved in `--folder`; the same command continues.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, images_of, networks, parser

from robust_ood import safe_spots

METHODS = {"None": None, "S-FGSM": "fgsm", "S-PGD": "pgd", "S-Full": "full"}
BUDGETS = {"Linf": 8 / 255, "L2": 0.5}  # the paper's, for the defender and the attacker


def main() -> None:
    arguments = parser(__doc__, limit=100, output="docs/results/safe_spot_accuracy.md")
    arguments.add_argument(
        "--checkpoint",
        action="append",
        metavar="NAME=PATH",
        help="another network; may be repeated",
    )
    arguments.add_argument(
        "--linf", type=float, default=BUDGETS["Linf"], help="radius of both sides in Linf"
    )
    arguments.add_argument(
        "--l2", type=float, default=BUDGETS["L2"], help="radius of both sides in L2"
    )
    arguments.add_argument("--batch", type=int, default=50)
    chosen = arguments.parse_args()
    nets, radii = networks(chosen), {"Linf": chosen.linf, "L2": chosen.l2}
    starts = range(0, chosen.limit, chosen.batch)
    parts = Parts(
        chosen.folder,
        {**radii, "limit": chosen.limit},
        len(nets) * len(radii) * len(METHODS) * len(starts),
    )
    right: dict[tuple[str, str, str], list[dict[str, int]]] = {}
    for start in starts:
        size = min(chosen.batch, chosen.limit - start)
        images, labels = images_of("cifar10_test", chosen.root, size, chosen.device, first=start)
        indices = torch.arange(start, start + len(images))
        for net_name, net in nets.items():
            for norm, radius in radii.items():
                for name, method in METHODS.items():
                    part = parts(
                        f"{net_name}-{norm}-{name}-{start:05}".replace("/", "of"),
                        partial(measure, net, images, labels, indices, norm, radius, method),
                    )
                    right.setdefault((net_name, norm, name), []).append(part)
    write(chosen, list(nets), radii, right)


def measure(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    norm: str,
    radius: float,
    method: Any,
) -> dict[str, int]:
    """Return how many images are right on their safe spots and after the attack on these."""
    spots = images
    if method is not None:
        spots = safe_spots.search(net, images, radius, norm, method, indices=indices)
    attacked = safe_spots.attack(net, spots, labels, radius, norm, indices=indices)
    with torch.no_grad():
        clean, after = (net(x).argmax(1) == labels for x in (spots, attacked))
    # An image that is wrong before the attack is wrong under the attacker who leaves it as it is.
    return {"clean": int(clean.sum()), "attacked": int((clean & after).sum())}


def write(
    chosen: Any,
    nets: list[str],
    radii: dict[str, float],
    right: dict[tuple[str, str, str], list[dict[str, int]]],
) -> None:
    def cell(*key: str) -> str:
        return "/".join(
            f"{sum(p[one] for p in right[key]) / chosen.limit:.1%}" for one in ("clean", "attacked")
        )  # type: ignore[index]

    lines = [
        f"The first {chosen.limit} CIFAR-10 test images. The defender moves each image towards a "
        "safe spot of its predicted class within the radius (S-FGSM, S-PGD and S-Full as in the "
        "paper, `robust_ood.safe_spots`), then the attacker moves it within the same radius "
        "again: PGD on the true label, 20 steps of a quarter of the radius, random start. Shown: "
        "accuracy before / after the attack.",
        "",
    ]
    for norm, radius in radii.items():
        shown = f"{radius * 255:g}/255" if norm == "Linf" else f"{radius:g}"
        rows = [(net, *(cell(net, norm, name) for name in METHODS)) for net in nets]
        lines += [f"## {norm}, radius {shown}", "", *table(("network", *METHODS), rows)]
    write_page(chosen.output, "Accuracy on safe spots", lines)


if __name__ == "__main__":
    main()
