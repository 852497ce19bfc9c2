"""Evaluate public ResNet-20 weights twice: as a user's class by its path, and as our ResNet-20.

    python benchmarks/resnet20_both_ways.py --weights cifar10_resnet20.th --root ARRAYS \\
        --output PAGE

Both ways go through the real `evaluate.py` on the same CIFAR-10 images and near and far arrays. The
command ends with an error unless accuracy, every rate of every row and every single score are the
same both ways.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from page import table, write_page
from workbench import FAR, MEAN, NEAR, STD

from robust_ood.data import EvaluationLoader, load_set, to_float
from robust_ood.detectors.registry import build_all
from robust_ood.models import ThinResNet, load_network, outputs, wrap

ROOT = Path(__file__).resolve().parent.parent
NORMALISED = ["--net.mean", str(list(MEAN)), "--net.std", str(list(STD))]
WAYS = {
    "their class": ["--net", "Wrapped", "--net.module", "their_resnet20.ResNet20", *NORMALISED],
    "our ThinResNet": ["--net", "ThinResNet", "--net.depth", "20", *NORMALISED],
}
DETECTORS = ["msp", "maxlogit", "energy", "gen"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--output", type=Path, help="page to write")
    parser.add_argument(
        "--folder", type=Path, default=Path("results/resnet20"), help="where both results go"
    )
    parser.add_argument("--limit", type=int, help="only the first so many images of each set")
    options = parser.parse_args()

    found = {name: evaluated(name, way, options) for name, way in WAYS.items()}
    differing = differences(*found.values()) + score_differences(options)
    lines = report(found, differing)
    if options.output:
        write_page(options.output, "One file of weights, evaluated as two networks", lines)
    else:
        print("\n".join(lines))
    return 1 if differing else 0


def evaluated(name: str, way: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the results of one run of `evaluate.py`, in the folder of the user's own file."""
    output = options.folder.resolve() / name.replace(" ", "-")
    arguments = [
        *way, "-c", ROOT / "configs/data/cifar10_arrays.yaml",
        "--data.root", options.root.resolve(),
        "--checkpoint", options.weights.resolve(), "--output", output, "--name", name,
        "--detectors", f"[{', '.join(DETECTORS)}]", "--attacks", "[]", "--device", "cpu",
        "--figures", "false", "--report", "false",
        *(["--limit", options.limit] if options.limit else []),
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)]
    subprocess.run(command, cwd=Path(__file__).parent, check=True)
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return what the two results differ in, apart from the network's name and the time."""
    differing = []
    for part in ("classification", "rows"):
        if len(first[part]) != len(second[part]):
            differing.append(f"{part}: {len(first[part])} and {len(second[part])} of them")
        for one, other in zip(first[part], second[part], strict=False):
            differing += [
                f"{part} {one['id']} {one.get('detector', '')} {one.get('ood', '')} {field}: "
                f"{value}, {other[field]}"
                for field, value in one.items()
                if field not in ("model", "seconds") and value != other[field]
            ]
    return differing


def score_differences(options: argparse.Namespace) -> list[str]:
    """Return the sets on which some single image has another score one way than the other."""
    from their_resnet20 import ResNet20

    nets = (
        load_network(options.weights, wrap(ResNet20(), MEAN, STD)),
        load_network(options.weights, ThinResNet(20, mean=MEAN, std=STD)),
    )
    theirs, ours = (build_all(DETECTORS, net) for net in nets)
    differing = {}  # in the order found
    for name in ("cifar10_test", *NEAR, *FAR):
        for batch in EvaluationLoader(
            load_set(name, options.root), batch_size=256, limit=options.limit
        ):
            with torch.no_grad():
                first, second = (outputs(net, to_float(batch.images)) for net in nets)
                for label in theirs:
                    if not torch.equal(theirs[label].score(first), ours[label].score(second)):
                        differing[f"scores of {label} on {name}"] = None
    return list(differing)


def report(found: dict[str, dict[str, Any]], differing: list[str]) -> list[str]:
    """Return the page's lines."""
    rows = []
    for name, results in found.items():
        (accuracy,) = results["classification"]
        auroc = {row["ood"]: row["auroc"] for row in results["rows"] if row["detector"] == "msp"}
        rows.append(
            [
                name,
                accuracy["n"],
                f"{accuracy['accuracy']:.4f}",
                *(f"{auroc[ood]:.4f}" for ood in NEAR + FAR),
            ]
        )
    detectors = ", ".join(DETECTORS)
    same = f"Detectors {detectors}: every rate and every single score is the same both ways."
    return [
        "The weights of a CIFAR-10 ResNet-20 through `evaluate.py`: as a class of a user's own "
        "file with the names of",
        "the weights (`--net Wrapped --net.module their_resnet20.ResNet20`), and as our "
        "`ThinResNet`, whose names the",
        "key map `resnet20` gives. The AUROC is that of MSP on clean images.",
        "",
        *table(["way", "images", "accuracy", *NEAR, *FAR], rows),
        f"Differences: {'; '.join(differing)}" if differing else same,
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
