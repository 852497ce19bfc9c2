"""Evaluate the networks of `cifar10_methods.py` and write a page of the report.

Eight detectors, three radii.

    python benchmarks/cifar10_methods.py --root ARRAYS --weights cifar10_resnet20.th --epochs 2 \\
        --learning-rate 0.02 --methods Standard OE ADV ALOE --train-only --folder runs/resnet20
    python benchmarks/cifar10_report.py --root ARRAYS --nets runs/resnet20 --folder results/cifar10

The second call is one `evaluate.py`: stopped, it goes on where it was, and a larger `--limit` (a
multiple of 32) computes the further images only. The whole report is `FOLDER/report.html`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from page import ROOT, table, write_page
from PIL import Image

from robust_ood.reporting import summary, tables
from robust_ood.reporting.numbers import rate
from robust_ood.reporting.papers.comparison import comparisons
from robust_ood.reporting.report_data import ReportData, read_folders

CHUNK = 32
FIGURES = {
    "auroc-by-radius-linf": "AUROC against the radius of the attack, means of near and far sets",
    "scores-msp": "MSP scores, clean and under the strongest attack",
    "scores-mahalanobis": "Mahalanobis scores, clean and under the strongest attack",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        required=True,
        help="folder of the arrays that configs/data/cifar10_arrays.yaml names",
    )
    parser.add_argument(
        "--nets", type=Path, required=True, help="folder of one training run a method"
    )
    parser.add_argument("--methods", nargs="+", default=["Standard", "OE", "ADV", "ALOE"])
    parser.add_argument(
        "--folder", type=Path, required=True, help="of the results; the same command continues"
    )
    parser.add_argument("--limit", type=int, default=64, help="images of each set")
    parser.add_argument(
        "--checks",
        choices=["true", "false"],
        default="true",
        help="the sanity checks cost as much again",
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results/cifar10_report.md"))
    options = parser.parse_args()
    evaluate(options)
    data = read_folders([options.folder])
    kept = options.output.parent / "figures"
    kept.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        with Image.open(
            options.folder / "report_files" / f"{name}.png"
        ) as drawn:  # of few colours: small files
            drawn.convert("RGB").quantize(128).save(kept / f"cifar10_{name}.png", optimize=True)
    write_page(
        options.output,
        "CIFAR-10: four methods, eight detectors, three radii",
        page(data, options),
    )
    return 0


def evaluate(options: argparse.Namespace) -> None:
    models = ", ".join(
        f"{name}: {(options.nets / name / 'last.ckpt').resolve()}" for name in options.methods
    )
    given = ["-c", str(ROOT / "configs/evaluate/cifar10_methods.yaml"), "--data.root", options.root,
             "--models", f"{{{models}}}", "--limit", str(options.limit), "--chunk", str(CHUNK),
             "--sanity", options.checks, "--output", str(options.folder)]  # fmt: skip
    code = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *given], check=False
    ).returncode
    if code not in (0, 1):  # 1: a detector failed, which the page says
        raise SystemExit(code)


def page(data: ReportData, options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the page."""
    results, methods = data.results, ", ".join(options.methods)
    yield from (
        f"- Networks: a trained ResNet-20, fine-tuned by {methods} with the first command of the "
        "script below.",
        "- Detectors and attacks: `configs/evaluate/cifar10_methods.yaml`; each attack goes "
        "through the detector",
        "  that it is scored on, on inliers and outliers, and keeps the worst step.",
        f"- {results.rows[0].n_id} images of each set: the intervals are wide, and small "
        "differences are none.",
        "- Near: CIFAR-100 and Tiny-ImageNet; far: SVHN, Textures and Places. The whole report, "
        "with every set,",
        "  interval and figure, is `FOLDER/report.html`.",
        "",
    )
    yield "## Findings"
    yield ""
    yield from (f"- {sentence}" for sentence in summary.sentences(data))
    yield ""
    yield "## Clean against attacked"
    yield ""
    yield "Means over each group, clean and under the strongest of the attacks."
    yield "AUROC: higher is better, 0.5 is chance; FPR95: lower is better."
    yield ""
    yield from shown(tables.survival(data))
    yield "## AUROC by radius"
    yield ""
    yield "Both sides attacked; means over each group. Higher is better, 0.5 is chance."
    yield ""
    yield from by_radius(data)
    yield from pictures("auroc-by-radius-linf")
    yield "## Accuracy"
    yield ""
    yield "Share of images classified correctly; higher is better."
    yield ""
    yield from shown(tables.accuracies(data))
    yield "## Scores"
    yield ""
    yield from pictures("scores-msp", "scores-mahalanobis")
    yield "## Beside the papers"
    yield ""
    for found in comparisons(data):
        yield f"**{found.title}.** {' '.join(found.words)}"
        yield ""
        yield from shown(found.table)
    yield "## Sanity checks"
    yield ""
    notes = [*summary.caveats(data), *results.warnings]
    yield from [f"- {note}" for note in notes] or ["No alarm."]
    yield from [f"- failed: {one.model}, {one.detector}: {one.error}" for one in results.failures]
    yield ""


def shown(made: tables.Table) -> list[str]:
    """Return a table without its second lines."""
    titles = [title.replace(": ", ", ") for title in made.full_titles()]
    lines = [[cell.text for cell in row] for row in made.rows]
    return table(titles, lines)


def by_radius(data: ReportData) -> list[str]:
    """Return a table of the AUROC at each radius, the clean one first."""
    radii = sorted({round(row.radius * 255) for row in data.means})
    heads = [
        f"{group}, {f'{radius}/255' if radius else 'clean'}"
        for group in data.groups
        for radius in radii
    ]
    lines = []
    for model in data.models:
        for detector in data.detectors:
            found = [data.by_radius(model, detector, group, "Linf") for group in data.groups]
            lines.append(
                [model, detector, *(rate(auroc) for points in found for _, auroc in points)]
            )
    return table(["Network", "Detector", *heads], lines)


def pictures(*names: str) -> Iterator[str]:
    for name in names:
        yield f"![{FIGURES[name]}](figures/cifar10_{name}.png)"
        yield ""


if __name__ == "__main__":
    sys.exit(main())
