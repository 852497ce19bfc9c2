"""Robust accuracy of a CIFAR-10 ResNet-20 under our classifier suite and under AutoAttack.

    python benchmarks/classifier_attacks.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/classifier_attacks

AutoAttack: pip install pyautoattack. Each member of either suite meets the images that its
predecessors left correct. Finished parts are kept in `--folder`; stopped at any moment, the same
call goes on.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from page import table, write_page
from pyautoattack import AutoAttack
from torch import Tensor, nn
from workbench import Parts, images_of, networks, parser

from robust_ood import Linf
from robust_ood.attacks import PGD, LabelAttack, Targeted, misclassify, standard
from robust_ood.attacks.precision import PRECISIONS, Precision

THEIRS = ("apgd-ce", "apgd-t", "fab-t", "square")  # AutoAttack's standard version
Attacker = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Images, labels and sample indices to perturbed images."""


def ours(net: nn.Module, attack: LabelAttack, precision: Precision) -> Attacker:
    if isinstance(attack, Targeted):
        attack = replace(attack, attack=replace(attack.attack, precision=precision))
    elif isinstance(attack, PGD):
        attack = replace(attack, precision=precision)
    return lambda images, labels, indices: misclassify(net, images, labels, attack, indices=indices)


def theirs(net: nn.Module, member: str, radius: float, device: str) -> Attacker:
    """Return one member of AutoAttack with the settings of its standard version."""
    plain = copy.deepcopy(net).to(
        memory_format=torch.contiguous_format
    )  # it cannot flatten other layouts
    auto = AutoAttack(plain, norm="Linf", eps=radius, version="standard", seed=0, device=device)
    auto.attacks_to_run = [member]

    def attack(images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        return auto.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))[0]

    return attack


def main() -> None:
    arguments = parser(__doc__, limit=1000, output="docs/results/classifier_attacks.md")
    arguments.add_argument("--radius", type=float, default=1 / 255, help="Linf radius")
    arguments.add_argument("--batch", type=int, default=500)
    arguments.add_argument(
        "--precision", default="float32", choices=PRECISIONS, help="of our gradients"
    )
    chosen = arguments.parse_args()
    (net,) = networks(chosen).values()
    radius, device = chosen.radius, chosen.device
    members = standard(radius).on_classifiers
    chains: dict[str, dict[str, Attacker]] = {
        "PGD alone": {
            "pgd": ours(net, PGD(Linf(radius), steps=20, step_size=radius / 4), chosen.precision)
        },
        "our suite": {
            name: ours(net, member, chosen.precision) for name, member in members.items()
        },
        "AutoAttack": {name: theirs(net, name, radius, device) for name in THEIRS},
    }
    images, labels = images_of("cifar10_test", chosen.root, chosen.limit, device)
    starts = range(0, len(images), chosen.batch)
    settings = {
        "radius": radius,
        "batch": chosen.batch,
        "limit": chosen.limit,
        "precision": chosen.precision,
    }
    parts = Parts(chosen.folder, settings, len(starts) * sum(map(len, chains.values())))
    standing: dict[tuple[str, str], list[int]] = {}
    seconds: dict[tuple[str, str], float] = {}
    for start in starts:
        batch = torch.arange(start, min(start + chosen.batch, len(images)))
        clean = batch[right(net, images[batch], labels[batch])]
        standing.setdefault(("", "none"), []).extend(clean.tolist())
        for chain, attackers in chains.items():
            left = clean
            for name, attacker in attackers.items():
                part = parts(
                    f"{start:05}-{chain}-{name}".replace(" ", "-"),
                    partial(withstood, net, images, labels, left, attacker, radius),
                )
                left = torch.tensor(part["standing"], dtype=torch.long)
                standing.setdefault((chain, name), []).extend(part["standing"])
                seconds[chain, name] = seconds.get((chain, name), 0.0) + part["seconds"]
    write(chosen, len(images), chains, standing, seconds)


def withstood(
    net: nn.Module, images: Tensor, labels: Tensor, left: Tensor, attacker: Attacker, radius: float
) -> dict[str, list[int]]:
    """Return which of the images that are left are still classified correctly after an attack."""
    if not len(left):
        return {"standing": []}
    found = attacker(images[left], labels[left], left)
    assert (found - images[left]).abs().max() <= radius + 1e-6
    return {"standing": left[right(net, found, labels[left])].tolist()}


@torch.no_grad()
def right(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return (net(images).argmax(1) == labels).cpu()


def write(
    chosen: Namespace, count: int, chains: dict[str, dict[str, Attacker]],
    standing: dict[tuple[str, str], list[int]], seconds: dict[tuple[str, str], float],
) -> None:  # fmt: skip
    last = {chain: set(standing[chain, list(members)[-1]]) for chain, members in chains.items()}
    rates = {chain: len(indices) / count for chain, indices in last.items()}
    gap = 100 * (rates["our suite"] - rates["AutoAttack"])
    total = {
        chain: sum(seconds[chain, name] for name in members) for chain, members in chains.items()
    }
    lines = [
        f"ResNet-20 on the first {count} CIFAR-10 test images, Linf radius "
        f"{chosen.radius * 255:g}/255. AutoAttack is the standard version of pyautoattack 0.2, "
        "an implementation independent of ours. PGD takes 20 steps of a quarter of the radius "
        f"from a random start. Our gradients are in {chosen.precision}.",
        "",
        *table(
            ("attack", "robust accuracy", "seconds"),
            [("none", f"{len(standing['', 'none']) / count:.2%}", "")]
            + [(chain, f"{rates[chain]:.2%}", f"{total[chain]:.0f}") for chain in chains],
        ),
        f"Ours minus AutoAttack's: {gap:+.2f} points. Images that AutoAttack alone breaks: "
        f"{len(last['our suite'] - last['AutoAttack'])}; that our suite alone breaks: "
        f"{len(last['AutoAttack'] - last['our suite'])}.",
        "",
        "Member by member, each on the images that those before it left correct:",
        "",
        *table(
            ("suite", "member", "still correct", "seconds"),
            [
                (
                    chain,
                    name,
                    f"{len(standing[chain, name]) / count:.2%}",
                    f"{seconds[chain, name]:.0f}",
                )
                for chain, members in chains.items()
                for name in members
            ],
        ),
    ]
    write_page(chosen.output, "Robust accuracy: our classifier suite and AutoAttack", lines)


if __name__ == "__main__":
    main()
