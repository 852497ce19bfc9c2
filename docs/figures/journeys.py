"""Draw docs/figures/journey_*.svg: the five longest journeys through the code.

python docs/figures/journeys.py [FOLDER]
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, STEP, TOP = 860, 58, 14
BOX, BOX_HEIGHT = 370, 42  # the box with what happens; the note stands to its right
COLOURS = {
    "user": "#eeeeee",
    "data": "#dcebf7",
    "core": "#fff3d6",
    "run": "#e0f2e9",
}


class Step(NamedTuple):
    """One stop of a journey: what happens, where, and what the thing is from then on."""

    what: str
    where: str
    becomes: str
    kind: str = "run"


JOURNEYS = {
    "outliers": [
        Step("data.outliers: 300K_random_images.npy", "a config", "a name", "user"),
        Step("load_set", "data/named.py", "ImageSet, uint8 (N, H, W, 3)", "data"),
        Step("TrainingLoader", "data/loaders.py", "Batch of (seed, epoch, step, rank)", "data"),
        Step("OODData.on_after_batch_transfer", "data/module.py", "floats in [0, 1], augmented", "data"),
        Step("Method.attacked", "training/method.py", "one joint batch with the inliers"),
        Step("Budget.start, Budget.descend", "attacks/budget.py", "random start, then the engine", "core"),
        Step("minimize", "perturb.py", "attacked outliers, (M, C, H, W)", "core"),
        Step("Method.logits", "training/method.py", "logits (M, K), one pass with the inliers"),
        Step("Method.outlier_loss", "training/method.py", "cross-entropy to uniform, (M,), mean"),
        Step("Method.loss", "training/method.py", "CE(inliers) + outlier_weight x this"),
    ],
    "row": [
        Step("data.test, near, far", "a config", "names of sets", "user"),
        Step("ImageSet, chunks", "evaluation/scoring.py", "Chunk of 512 images, with a digest", "data"),
        Step("ScoreTask", "evaluation/tasks.py", "key of network, detector, attack, pixels, code"),
        Step("Runner.run", "evaluation/runner.py", "claimed by this process, unless stored"),
        Step("Scorer.score", "evaluation/scoring.py", "floats on the device, in batches that fit"),
        Step("attack_score", "attacks/apply.py", "candidates; the true score keeps the worst", "core"),
        Step("score_images", "detectors/sharing.py", "one pass for all detectors of a network"),
        Step("Store.write", "evaluation/store.py", "Cell, written in one move", "data"),
        Step("ModelRecords.rows", "evaluation/rows.py", "Column of scores, then a Row of metrics"),
        Step("Results.write", "evaluation/results.py", "results.json, results.csv", "user"),
    ],
    "radius": [
        Step("{name: pgd, radius: 8/255, steps: 10}", "a config or an option", "text", "user"),
        Step("BudgetConfig, or a mapping", "attacks/in_loop.py", "training's typed fields; evaluation's list"),
        Step("read_part", "settings.py", "Part: name and settings"),
        Step("make_attack", "attacks/registry.py", "settings checked against the signature"),
        Step("region_of", "regions.py", "Linf(0.0314): the only route to a region", "core"),
        Step("Budget", "attacks/budget.py", "steps and step size as numbers; short ones warn", "core"),
        Step("minimize", "perturb.py", "gradients of the images alone", "core"),
        Step("Steepest", "rules.py", "images - step size x sign(gradient)", "core"),
        Step("Linf.project", "regions.py", "every pixel within 8/255 and in [0, 1]", "core"),
    ],
    "detector": [
        Step("class NormalizedMargin(OutputsDetector)", "margin.py, the user's", "20 lines: score(outputs)", "user"),
        Step("detectors: [{name: margin.NormalizedMargin}]", "a config", "a name with a dot", "user"),
        Step("read_part, import_path", "settings.py", "the class; the working folder is searched"),
        Step("build_all", "detectors/registry.py", "a Detector of the network, settings checked", "core"),
        Step("FitTask", "evaluation/fitting.py", "learn(): passes shared with other detectors"),
        Step("surface_of", "detectors/attack_surface.py", "AttackSurface: what attackers may use", "core"),
        Step("ScoreTask, SanityTask", "evaluation/tasks.py", "scores clean and attacked; alarms"),
        Step("ModelRecords, Results", "evaluation/rows.py", "rows under its label"),
        Step("read_folders, write_report", "reporting/", "report.html: tables, figures, findings", "user"),
    ],
    "resume": [
        Step("SIGTERM, SIGKILL, a power cut", "the machine", "a run that ends anywhere", "user"),
        Step("Checkpoints", "callbacks/checkpoints.py", "last.ckpt of a whole step, written in one move"),
        Step("train.py fit ... --ckpt_path last", "the same command", "again", "user"),
        Step("newest_checkpoint", "cli/resume.py", "the newest that can be read"),
        Step("refuse_changes", "cli/resume.py", "the same settings, or each difference named"),
        Step("OptimizedModule.on_fit_start", "training/optimized.py", "optimiser and schedule at their step"),
        Step("OODData.load_state_dict", "data/module.py", "the loader continues inside the epoch", "data"),
        Step("MetricsFile.truncate", "callbacks/metrics_file.py", "rows after the checkpoint are dropped"),
        Step("generator(seed, purpose, epoch, step, rank)", "randomness.py", "the same draws, the same bits", "core"),
    ],
}  # fmt: skip


def draw(steps: list[Step]) -> str:
    """Return a journey as SVG: boxes from top to bottom, and what the thing is after each."""
    height = TOP * 2 + STEP * len(steps) - (STEP - BOX_HEIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#555"/></marker></defs>',
    ]
    for index, step in enumerate(steps):
        top = TOP + index * STEP
        middle = 10 + BOX / 2
        parts.append(
            f'<rect x="10" y="{top}" width="{BOX}" height="{BOX_HEIGHT}" rx="5" '
            f'fill="{COLOURS[step.kind]}" stroke="#555"/>'
        )
        parts.append(_text(middle, top + 18, step.what, 13, "bold", "middle"))
        parts.append(_text(middle, top + 34, step.where, 11, "normal", "middle"))
        parts.append(_text(BOX + 30, top + 26, step.becomes, 13, "normal", "start"))
        if index < len(steps) - 1:
            parts.append(
                f'<line x1="{middle}" y1="{top + BOX_HEIGHT}" x2="{middle}" y2="{top + STEP - 1}" '
                'stroke="#555" marker-end="url(#tip)"/>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, size: int, weight: str, anchor: str) -> str:
    return (
        f'<text x="{x:g}" y="{y}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="#222">{escape(words)}</text>'
    )


def main() -> None:
    """Draw all journeys."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, steps in JOURNEYS.items():
        (folder / f"journey_{name}.svg").write_text(draw(steps))


if __name__ == "__main__":
    main()
