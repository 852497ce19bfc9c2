"""The encoder attack on CCU: noise that its classifier takes for digits, and what CCU says of it.

    python benchmarks/ccu_encoder_attack.py

Trains the CCU network of `certificates.py` on the digits 0 to 7 (a minute), and moves uniform noise
to the features of digits, within balls of several radii: the classifier inside is fooled, and the
confidence of the whole network stays below its certificate, also where PGD raises that confidence
itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from certificates import CLASSES, METHODS, digits, read, trained
from page import table, write_page
from torch import Tensor, nn

from robust_ood import L2, bounds
from robust_ood.attacks import PGD, EncoderAttack, attack_score, encoder, mape
from robust_ood.detectors import MSP
from robust_ood.metrics import auroc
from robust_ood.models import Gated

COLUMNS = (
    "radius",
    "MAPE",
    "AUROC of MSP",
    "AUROC of CCU",
    "largest of CCU",
    "PGD",
    "straight",
    "certified",
)


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
    arguments.add_argument("--pgd-steps", type=int, default=50)
    arguments.add_argument("--radii", type=float, nargs="+", default=[5.0, 7.0, 10.0, 20.0])
    options = arguments.parse_args()
    net = trained(METHODS["CCU"], options.epochs)
    assert isinstance(net, Gated)
    inliers, _ = read(digits().inliers("test"), options.images)
    draws = torch.Generator().manual_seed(0)
    noise = torch.rand(inliers.shape, generator=draws)
    distance = (noise - inliers).flatten(1).norm(dim=1).mean().item()
    rows = [["0", *compared(net, inliers, noise), "", "", ""]]
    for radius in options.radii:
        rows.append([f"{radius:g}", *attacked(net, inliers, noise, radius, options)])
    lines = [
        "Digits against uniform noise that the encoder attack has moved to the features of digits, "
        "within an L2 ball around the noise: the classifier inside a CCU network alone (MSP), and "
        "the whole network (CCU). No image of the ball has a confidence above the certified one.",
        "",
        *table(COLUMNS, rows),
        f"- {len(noise)} images of each, {inliers[0].numel()} pixels; noise and its digit are "
        f"{distance:.1f} apart in L2. 1/K = {1 / CLASSES:.4f}. {options.steps} steps of Adamax; "
        f"{options.pgd_steps} steps of PGD through the confidence of CCU.",
        "- Certified: the largest of the closed bounds over all images. 1.0000 says that nothing "
        "is certified: balls of that radius reach the digits' part of the space.",
        "- Largest of CCU: the largest confidence over all images after the encoder attack; PGD: "
        "after PGD; straight: after moving each image straight towards its digit, the way that "
        "PGD has no slope to find where the densities are flat.",
        "",
    ]
    write_page(options.output, "The encoder attack on CCU", lines)


def attacked(
    net: Gated, inliers: Tensor, noise: Tensor, radius: float, options: argparse.Namespace
) -> list[str]:
    """Return the cells of one radius, once all attacks are seen to stay below the certificate."""
    attack = EncoderAttack(L2(radius), steps=options.steps)
    fooling = attack.match(encoder(net.classifier), noise, inliers)
    pgd = PGD(L2(radius), steps=options.pgd_steps, restarts=2)
    raised = attack_score(MSP(net), noise, pgd, direction=-1).images
    apart = (inliers - noise).flatten(1).norm(dim=1)[:, None, None, None]
    straight = noise + (radius / apart).clamp(max=1) * (inliers - noise)
    upper = bounds.confidence_upper(net, noise, radius, norm="L2")
    for images in (fooling, raised, straight):
        if bool((confidence(net, images) > upper + 1e-5).any()):
            raise SystemExit(f"an attack of radius {radius:g} passes the certificate")
    largest = []
    for values in (confidence(net, raised), confidence(net, straight), upper):
        largest.append(values.max().item())
    return [*compared(net, inliers, fooling), *(f"{number:.4f}" for number in largest)]


def compared(net: Gated, inliers: Tensor, outliers: Tensor) -> list[str]:
    """Return error of the features, AUROC of both networks, and CCU's largest confidence."""
    code = encoder(net.classifier)
    with torch.no_grad():
        error = mape(code(outliers), code(inliers)).mean().item()
    cells = [f"{error:.1%}"]
    for part in (net.classifier, net):
        cells.append(f"{auroc(confidence(part, inliers), confidence(part, outliers)):.4f}")
    cells.append(f"{confidence(net, outliers).max().item():.4f}")
    return cells


def confidence(net: nn.Module, images: Tensor) -> Tensor:
    """Return the maximum softmax probability `(N,)`."""
    with torch.no_grad():
        return net(images).softmax(1).amax(1)


if __name__ == "__main__":
    main()
