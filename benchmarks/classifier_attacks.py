"""Robust accuracy of a CIFAR-10 ResNet-20 under our classifier suite and under AutoAttack (pip install pyautoattack).

    python benchmarks/classifier_attacks.py --weights cifar10_resnet20.th --images cifar10_test.npz \
        --limit 1000 --output docs/results/classifier_attacks.md
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from pyautoattack import AutoAttack

from robust_ood import Linf
from robust_ood.attacks import PGD, Attacked, attack_labels, standard
from robust_ood.models import ThinResNet, load_weights

BATCH = 250
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what these weights were trained with


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights of the network")
    parser.add_argument("--images", type=Path, required=True, help="npz with uint8 images (N, 32, 32, 3) and labels")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--radius", type=float, default=1 / 255)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True, help="Markdown page to write")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    net = ThinResNet(depth=20, mean=MEAN, std=STD)
    load_weights(net, chosen.weights, key_map={"linear.": "head."}).eval().to(chosen.device)
    arrays = np.load(chosen.images)
    images = (
        torch.from_numpy(arrays["images"][: chosen.limit])
        .permute(0, 3, 1, 2)
        .float()
        .div(255)
        .contiguous()
        .to(chosen.device)
    )
    labels = torch.from_numpy(arrays["labels"][: chosen.limit]).long().to(chosen.device)

    region = Linf(chosen.radius)
    pgd = PGD(region, steps=20, step_size=chosen.radius / 4)
    rows = [("none", right(net, images, labels), 0.0)]
    wins: dict[str, int] = {}
    for name, attack in (("PGD, 20 steps of radius/4", pgd), ("our standard suite", standard(chosen.radius))):
        begin = time.perf_counter()
        survived = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            indices = torch.arange(start, min(start + BATCH, len(images)))
            found: Attacked = attack_labels(net, images[part], labels[part], attack, indices=indices)
            survived.append(found.values > 0)
            if attack is not pgd:
                for member, count in found.wins().items():
                    wins[member] = wins.get(member, 0) + count
        rows.append((name, torch.cat(survived), time.perf_counter() - begin))

    begin = time.perf_counter()
    auto = AutoAttack(net, norm="Linf", eps=chosen.radius, version="standard", seed=0, device=chosen.device)
    broken = auto.run_standard_evaluation(images, labels, batch_size=BATCH)
    if isinstance(broken, tuple):
        broken = broken[0]
    assert (broken - images).abs().max() <= chosen.radius + 1e-6
    rows.append(("AutoAttack (standard)", right(net, broken, labels), time.perf_counter() - begin))
    write(chosen, rows, wins)


@torch.no_grad()
def right(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([net(x).argmax(1) == y for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)])


def write(chosen: argparse.Namespace, rows: list[tuple[str, torch.Tensor, float]], wins: dict[str, int]) -> None:
    survivors = {name: survived for name, survived, _ in rows}
    ours, theirs = survivors["our standard suite"], survivors["AutoAttack (standard)"]
    lines = [
        "# Robust accuracy: our classifier suite and AutoAttack",
        "",
        f"ResNet-20 on the first {chosen.limit} CIFAR-10 test images, Linf radius {chosen.radius * 255:g}/255.",
        "",
        "| attack | accuracy | seconds |",
        "|---|---|---|",
        *(f"| {name} | {survived.float().mean():.2%} | {seconds:.0f} |" for name, survived, seconds in rows),
        "",
        f"Images broken by AutoAttack alone: {int((ours & ~theirs).sum())}; by our suite alone: "
        f"{int((theirs & ~ours).sum())}.",
        "",
        "Which member of our suite found the kept image: " + ", ".join(f"{k} {v}" for k, v in wins.items()) + ".",
        "",
        "Made by `benchmarks/classifier_attacks.py`.",
    ]
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
