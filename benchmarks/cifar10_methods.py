"""Train every method on CIFAR-10 arrays with one small network and budget, and attack all.

    python benchmarks/cifar10_methods.py --root ARRAYS --output docs/results/cifar10_methods.md
    python benchmarks/cifar10_methods.py --root ARRAYS --weights cifar10_resnet20.th \\
        --epochs 2 --learning-rate 0.02

Writes one table. The second command fine-tunes a trained ResNet-20 by every method instead. Uses
the real commands. Stopped at any moment, the same command continues: training from the last
checkpoint, finished evaluations are not repeated. `--limit-train-batches` and `--limit` make a
trial run of it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from page import command, machine

from robust_ood.evaluation import Results

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS_MEAN, WEIGHTS_STD = (
    "[0.485, 0.456, 0.406]",
    "[0.229, 0.224, 0.225]",
)  # what the ResNet-20 was trained with
SPOTS = "--model.init_args.spot_search"
ATTACK = "--model.init_args.inlier_attack"
METHODS: dict[str, list[str]] = {
    "Standard": ["standard"],
    "OE": ["oe"],
    "ADV": ["adv"],
    "AOE": ["aoe"],
    "ALOE": ["aloe"],
    # S-FGSM+ADV at the radius of the others: 2 steps of the radius in place of 10 of a quarter, so
    # that all cost alike.
    "S-FGSM+ADV": [
        "safe_spot_fgsm", f"{SPOTS}.radius", "1/255", f"{SPOTS}.step_size", "1/255",
        f"{ATTACK}.radius", "1/255", f"{ATTACK}.step_size", "1/255", f"{ATTACK}.steps", "2",
    ],
}  # fmt: skip


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
        "--folder", type=Path, default=Path("runs/cifar10_methods"), help="where runs are kept"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="Markdown file of the table (default: in the folder)",
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--depth", type=int, default=16, help="of a WideResNet trained from scratch"
    )
    parser.add_argument("--width", type=int, default=1, help="of the same")
    parser.add_argument(
        "--weights", type=Path, default=None, help="fine-tune the CIFAR-10 ResNet-20 of this file"
    )
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=1000, help="test images of each set")
    parser.add_argument("--limit-train-batches", type=int, default=None)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument(
        "--train-only", action="store_true", help="leave the evaluation and the table out"
    )
    options = parser.parse_args()
    results, begin = Results(), time.monotonic()
    for method in options.methods:
        folder = options.folder / method
        train(method, folder, options)
        if options.train_only:
            continue
        if not (folder / "results.json").exists():
            evaluate(method, folder, options)
        results.extend(Results.read(folder))
    if options.train_only:
        return 0
    output = options.output or options.folder / "table.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(table(results, options, (time.monotonic() - begin) / 3600))
    print(f"wrote {output}")
    return 0


def train(method: str, folder: Path, options: argparse.Namespace) -> None:
    config, *settings = METHODS[method]
    arguments = ["fit", "-c", "configs/data/cifar10_arrays.yaml", *network(options),
               "-c", f"configs/methods/{config}.yaml", *settings, "--data.root", options.root,
               "--model.optimization.learning_rate", str(options.learning_rate),
               "--trainer.max_epochs", str(options.epochs),
               "--trainer.precision", options.precision,
               "--trainer.accelerator", options.accelerator, "--trainer.devices", "1",
               "--checkpoints.every_n_steps", "100", "--output", str(folder.resolve())]  # fmt: skip
    if options.limit_train_batches is not None:
        arguments += ["--trainer.limit_train_batches", str(options.limit_train_batches)]
    if (folder / "last.ckpt").exists():
        arguments += ["--ckpt_path", "last"]
    run("train.py", arguments)


def network(options: argparse.Namespace) -> list[str]:
    """Return the arguments that name the network, and the weights that it begins with."""
    if options.weights is None:
        return ["-c", "configs/models/wrn_16_2.yaml", "--net.init_args.depth", str(options.depth),
                "--net.init_args.width", str(options.width)]  # fmt: skip
    return ["-c", "configs/models/resnet20.yaml", "--net.init_args.mean", WEIGHTS_MEAN,
            "--net.init_args.std",
            WEIGHTS_STD, "--init_from", str(options.weights.resolve())]  # fmt: skip


def evaluate(method: str, folder: Path, options: argparse.Namespace) -> None:
    arguments = ["-c", "configs/evaluate/cifar10_arrays.yaml", "--data.root", options.root,
               "--limit", str(options.limit), "--checkpoint", str((folder / "last.ckpt").resolve()),
               "--name", method,
               "--output", str(folder.resolve())]  # fmt: skip
    run("evaluate.py", arguments)


def run(script: str, arguments: list[str]) -> None:
    print("$ python", script, *arguments, flush=True)
    begin = time.monotonic()
    code = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)
    print(f"  took {time.monotonic() - begin:.0f} s", flush=True)


def table(results: Results, options: argparse.Namespace, hours: float) -> str:
    budget = f"{options.epochs} epochs" + (
        f" of {options.limit_train_batches} batches"
        if options.limit_train_batches is not None
        else ""
    )
    start = (
        f"WideResNet-{options.depth}-{options.width}"
        if options.weights is None
        else "a trained ResNet-20 fine-tuned"
    )
    lines = [
        "# CIFAR-10: methods under attack",
        "",
        f"- Budget: {start}, {budget}, 64 inliers + 128 outliers a batch, SGD "
        f"{options.learning_rate} with a cosine, {options.precision}, seed 0; evaluated in "
        f"float32 on the first {options.limit} images of each test set.",
        "- Training attacks: Linf 1/255, 2 steps; S-FGSM+ADV one step of 1/255 to the safe spot, "
        "then 2 from there.",
        "- Evaluation attack: Linf 1/255, 10 steps of 1/255 with a random start, through each "
        "detector's own score, the worst iterate kept; on inliers and outliers. PGD accuracy: "
        "the same attack on the classifier.",
        "- Cells: AUROC / FPR95 (share of OOD accepted when 95 % of ID is), means over the near "
        "(CIFAR-100, Tiny-ImageNet) and the far sets (SVHN, Textures, Places).",
        f"- Command: `{command()}`",
        f"- Machine: {machine()}; {hours:.1f} hours in this call.",
        "",
        "| method | detector | near, clean | near, both attacked | far, clean | far, both "
        "attacked |",
        "|---|---|---|---|---|---|",
    ]
    cells = {
        (r.model, r.detector, r.ood, r.attacked): f"{r.auroc:.3f} / {r.fpr95:.3f}"
        for r in results.rows
    }
    for model, detector in dict.fromkeys((r.model, r.detector) for r in results.rows):
        row = [
            cells[model, detector, group, side]
            for group in ("near", "far")
            for side in ("none", "both")
        ]
        lines.append(f"| {model} | {detector} | {' | '.join(row)} |")
    lines += ["", "| method | clean accuracy | PGD accuracy |", "|---|---|---|"]
    for model in dict.fromkeys(r.model for r in results.classification):
        rates = [f"{r.accuracy:.3f}" for r in results.classification if r.model == model]
        lines.append(f"| {model} | {' | '.join(rates)} |")
    lines += ["", "AUROC with both sides attacked, for each OOD set:", ""]
    sets = list(dict.fromkeys(r.ood for r in results.rows if r.ood not in ("near", "far")))
    lines += [f"| method | detector | {' | '.join(sets)} |", "|---|---|" + "---|" * len(sets)]
    values = {
        (r.model, r.detector, r.ood): f"{r.auroc:.3f}" for r in results.rows if r.attacked == "both"
    }
    for model, detector in dict.fromkeys((r.model, r.detector) for r in results.rows):
        lines.append(
            f"| {model} | {detector} | {' | '.join(values[model, detector, ood] for ood in sets)} |"
        )
    lines += [
        "",
        "Warnings of the evaluations' sanity checks: " + ("none." if not results.warnings else ""),
    ]
    lines += [f"- {warning}" for warning in results.warnings]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
