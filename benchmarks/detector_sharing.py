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
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from page import table, write_page
from torch import nn
from workbench import Parts, parser, resnet20

from robust_ood import detectors
from robust_ood.data import EvaluationLoader, load_set
from robust_ood.evaluation.scoring import Scorer, as_input
from robust_ood.models import outputs
from robust_ood.modes import evaluating

NAMES = (
    "msp", "msp-t", "entropy", "gen", "maxlogit", "energy", "oe-score", "kl-matching",
    "mahalanobis",
    "relative-mahalanobis", "knn", "vim", "residual", "react", "ash-p", "ash-b", "ash-s", "scale",
    "dice", "gradnorm",
)  # fmt: skip
LAYERED = (
    "gram",
    "mahalanobis-layers",
)  # read feature maps, too: fitted with the others, not timed
CPU = torch.device("cpu")


def arguments() -> argparse.Namespace:
    made = parser(__doc__, limit=10_000, output="docs/results/detector_sharing.md")
    made.add_argument(
        "--fit", type=int, nargs=2, default=(10_000, 50_000), help="images to fit on, few and many"
    )
    made.add_argument("--repeats", type=int, default=3, help="pairs of timings, bare and shared")
    made.add_argument(
        "--fit-alone", type=int, help=argparse.SUPPRESS
    )  # one fit, in a process of its own
    return made.parse_args()


def loader(name: str, chosen: argparse.Namespace, limit: int) -> EvaluationLoader:
    return EvaluationLoader(load_set(name, chosen.root), batch_size=256, limit=limit)


def peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fit_alone(chosen: argparse.Namespace) -> dict[str, float]:
    """Return the peak memory before and after a fit of all detectors; both fits fill KNN's bank."""
    net = resnet20(chosen.weights)
    images = loader("cifar10_train", chosen, chosen.fit_alone)
    bare_pass(net, EvaluationLoader(images.images, batch_size=256, limit=512))
    before = peak()
    settings = {"knn": {"bank_size": min(chosen.fit)}}
    detectors.fit(
        [detectors.build(name, net, **settings.get(name, {})) for name in (*NAMES, *LAYERED)],
        images,
    )
    return {"before": before, "after": peak()}


def in_a_process(chosen: argparse.Namespace, count: int) -> dict[str, float]:
    """Fit in a fresh process, because a peak is never forgotten."""
    command = [sys.executable, __file__, *sys.argv[1:], "--fit-alone", str(count)]
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
    ready = {name: detectors.build(name, net) for name in NAMES}
    detectors.fit(
        [d for name, d in ready.items() if name != "knn"], loader("cifar10_train", chosen, 2000)
    )
    ready["knn"].fit(
        loader("cifar10_train", chosen, max(chosen.fit))
    )  # the only one whose cost grows with the images
    images = loader("cifar10_test", chosen, chosen.limit)
    pairs = [
        (seconds(lambda: bare_pass(net, images)), seconds(lambda: Scorer(CPU).score(ready, images)))
        for _ in range(chosen.repeats)
    ]
    own = dict.fromkeys(NAMES, 0.0)
    with evaluating(net), torch.no_grad():
        for batch in images:
            out = outputs(net, as_input(batch.images, CPU))
            for name, detector in ready.items():
                own[name] += seconds(partial(detector.score, out))
    return {"pairs": pairs, "own": own}


def main() -> None:
    chosen = arguments()
    if chosen.fit_alone is not None:
        print(json.dumps(fit_alone(chosen)))
        return
    settings = {"limit": chosen.limit, "fit": list(chosen.fit), "repeats": chosen.repeats}
    parts = Parts(chosen.folder, settings, 3)
    timed = parts("timings", partial(timings, chosen))
    few, many = (
        parts(f"fit-{count}", partial(in_a_process, chosen, count)) for count in chosen.fit
    )
    bare = statistics.median(pair[0] for pair in timed["pairs"])
    ratios = [shared / alone for alone, shared in timed["pairs"]]
    lines = [
        f"ResNet-20, {chosen.limit:,} images in batches of 256, processor time. A bare forward "
        f"pass takes {bare:.1f} s. Scoring with all {len(NAMES)} detectors that read logits or "
        f"features takes **{statistics.median(ratios):.2f} times** as long (median of "
        f"{len(ratios)} pairs of timings, {min(ratios):.2f} to {max(ratios):.2f}). What each "
        f"adds, given the pass, in shares of it (KNN has a bank of {max(chosen.fit):,} "
        "features):",
        "",
        *table(
            ("detector", "share of a pass"),
            [
                (name, f"{own / bare:.4f}")
                for name, own in sorted(timed["own"].items(), key=lambda item: -item[1])
            ],
        ),
        f"Fitting all of them together, and {' and '.join(LAYERED)}, raises the process's peak "
        f"memory by {few['after'] - few['before']:.0f} MiB for {chosen.fit[0]:,} images and by "
        f"{many['after'] - many['before']:.0f} MiB for {chosen.fit[1]:,} ({many['before']:.0f} "
        f"MiB before, with data and network loaded). KNN keeps {min(chosen.fit):,} features in "
        "both; its memory is that of its `bank_size`.",
        "",
    ]
    write_page(chosen.output, "Sharing forward passes, and the memory of fitting", lines)


if __name__ == "__main__":
    main()
