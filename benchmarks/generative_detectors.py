"""Detectors that model images, and those that read a classifier, under three attacks on the digits.

    python benchmarks/generative_detectors.py --folder runs/generative_detectors

Trains each recipe (`configs/experiments/digits_*.yaml`) that the folder has no run of, evaluates
its detectors clean and under PGD through their scores, both sides, and runs the attack on encoders.
Recipes or detectors that this version does not have are left out, and said.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from page import ROOT, table, write_page

from robust_ood import cli, detectors
from robust_ood.evaluation import Results
from robust_ood.evaluation.encoder_results import EncoderResults

Spec = str | dict[str, Any]


class Entry(NamedTuple):
    """A line of the table.

    name: what the page calls it. recipe: experiment without `digits_`. detector: as a config names
    it. match: what the encoder attack matches, as the paper does. start: what it starts from.
    """

    name: str
    recipe: str
    detector: Spec
    match: str = "features"
    start: str = "noise"


ENTRIES = (
    Entry("flow, likelihood", "flow", "likelihood", "score", "spirals"),
    Entry("flow, complexity", "flow", "complexity", "score", "spirals"),
    Entry("JEM, log p(x)", "jem", "energy", "logits", "spirals"),
    Entry("JEM, MSP", "jem", "msp", "logits", "spirals"),
    Entry("JEM, gradient norm", "jem", "gradient-norm", "logits", "spirals"),
    Entry("GAN-calibrated, MSP", "confidence_gan", "msp"),
    Entry("auto-encoder, reconstruction", "autoencoder", "reconstruction", "features"),
    Entry("auto-encoder, reconstruction, score matched", "autoencoder", "reconstruction", "score"),
    Entry("CCU, MSP", "ccu", "msp", "logits"),
    Entry("OE, its score", "oe", "oe-score", "logits"),
    Entry("classifier, MSP", "standard", "msp"),
    Entry("deep ensemble", "standard", {"name": "deep-ensemble"}, "logits"),
    Entry("classifier, ODIN", "standard", "odin", "logits"),
    Entry("classifier, Mahalanobis", "standard", "mahalanobis", "score"),
    Entry("classifier, Gram", "standard", "gram", "log-score"),
)
SMALL = ("--data.size", "8")
DATA = {
    "flow": (*SMALL, "--data.channels", "1"),
    "autoencoder": (*SMALL, "--data.channels", "1"),
    "jem": SMALL,
    "confidence_gan": SMALL,
}
"""By recipe, the size and channels of the images that its network takes."""
ENSEMBLE = (1, 2)
"""Seeds of the ensemble's other networks."""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    arguments.add_argument("--limit", type=int, default=100, help="images of each set, and pairs")
    arguments.add_argument("--steps", type=int, default=300, help="of the encoder attack")
    arguments.add_argument("--pgd_steps", type=int, default=20, help="of PGD")
    arguments.add_argument("--data", default="digits", help="a config of configs/data")
    arguments.add_argument("--only", nargs="*", help="recipes; all by default")
    arguments.add_argument("--fit", nargs="*", default=[], help="more arguments of each training")
    arguments.add_argument(
        "--output", type=Path, default=Path("docs/results/generative_detectors.md")
    )
    chosen = arguments.parse_args()
    rows = []
    missing = []
    for entry in ENTRIES:
        if chosen.only and entry.recipe not in chosen.only:
            continue
        reason = lacking(entry)
        if reason:
            missing.append(f"{entry.name}: {reason}")
            continue
        rows.append(measure(chosen, entry))
    write(chosen, rows, missing)


def lacking(entry: Entry) -> str:
    """Return what this version lacks of an entry; nothing where all is there."""
    name = entry.detector if isinstance(entry.detector, str) else entry.detector["name"]
    if name not in detectors.REGISTRY:
        return f"no detector {name}"
    if not config(entry.recipe).is_file():
        return f"no {config(entry.recipe).name}"
    return ""


def config(recipe: str) -> Path:
    return ROOT / "configs" / "experiments" / f"digits_{recipe}.yaml"


