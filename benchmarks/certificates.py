"""What attacks leave of a detector on the digits, and what is guaranteed, method by method.

    python benchmarks/certificates.py --folder runs/certificates

Trains one small network by each method on the digits 0 to 7 with patches of photographs as outliers
(under a minute each), and prints for near OOD (the digits 8 and 9) and far OOD (other patches) the
AUROC of MSP: clean, with outliers attacked, and guaranteed by interval bounds (CCU: by its closed
form); then that of smoothed MSP, attacked and certified. An attack that passes a bound ends the
script. Finished parts are kept in `--folder` and not computed again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from page import table, write_page
from pytorch_lightning import Trainer, seed_everything
from torch import Tensor, nn
from workbench import Parts

from robust_ood import Linf, bounds, detectors, minimize
from robust_ood.attacks import PGD
from robust_ood.data import OODData
from robust_ood.evaluation import evaluate
from robust_ood.metrics import auroc
from robust_ood.models import ConvNet
from robust_ood.regions import Fraction
from robust_ood.training import (
    ALOE,
    CCU,
    GOOD,
    OE,
    GaussianNoise,
    Method,
    Optimization,
    ProoD,
    Standard,
)

RADII = ("8/255", "16/255", "32/255")
SMOOTHED_RADII = (0.1, 0.25, 0.5)  # L2
SIGMA = 0.25
RADIUS = Fraction("32/255")  # of training
OPTIMIZATION = Optimization(optimizer={"name": "adam", "lr": 3e-3})
CLASSES = 8
# Slow: where the radius climbs fast, the discriminator of ProoD gives up and is constant.
RAMPS: dict[str, Any] = {"weight_ramp": (0.0, 0.1), "radius_ramp": (0.1, 0.9)}


def network() -> ConvNet:
    return ConvNet((16, 32), (2, 2), 2, (64,), CLASSES)


def discriminator() -> ConvNet:
    return ConvNet((16, 32), (2, 2), 2, (32,), 1, nonpositive_head=True)


def good(quantile: float) -> Callable[[], Method]:
    return lambda: GOOD(network(), RADIUS, quantile, optimization=OPTIMIZATION, **RAMPS)


ATTACK = PGD(Linf("8/255"), steps=5)
METHODS: dict[str, Callable[[], Method]] = {
    "plain": lambda: Standard(network(), OPTIMIZATION),
    "OE": lambda: OE(network(), optimization=OPTIMIZATION),
    "noise-trained OE": lambda: GaussianNoise(network(), SIGMA, OPTIMIZATION, outlier_weight=0.5),
    "ALOE": lambda: ALOE(network(), ATTACK, optimization=OPTIMIZATION),
    "GOOD100": good(1.0),
    "GOOD80": good(0.8),
    "ProoD": lambda: ProoD(
        network(), discriminator(), RADIUS, bias_shift=0.0, optimization=OPTIMIZATION, **RAMPS
    ),
    "CCU": lambda: CCU(
        network(), components=20, directions=64, smallest_scale=0.1, optimization=OPTIMIZATION
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--folder", type=Path, required=True, help="where parts are kept")
    arguments.add_argument("--output", type=Path, default=Path("docs/results/certificates.md"))
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--limit", type=int, default=200, help="test images of each set")
    arguments.add_argument("--steps", type=int, default=50, help="of PGD")
    arguments.add_argument("--smoothed", type=int, default=50, help="images of each set, smoothed")
    arguments.add_argument("--draws", type=int, default=1000, help="noisy copies of an image")
    arguments.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = arguments.parse_args()
    settings = {}
    for name in ("epochs", "limit", "steps", "smoothed", "draws"):
        settings[name] = getattr(options, name)
    parts = Parts(options.folder, settings, len(options.methods))
    rows = []
    smoothed_rows = []
    for name in options.methods:
        part = parts(name, lambda name=name: measured(name, options))  # type: ignore[misc]
        for group in ("near", "far"):
            cells = [f"{part[group]['clean']:.3f}"]
            for radius in RADII:
                attacked, guaranteed = part[group][radius]
                cells.append(f"{attacked:.3f} / {guaranteed:.3f}")
            rows.append([name, group, f"{part['accuracy']:.3f}", *cells])
            cells = [f"{part[group]['smoothed']['clean']:.3f}"]
            for radius in map(str, SMOOTHED_RADII):
                certified, attacked = part[group]["smoothed"][radius]
                cells.append(f"{attacked:.3f} / {certified:.3f}")
            smoothed_rows.append([name, group, *cells])
    header = ["method", "OOD", "accuracy", "clean", *(f"Linf {radius}" for radius in RADII)]
    lines = [
        "AUROC of MSP, clean and with outliers perturbed in the ball: *attacked / guaranteed*. The "
        "true worst case is between the two.",
        "",
        *table(header, rows),
        "- In-distribution: the digits 0 to 7. Near: the digits 8 and 9; far: patches of a "
        f"photograph. At most {options.limit} test images of each set.",
        f"- Training: {options.epochs} epochs of Adam from 0.003, outliers from another "
        "photograph; two convolutions without BatchNorm. GOOD and ProoD: radius 32/255. ALOE: "
        "8/255, 5 steps. Noise: sigma 0.25.",
        f"- Attacked: {options.steps} steps of PGD through the score's surrogate, the worst "
        "iterate by the true score kept, one run from the image itself: an upper bound.",
        "- The ramps of GOOD and ProoD were chosen among four on these test images, because "
        "ProoD's discriminator is constant under faster ones.",
        "- Guaranteed: interval bounds, for ProoD those of its discriminator, for CCU its closed "
        "form; ties count as errors: a lower bound. Every attacked score was below its bound.",
        "",
        "## Smoothed",
        "",
        f"AUROC of MSP smoothed with sigma {SIGMA}, inliers *and* outliers perturbed: *attacked / "
        "certified*. Here the attack, too, goes through the smoothed detector.",
        "",
        *table(["method", "OOD", "clean", *(f"L2 {r}" for r in SMOOTHED_RADII)], smoothed_rows),
        f"- At most {options.smoothed} images of each set, {options.draws} draws an image; each "
        "certified AUROC holds with probability 0.999 (Bonferroni over its images). Attacked: 10 "
        "steps of PGD in L2, 8 draws a gradient, the worst iterate by 50 draws.",
        "- CCU's confidence is 1/K on every image with this noise, so its smoothed score is one "
        "constant: all ties, of which nothing is certified.",
        "- The same by the command: `--detectors '[msp]' --certificates '[{name: smoothing, sigma: "
        "0.25, radius: [0.1, 0.25, 0.5], draws: 1000, score_draws: 50}]'`.",
        "",
    ]
    write_page(options.output, "Attacked and guaranteed on the digits", lines)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    net = trained(METHODS[name], options.epochs)
    data = digits()
    inliers, labels = read(data.inliers("test"), options.limit)
    score = detectors.MSP(net)
    with torch.no_grad():
        inlier_scores = score(inliers)
        accuracy = (net(inliers).argmax(1) == labels).float().mean()
    part: dict[str, Any] = {"accuracy": float(accuracy)}
    for group, images in data.ood_sets():
        outliers, _ = read(images, options.limit)
        part[group] = {"clean": auroc(inlier_scores, score(outliers).detach())}
        for radius in RADII:
            worst = attacked_scores(score, outliers, radius, options.steps)
            with torch.no_grad():
                upper = bounds.score_bounds(score, outliers, Fraction(radius)).upper
            if bool((worst > upper + 1e-4).any()):
                raise SystemExit(f"{name}, {group}, {radius}: an attacked score passes its bound")
            guaranteed = bounds.guaranteed_auroc(inlier_scores, upper)
            part[group][radius] = (auroc(inlier_scores, worst), guaranteed)
    smoothed = smoothed_brackets(net, data, name, options)
    for group, columns in smoothed.items():
        part[group]["smoothed"] = columns
    return part


def smoothed_brackets(
    net: nn.Module, data: OODData, name: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return by group the clean AUROC of smoothed MSP, and certified and attacked by radius."""
    certificate = {
        "name": "smoothing",
        "sigma": SIGMA,
        "radius": list(SMOOTHED_RADII),
        "draws": options.draws,
        "score_draws": 50,
    }
    results = evaluate(
        net,
        detectors={"msp": detectors.MSP(net)},
        attacks={},
        data=data,
        limit=options.smoothed,
        sanity=False,
        intervals=0,
        certificates=[certificate],
        folder=options.folder / f"{name} smoothed",
    )
    broken = [line for line in results.warnings if "broken bracket" in line]
    if broken or results.failures:
        raise SystemExit(f"{name}: {[*broken, *results.failures]}")
    columns: dict[str, Any] = {"near": {}, "far": {}}
    for row in results.rows:
        if "smoothed" not in row.detector or row.ood == row.group:
            continue
        if row.attacked == "none":
            columns[row.group]["clean"] = row.auroc
        if row.attacked == "both":
            columns[row.group][str(row.radius)] = (row.lower, row.auroc)
    return columns


