"""A zero-shot detector that trains in seconds: an image tower and word vectors, on the digits.

    python benchmarks/two_towers.py --folder runs/two_towers

Trains an image tower and one vector a class name on all ten digits, as CLIP has seen everything,
and writes `tower.pt` and `words.npz` (in-words zero to seven, out-words eight and nine). Prints the
AUROC of each zero-shot rule, clean, with outliers attacked and with both sides attacked. The same
files stand in for CLIP in the commands of docs/papers.md:

    python evaluate.py -c configs/data/digits_near.yaml --data.far '[]' --detectors '[zero-shot]' \\
        --net benchmarks.two_towers.DigitTowers --net.words runs/two_towers/words.npz \\
        --checkpoint runs/two_towers/tower.pt
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, lower_score, raise_score
from robust_ood.data import load_set, to_float
from robust_ood.metrics import auroc
from robust_ood.models import ImageText, WordFeatures

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KNOWN = 8  # digits of the in-distribution
WIDTH = 32
SIZE = 8  # pixels: the digits' own resolution
RADII = (8, 16, 32)


class DigitTowers(ImageText):
    """An image tower of three linear layers behind text features of the same width.

    Args:
        words: the text features, or their file.
    """

    def __init__(self, words: WordFeatures | Path | str) -> None:
        super().__init__(tower(), words, SIZE, (0.5,) * 3, (0.5,) * 3)
        self.pretrained = False


def tower() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * SIZE * SIZE, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, WIDTH),
    )


def images_of(spec: str) -> tuple[Tensor, Tensor]:
    chosen = load_set(spec, ".")
    indices = torch.arange(len(chosen))
    return to_float(chosen.read(indices)), chosen.read_labels(indices)


def train(steps: int = 400, seed: int = 0) -> DigitTowers:
    """Return both towers, trained on all ten digits with the loss of CLIP's image side."""
    images, labels = images_of("digits/train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vectors = nn.Parameter(torch.randn(len(NAMES), WIDTH))
        net = DigitTowers(_words(vectors, 10.0))
        log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        weights = [*net.encoder.parameters(), vectors, log_scale]
        optimizer = torch.optim.Adam(weights, lr=2e-3)
        for _ in range(steps):
            batch = torch.randint(len(images), (128,))
            cosines = net.encode(images[batch]) @ F.normalize(vectors, dim=1).T  # (128, 10)
            loss = F.cross_entropy(log_scale.exp() * cosines, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = DigitTowers(_words(vectors, float(log_scale.detach().exp())))
    trained.encoder.load_state_dict(net.encoder.state_dict())
    return trained.eval()


def _words(vectors: Tensor, scale: float) -> WordFeatures:
    rows = vectors.detach()
    return WordFeatures(
        rows[:KNOWN], rows[KNOWN:], scale, NAMES[:KNOWN], NAMES[KNOWN:], ("{}",), "two towers"
    )


def write(net: DigitTowers, folder: Path) -> None:
    """Write the files that `evaluate.py` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    net.words.save(folder / "words.npz")
    torch.save(net.state_dict(), folder / "tower.pt")


def attacked(detector: detectors.Detector, inliers: Tensor, outliers: Tensor, radius: float):
    """Return the AUROC with outliers attacked, and with both sides attacked."""
    attack = PGD(Linf(radius), steps=20)
    raised = raise_score(detector, outliers, attack)
    lowered = lower_score(detector, inliers, attack)
    with torch.no_grad():
        hidden = detector(raised)
        one_side = auroc(detector(inliers), hidden)
        return one_side, auroc(detector(lowered), hidden)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the files are written")
    options = parser.parse_args()
    net = train()
    write(net, options.folder)
    inliers, labels = images_of("digits-0-7/test")
    outliers, _ = images_of("digits-0-7/held-out")
    with torch.no_grad():
        accuracy = (net(inliers).argmax(1) == labels).float().mean()
    print(f"{len(inliers)} inliers, {len(outliers)} outliers, accuracy {accuracy:.3f}, "
          f"scale {net.words.logit_scale:.1f}")  # fmt: skip
    for rule in ("difference", "max", "softmax"):
        detector = detectors.ZeroShot(net, rule=rule)
        with torch.no_grad():
            clean = auroc(detector(inliers), detector(outliers))
        parts = []
        for radius in RADII:
            out, both = attacked(detector, inliers, outliers, radius / 255)
            parts.append(f"{radius}/255 {out:.3f} / {both:.3f}")
        print(f"{rule:10} clean {clean:.3f}; outliers / both attacked: {', '.join(parts)}")


if __name__ == "__main__":
    main()