def trained(chosen: argparse.Namespace, recipe: str, seed: int = 0) -> Path:
    """Return the checkpoint of a recipe, trained unless it is there."""
    folder = chosen.folder / f"{recipe}-{seed}"
    checkpoint = folder / "last.ckpt"
    if not checkpoint.exists():
        options = ["--seed_everything", str(seed), "--output", str(folder), *chosen.fit]
        call(cli.train, ["fit", "-c", str(config(recipe)), *options])
    return checkpoint


def call(command: Any, arguments: Sequence[str]) -> None:
    code = command(arguments)
    if code:
        raise SystemExit(code)


def measure(chosen: argparse.Namespace, entry: Entry) -> tuple[str, ...]:
    """Return a line of the table: clean, PGD on both sides, and the encoder attack."""
    checkpoint = trained(chosen, entry.recipe)
    spec = entry.detector if isinstance(entry.detector, dict) else {"name": entry.detector}
    if spec["name"] == "deep-ensemble":
        others = [str(trained(chosen, entry.recipe, seed)) for seed in ENSEMBLE]
        spec = {**spec, "checkpoints": others}
    spec = {**spec, "label": "detector"}
    folder = chosen.folder / entry.name.replace(" ", "-").replace(",", "")
    shared = ["-c", str(ROOT / "configs" / "data" / f"{chosen.data}.yaml")]
    shared += DATA.get(entry.recipe, ())
    shared += ["--checkpoint", str(checkpoint), "--detectors", json.dumps([spec])]
    shared += ["--limit", str(chosen.limit), "--report", "false"]
    attack = {"name": "pgd", "norm": "Linf", "radius": "8/255", "steps": chosen.pgd_steps}
    call(
        cli.evaluate,
        [
            *shared,
            *("--attacks", json.dumps([attack]), "--sanity", "false", "--figures", "false"),
            *("--intervals", "false", "--output", str(folder / "pgd")),
        ],
    )
    match: dict[str, str] = {"code": entry.match}
    if spec["name"] in ("deep-ensemble", "odin"):
        match["of"] = "detector"
    call(
        cli.encoder_attack,
        [
            *shared,
            *("--match", json.dumps(match), "--starts", entry.start, "--radius", "10"),
            *("--steps", str(chosen.steps), "--output", str(folder / "encoder")),
        ],
    )
    (row,) = EncoderResults.read(folder / "encoder").rows
    return (
        entry.name,
        f"{mean_auroc(folder / 'pgd', 'none'):.3f}",
        f"{mean_auroc(folder / 'pgd', 'both'):.3f}",
        f"{entry.match} from {entry.start}",
        f"{row.auroc_start:.3f}",
        f"{row.auroc:.3f}",
        f"{row.mape_median:.2%}",
    )


def mean_auroc(folder: Path, attacked: str) -> float:
    """Return the mean AUROC over single OOD sets."""
    values = []
    for row in Results.read(folder).rows:
        if row.attacked == attacked and row.ood not in ("near", "far"):
            values.append(row.auroc)
    return float(torch.tensor(values).mean())


def write(chosen: argparse.Namespace, rows: list[tuple[str, ...]], missing: list[str]) -> None:
    lines = [
        "Small networks on scikit-learn's digits, each trained by its recipe "
        "(`configs/experiments/digits_*.yaml`). AUROC of the digits against the OOD sets of "
        f"`configs/data/{chosen.data}.yaml`, {chosen.limit} images of each set: clean, and with "
        f"both sides under PGD through the score (Linf 8/255, {chosen.pgd_steps} steps). Then the "
        "OOD attack on encoders as its paper does it: noise, or a colour spiral, is moved within "
        f"an L2 ball of radius 10 by {chosen.steps} iterations of Adamax until what is matched is "
        "that of a digit; AUROC of digits against the start images and against the generated ones, "
        "and the median error (MAPE). An attacked AUROC near 0.5 says that the detector takes the "
        "generated images for digits. A large error says that the attack has not arrived, and "
        "nothing about robustness.",
        "",
        *table(
            (
                "detector",
                "clean",
                "PGD, both sides",
                "matched",
                "starts",
                "generated",
                "MAPE, median",
            ),
            rows,
        ),
    ]
    if missing:
        lines += [f"Left out, because this version lacks them: {'; '.join(missing)}.", ""]
    write_page(chosen.output, "Detectors that model images, attacked", lines)


if __name__ == "__main__":
    main()
