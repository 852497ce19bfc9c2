"""What evaluating costs (detectors, fitting, attacks), in forward passes over the same images.

    python benchmarks/evaluation.py --output docs/performance/evaluation.md

About five minutes of one core. A WideResNet that has seen some embedded digits scores, fits on and
attacks digits; everything that is compared takes turns. pytorch-ood comes with the extra `parity`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from page import table, write_page
from pgd import of_part, problem
from rounds import CLOCK, Contestants, interleaved, ratio, typical
from torch import Tensor, nn

from robust_ood import Linf, attacks, detectors
from robust_ood.attacks import PGD, lower_score
from robust_ood.detectors import PRO, Detector, Energy
from robust_ood.detectors.sharing import score_images
from robust_ood.models import WideResNet

PASS, ALL = "one forward pass", "all of them together"
# Those that read logits or features. `msp-t` is MSP once more, with a temperature that needs a
# trained network.
TIMED = (
    "msp", "entropy", "gen", "maxlogit", "energy", "oe-score", "kl-matching", "mahalanobis",
    "relative-mahalanobis", "knn", "vim", "residual", "react", "ash-p", "ash-b", "ash-s", "scale",
    "dice", "gradnorm",
)  # fmt: skip
REGION = Linf(8 / 255)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=16, help="of the WideResNet, 6 n + 4")
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--output", type=Path, default=Path("docs/performance/evaluation.md"), help="Markdown page"
    )
    options = parser.parse_args()
    net, images, _ = problem(
        lambda: WideResNet(depth=options.depth, width=options.width, num_classes=10), 2
    )
    images = of_part("test", options.images)[0]
    train = list(zip(*(column.split(128) for column in of_part("train", 512)), strict=True))
    images = images.contiguous(memory_format=torch.channels_last)
    chosen = {name: detectors.build(name, net) for name in TIMED}
    detectors.fit(chosen.values(), train)
    parts = {
        "Clean scores": clean(chosen, images),
        "The same scores by pytorch-ood": theirs(net, images),
        "Fitting on 512 images": fitting(net, train),
        "Attacks": attacking(net, images),
        "Growth": growth(options, net, images),
    }
    header, lines, finding = ["work", "passes, median (range)"], [], ""
    for title, contestants in parts.items():
        bare = partial(forward, net, torch.cat([x for x, _ in train]) if "512" in title else images)
        seconds = interleaved({PASS: bare, **contestants}, options.rounds)
        rows = [[name, ratio(seconds[name], seconds[PASS])] for name in contestants]
        lines += [f"## {title}", "", *table(header, rows)]
        if title == "Clean scores":
            passes = typical(seconds[ALL], seconds[PASS])
            finding = (
                f"**All {len(TIMED)} detectors that read logits or features take {passes:.2f} "
                "forward passes.**"
            )
        print("\n".join(lines[-2 - len(rows) :]), flush=True)
    about = (
        f"WRN-{options.depth}-{options.width}, {options.images} embedded digits at 32 x 32 in "
        f"one batch; {CLOCK}, in forward passes of the network over the same images, median "
        f"(range) over {options.rounds} rounds."
    )
    write_page(options.output, "Evaluation in forward passes", [finding, "", about, "", *lines])
    return 0


def forward(net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for part in images.split(128):
            net(part)


def clean(chosen: dict[str, Detector], images: Tensor) -> Contestants:
    some = {str(count): dict(list(chosen.items())[:count]) for count in (1, 5, 10)}
    found: dict[str, Callable[[], object]] = {
        f"the first {count}": partial(score_images, few, images) for count, few in some.items()
    }
    pro = {
        f"PRO over Energy, {k} steps": {"pro": PRO(Energy(chosen["msp"].networks[0]), steps=k)}
        for k in (1, 3, 5)
    }
    return {
        **found,
        ALL: partial(score_images, chosen, images),
        **{name: partial(score_images, one, images) for name, one in pro.items()},
    }


def theirs(net: nn.Module, images: Tensor) -> Contestants:
    """Return MSP, energy, entropy and the largest logit by both libraries."""
    own = {name: detectors.build(name, net) for name in ("msp", "energy", "entropy", "maxlogit")}
    found: dict[str, Callable[[], object]] = {"robust_ood": partial(score_images, own, images)}
    try:
        from pytorch_ood.detector import EnergyBased, Entropy, MaxLogit, MaxSoftmax
    except ImportError as error:
        print(f"pytorch-ood is left out: {error}", flush=True)
        return found
    rivals = [kind(net) for kind in (MaxSoftmax, EnergyBased, Entropy, MaxLogit)]

    def score() -> None:
        with torch.no_grad():
            for rival in rivals:
                rival(images)

    return {**found, "pytorch-ood": score}


def fitting(net: nn.Module, train: list[tuple[Tensor, Tensor]]) -> Contestants:
    # By labels: a network that is hardly trained need not predict every class.
    settings: dict[str, dict[str, str]] = {
        "mahalanobis": {},
        "knn": {},
        "vim": {},
        "gram": {"classes": "labels"},
    }
    found: dict[str, Callable[[], object]] = {
        name: lambda name=name, own=own: detectors.build(name, net, **own).fit(train)
        for name, own in settings.items()
    }
    return {
        **found,
        "together": lambda: detectors.fit(
            [detectors.build(n, net, **own) for n, own in settings.items()], train
        ),
    }


def attacking(net: nn.Module, images: Tensor) -> Contestants:
    energy, few = Energy(net), images[: max(len(images) // 8, 1)]
    settings = {
        "PGD, 10 steps": PGD(REGION),
        "PGD, 10 steps, float32": PGD(REGION, precision="float32"),
        "Auto-PGD, 10 steps": attacks.apgd(REGION, steps=10),
        "Square, 10 queries": attacks.Square(REGION, queries=10),
    }
    found: dict[str, Callable[[], object]] = {
        name: partial(lower_score, energy, images, attack) for name, attack in settings.items()
    }
    suite = partial(lower_score, energy, few, attacks.standard(8 / 255))
    return {**found, "an eighth of the images under the standard suite": suite}


def growth(options: argparse.Namespace, net: nn.Module, images: Tensor) -> Contestants:
    """Return an attack with more steps, restarts, images and classes."""
    energy, half = Energy(net), images[: len(images) // 2]
    many = WideResNet(depth=options.depth, width=options.width, num_classes=100).eval()
    changes = {
        "5 steps": {"steps": 5},
        "20 steps": {"steps": 20},
        "5 steps, 4 restarts": {"steps": 5, "restarts": 4},
    }
    found: dict[str, Callable[[], object]] = {
        name: partial(lower_score, energy, images, PGD(REGION, **change))
        for name, change in changes.items()
    }
    return {
        **found,
        "5 steps, half the images": partial(lower_score, energy, half, PGD(REGION, steps=5)),
        "5 steps, 100 classes": partial(lower_score, Energy(many), images, PGD(REGION, steps=5)),
    }


if __name__ == "__main__":
    sys.exit(main())
