"""The encoder attack on CCU: noise that its classifier takes for digits, and what CCU says of it.

    python benchmarks/ccu_encoder_attack.py

Trains the CCU network of `certificates.py` on the digits 0 to 7 (under a minute), and moves uniform
noise to the features of digits: the classifier inside is fooled, and the confidence of the whole
network stays where its certificate says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from certificates import CLASSES, METHODS, digits, read, trained
from page import table, write_page
from torch import Tensor, nn

from robust_ood import L2, bounds
from robust_ood.attacks import EncoderAttack, encoder
from robust_ood.metrics import auroc
from robust_ood.models import Gated


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--output", type=Path, default=Path("docs/results/ccu_encoder_attack.md")
    )
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--images", type=int, default=100)
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--radius", type=float, default=10.0, help="of the L2 ball")
    options = arguments.parse_args()
    net = trained(METHODS["CCU"], options.epochs)
    assert isinstance(net, Gated)
    inliers, _ = read(digits().inliers("test"), options.images)
    draws = torch.Generator().manual_seed(0)
    noise = torch.rand(inliers.shape, generator=draws)
    attack = EncoderAttack(L2(options.radius), steps=options.steps)
    fooling = attack.match(encoder(net.classifier), noise, inliers)
    rows = []
    for label, part in (("its classifier alone", net.classifier), ("CCU", net)):
        inside = confidence(part, inliers)
        for kind, images in (("noise", noise), ("encoder attack", fooling)):
            outside = confidence(part, images)
            numbers = (inside.mean().item(), outside.mean().item(), auroc(inside, outside))
            rows.append([label, kind, *(f"{number:.4f}" for number in numbers)])
    upper = bounds.confidence_upper(net, noise, options.radius, norm="L2")
    if bool((confidence(net, fooling) > upper + 1e-5).any()):
        raise SystemExit("the attack passes the certificate")
    lines = [
        "Maximum softmax probability of digits and of uniform noise, before and after the encoder "
        "attack through the classifier's features.",
        "",
        *table(["network", "outliers", "of digits", "of outliers", "AUROC"], rows),
        f"- {len(noise)} images of each, 1/K = {1 / CLASSES:.4f}. {options.steps} steps of Adamax "
        f"within L2 {options.radius:g} of the noise.",
        f"- Certified: nothing within that ball has a confidence above {upper.max().item():.4f} "
        "(the largest of the bounds, in closed form). The attacked images are below their bounds.",
        "",
    ]
    write_page(options.output, "The encoder attack on CCU", lines)


def confidence(net: nn.Module, images: Tensor) -> Tensor:
    """Return the maximum softmax probability `(N,)`."""
    with torch.no_grad():
        return net(images).softmax(1).amax(1)


if __name__ == "__main__":
    main()
