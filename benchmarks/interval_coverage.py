"""How often 95 % intervals of rates, AUROC and FPR95 hold the truth: a simulation.

    python benchmarks/interval_coverage.py --output docs/results/interval_coverage.md [--runs 1000]

Images are drawn again and again from a population whose numbers are known, and the share of the
intervals that hold them is counted. Near 0 and 1 a percentile bootstrap of the same images stands
beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from page import table, write_page
from scipy.stats import norm

from robust_ood.metrics import auroc_interval, fpr_interval, mean_rate_interval, rate_interval

SIZES = (16, 100, 1000)
RATES = (0.0, 0.01, 0.05, 0.5, 0.95, 1.0)
DISTANCES = (0.0, 0.7, 2.0, 3.3)
"""Between the means of inliers and OOD images, both of variance 1."""
_PER_SET = 4


def holds(bounds: tuple[float, float], truth: float) -> bool:
    """Return whether an interval holds a value, up to rounding."""
    return bounds[0] - 1e-12 <= truth <= bounds[1] + 1e-12


def bootstrap(count: int, total: int, draws: np.random.Generator) -> tuple[float, float]:
    """Return the percentile bootstrap's interval of a rate."""
    resampled = draws.binomial(total, count / total, 1000) / total
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(low), float(high)


def rate_rows(runs: int) -> list[list[object]]:
    """Return the coverage of intervals of rates, and of means of the rates of four sets."""
    draws = np.random.default_rng(0)
    rows: list[list[object]] = []
    for size in SIZES:
        for truth in RATES:
            covered = np.zeros(3)
            for counts in draws.binomial(size, truth, (runs, _PER_SET)):
                count = int(counts[0])
                mean = mean_rate_interval(counts.tolist(), [size] * _PER_SET)
                covered += [
                    holds(rate_interval(count, size), truth),
                    holds(mean, truth),
                    holds(bootstrap(count, size, draws), truth),
                ]
            rows.append([size, truth, *(f"{share:.3f}" for share in covered / runs)])
    return rows


def separation_rows(runs: int) -> list[list[object]]:
    """Return the coverage of intervals of AUROC and FPR95 for normal scores."""
    draws = np.random.default_rng(1)
    rows: list[list[object]] = []
    for size in SIZES:
        for distance in DISTANCES:
            area = float(norm.cdf(distance / np.sqrt(2)))
            accepted = float(norm.sf(norm.ppf(0.05) + distance))
            covered = np.zeros(2)
            for _ in range(runs):
                inliers = torch.from_numpy(draws.normal(distance, 1, size))
                outliers = [torch.from_numpy(draws.normal(0, 1, size))]
                covered += [
                    holds(auroc_interval(inliers, outliers), area),
                    holds(fpr_interval(inliers, outliers), accepted),
                ]
            cells = [f"{value:.3f}" for value in (area, accepted, *(covered / runs))]
            rows.append([size, *cells])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="Markdown page to write")
    parser.add_argument("--runs", type=int, default=1000, help="draws of the images, >= 100")
    options = parser.parse_args()
    if options.runs < 100:
        parser.error(f"--runs: expected at least 100, got {options.runs}")
    rates = rate_rows(options.runs)
    separations = separation_rows(options.runs)
    shares = [float(row[place]) for row in rates for place in (2, 3)]
    shares += [float(row[place]) for row in separations for place in (3, 4)]
    error = (0.95 * 0.05 / options.runs) ** 0.5
    lines = [
        f"The share of {options.runs:,} intervals of level 0.95 that hold the true value, for n "
        f"images of each side; wanted: at least 0.93. The smallest is {min(shares):.3f} of "
        f"{len(shares)}; the simulation's standard error is {error:.3f}.",
        "",
        "## Rates",
        "",
        "Accuracies and the shares accepted at a fixed threshold: exact intervals (Clopper and "
        f"Pearson); means over {_PER_SET} sets of n images; and, for comparison only, the "
        "percentile bootstrap.",
        "",
        *table(["n", "true rate", "one set", f"mean of {_PER_SET} sets", "bootstrap"], rates),
        "## AUROC and FPR95",
        "",
        "Scores of inliers and OOD images are normal with variance 1.",
        "",
        *table(["n", "true AUROC", "true FPR95", "AUROC", "FPR95"], separations),
    ]
    write_page(options.output, "Intervals: how often they hold the truth", lines, "scipy")


if __name__ == "__main__":
    main()