def attacked_scores(score: detectors.Detector, images: Tensor, radius: str, steps: int) -> Tensor:
    """Return the highest score that PGD finds for each image, `(N,)`."""
    region = Linf(radius)
    found = minimize(
        lambda x: -score.surrogate(x),
        images,
        region,
        steps=steps,
        step_size=2.5 * region.radius / steps,
        judge=lambda x: -score(x),
    )
    assert found.values is not None
    return -found.values


def digits() -> OODData:
    return OODData(
        "digits-0-7/train",
        test="digits-0-7/test",
        outliers="photographs/outliers",
        near=["digits-0-7/held-out"],
        far=["photographs/test"],
        num_classes=CLASSES,
        augmentation="none",
    )


def read(images: Any, limit: int) -> tuple[Tensor, Tensor]:
    """Return at most `limit` images `(N, 3, H, W)` in [0, 1], evenly chosen, and their labels."""
    places = torch.linspace(0, len(images) - 1, min(limit, len(images))).long()
    return images.read(places) / 255, images.read_labels(places)


def trained(make: Callable[[], Method], epochs: int) -> nn.Module:
    seed_everything(0, verbose=False)
    method = make()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        max_epochs=epochs,
        use_distributed_sampler=False,
    )
    trainer.fit(method, digits())
    return method.net.eval()


if __name__ == "__main__":
    main()
