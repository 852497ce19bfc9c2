"""Robust accuracy under our classifier suite and under AutoAttack, on several networks and radii.

    python benchmarks/small_networks.py --root ARRAYS --folder runs/small_networks
    python benchmarks/classifier_attacks.py --small runs/small_networks --root ARRAYS \\
        --weights cifar10_resnet20.th --folder runs/classifier_attacks

AutoAttack: pip install pyautoattack. It runs in its standard version, our suite with the settings
that an evaluation has. Finished parts are kept in `--folder`; stopped at any moment, the same call
goes on. The command ends with an error where AutoAttack is ahead by more than `--slack` points.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import small_networks
import torch
from page import table, write_page
from pyautoattack import AutoAttack
from torch import Tensor, nn
from workbench import Parts, images_of, parser, resnet20

from robust_ood.attacks import attack_labels, standard

ROUNDING = 1e-6
RESNET = "ResNet-20"
HEADER = (
    "network",
    "radius",
    "clean",
    "our suite",
    "AutoAttack",
    "ours minus theirs, points",
    "images that only theirs / only ours breaks",
    "minutes, ours / theirs",
)


def main() -> int:
    arguments = parser(__doc__, limit=1000, output="docs/results/classifier_attacks.md")
    arguments.add_argument("--small", type=Path, help="what small_networks.py has trained")
    arguments.add_argument(
        "--radii", type=int, nargs="+", default=[1, 2, 8], help="Linf, in grey levels of 255"
    )
    arguments.add_argument("--only", nargs="+", help="names of networks; all by default")
    arguments.add_argument(
        "--finished", action="store_true", help="write the page of what is done, compute nothing"
    )
    arguments.add_argument("--slack", type=float, default=0.25, help="points")
    options = arguments.parse_args()
    networks = chosen_networks(options)
    images, labels = images_of("cifar10_test", options.root, options.limit, options.device)
    images = images.contiguous()  # theirs flattens with `view`
    cases = []
    for name in options.only or networks:
        # The ResNet-20 is not robust: at larger radii nothing is left.
        for level in options.radii[:1] if name == RESNET else options.radii:
            if not options.finished or (options.folder / f"{part_of(name, level)}.json").exists():
                cases.append((name, level))
    parts = Parts(options.folder, {"limit": options.limit}, len(cases))
    results = []
    for name, level in cases:
        net = networks[name].to(options.device)
        measured = partial(compare, net, images, labels, level / 255)
        part = parts(part_of(name, level), measured)
        results.append({"network": name, "level": level, **part})
    return write(options, results)


def part_of(network: str, level: int) -> str:
    """Return the name of a case's part."""
    return f"{network}-{level}".replace(" ", "-")


def chosen_networks(options: Namespace) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {}
    if options.small:
        networks.update(small_networks.trained(options.small))
    if options.weights:
        networks[RESNET] = resnet20(options.weights)
    if not networks:
        raise SystemExit("--small, --weights: no network given")
    return networks


def compare(net: nn.Module, images: Tensor, labels: Tensor, radius: float) -> dict[str, Any]:
    """Return which images each suite leaves correct, and the seconds it took."""
    clean = right(net, images, labels)
    begin = time.perf_counter()
    ours = attack_labels(net, images, labels, standard(radius)).images
    middle = time.perf_counter()
    theirs = auto_attack(net, images, labels, radius)
    end = time.perf_counter()
    for attacked in (ours, theirs):
        assert (attacked - images).abs().max() <= radius + ROUNDING
    return {
        "clean": clean.nonzero()[:, 0].tolist(),
        "ours": right(net, ours, labels).nonzero()[:, 0].tolist(),
        "theirs": right(net, theirs, labels).nonzero()[:, 0].tolist(),
        "took": {"ours": middle - begin, "theirs": end - middle},
    }


def auto_attack(net: nn.Module, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    attack = AutoAttack(
        net, norm="Linf", eps=radius, version="standard", seed=0, device=images.device
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every batch
        attacked: Tensor = attack.run_standard_evaluation(images, labels, batch_size=500)[0]
    return attacked


@torch.no_grad()
def right(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return (net(images).argmax(1) == labels).cpu()


def write(options: Namespace, results: list[dict[str, Any]]) -> int:
    """Write the page; return 1 where AutoAttack is ahead by more than the slack."""
    rows = []
    ahead = []
    for result in results:
        ours = set(result["ours"])
        theirs = set(result["theirs"])
        gap = 100 * (len(ours) - len(theirs)) / options.limit
        if gap > options.slack:
            ahead.append(f"{result['network']} at {result['level']}/255")
        took = result["took"]  # seconds
        rows.append(
            (
                result["network"],
                f"{result['level']}/255",
                f"{len(result['clean']) / options.limit:.1%}",
                f"{len(ours) / options.limit:.1%}",
                f"{len(theirs) / options.limit:.1%}",
                f"{gap:+.1f}",
                f"{len(ours - theirs)} / {len(theirs - ours)}",
                f"{took['ours'] / 60:.1f} / {took['theirs'] / 60:.1f}",
            )
        )
    verdict = f"AutoAttack is nowhere ahead by more than {options.slack} points."
    if ahead:
        verdict = f"AutoAttack is ahead by more than {options.slack} points on {', '.join(ahead)}."
    lines = [
        f"Accuracy on the first {options.limit:,} CIFAR-10 test images, clean and attacked (Linf). "
        "AutoAttack is the standard version of pyautoattack 0.2, an implementation independent of "
        "ours. The suite runs as in an evaluation: most members in the precision that `auto` "
        "chooses, the last ones in float32. The small networks have two convolutions and two "
        "linear layers; ADV and ALOE are trained at 8/255.",
        "",
        verdict,
        "",
        *table(HEADER, rows),
    ]
    write_page(options.output, "Robust accuracy: our classifier suite and AutoAttack", lines)
    return 1 if ahead else 0


if __name__ == "__main__":
    sys.exit(main())
