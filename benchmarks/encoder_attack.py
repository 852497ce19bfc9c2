"""The OOD attack on encoders: noise that a CIFAR-10 ResNet-20 encodes like photographs, and what detectors say of it.

    python benchmarks/encoder_attack.py --config configs/attacks/encoder_resnet20.yaml \
        --weights cifar10_resnet20.th --root ARRAYS --folder runs/encoder_attack

Each in-distribution image is paired with a noise image of its own. Finished parts are kept in `--folder`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from workbench import Parts, images_of, networks, parser, table, write_page

from robust_ood import L2, detectors
from robust_ood.attacks import EncoderAttack, encoder, mape
from robust_ood.data import EvaluationLoader, load_set
from robust_ood.metrics import auroc
from robust_ood.randomness import generators

DETECTORS = {
    "msp": detectors.MSP,
    "mahalanobis": detectors.Mahalanobis,
    "mahalanobis-all-layers": lambda net: detectors.Mahalanobis(net, "all"),
    "gram": detectors.Gram,
}


def main() -> None:
    arguments = parser(__doc__, limit=200, output="docs/results/encoder_attack.md")
    arguments.add_argument("--config", type=Path, required=True, help="settings of the attack")
    arguments.add_argument("--fit", type=int, default=5000, help="training images to fit on")
    arguments.add_argument("--batch", type=int, default=100)
    chosen = arguments.parse_args()
    settings = yaml.safe_load(chosen.config.read_text())
    (net,) = networks(chosen).values()
    attack = EncoderAttack(L2(settings["radius"]), steps=settings["steps"], seed=settings["seed"])
    targets = settings["targets"]
    fitted = {name: DETECTORS[name](net) for name in targets}
    detectors.fit(
        list(fitted.values()),
        EvaluationLoader(load_set("cifar10_train", chosen.root), batch_size=250, limit=chosen.fit),
    )
    starts = range(0, chosen.limit, chosen.batch)
    parts = Parts(
        chosen.folder,
        {**settings, "limit": chosen.limit, "fit": chosen.fit},
        len(starts) * len(set(code_names(targets))),
    )
    found: dict[str, dict[str, list[float]]] = {name: {} for name in targets}
    for start in starts:
        inliers, _ = images_of("cifar10_test", chosen.root, min(chosen.batch, chosen.limit - start), first=start)
        for code in dict.fromkeys(code_names(targets)):
            readers = {name: fitted[name] for name in targets if code_name(name, targets) == code}
            part = parts(
                f"{start:05}-{code}",
                partial(pair, net, attack, inliers, code, readers, start),
            )
            for name in readers:
                for column, values in part[name].items():
                    found[name].setdefault(column, []).extend(values)
    write(chosen, settings, found)


def code_name(name: str, targets: dict[str, str]) -> str:
    """Return what is matched, once for all detectors that share it."""
    return targets[name] if targets[name] != "score" else f"score of {name}"


def code_names(targets: dict[str, str]) -> list[str]:
    return [code_name(name, targets) for name in targets]


def pair(
    net: nn.Module, attack: EncoderAttack, inliers: Tensor, code: str, readers: dict[str, Any], first: int
) -> dict[str, Any]:
    """Match noise images with the inliers, and return each reader's scores and the pairs' errors."""
    indices = torch.arange(first, first + len(inliers))
    draws = generators(attack.seed, "encoder attack noise", indices=indices.tolist())
    noise = torch.stack([torch.rand(inliers.shape[1:], generator=draw) for draw in draws])
    if code.startswith("score"):
        ((_, detector),) = readers.items()
        encode = encoder(detector, "score")
    else:
        encode = encoder(net, code)
    matched = attack.match(encode, noise, inliers, indices)
    assert (matched - noise).flatten(1).norm(dim=1).max() <= attack.region.radius + 1e-4
    with torch.no_grad():
        errors = mape(encode(matched), encode(inliers)).tolist()
        return {
            name: {
                "inliers": detector(inliers).tolist(),
                "noise": detector(noise).tolist(),
                "matched": detector(matched).tolist(),
                "mape": errors,
            }
            for name, detector in readers.items()
        }


def write(chosen: Any, settings: dict[str, Any], found: dict[str, dict[str, list[float]]]) -> None:
    rows = []
    for name, columns in found.items():
        values = {key: torch.tensor(column) for key, column in columns.items()}
        rows.append(
            (
                name,
                settings["targets"][name],
                f"{auroc(values['inliers'], values['noise']):.3f}",
                f"{auroc(values['inliers'], values['matched']):.3f}",
                f"{values['mape'].mean():.3%}",
                f"{values['mape'].median():.3%}",
                f"{(values['mape'] < 0.01).float().mean():.1%}",
            )
        )
    lines = [
        f"ResNet-20, the first {chosen.limit} CIFAR-10 test images, each paired with an image of uniform noise that is "
        f"moved within an L2 ball of radius {settings['radius']} until the network encodes it like its partner: "
        f"{settings['steps']} steps of Adamax, learning rate a hundredth of the radius (`{chosen.config.as_posix()}`, "
        "which says where the radius is from). Detectors are fitted on "
        f"{chosen.fit:,} training images. AUROC of CIFAR-10 against the noise, before and after; the mean absolute "
        "percentage error (MAPE) of what was matched, over the pairs.",
        "",
        *table(
            ("detector", "matched", "AUROC, noise", "AUROC, attacked", "MAPE, mean", "median", "pairs below 1 %"), rows
        ),
    ]
    write_page(chosen.output, "The OOD attack on encoders", lines)


if __name__ == "__main__":
    main()
