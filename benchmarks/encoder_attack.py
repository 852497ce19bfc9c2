"""The OOD attack on encoders: noise that a network encodes like photographs, as a page.

    python benchmarks/encoder_attack.py --weights cifar10_resnet20.th --root ARRAYS \
        --folder runs/encoder_attack

Calls `robust-ood encoder-attack` with `--config`, which keeps what is finished in `--folder`.
"""

from __future__ import annotations

import json
from pathlib import Path

from page import ROOT, table, write_page
from workbench import MEAN, STD, parser

from robust_ood.cli import encoder_attack
from robust_ood.evaluation.encoder_results import EncoderResults


def main() -> None:
    arguments = parser(__doc__, limit=200, output="docs/results/encoder_attack.md")
    default = ROOT / "configs" / "attacks" / "encoder_resnet20.yaml"
    arguments.add_argument("--config", type=Path, default=default, help="settings of the attack")
    arguments.add_argument("--steps", type=int, default=1000, help="iterations")
    chosen = arguments.parse_args()
    code = encoder_attack(
        [
            *("-c", str(ROOT / "configs/data/cifar10_arrays.yaml"), "-c", str(chosen.config)),
            *("--net", "ThinResNet", "--net.mean", json.dumps(MEAN), "--net.std", json.dumps(STD)),
            *("--key_map", "resnet20", "--checkpoint", str(chosen.weights), "--name", "ResNet-20"),
            *(
                "--data.root",
                str(chosen.root),
                "--data.train",
                "{source: cifar10_train.npz, count: 5000}",
            ),
            *("--limit", str(chosen.limit), "--steps", str(chosen.steps)),
            *("--batch_size", "20", "--device", chosen.device, "--output", str(chosen.folder)),
        ]
    )
    if code:
        raise SystemExit(code)
    write(chosen.output, chosen.limit, chosen.steps, EncoderResults.read(chosen.folder))


def write(output: Path, pairs: int, steps: int, results: EncoderResults) -> None:
    rows = []
    for row in results.rows:
        rows.append(
            (
                row.detector,
                row.matched,
                f"{row.auroc_start:.3f}",
                f"{row.auroc:.3f}",
                f"{row.mape_mean:.2%}",
                f"{row.mape_median:.2%}",
                f"{row.mape_below_1_percent:.0%}",
            )
        )
    lines = [
        f"ResNet-20, the first {pairs} CIFAR-10 test images, each paired with an image of uniform "
        f"noise that is moved within an L2 ball of radius 10 by {steps} iterations of Adamax until "
        "the network encodes it like its partner (`configs/attacks/encoder_resnet20.yaml` says "
        "where the settings are from). Detectors are fitted on 5,000 training images. AUROC of "
        "CIFAR-10 against the noise, before and after; the mean absolute percentage error (MAPE) "
        "of what was matched, over the pairs (of a score, which is one number and may be 0, "
        "relative to the largest score of the inliers).",
        "",
        *table(
            (
                "detector",
                "matched",
                "AUROC, noise",
                "AUROC, attacked",
                "MAPE, mean",
                "median",
                "pairs below 1 %",
            ),
            rows,
        ),
    ]
    write_page(output, "The OOD attack on encoders", lines)


if __name__ == "__main__":
    main()
