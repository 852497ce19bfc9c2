"""What the sanity checks say of every detector of the registry on a CIFAR-10 ResNet-20.

    python benchmarks/sanity_warnings.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/sanity

Of healthy detectors they say nothing. Finished detectors are saved in `--folder`; the same command
continues.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from detector_table import LEFT_OUT, Sets, fitted
from page import table, write_page
from torch import Tensor
from workbench import Parts, images_of, networks, parser

from robust_ood import L2, Linf, detectors
from robust_ood.attacks import PGD
from robust_ood.evaluation import sanity

REPORTED = {
    "Linf 1/255": PGD(Linf("1/255"), steps=10),
    "Linf 8/255": PGD(Linf("8/255"), steps=20, restarts=2),
    "L2 0.5": PGD(L2(0.5), steps=20),
}


def main() -> None:
    arguments = parser(__doc__, limit=16, output="docs/results/sanity.md")
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    arguments.add_argument("--only", nargs="*", help="detectors; all by default")
    chosen = arguments.parse_args()
    (net,) = networks(chosen).values()
    names = chosen.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    parts = Parts(chosen.folder, {"limit": chosen.limit, "fit": chosen.fit}, len(names))
    inliers, _ = images_of("cifar10_test", chosen.root, chosen.limit, chosen.device)
    outliers, _ = images_of("svhn_test", chosen.root, chosen.limit, chosen.device)
    missing = [name for name in names if not (chosen.folder / f"{name}.json").exists()]
    ready = fitted(missing, net, Sets(chosen.root, chosen.limit, chosen.fit))
    found = {}
    for name in names:
        detector = ready[name].to(chosen.device) if name in ready else None
        found[name] = parts(name, partial(measure, detector, inliers, outliers))
    silent = [name for name, part in found.items() if not part["warnings"]]
    lines = [
        f"ResNet-20, {chosen.limit} images of CIFAR-10 and of SVHN, the checks of "
        "`robust_ood.evaluation.sanity` for numbers reported under PGD with "
        f"{', '.join(REPORTED)}; detectors fitted on {chosen.fit:,} training images.",
        "",
        f"No warning: {', '.join(silent) or 'none'}.",
        "",
        *table(
            ("detector", "seconds", "warnings"),
            [
                (name, f"{part['seconds']:.0f}", "<br>".join(part["warnings"]) or "none")
                for name, part in found.items()
            ],
        ),
    ]
    write_page(chosen.output, "Sanity checks on real images", lines)


def measure(detector: detectors.Detector, inliers: Tensor, outliers: Tensor) -> dict[str, Any]:
    warnings = sanity.check(
        detector, inliers, outliers, *REPORTED.values(), name="", limit=len(inliers)
    )
    return {"warnings": [warning.removeprefix(": ") for warning in warnings]}


if __name__ == "__main__":
    main()
