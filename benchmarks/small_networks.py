"""Train the small CIFAR-10 networks that `classifier_attacks.py` attacks, plain and robust.

    python benchmarks/small_networks.py --root ARRAYS --folder runs/small_networks

Plain, then ADV from its weights, then ALOE from those, at Linf 8/255, each with and without
BatchNorm: six trainings of some minutes on one core. Finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from torch import Tensor, nn

from robust_ood.models import load_weights

METHODS = ("Standard", "ADV", "ALOE")
HERE = Path(__file__).parent
MODEL = "--model.init_args"
ATTACK = ("name", "pgd"), ("radius", "8/255"), ("steps", "5"), ("step_size", "3/255")


class SmallNet(nn.Module):
    """Two convolutions of kernel 4 and two linear layers, 215,000 weights.

    Args:
        norm: BatchNorm after each convolution.
    """

    def __init__(self, num_classes: int = 10, norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 32):
            layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            layers.append(nn.BatchNorm2d(width) if norm else nn.Identity())
            layers.append(nn.ReLU())
            channels = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 8 * 8, 100), nn.ReLU())
        self.head = nn.Linear(100, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body((images - 0.45) / 0.25))
        return logits


def name_of(method: str, norm: bool) -> str:
    return f"{method} with BatchNorm" if norm else method


def trained(folder: Path) -> dict[str, nn.Module]:
    """Return the six networks that this script has left in a folder, by name."""
    networks = {}
    for method in METHODS:
        for norm in (False, True):
            weights = folder / f"{method}-{norm}" / "last.ckpt"
            networks[name_of(method, norm)] = load_weights(SmallNet(norm=norm), weights).eval()
    return networks


def command(method: str, norm: bool, options: argparse.Namespace) -> list[str]:
    """Return the training of one network, as one would type it."""
    output = options.folder / f"{method}-{norm}"
    words = [sys.executable, "train.py", "fit", "--config", "configs/data/cifar10_arrays.yaml"]
    words += ["--data.root", str(options.root), "--output", str(output), "--replace", "true"]
    words += ["--net.class_path", "small_networks.SmallNet", "--net.init_args.norm", str(norm)]
    words += ["--model.class_path", f"robust_ood.training.{method}"]
    words += [f"{MODEL}.optimization.optimizer.name", "adam"]
    words += [f"{MODEL}.optimization.learning_rate", "0.001"]
    words += ["--trainer.max_epochs", str(options.epochs), "--trainer.accelerator", "cpu"]
    if method != METHODS[0]:
        for setting, value in ATTACK:
            words += [f"{MODEL}.inlier_attack.{setting}", value]
        # From random weights, so small a network stays at the uniform answer at this radius.
        easier = METHODS[METHODS.index(method) - 1]
        words += ["--init_from", str(options.folder / f"{easier}-{norm}" / "last.ckpt")]
    if method == "ALOE":
        words += [f"{MODEL}.outlier_weight", "0.5"]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--folder", type=Path, required=True, help="one run folder each")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for method in METHODS:
        for norm in (False, True):
            done = options.folder / f"{method}-{norm}" / "done"
            if done.exists():
                continue
            print(f"{name_of(method, norm)} ...", flush=True)
            subprocess.run(command(method, norm, options), check=True, env=environment)
            done.touch()


if __name__ == "__main__":
    main()
