"""What one image costs at 224 px on one core: a clean score, and attacks by gradients.

    OMP_NUM_THREADS=1 python benchmarks/image_cost.py --output docs/results/image_cost.md

ResNet-50 and ViT-B/16 with random weights (timm), which cost what trained ones cost. An attack of
n gradients is counted as n passes forwards and backwards and one clean score, so that the number of
an attack's gradients gives its cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from page import table, write_page
from torch import Tensor, nn

NETWORKS = {"ResNet-50": "resnet50", "ViT-B/16": "vit_base_patch16_224"}
GRADIENTS = {"pgd, 10 steps": 10, "pgd, 100 steps": 100, "pgd, 100 steps, 5 restarts": 500}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--batch", type=int, default=2)
    arguments.add_argument("--output", type=Path)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, model in NETWORKS.items():
        net = timm.create_model(model, pretrained=False).eval().requires_grad_(False)
        clean, gradient = costs(net, chosen.batch, chosen.repeats)
        cells = [name, f"{clean:.2f}", f"{gradient:.2f}"]
        for count in GRADIENTS.values():
            cells.append(f"{clean + count * gradient:.0f}")
        rows.append(cells)
        print(cells, flush=True)
    if chosen.output is None:
        return
    lines = [
        "Seconds of one core for one image of 224 x 224 pixels, random weights, float32: a clean "
        f"score and one gradient of the score by the image are measured (medians of "
        f"{chosen.repeats}, batches of {chosen.batch}); the attacks are a clean score plus their "
        "number of gradients.",
        "",
        *table(("network", "clean score", "gradient", *GRADIENTS), rows),
    ]
    write_page(chosen.output, "What one image costs at 224 pixels", lines, "timm")


def costs(net: nn.Module, batch: int, repeats: int) -> tuple[float, float]:
    """Return the seconds of a clean score and of a gradient, for one image."""
    images = torch.rand(batch, 3, 224, 224)

    def score() -> None:
        with torch.no_grad():
            net(images)

    def gradient() -> None:
        moved = images.clone().requires_grad_()
        value: Tensor = net(moved).logsumexp(1).sum()
        torch.autograd.grad(value, moved)

    return seconds(score, repeats) / batch, seconds(gradient, repeats) / batch


def seconds(work: Callable[[], None], repeats: int) -> float:
    """Return the median time of some work, after one run that warms up."""
    work()
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
