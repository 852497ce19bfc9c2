"""Every detector against its reference in tests/parity/test_detectors.py, on a CIFAR-10 ResNet-20 and real images.

python benchmarks/detector_parity.py --weights cifar10_resnet20.th --data arrays \
        --output docs/results/detector_parity.md
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import torch
from page import table, write_page
from workbench import images_of, resnet20

from robust_ood import metrics

LAYERS = ("layer1", "layer2", "layer3")
TESTS = Path(__file__).parents[1] / "tests" / "parity" / "test_detectors.py"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights of the ResNet-20")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of cifar10_train, cifar10_test and the OOD set"
    )
    parser.add_argument("--ood", default="svhn_test", help="OOD set")
    parser.add_argument("--fit", type=int, default=5000, help="training images to fit on")
    parser.add_argument("--limit", type=int, default=1000, help="images of each test set")
    parser.add_argument("--only", nargs="*", help="names of references; all by default")
    parser.add_argument("--output", type=Path, required=True, help="Markdown page to write")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    spec = importlib.util.spec_from_file_location("references", TESTS)
    assert spec is not None
    assert spec.loader is not None
    references = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(references)

    net = resnet20(chosen.weights)
    train, labels = images_of("cifar10_train", chosen.data, chosen.fit)
    inliers, _ = images_of("cifar10_test", chosen.data, chosen.limit)
    outliers, _ = images_of(chosen.ood, chosen.data, chosen.limit)
    scored = torch.cat([inliers, outliers])
    fitted_on = references.read(net, train, labels, LAYERS)
    test = references.read(net, scored, torch.zeros(len(scored)), LAYERS)
    loader = list(zip(train.split(250), labels.split(250), strict=True))
    validation = images_of("cifar10_test", chosen.data, chosen.limit + 2000)
    unseen, truth = (tensor[chosen.limit :] for tensor in validation)
    held_out = references.read(net, unseen, truth)
    held_out_loader = list(zip(unseen.split(250), truth.split(250), strict=True))
    rows, worst = [], 0.0
    for name in chosen.only or references.REFERENCES:
        begin = time.perf_counter()
        # A temperature is fitted on images that the network was not trained on.
        known, batches = (held_out, held_out_loader) if name == "msp-t" else (fitted_on, loader)
        detector = references.make(name, net, LAYERS).fit(batches)
        ours = references.scores_of(name, detector, scored)
        theirs = references.REFERENCES[name](known, test).detach()
        gap = references.difference(ours, theirs)
        areas = [metrics.auroc(scores[: len(inliers)], scores[len(inliers) :]) for scores in (ours, theirs)]
        worst = max(worst, gap)
        rows.append((name, f"{gap:.1e}", *(f"{area:.4f}" for area in areas)))
        print(*rows[-1], f"{time.perf_counter() - begin:.0f} s", flush=True)
    lines = [
        f"CIFAR-10 ResNet-20; fitted on {len(train)} training images; {len(inliers)} test images against "
        f"{len(outliers)} of {chosen.ood}. Our detectors run in float32 on images; the references, pytorch-ood or "
        "naive formulas (see `tests/parity/test_detectors.py`), run in float64 on its outputs; where gradient signs "
        "decide (ODIN, PRO), both run the network in float64. The difference is the largest over all images, relative "
        "to the reference's score or their standard deviation, whichever is larger. "
        f"Largest difference: {worst:.1e}.",
        "",
        *table(("detector", "largest difference", "AUROC, ours", "AUROC, reference"), rows),
    ]
    write_page(chosen.output, "Detectors against independent implementations", lines, "pytorch-ood")


if __name__ == "__main__":
    main()
