"""KNN by faiss against exact search: recall, seconds and memory over 100,000 features or more.

    python benchmarks/neighbour_recall.py --folder FOLDER --output docs/results/neighbour_recall.md

The bank holds features of unit length around random centres, as those of classes are. Recall is the
share of the k nearest that an index finds, of queries drawn as the bank is; the exact search is
ours (`index: exact`), in float32.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from page import table, write_page
from torch import Tensor
from workbench import Parts

from robust_ood.detectors.neighbour_index import IndexKind, NeighbourIndex
from robust_ood.detectors.neighbours import smallest

PROBES = 32  # the default of `knn`
SETTINGS = ("width", "centres", "queries", "neighbours")  # what a row depends on, beside its index
HEADER = ("features", "index", "probes", "recall", "built in, s", "a query, ms", "exact, ms")


class Found(NamedTuple):
    """The rows `(Q, k)` found, and seconds of all queries."""

    rows: Tensor
    seconds: float


def main() -> None:
    options = arguments().parse_args()
    torch.set_num_threads(1)
    planned = plan(options)
    with tempfile.TemporaryDirectory() as temporary:
        settings = {name: getattr(options, name) for name in SETTINGS}
        parts = Parts(options.folder or Path(temporary), settings, len(planned))
        measured = []
        for index, count in planned:
            measured.append(parts(f"{index}-{count}", partial(part, options, index, count)))
    rows = [kept["row"] for kept in measured]
    for row in rows:
        print(*row, flush=True)
    if options.output is None:
        return
    peak = max(kept["peak"] for kept in measured)  # GiB
    lines = [
        f"Features of {options.width} dimensions and unit length around {options.centres} random "
        f"centres; {options.queries} queries drawn in the same way, k = {options.neighbours}; one "
        "core. `faiss-ivf` has `4 sqrt(B)` lists.",
        "",
        *table(HEADER, rows),
        f"Peak memory of the process: {peak:.1f} GiB, in which a bank is held twice, by torch and "
        "by faiss. Time is of the processor, so other work on the machine does not count.",
        "",
    ]
    write_page(options.output, "KNN by faiss against exact search", lines, "faiss-cpu")


def part(options: argparse.Namespace, index: IndexKind, count: int) -> dict[str, Any]:
    """Return one row, and the peak of the process so far in GiB."""
    bank = features(count, options.width, options.centres, seed=0)
    queries = features(options.queries, options.width, options.centres, seed=1)
    row = compared(index, bank, queries, options.neighbours)
    return {"row": row, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def arguments() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flat", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--ivf", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--centres", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--neighbours", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where finished parts are kept")
    parser.add_argument("--output", type=Path)
    return parser


def plan(options: argparse.Namespace) -> list[tuple[IndexKind, int]]:
    """Return which index is built over how many features."""
    planned: list[tuple[IndexKind, int]] = []
    for count in options.flat:
        planned.append(("faiss-flat", count))
    for count in options.ivf:
        planned.append(("faiss-ivf", count))
    return planned


def features(count: int, width: int, centres: int, seed: int) -> Tensor:
    """Return features of unit length around centres, `(count, width)`."""
    draws = torch.Generator().manual_seed(100)
    means = torch.randn(centres, width, generator=draws)
    draws.manual_seed(seed)
    drawn = torch.empty(count, width).normal_(generator=draws)
    drawn += means[torch.randint(centres, (count,), generator=draws)]
    return F.normalize(drawn, dim=1, out=drawn)


def compared(
    index: IndexKind, bank: Tensor, queries: Tensor, neighbours: int
) -> tuple[object, ...]:
    """Return a row of the table."""
    begin = time.process_time()
    built = NeighbourIndex(index, bank, PROBES)
    seconds = time.process_time() - begin
    begin = time.process_time()
    by_index = Found(built.nearest(queries, neighbours), time.process_time() - begin)
    by_us = exact(bank, queries, neighbours)
    each = 1000 / len(queries)
    return (
        f"{len(bank):,}",
        index,
        PROBES if index == "faiss-ivf" else "",
        f"{recall(bank, queries, by_index.rows, by_us.rows):.4f}",
        f"{seconds:.1f}",
        f"{by_index.seconds * each:.1f}",
        f"{by_us.seconds * each:.1f}",
    )


def exact(bank: Tensor, queries: Tensor, neighbours: int) -> Found:
    """Return what a product of matrices finds."""
    begin = time.process_time()
    squared_norms = bank.square().sum(1)
    rows = []
    for query in queries.split(8):
        distances = torch.addmm(squared_norms, query, bank.T, alpha=-2)  # (8, B)
        rows.append(smallest(distances, neighbours)[1])
    return Found(torch.cat(rows), time.process_time() - begin)


def recall(bank: Tensor, queries: Tensor, rows: Tensor, exact_rows: Tensor) -> float:
    """Return the share of the nearest that are found, by distance in float64.

    Rows at the same distance, up to rounding of float32, may stand for each other.
    """
    hits = 0
    for query, some, nearest in zip(queries.double(), rows, exact_rows, strict=True):
        limit = torch.linalg.vector_norm(bank[nearest].double() - query, dim=1).max()
        reached = torch.linalg.vector_norm(bank[some[some >= 0]].double() - query, dim=1)
        hits += int((reached <= limit * (1 + 1e-6)).sum())
    return hits / exact_rows.numel()


if __name__ == "__main__":
    main()
