"""The known failure of a flow's likelihood: SVHN is likelier than CIFAR-10, under CIFAR-10's flow.

    python benchmarks/flow_failure.py --root ARRAYS --folder FOLDER

Trains the small Glow of `configs/experiments/cifar10_flow_small.yaml`, some ten minutes of one
core, scores four sets by its likelihood and by the two forms of complexity, and attacks these
scores on the first images. Stopped at any moment, the same command continues.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from page import ROOT, table, write_page
from torch import Tensor
from workbench import Parts, images_of, parser

from robust_ood import Linf
from robust_ood.attacks import PGD, attack_score
from robust_ood.detectors import Complexity, Detector, Likelihood
from robust_ood.metrics import auroc
from robust_ood.models import load_network

CONFIG = "configs/experiments/cifar10_flow_small.yaml"
INLIERS = "cifar10_test"
OUTLIERS = {
    "SVHN": "svhn_test",
    "textures": "dtd10",
    "places": "miniplaces_test",
    "CIFAR-100": "cifar100_test",
}
SCORES = ("likelihood", "complexity (PNG)", "complexity (no header)")
SIDES = ("clean", "in", "out", "both")
BATCH = 50


def main() -> int:
    arguments = parser(__doc__, limit=500, output="docs/results/flow_failure.md")
    arguments.add_argument("--attacked", type=int, default=50, help="attacked images of each set")
    arguments.add_argument("--steps", type=int, default=20, help="of PGD")
    arguments.add_argument("--levels", type=int, default=1, help="radius in grey levels of 255")
    arguments.add_argument("--iterations", type=int, default=None, help="of a shorter training")
    options = arguments.parse_args()
    train(options)
    net = load_network(options.folder / "flow" / "last.ckpt").eval()
    detectors: dict[str, Detector] = {}
    for name in SCORES:
        detectors[name] = made(name, net)
    kept = {name: getattr(options, name) for name in ("limit", "attacked", "steps", "levels")}
    sets = [INLIERS, *OUTLIERS.values()]
    parts = Parts(options.folder / "scores", kept, len(SCORES) * len(sets) * 2)
    clean: dict[tuple[str, str], list[float]] = {}
    attacked: dict[tuple[str, str], list[float]] = {}
    for score, detector in detectors.items():
        for name in sets:
            work = partial(scores_of, detector, name, options)
            clean[score, name] = parts(f"clean-{score}-{name}", work)["scores"]
            work = partial(worst_of, detector, name, options)
            attacked[score, name] = parts(f"attacked-{score}-{name}", work)["scores"]
    write(options, clean, attacked)
    return 0


def made(name: str, net: torch.nn.Module) -> Detector:
    if name == "likelihood":
        return Likelihood(net)
    return Complexity(net, "png" if "PNG" in name else "deflate")


def train(options: argparse.Namespace) -> None:
    """Train the flow by the command, from its last checkpoint on if it has one."""
    folder = options.folder.resolve() / "flow"
    if (folder / "finished").exists():
        return
    command = [sys.executable, "train.py", "fit", "-c", CONFIG, "--output", str(folder)]
    command += ["--data.root", str(options.root), "--trainer.accelerator", "cpu"]
    command += ["--trainer.devices", "1", "--checkpoints.every_n_steps", "100"]
    if options.iterations is not None:
        command += ["--trainer.max_steps", str(options.iterations)]
    if (folder / "last.ckpt").exists():
        command += ["--ckpt_path", "last"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)
    (folder / "finished").touch()


def scores_of(detector: Detector, name: str, options: argparse.Namespace) -> dict[str, Any]:
    images, _ = images_of(name, options.root, options.limit)
    scores: list[float] = []
    with torch.no_grad():
        for batch in images.split(BATCH):
            scores += detector(batch).tolist()
    return {"scores": scores}


def worst_of(detector: Detector, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Attack the first images of a set through the score: inliers down, outliers up."""
    images, _ = images_of(name, options.root, options.attacked)
    pgd = PGD(Linf(options.levels / 255), steps=options.steps)
    direction = 1 if name == INLIERS else -1
    scores: list[float] = []
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        indices = torch.arange(first, first + len(batch))
        scores += attack_score(detector, batch, pgd, direction, indices=indices).values.tolist()
    return {"scores": scores}


def write(
    options: argparse.Namespace,
    clean: dict[tuple[str, str], list[float]],
    attacked: dict[tuple[str, str], list[float]],
) -> None:
    bits = []
    for label, name in {"CIFAR-10": INLIERS, **OUTLIERS}.items():
        bits.append([label])
        for score in SCORES:
            bits[-1].append(f"{-torch.tensor(clean[score, name]).mean().item():.2f}")
    rows = []
    for score in SCORES:
        for label, name in OUTLIERS.items():
            cells = [rate(clean[score, INLIERS], clean[score, name])]
            for side in SIDES:
                inside = attacked if side in ("in", "both") else clean
                outside = attacked if side in ("out", "both") else clean
                few = options.attacked
                cells.append(rate(inside[score, INLIERS][:few], outside[score, name][:few]))
            rows.append([score, label, *cells])
    lines = [
        "A small Glow of CIFAR-10 finds SVHN likelier than CIFAR-10's own test images (Nalisnick "
        "et al. 2019), because SVHN's images are simpler. What complexity (Serra et al. 2020) "
        "repairs of that, and what is left of either under attack.",
        "",
        f"Mean bits per dimension of the first {options.limit} images of each set; of complexity, "
        "the bits of the flow minus those of the code.",
        "",
        *table(["set", *SCORES], bits),
        f"AUROC on {options.limit} images a set, and on the first {options.attacked}: clean, and "
        f"under PGD of {options.steps} steps within Linf {options.levels}/255 through the score "
        "itself, on the inliers, the outliers, or both.",
        "",
        *table(["score", "outliers", "clean", *(f"few, {side}" for side in SIDES)], rows),
    ]
    write_page(options.output, "A flow's likelihood on CIFAR-10", lines)


def rate(inside: list[float], outside: list[float]) -> str:
    values: tuple[Tensor, Tensor] = (torch.tensor(inside), torch.tensor(outside))
    return f"{float(auroc(*values)):.3f}"


if __name__ == "__main__":
    sys.exit(main())
