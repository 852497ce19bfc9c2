"""What scoring with many detectors costs besides the network's pass, and what fitting on more images costs in memory.

python benchmarks/detector_sharing.py --weights cifar10_resnet20.th --data arrays --output docs/results/sharing.md
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from page import table, write_page
from torch import nn
from workbench import resnet20

from robust_ood import detectors
from robust_ood.data import EvaluationLoader, load_set
from robust_ood.evaluation.scores import clean_scores, on_device
from robust_ood.modes import evaluating

NAMES = (
    "msp", "msp-t", "entropy", "gen", "maxlogit", "energy", "oe-score", "kl-matching", "mahalanobis",
    "relative-mahalanobis", "knn", "vim", "residual", "react", "ash-p", "ash-b", "ash-s", "scale", "dice", "gradnorm",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights of the ResNet-20")
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10_train and cifar10_test")
    parser.add_argument("--images", type=int, default=10_000, help="images to score")
    parser.add_argument("--fit", type=int, nargs=2, default=(10_000, 50_000), help="images to fit on, few and many")
    parser.add_argument("--repeats", type=int, default=3, help="timings, the fastest of which counts")
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # one fit, in a process of its own
    return parser.parse_args()


def fitted(net: nn.Module, root: Path, count: int) -> dict[str, detectors.Detector]:
    chosen = {name: detectors.build(name, net) for name in NAMES}
    detectors.fit(chosen.values(), EvaluationLoader(load_set("cifar10_train", root), batch_size=256, limit=count))
    return chosen


def peak() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare_pass(net: nn.Module, loader: EvaluationLoader) -> None:
    with evaluating(net), torch.no_grad():
        for batch in loader:
            net(on_device(batch, torch.device("cpu"))).cpu()


def fastest(repeats: int, run: object) -> float:
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        found.append(time.process_time() - begin)
    return min(found)


def measure_memory(chosen: argparse.Namespace, count: int) -> dict[str, float]:
    """Fit in a fresh process, because a peak is never forgotten."""
    command = [sys.executable, __file__, "--weights", chosen.weights, "--data", chosen.data, "--memory-of", str(count)]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def main() -> None:
    chosen = arguments()
    net = resnet20(chosen.weights)
    if chosen.memory_of is not None:
        images = load_set("cifar10_train", chosen.data)
        loader = EvaluationLoader(images, batch_size=256, limit=512)
        bare_pass(net, loader)
        before = peak()
        fitted(net, chosen.data, chosen.memory_of)
        print(json.dumps({"before": before, "after": peak()}))
        return
    ready = fitted(net, chosen.data, max(chosen.fit))
    loader = EvaluationLoader(load_set("cifar10_test", chosen.data), batch_size=256, limit=chosen.images)
    bare = fastest(chosen.repeats, lambda: bare_pass(net, loader))
    shared = fastest(chosen.repeats, lambda: clean_scores(ready, loader, torch.device("cpu")))
    rows = []
    for name in NAMES:
        alone = fastest(1, lambda name=name: clean_scores({name: ready[name]}, loader, torch.device("cpu")))
        rows.append((name, f"{alone / bare:.2f}"))
        print(*rows[-1], flush=True)
    few, many = (measure_memory(chosen, count) for count in chosen.fit)
    lines = [
        f"ResNet-20, {len(loader.indices)} images, processor time, fastest of {chosen.repeats}. One bare forward pass "
        f"takes {bare:.1f} s; scoring with all {len(NAMES)} detectors that read logits or features takes {shared:.1f} "
        f"s: **{shared / bare:.2f} times** as long. Each alone, in bare passes:",
        "",
        *table(("detector", "passes"), rows),
        f"Fitting all of them together raises the process's peak memory by {few['after'] - few['before']:.0f} MiB for "
        f"{chosen.fit[0]:,} images and by {many['after'] - many['before']:.0f} MiB for {chosen.fit[1]:,} "
        f"({many['before']:.0f} MiB before, with data and network loaded). KNN's bank of 64 float32 features an image, "
        "of at most 50,000 images, is the only part that grows.",
        "",
    ]
    if chosen.output:
        write_page(chosen.output, "Sharing forward passes, and the memory of fitting", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
