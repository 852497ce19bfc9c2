"""Every detector against its reference in tests/parity/test_detectors.py, on real images.

python benchmarks/detector_parity.py --weights cifar10_resnet20.th --root ARRAYS --folder
runs/detector_parity
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
from page import table, write_page
from torch import Tensor
from workbench import Parts, images_of, parser, resnet20

from robust_ood import metrics

LAYERS = ("layer1", "layer2", "layer3")
TESTS = Path(__file__).parents[1] / "tests" / "parity" / "test_detectors.py"
# Where public codes differ from each other, or from the paper, and what is followed here.
DISAGREEMENTS = {
    "gen": "pytorch-ood clamps probabilities at 1e-7, which at gamma 0.1 changes the score; the "
    "paper and OpenOOD do not.",
    "mahalanobis, relative-mahalanobis": "pytorch-ood does not divide the covariance by the number "
    "of images, which changes no order; here it is a mean, as in the paper.",
    "vim": "pytorch-ood computes the subspace in float32; the reference here is in float64.",
    "gram": "OpenOOD has one range a class and sums over channels, the authors' code deviations of "
    "each row; the authors' is the default, `definition: openood` the other.",
    "gradnorm": "OpenOOD sums over classes, here it is their mean: the same order.",
    "grad-uncertainty": "pytorch-ood's gradient vanishes for probabilities below 1e-12, where "
    "torch cuts that of the binary cross-entropy off: with it, the AUROC below would be .692; here "
    "the loss is in logarithms.",
    "odin": "where a gradient is 0, public codes step up; `reference: true` does so, too.",
    "she": "a class of which no image is rightly predicted is NaN in OpenOOD and refused by "
    "pytorch-ood; here it has the mean of all its images.",
    "nnguide": "OpenOOD's bank is the first 1 % of batches; here it is a uniform sample.",
    "gmm": "OpenOOD finds components without labels, the authors' code leaves out the shares of "
    "classes and divides by one image less; here the paper's Alg. 1, with shrinkage where a "
    "covariance is singular.",
    "vra": "OpenOOD and pytorch-ood clip from below, the paper sets to 0; pytorch-ood has "
    "thresholds of each entry of a map.",
    "rankfeat": "OpenOOD averages the logits of two layers, pytorch-ood takes one; the public "
    "codes can approximate the leading component by power iterations, here it is exact.",
    "rankweight": "the authors' product is not defined for a 3 x 3 kernel; here it is a matrix of "
    "one row an output channel.",
    "openmax": "pytorch-ood's search for the Weibull distribution stops earlier and reads all "
    "labelled images, OpenOOD and the paper those rightly predicted; OpenOOD lowers 3 logits, the "
    "others 10.",
    "nac": "the paper's bins are equally wide, pytorch-ood's denser at the ends; the authors' code "
    "has one bin less, and none for a state of exactly 1.",
    "feature-dropout": "OpenOOD averages logits, here softmaxes are averaged.",
    "deep-ensemble": "OpenOOD averages logits, here softmaxes are averaged.",
}
HELD_OUT = (
    2000  # test images that a temperature is fitted on, because the network was not trained on them
)


def load_references() -> Any:
    spec = importlib.util.spec_from_file_location("references", TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Problem:
    """What detectors and references are fitted on, and what both score."""

    def __init__(self, references: Any, chosen: Any) -> None:
        self.references, self.net = references, resnet20(chosen.weights)
        train, labels = images_of("cifar10_train", chosen.root, chosen.fit)
        held_out, truth = images_of("cifar10_test", chosen.root, HELD_OUT, first=chosen.limit)
        self.known = {False: self.read(train, labels), True: self.read(held_out, truth)}
        self.test = {
            moved: self.scored(chosen, limit)
            for moved, limit in ((False, chosen.limit), (True, chosen.moved))
        }

    def scored(self, chosen: Any, limit: int) -> Any:
        sides = [images_of(name, chosen.root, limit)[0] for name in ("cifar10_test", chosen.ood)]
        return self.read(torch.cat(sides), torch.zeros(2 * limit))

    def read(self, images: Tensor, labels: Tensor) -> Any:
        return self.references.read(self.net, images, labels, LAYERS)

    def compare(self, name: str) -> dict[str, Any]:
        known = self.known[name == "msp-t"]
        loader = list(zip(known.images.split(250), known.labels.split(250), strict=True))
        detector = self.references.fit(self.references.make(name, self.net, LAYERS), loader)
        test = self.test[name in self.references.MOVED]
        ours = self.references.scores_of(name, detector, test.images)
        theirs = self.references.REFERENCES[name](known, test).detach()
        areas = [metrics.auroc(*scores.chunk(2)) for scores in (ours, theirs)]
        return {
            "difference": self.references.difference(ours, theirs),
            "ours": areas[0],
            "theirs": areas[1],
        }


def reference_of(function: Any) -> str:
    """Return whose code a reference calls."""
    return "pytorch-ood" if "pood." in inspect.getsource(function) else "naive formula"


def main() -> None:
    arguments = parser(__doc__, limit=500, output="docs/results/detector_parity.md")
    arguments.add_argument("--ood", default="svhn_test", help="OOD set")
    arguments.add_argument(
        "--moved", type=int, default=100, help="images of each set where float64 networks are run"
    )
    arguments.add_argument("--fit", type=int, default=2000, help="training images to fit on")
    arguments.add_argument("--only", nargs="*", help="names of references; all by default")
    chosen = arguments.parse_args()
    references = load_references()
    names = chosen.only or list(references.REFERENCES)
    settings = {"limit": chosen.limit, "fit": chosen.fit, "ood": chosen.ood}
    parts, problem = Parts(chosen.folder, settings, len(names)), Problem(references, chosen)
    found = {name: parts(name.replace(" ", "-"), partial(problem.compare, name)) for name in names}
    worst = max(part["difference"] for part in found.values())
    unequal = [name for name, part in found.items() if abs(part["ours"] - part["theirs"]) >= 5e-5]
    lines = [
        f"CIFAR-10 ResNet-20; fitted on {chosen.fit:,} training images (the temperature on "
        f"{HELD_OUT:,} test images that are not scored); {chosen.limit} test images against "
        f"{chosen.limit} of {chosen.ood}. Our detectors run in float32 on images. The "
        "references, pytorch-ood or naive formulas (`tests/parity/test_detectors.py`), run in "
        "float64 on what the network gives. Where signs of gradients decide (ODIN, IODIN, input "
        "noise, PRO, safe spot, AdaScale) or bins of histograms (NAC, WeiPer), both run the "
        f"network in float64, on {chosen.moved} images of each "
        "set. The difference is the largest of all images, relative to the reference's score or "
        "to the scores' standard deviation, whichever is larger.",
        "",
        f"**Largest difference: {worst:.1e}.** AUROCs whose fourth decimal differs: "
        f"{', '.join(unequal) or 'none'}.",
        "",
    ]
    rows = []
    for name, part in found.items():
        reference = reference_of(references.REFERENCES[name])
        areas = (f"{part['ours']:.4f}", f"{part['theirs']:.4f}")
        rows.append((name, reference, f"{part['difference']:.1e}", *areas))
    header = ("detector", "reference", "largest difference", "AUROC, ours", "AUROC, reference")
    lines += table(header, rows)
    lines += ["## Where public codes disagree", ""]
    lines += [f"- {name}: {text}" for name, text in DISAGREEMENTS.items()]
    lines.append("")
    write_page(chosen.output, "Detectors against independent implementations", lines, "pytorch-ood")


if __name__ == "__main__":
    main()
