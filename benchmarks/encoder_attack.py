"""The OOD attack on encoders: noise that a network encodes like photographs.

    python benchmarks/encoder_attack.py --config configs/attacks/encoder_resnet20.yaml \
        --weights cifar10_resnet20.th --root ARRAYS --folder runs/encoder_attack

Each in-distribution image is paired with a noise image of its own. Finished parts are kept in
`--folder`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, images_of, networks, parser

from robust_ood import L2, detectors
from robust_ood.attacks import EncoderAttack, encoder, mape
from robust_ood.attacks.encoder import Encoder
from robust_ood.data import EvaluationLoader, load_set
from robust_ood.metrics import auroc
from robust_ood.randomness import generators

DETECTORS = {
    "msp": detectors.MSP,
    "mahalanobis": detectors.Mahalanobis,
    "mahalanobis-all-layers": lambda net: detectors.Mahalanobis(net, "all"),
    "gram": detectors.Gram,
}
COLUMNS = ("inliers", "noise", "matched", "mape")


def main() -> None:
    arguments = parser(__doc__, limit=200, output="docs/results/encoder_attack.md")
    arguments.add_argument("--config", type=Path, required=True, help="settings of the attack")
    arguments.add_argument("--fit", type=int, default=5000, help="training images to fit on")
    arguments.add_argument("--batch", type=int, default=100)
    chosen = arguments.parse_args()
    settings = yaml.safe_load(chosen.config.read_text())
    (net,) = networks(chosen).values()
    targets: dict[str, dict[str, Any]] = settings["targets"]
    fitted = {name: DETECTORS[name](net) for name in targets}
    train = EvaluationLoader(
        load_set("cifar10_train", chosen.root), batch_size=250, limit=chosen.fit
    )
    detectors.fit(list(fitted.values()), train)
    starts = range(0, chosen.limit, chosen.batch)
    # More images may follow in the same folder, so their number is no setting.
    kept = {**settings, "fit": chosen.fit, "batch": chosen.batch}
    parts = Parts(chosen.folder, kept, len(starts) * len(targets))
    found: dict[str, dict[str, list[float]]] = {name: {} for name in targets}
    for start in starts:
        inliers, _ = images_of(
            "cifar10_test", chosen.root, min(chosen.batch, chosen.limit - start), first=start
        )
        for name, target in targets.items():
            attack = EncoderAttack(
                L2(settings["radius"]), steps=target["steps"], seed=settings["seed"]
            )
            size = f"{start:05}-{len(inliers)}"
            part = parts(
                f"{size}-{name}",
                partial(pair, fitted[name], net, attack, target["code"], inliers, start),
            )
            for column in COLUMNS:
                found[name].setdefault(column, []).extend(part[column])
    write(chosen, settings, found)


def pair(
    detector: detectors.Detector,
    net: nn.Module,
    attack: EncoderAttack,
    code: str,
    inliers: Tensor,
    first: int,
) -> dict[str, list[float]]:
    """Match noise images with the inliers; return the detector's scores and the pairs' errors."""
    indices = torch.arange(first, first + len(inliers))
    draws = generators(attack.seed, "encoder attack noise", indices=indices.tolist())
    noise = torch.stack([torch.rand(inliers.shape[1:], generator=draw) for draw in draws])
    encode = encoder(detector, "score") if code.endswith("score") else encoder(net, code)
    if (
        code == "log score"
    ):  # of scores that range over decades: monotone, so equal where the scores are
        encode = logarithm(encode)
    matched = attack.match(encode, noise, inliers, indices)
    assert (matched - noise).flatten(1).norm(dim=1).max() <= attack.region.radius + 1e-4
    with torch.no_grad():
        scores = [detector(images) for images in (inliers, noise, matched)]
        columns = (*scores, mape(encode(matched), encode(inliers)))
        return {name: column.tolist() for name, column in zip(COLUMNS, columns, strict=True)}


def logarithm(encode: Encoder) -> Encoder:
    """Return `sign(z) log(1 + |z|)` of codes z."""
    return lambda images: (lambda codes: codes.sign() * codes.abs().log1p())(encode(images))


def write(chosen: Any, settings: dict[str, Any], found: dict[str, dict[str, list[float]]]) -> None:
    rows = []
    for name, columns in found.items():
        inliers, noise, matched, errors = (torch.tensor(columns[column]) for column in COLUMNS)
        target = settings["targets"][name]
        if target["code"].endswith(
            "score"
        ):  # a score may be 0, so the largest of all takes the place of the pair's own
            errors = (matched - inliers).abs() / inliers.abs().max()
        rows.append(
            (
                name,
                f"{target['code']}, {target['steps']} steps",
                f"{auroc(inliers, noise):.3f}",
                f"{auroc(inliers, matched):.3f}",
                f"{errors.mean():.2%}",
                f"{errors.median():.2%}",
                f"{(errors < 0.01).float().mean():.0%}",
            )
        )
    lines = [
        f"ResNet-20, the first {chosen.limit} CIFAR-10 test images, each paired with an image of "
        f"uniform noise that is moved within an L2 ball of radius {settings['radius']} until the "
        "network encodes it like its partner, by Adamax with a learning rate of a hundredth of "
        f"the radius (`{chosen.config.as_posix()}` says where the settings are from). Detectors "
        f"are fitted on {chosen.fit:,} training images. AUROC of CIFAR-10 against the noise, "
        "before and after; the mean absolute percentage error (MAPE) of what was matched, over "
        "the pairs (of a score, which is one number and may be 0, relative to the largest score "
        "of the inliers).",
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
    write_page(chosen.output, "The OOD attack on encoders", lines)


if __name__ == "__main__":
    main()
