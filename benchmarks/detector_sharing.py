"""What scoring with many detectors costs in time, and fitting on more images in memory.

    python benchmarks/detector_sharing.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/detector_sharing

About five minutes of one core. Timings and fits that are done are kept in `--folder`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, parser, resnet20

from robust_ood import detectors
from robust_ood.data import EvaluationLoader, load_set
from robust_ood.detectors import Detector, OutputsDetector
from robust_ood.errors import UserError
from robust_ood.evaluation.scoring import Scorer, as_input
from robust_ood.models import outputs
from robust_ood.modes import evaluating

# Of networks with an outlier class; the same as others of other settings.
LEFT_OUT = ("outlier-class",)
GROUPS = {
    "sums of features": ("mahalanobis", "relative-mahalanobis", "vim", "residual", "gmm", "pnml",
                         "she", "fdbd", "nci", "cop", "corp"),
    "sums and histograms": ("msp-t", "kl-matching", "dice", "line", "nac", "weiper",
                            "openmax"),
    "streamed quantiles": ("react", "vra", "optfs"),
    "banks of features": ("knn", "nnguide", "relation", "combood"),
    "feature maps": ("gram", "mahalanobis-layers"),
}  # fmt: skip
BANK = 10_000  # features of each bank, whatever the number of images
CPU = torch.device("cpu")


class Small(nn.Module):
    """A network with the ResNet-20's 64 features and 10 classes, and two layers of maps."""

    feature_layers = ("first", "second")

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 4, stride=4)
        self.second = nn.Conv2d(16, 64, 2, stride=2)
        self.head = nn.Linear(64, 10)
        # Random weights alone would predict one class.
        nn.init.normal_(self.head.weight, std=2.0)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, 10)` of images `(N, 3, H, W)`."""
        maps: Tensor = self.second(self.first(images).relu()).relu()
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


class OwnLabels:
    """Batches whose labels are drawn from the network's softmax, so that a temperature fits."""

    def __init__(self, net: nn.Module, images: EvaluationLoader) -> None:
        self.net = net
        self.images = images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images `(N, 3, H, W)` and labels `(N,)`, the same in each pass."""
        draws = torch.Generator().manual_seed(0)
        for batch in self.images:
            pixels = as_input(batch.images, CPU)
            with torch.no_grad():
                likely = self.net(pixels).softmax(1)  # (N, 10)
            yield pixels, torch.multinomial(likely, 1, generator=draws).flatten()


def arguments() -> argparse.Namespace:
    made = parser(__doc__, limit=10_000, output="docs/results/detector_sharing.md")
    made.add_argument(
        "--fit", type=int, nargs="+", default=(10_000, 25_000, 50_000), help="images to fit on"
    )
    made.add_argument("--repeats", type=int, default=3, help="pairs of timings, bare and shared")
    # One fit, in a process of its own.
    made.add_argument("--group", help=argparse.SUPPRESS)
    made.add_argument("--count", type=int, help=argparse.SUPPRESS)
    return made.parse_args()


def one_pass(net: nn.Module) -> dict[str, Detector]:
    """Return the registered detectors that read what one pass gives, without feature maps."""
    found: dict[str, Detector] = {}
    for name in detectors.REGISTRY:
        if name in LEFT_OUT:
            continue
        try:
            detector = detectors.build(name, net)
        except UserError:
            continue  # it is made of other networks
        if isinstance(detector, OutputsDetector) and not detector.layers:
            found[name] = detector
    return found


def loader(name: str, chosen: argparse.Namespace, limit: int) -> EvaluationLoader:
    return EvaluationLoader(load_set(name, chosen.root), batch_size=256, limit=limit)


def peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit_alone(chosen: argparse.Namespace) -> dict[str, float]:
    """Return the peak memory before and after a fit of a group's detectors."""
    torch.manual_seed(0)
    net = Small().eval()
    images = loader("cifar10_train", chosen, chosen.count)
    bare_pass(net, images)
    before = peak()
    built = []
    for name in GROUPS[chosen.group]:
        settings: dict[str, Any] = {}
        if chosen.group == "banks of features":
            settings["bank_size"] = BANK
        built.append(detectors.build(name, net, **settings))
    detectors.fit(built, OwnLabels(net, images) if "msp-t" in GROUPS[chosen.group] else images)
    return {"before": before, "after": peak()}


def in_a_process(chosen: argparse.Namespace, group: str, count: int) -> dict[str, float]:
    """Fit in a fresh process, because a peak is never forgotten."""
    command = [sys.executable, __file__, *sys.argv[1:], "--group", group, "--count", str(count)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    )
    return found


def bare_pass(net: nn.Module, images: EvaluationLoader) -> None:
    with evaluating(net), torch.no_grad():
        for batch in images:
            net(as_input(batch.images, CPU)).cpu()


def seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def timings(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return processor seconds of a bare pass, of one with all scores, and of each score."""
    net = resnet20(chosen.weights)
    ready = one_pass(net)
    # KNN's cost grows with the images that it is fitted on; that of others does not.
    others = [detector for name, detector in ready.items() if name != "knn"]
    detectors.fit(others, loader("cifar10_train", chosen, BANK // 2))
    ready["knn"].fit(loader("cifar10_train", chosen, max(chosen.fit)))
    images = loader("cifar10_test", chosen, chosen.limit)
    pairs = []
    for _ in range(chosen.repeats):
        alone = seconds(lambda: bare_pass(net, images))
        shared = seconds(lambda: Scorer(CPU).score(ready, images))
        pairs.append((alone, shared))
    own = dict.fromkeys(ready, 0.0)
    with evaluating(net), torch.no_grad():
        for batch in images:
            out = outputs(net, as_input(batch.images, CPU))
            for name, detector in ready.items():
                assert isinstance(detector, OutputsDetector)
                own[name] += seconds(partial(detector.score, out))
    return {"pairs": pairs, "own": own}


def main() -> None:
    chosen = arguments()
    if chosen.group is not None:
        print(json.dumps(fit_alone(chosen)))
        return
    settings = {"limit": chosen.limit, "fit": list(chosen.fit), "repeats": chosen.repeats}
    parts = Parts(chosen.folder, settings, 1 + len(GROUPS) * len(chosen.fit))
    timed = parts("timings", partial(timings, chosen))
    fits = {}
    for group in GROUPS:
        for count in chosen.fit:
            name = f"fit {group} {count}".replace(" ", "-")
            fits[group, count] = parts(name, partial(in_a_process, chosen, group, count))
    lines = [*time_lines(chosen, timed), *memory_lines(chosen, fits)]
    write_page(chosen.output, "Sharing forward passes, and the memory of fitting", lines)


def time_lines(chosen: argparse.Namespace, timed: dict[str, Any]) -> list[str]:
    """Return the part on time: the ratios, and each detector's share of a pass."""
    bare = statistics.median(pair[0] for pair in timed["pairs"])
    ratios = [shared / alone for alone, shared in timed["pairs"]]
    dearest = sorted(timed["own"].items(), key=lambda item: -item[1])
    return [
        f"ResNet-20, {chosen.limit:,} images in batches of 256, processor time. A bare forward "
        f"pass takes {bare:.1f} s. Scoring with all {len(timed['own'])} detectors that read the "
        f"logits, features and head of one pass takes **{statistics.median(ratios):.2f} times** as "
        f"long (median of {len(ratios)} pairs of timings, {min(ratios):.2f} to "
        f"{max(ratios):.2f}). What each adds, given the pass, in shares of it (KNN has a bank of "
        f"{max(chosen.fit):,} features, others of this kind their default):",
        "",
        *table(
            ("detector", "share of a pass"), [(name, f"{own / bare:.4f}") for name, own in dearest]
        ),
    ]


def memory_lines(
    chosen: argparse.Namespace, fits: dict[tuple[str, int], dict[str, Any]]
) -> list[str]:
    """Return the part on memory: what fitting adds to the peak, by group and number of images."""
    rows = []
    for group, names in GROUPS.items():
        added = []
        for count in chosen.fit:
            part = fits[group, count]
            added.append(f"{part['after'] - part['before']:.0f}")
        rows.append((group, ", ".join(names), *added))
    return [
        "Fitting raises a fresh process's peak memory, above that with the data read and a pass "
        "done, by so many MiB. What fitting keeps depends on features and classes, so a small "
        f"network with the ResNet-20's 64 features and 10 classes gives them; banks have {BANK:,} "
        "features.",
        "",
        *table(
            ("statistics", "detectors", *(f"{count:,} images" for count in chosen.fit)),
            rows,
        ),
    ]


if __name__ == "__main__":
    main()
