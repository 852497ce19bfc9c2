"""Evaluate the networks of `cifar10_methods.py` with eight detectors at three radii, and write a
page of the report.

    python benchmarks/cifar10_methods.py --root ARRAYS --weights cifar10_resnet20.th --epochs 2
        --learning-rate 0.02 \\ --methods Standard OE ADV ALOE --train-only --folder runs/resnet20
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

from robust_ood.reporting import comparison, summary, tables
from robust_ood.reporting.source import Source, read

CHUNK = 32
FIGURES = {
    "auroc-by-radius-linf": "AUROC against the radius of the attack, means of the near and of the far sets",
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
        "--folder", type=Path, required=True, help="of the results; the same call goes on"
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
    source = read([options.folder])
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
        page(source, options),
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


def page(source: Source, options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the page."""
    results, methods = source.results, ", ".join(options.methods)
    yield from (
        f"- Networks: a trained ResNet-20, fine-tuned by {methods} with the first command of the script below.",
        "- Detectors and attacks: `configs/evaluate/cifar10_methods.yaml`; each attack goes through the detector",
        "  that it is scored on, on inliers and outliers, and keeps the worst step.",
        f"- {results.rows[0].n_id} images of each set: the intervals are wide, and small differences are none.",
        "- Near: CIFAR-100 and Tiny-ImageNet; far: SVHN, Textures and Places. The whole report, with every set,",
        "  interval and figure, is `FOLDER/report.html`.",
        "",
    )
    yield "## Findings"
    yield ""
    yield from (f"- {sentence}" for sentence in summary.sentences(source))
    yield ""
    yield "## Clean against attacked"
    yield ""
    yield "Means over each group, clean and under the strongest of the attacks."
    yield ""
    yield from shown(tables.survival(source))
    yield "## AUROC by radius"
    yield ""
    yield "Both sides attacked; means over each group."
    yield ""
    yield from by_radius(source)
    yield from pictures("auroc-by-radius-linf")
    yield "## Accuracy"
    yield ""
    yield from shown(tables.accuracies(source))
    yield "## Scores"
    yield ""
    yield from pictures("scores-msp", "scores-mahalanobis")
    yield "## Beside the papers"
    yield ""
    for found in comparison.comparisons(source):
        yield f"**{found.title}.** {' '.join(found.words)}"
        yield ""
        yield from shown(found.table)
    yield "## Sanity checks"
    yield ""
    notes = [*summary.caveats(source), *results.warnings]
    yield from [f"- {note}" for note in notes] or ["No alarm."]
    yield from [f"- failed: {one.model}, {one.detector}: {one.error}" for one in results.failures]
    yield ""


def shown(made: tables.Table) -> list[str]:
    """Return a table without its second lines."""
    groups = [title for title, span in made.heads for _ in range(span)] or [""] * len(made.columns)
    heads = [
        f"{group.replace(': ', ', ')} {title}".strip()
        for group, (title, _) in zip(groups, made.columns, strict=True)
    ]
    return table(heads, [[cell.text for cell in row] for row in made.rows])


def by_radius(source: Source) -> list[str]:
    """Return a table of the AUROC at each radius, the clean one first."""
    radii = sorted({round(row.radius * 255) for row in source.means})
    heads = [
        f"{group}, {f'{radius}/255' if radius else 'clean'}"
        for group in source.groups
        for radius in radii
    ]
    lines = []
    for model in source.models:
        for detector in source.detectors:
            found = [source.by_radius(model, detector, group, "Linf") for group in source.groups]
            lines.append(
                [model, detector, *(summary.rate(auroc) for points in found for _, auroc in points)]
            )
    return table(["Network", "Detector", *heads], lines)


def pictures(*names: str) -> Iterator[str]:
    for name in names:
        yield f"![{FIGURES[name]}](figures/cifar10_{name}.png)"
        yield ""


if __name__ == "__main__":
    sys.exit(main())
