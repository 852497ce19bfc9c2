"""Every detector of the registry on one network, clean and attacked through its own score, as a sorted table.

    python benchmarks/detector_table.py --weights cifar10_resnet20.th --data arrays --work runs/detector_table \
        --output docs/results/detectors.md

Each detector's numbers are kept in `--work` when they are done, and not computed again. `--checkpoint` and `--name`
make the table of a network that this framework trained.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from page import table, write_page
from torch import nn
from workbench import FAR, NEAR, resnet20

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD
from robust_ood.data import EvaluationLoader, ImageSet, load_set
from robust_ood.evaluation.scores import attacked_scores, clean_scores
from robust_ood.metrics import auroc
from robust_ood.models import load_network

ATTACKS = {"1/255": PGD(Linf("1/255"), steps=10), "3/255": PGD(Linf("3/255"), steps=20)}
SETTINGS: dict[str, dict[str, Any]] = {"safe-spot": {"method": "fgsm", "attack_steps": 5}}
LEFT_OUT = ("deep-ensemble", "pro")  # made of several networks; the same as pro-msp
HELD_OUT = 2000  # the last test images, for the temperature


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--weights", type=Path, help="weights of the CIFAR-10 ResNet-20")
    network.add_argument("--checkpoint", type=Path, help="checkpoint of a training run")
    parser.add_argument("--name", default="ResNet-20", help="what the page calls the network")
    parser.add_argument("--data", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished detectors' numbers")
    parser.add_argument("--output", type=Path, required=True, help="Markdown page to write")
    parser.add_argument("--limit", type=int, default=500, help="images of each set")
    parser.add_argument("--fit", type=int, default=50_000, help="training images to fit on")
    parser.add_argument("--only", nargs="*", help="detectors; all by default")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


class Sets:
    """The test sets, and the images that detectors are fitted on."""

    def __init__(self, root: Path, limit: int, fit: int) -> None:
        self.limit, self.fit, self.root = limit, fit, root
        self.inliers = load_set("cifar10_test", root)
        self.ood = {name: load_set(name, root) for name in (*NEAR, *FAR)}

    def loader(self, images: ImageSet) -> EvaluationLoader:
        return EvaluationLoader(images, batch_size=250, limit=self.limit)

    def training(self, limit: int | None = None) -> EvaluationLoader:
        return EvaluationLoader(load_set("cifar10_train", self.root), batch_size=250, limit=limit or self.fit)

    def held_out(self) -> EvaluationLoader:
        last = torch.arange(len(self.inliers) - HELD_OUT, len(self.inliers)).numpy()
        return EvaluationLoader(self.inliers.subset(last), batch_size=250)

    def outliers(self) -> EvaluationLoader:
        return EvaluationLoader(load_set("outliers_tinyimagenet", self.root), batch_size=250, limit=1000)


def fitted(names: list[str], net: nn.Module, sets: Sets) -> dict[str, detectors.Detector]:
    """Return the detectors, all fitted in shared passes."""
    chosen = {name: detectors.build(name, net, **SETTINGS.get(name, {})) for name in names}
    detectors.fit([d for name, d in chosen.items() if name != "msp-t"], sets.training())
    if "msp-t" in chosen:
        chosen["msp-t"].fit(sets.held_out())
    layered = chosen.get("mahalanobis-layers")
    if isinstance(layered, detectors.LayerNoise):
        layered.fit_weights(sets.training(1000), sets.outliers())
    return chosen


def measure(detector: detectors.Detector, sets: Sets, device: torch.device) -> dict[str, Any]:
    """Return the AUROC for each OOD set, clean and with both sides attacked through the detector."""
    begin = time.perf_counter()
    areas: dict[str, dict[str, float]] = {}
    for label, attack in {"clean": None, **ATTACKS}.items():
        found = {}
        for name, images in {"inliers": sets.inliers, **sets.ood}.items():
            loader = sets.loader(images)
            if attack is None:
                found[name] = clean_scores({"it": detector}, loader, device)["it"]
            else:
                direction = 1 if name == "inliers" else -1
                found[name] = attacked_scores(detector, loader, attack, direction, device)
        areas[label] = {name: auroc(found["inliers"], found[name]) for name in sets.ood}
    return {"auroc": areas, "seconds": time.perf_counter() - begin, "limit": sets.limit, "fit": sets.fit}


def report(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the page's lines, the most robust detector first."""

    def mean(result: dict[str, Any], label: str, group: tuple[str, ...]) -> float:
        return sum(result["auroc"][label][one] for one in group) / len(group)

    columns = [(label, group) for group in (NEAR, FAR) for label in ("clean", *ATTACKS)]
    cells = {key: [mean(result, *column) for column in columns] for key, result in results.items()}
    order = sorted(cells, key=lambda key: -(cells[key][1] + cells[key][4]))
    first = next(iter(results.values()))
    return [
        f"AUROC, mean over the near sets ({', '.join(NEAR)}) and the far ones ({', '.join(FAR)}), the first "
        f"{first['limit']} images of each against as many of CIFAR-10; fitted on {first['fit']:,} training images. "
        "Inliers and outliers are both attacked through the detector's own score by PGD in Linf: 1/255 with 10 steps "
        "and 3/255 with 20, random start, step 2.5 radius / steps. Sorted by the mean at 1/255.",
        "",
        *table(
            ("detector", "near, clean", "1/255", "3/255", "far, clean", "1/255", "3/255"),
            [(key, *(f"{value:.3f}" for value in cells[key])) for key in order],
        ),
    ]


def main() -> None:
    chosen = arguments()
    device = torch.device(chosen.device)
    net = load_network(chosen.checkpoint) if chosen.checkpoint else resnet20(chosen.weights)
    net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sets = Sets(chosen.data, chosen.limit, chosen.fit)
    chosen.work.mkdir(parents=True, exist_ok=True)
    names = chosen.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    missing = [name for name in names if not (chosen.work / f"{name}.json").exists()]
    for name, detector in fitted(missing, net, sets).items():
        result = measure(detector.to(device), sets, device)
        (chosen.work / f"{name}.json").write_text(json.dumps(result))
        print(f"{name}: {result['seconds']:.0f} s", flush=True)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(chosen.work.glob("*.json"))}
    write_page(chosen.output, f"Detectors on {chosen.name}", report(results))


if __name__ == "__main__":
    main()
