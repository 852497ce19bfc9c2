"""Train ALOE and S-FGSM+ADV on the digits in float32 and in bfloat16, attack and compare.

    python benchmarks/precision.py --output docs/results/precision.md

Uses the real commands; a run or an evaluation that is finished is not repeated. Exit code 1 where
the robust AUROC of a bfloat16 run is more than 2 points below the float32 run's.
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
METHODS = {"ALOE": "digits_aloe", "S-FGSM+ADV": "digits_safe_spot_fgsm"}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
ATTACK = "[{name: pgd, radius: 16/255, steps: 10}]"
ALLOWED = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/precision"), help="where runs are kept"
    )
    parser.add_argument(
        "--output", type=Path, default=None, help="Markdown page (default: in the folder)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--limit", type=int, default=200, help="test images of each set")
    options = parser.parse_args()
    found: dict[tuple[str, int, str], Results] = {}
    for seed in options.seeds:
        for method, config in METHODS.items():
            for name, precision in PRECISIONS.items():
                folder = (options.folder / f"{config}-{name}-{seed}").resolve()
                if not (folder / "results.json").exists():
                    run("train.py", "fit", "-c", f"configs/experiments/{config}.yaml",
                        "--trainer.precision", precision,
                        "--seed_everything", str(seed), "--trainer.max_epochs", str(options.epochs),
                        "--guards.limit", "0", "--output", str(folder))  # fmt: skip
                    run("evaluate.py", "-c", "configs/evaluate/quickstart.yaml",
                        "--limit", str(options.limit),
                        "--attacks", ATTACK, "--detectors", "[msp]", "--sanity", "false",
                        "--name", name,
                        "--checkpoint", str(folder / "last.ckpt"),
                        "--output", str(folder))  # fmt: skip
                found[method, seed, name] = Results.read(folder)
    lost = {
        (method, seed): robust(found[method, seed, "float32"])
        - robust(found[method, seed, "bfloat16"])
        for method in METHODS
        for seed in options.seeds
    }
    output = options.output or options.folder / "precision.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(found, lost, options))
    print(f"wrote {output}; largest loss {max(lost.values()):+.3f}")
    return 1 if max(lost.values()) > ALLOWED else 0


def run(script: str, *arguments: str) -> None:
    begin = time.monotonic()
    print("$ python", script, *arguments, flush=True)
    subprocess.run([sys.executable, script, *arguments], cwd=ROOT, check=True)
    print(f"  took {time.monotonic() - begin:.0f} s", flush=True)


def separation(results: Results, attacked: str) -> float:
    return next(r.auroc for r in results.rows if r.attacked == attacked and r.group == "far")


def robust(results: Results) -> float:
    return separation(results, "both")


def page(
    found: dict[tuple[str, int, str], Results],
    lost: dict[tuple[str, int], float],
    options: argparse.Namespace,
) -> str:
    lines = [
        "# Training in bfloat16 against float32",
        "",
        f"WideResNet-10-1 on the embedded digits, {options.epochs} epochs, training attacks of "
        f"Linf 16/255; evaluated in float32 with MSP on {options.limit} digits against "
        f"{options.limit} patches of a photograph, both attacked through the score: Linf 16/255, "
        "10 steps. A loss of at most 2 points of robust AUROC is allowed.",
        "",
        f"- Command: `{command()}`",
        f"- Machine: {machine()}",
        "",
        "| method | seed | AUROC clean, float32 | bfloat16 | AUROC both attacked, float32 | "
        "bfloat16 | lost (points) | PGD accuracy, float32 | bfloat16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (method, seed), loss in lost.items():
        pair = [found[method, seed, name] for name in PRECISIONS]
        clean = " | ".join(f"{separation(results, 'none'):.3f}" for results in pair)
        both = " | ".join(f"{robust(results):.3f}" for results in pair)
        rates = " | ".join(f"{results.classification[-1].accuracy:.3f}" for results in pair)
        lines.append(f"| {method} | {seed} | {clean} | {both} | {100 * loss:+.1f} | {rates} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
