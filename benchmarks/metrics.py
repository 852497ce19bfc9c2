"""AUROC and FPR95 of many scores: `ood_metrics` against scikit-learn and torchmetrics' exact mode.

    python benchmarks/metrics.py --output docs/performance/metrics.md

All get the same float32 scores in (0, 1), half of them inliers', and take turns. `ood_metrics`
gives four more numbers from the same sort; the values that all of them give are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from page import table, write_page
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_roc

from robust_ood.metrics import ood_metrics

Pair = tuple[float, float]
"""AUROC, and FPR at the first threshold that accepts 95 % of inliers."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scores", type=int, default=10**6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--processor-time", action="store_true", help="count processor time: for a busy machine"
    )
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    options = parser.parse_args()
    now = time.process_time if options.processor_time else time.perf_counter
    draws = torch.Generator().manual_seed(0)
    half = options.scores // 2
    inliers, outliers = (
        torch.randn(half, generator=draws).add(shift).sigmoid() for shift in (1.0, 0.0)
    )
    taken: dict[str, list[float]] = {name: [] for name in RIVALS}
    values: dict[str, Pair] = {}
    for name in [*RIVALS] * (options.rounds + 1):
        begin = now()
        values[name] = RIVALS[name](inliers, outliers)
        taken[name].append(now() - begin)
    own, rows, factors = next(iter(RIVALS)), [], {}
    for name, times in taken.items():
        ratios = [theirs / ours for theirs, ours in zip(times[1:], taken[own][1:], strict=True)]
        factors[name] = statistics.median(ratios)
        gap = max(abs(a - b) for a, b in zip(values[name], values[own], strict=True))
        spread = f"{factors[name]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(
            (
                name,
                f"{1e3 * statistics.median(times[1:]):.0f}",
                spread,
                f"{gap:.0e}" if gap else "0",
            )
        )
        print(*rows[-1], flush=True)
    if options.output:
        write_page(
            options.output,
            "Metrics",
            report(rows, factors, options),
            "scikit-learn",
            "torchmetrics",
        )


def ours(inliers: Tensor, outliers: Tensor) -> Pair:
    found = ood_metrics(inliers, outliers)
    return found["auroc"], found["fpr95"]


def sklearns(inliers: Tensor, outliers: Tensor) -> Pair:
    labels, scores = joined(inliers, outliers)
    labels, scores = labels.numpy(), scores.numpy()
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(roc_auc_score(labels, scores)), float(fpr[(tpr >= 0.95).argmax()])


def torchmetrics(inliers: Tensor, outliers: Tensor) -> Pair:
    labels, scores = joined(inliers, outliers)
    fpr, tpr, _ = binary_roc(scores, labels)
    return float(binary_auroc(scores, labels)), float(fpr[(tpr >= 0.95).int().argmax()])


def joined(inliers: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels `(N + M,)`, 1 for inliers, and scores `(N + M,)`."""
    return torch.cat([torch.ones_like(inliers), torch.zeros_like(outliers)]).long(), torch.cat(
        [inliers, outliers]
    )


RIVALS: dict[str, Callable[[Tensor, Tensor], Pair]] = {
    "`ood_metrics`, six numbers": ours,
    "scikit-learn, `roc_auc_score` and `roc_curve`": sklearns,
    "torchmetrics, `binary_auroc` and `binary_roc`, exact": torchmetrics,
}


def report(
    rows: list[tuple[str, ...]], factors: dict[str, float], options: argparse.Namespace
) -> list[str]:
    """Return the page's lines."""
    _, sklearn, other = factors.values()
    clock = "processor time" if options.processor_time else "wall-clock time"
    return [
        f"**scikit-learn takes {sklearn:.1f} times as long for two of the numbers, torchmetrics "
        f"{other:.1f} times.**",
        "",
        f"AUROC and FPR95 of {options.scores:,} scores, milliseconds ({clock}), median of "
        f"{options.rounds} calls in turn. Ratio: their time / ours, median (range). Difference: "
        "the largest of both values, to ours.",
        "",
        *table(("", "milliseconds", "ratio", "difference"), rows),
    ]


if __name__ == "__main__":
    main()
