"""Train an energy-based and a GAN-calibrated classifier on CIFAR-10 arrays, and attack them.

    python benchmarks/energy_models.py --root ARRAYS --folder FOLDER

A JEM and a confidence-calibrated classifier of a size that two cores train in half an hour
(`configs/experiments/cifar10_jem_small.yaml` and `cifar10_confidence_gan_small.yaml`), and the same
network trained as usual. Each score is attacked by PGD through itself, on inliers, on outliers and
on both, and by the OOD attack on encoders, from uniform noise. Stopped at any moment, the same
command continues: training from its last checkpoint, and finished parts are not repeated.
`--train-only` leaves the attacks out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from page import ROOT, table, write_page
from torch import Tensor, nn
from workbench import Parts, images_of, parser

from robust_ood import L2, Linf
from robust_ood.attacks import PGD, EncoderAttack, attack_score, encoder, mape
from robust_ood.detectors import MSP, Detector, Energy, GradientNorm
from robust_ood.metrics import auroc
from robust_ood.models import load_network
from robust_ood.randomness import generators

RUNS = {
    "JEM": ["-c", "configs/experiments/cifar10_jem_small.yaml"],
    "GAN-calibrated": ["-c", "configs/experiments/cifar10_confidence_gan_small.yaml"],
    "Standard": [
        *("-c", "configs/experiments/cifar10_confidence_gan_small.yaml"),
        *("--model", "robust_ood.training.Standard", "--model.optimization.optimizer", "adam"),
        *("--model.optimization.learning_rate", "1e-3"),
    ],
}
SCORES: dict[str, Callable[[nn.Module], Detector]] = {
    "log p": Energy,
    "MSP": MSP,
    "gradient norm": GradientNorm,
}
SETS = {"near": "cifar100_test", "far": "svhn_test"}
SIDES = ("clean", "in", "out", "both")
BATCH = 50


def main() -> int:
    arguments = parser(__doc__, limit=200, output="docs/results/energy_models.md")
    arguments.add_argument("--levels", type=int, default=2, help="radius in grey levels of 255")
    arguments.add_argument("--epochs", type=int, default=None, help="of a shorter trial")
    arguments.add_argument("--batches", type=int, default=None, help="of each epoch, likewise")
    arguments.add_argument("--train-only", action="store_true", help="leave the attacks out")
    options = arguments.parse_args()
    for name, settings in RUNS.items():
        train(name, settings, options)
    if options.train_only:
        return 0
    kept = {"limit": options.limit, "levels": options.levels}
    parts = Parts(options.folder / "attacks", kept, len(RUNS) * len(SCORES) + len(RUNS))
    accuracies = []
    rows = []
    for name in RUNS:
        net = load_network(folder_of(name, options) / "last.ckpt").eval()
        measured = parts(f"{name}-accuracy", partial(accuracy, net, options))
        accuracies.append(f"{name} {measured['accuracy']:.3f}")
        for score, make in SCORES.items():
            part = parts(f"{name}-{score}", partial(attacked, make(net), net, options))
            rows.append((name, score, *row(part)))
    write(options, rows, accuracies)
    return 0


def folder_of(name: str, options: argparse.Namespace) -> Path:
    folder: Path = options.folder.resolve() / name
    return folder


def train(name: str, settings: list[str], options: argparse.Namespace) -> None:
    """Train one of the networks by the command, from its last checkpoint on if it has one."""
    folder = folder_of(name, options)
    if (folder / "finished").exists():
        return
    command = [sys.executable, "train.py", "fit", *settings, "--data.root", str(options.root)]
    command += ["--output", str(folder), "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    command += ["--trainer.enable_progress_bar", "false"]
    if options.epochs is not None:
        command += ["--trainer.max_epochs", str(options.epochs)]
    if options.batches is not None:
        command += ["--trainer.limit_train_batches", str(options.batches)]
    if (folder / "last.ckpt").exists():
        command += ["--ckpt_path", "last"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)
    (folder / "finished").touch()


@torch.no_grad()
def accuracy(net: nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    images, labels = images_of("cifar10_test", options.root, 2000)
    return {"accuracy": (net(images).argmax(1) == labels).float().mean().item()}


def attacked(detector: Detector, net: nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    """Return scores of all sets, clean, attacked by PGD, and after the attack on the encoder."""
    pgd = PGD(Linf(options.levels / 255), steps=20)
    inliers = scores_of(detector, pgd, "cifar10_test", 1, options)
    part: dict[str, Any] = {"inliers": inliers}
    for group, name in SETS.items():
        part[group] = scores_of(detector, pgd, name, -1, options)
    part["encoder"] = matched(detector, net, options)
    return part


def scores_of(
    detector: Detector, pgd: PGD, name: str, direction: Any, options: argparse.Namespace
) -> dict[str, list[float]]:
    images, _ = images_of(name, options.root, options.limit)
    clean: list[float] = []
    worst: list[float] = []
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        indices = torch.arange(first, first + len(batch))
        clean += detector(batch).detach().tolist()
        result = attack_score(detector, batch, pgd, direction, indices=indices)
        worst += result.values.tolist()
    return {"clean": clean, "attacked": worst}


def matched(detector: Detector, net: nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    """Move uniform noise until its logits are those of inliers; return scores and errors."""
    inliers, _ = images_of("cifar10_test", options.root, BATCH)
    indices = torch.arange(len(inliers))
    draws = generators(0, "encoder attack noise", indices=indices.tolist())
    noise = torch.stack([torch.rand(inliers.shape[1:], generator=draw) for draw in draws])
    encode = encoder(net, "logits")
    moved = EncoderAttack(L2(20.0), steps=300).match(encode, noise, inliers, indices)
    with torch.no_grad():
        errors = mape(encode(moved), encode(inliers))
    return {
        "noise": detector(noise).tolist(),
        "matched": detector(moved).tolist(),
        "mape": errors.mean().item(),
    }


def row(part: dict[str, Any]) -> list[str]:
    cells = []
    inliers = part["inliers"]
    for group in SETS:
        for side in SIDES:
            inside = inliers["attacked" if side in ("in", "both") else "clean"]
            outside = part[group]["attacked" if side in ("out", "both") else "clean"]
            cells.append(rate(inside, outside))
    found = part["encoder"]
    paired = inliers["clean"][: len(found["noise"])]
    cells += [rate(paired, found["noise"]), rate(paired, found["matched"])]
    return [*cells, f"{found['mape']:.1%}"]


def rate(inside: list[float], outside: list[float]) -> str:
    values: tuple[Tensor, Tensor] = (torch.tensor(inside), torch.tensor(outside))
    return f"{float(auroc(*values)):.3f}"


def write(options: argparse.Namespace, rows: list[Any], accuracies: list[str]) -> None:
    header = ["training", "score"]
    for group in SETS:
        header += [f"{group}, {side}" for side in SIDES]
    header += ["noise", "noise, matched", "MAPE"]
    lines = [
        "A JEM, a classifier calibrated with a GAN, and the same small convolutional network "
        "trained as usual, on CIFAR-10 (`configs/experiments/cifar10_jem_small.yaml` and "
        "`cifar10_confidence_gan_small.yaml`; these are far smaller than the papers' networks). "
        f"AUROC on the first {options.limit} images of each set, near CIFAR-100, far SVHN: clean, "
        f"and under PGD of 20 steps within Linf {options.levels}/255 through the score itself, on "
        "the inliers, the outliers, or both. Last, uniform noise before and after the OOD attack "
        f"on the encoder (logits, L2 20, 300 steps, {BATCH} pairs), and how far the logits stayed "
        "apart (MAPE).",
        "",
        f"Accuracy on 2,000 test images: {', '.join(accuracies)}.",
        "",
        *table(header, rows),
    ]
    write_page(options.output, "Energy-based and GAN-calibrated classifiers under attack", lines)


if __name__ == "__main__":
    sys.exit(main())
