"""The standard suite against a naive loop, written without the engine, on every detector.

    python benchmarks/naive_attack.py --weights cifar10_resnet20.th --root ARRAYS \\
        --folder runs/naive_attack

The loop is what a sceptical reader would write in an afternoon: float32 sign steps that shrink to
zero, several restarts, the detector's own score and whatever else may move it, each candidate
judged by the true score. The suite may not lose to it. The command ends with an error where the
loop beats the suite by more than `--slack` of AUROC. Each detector's numbers are kept in
`--folder` when they are done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detector_table import LEFT_OUT, Sets, fitted
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, images_of, networks, parser

from robust_ood import detectors
from robust_ood.attacks import attack_score, standard
from robust_ood.metrics import auroc
from robust_ood.models import outputs
from robust_ood.modes import evaluating

OOD = ("cifar100_test", "svhn_test")
SIDES = {"in": 1, "out": -1}
Objective = Callable[[Tensor], Tensor]


def main() -> int:
    arguments = parser(__doc__, limit=128, output="docs/results/naive_attack.md")
    arguments.add_argument("--radius", type=float, default=1 / 255, help="Linf radius")
    arguments.add_argument("--fit", type=int, default=10_000, help="training images to fit on")
    arguments.add_argument("--steps", type=int, default=100, help="of the naive loop")
    arguments.add_argument("--restarts", type=int, default=2, help="of each objective")
    arguments.add_argument("--slack", type=float, default=0.005, help="of AUROC")
    arguments.add_argument("--only", nargs="*", help="detectors; all by default")
    options = arguments.parse_args()
    (net,) = networks(options).values()
    names = options.only or [name for name in detectors.REGISTRY if name not in LEFT_OUT]
    settings = {
        "radius": options.radius,
        "limit": options.limit,
        "fit": options.fit,
        "steps": options.steps,
        "restarts": options.restarts,
    }
    parts = Parts(options.folder, settings, len(names))
    inliers, _ = images_of("cifar10_test", options.root, options.limit, options.device)
    halves = [images_of(name, options.root, options.limit // 2, options.device)[0] for name in OOD]
    outliers = torch.cat(halves)
    missing = [name for name in names if not (options.folder / f"{name}.json").exists()]
    ready = fitted(missing, net, Sets(options.root, options.limit, options.fit))
    centers = class_centers(net, options) if missing else None
    results = {}
    for name in names:
        detector = ready[name].to(options.device) if name in ready else None
        measured = partial(measure, detector, centers, inliers, outliers, options)
        results[name] = parts(name, measured)
    return write(options, results)


def class_centers(net: nn.Module, options: Any) -> Tensor:
    """Return the mean penultimate feature of each class over 2,000 training images, `(K, D)`."""
    images, labels = images_of("cifar10_train", options.root, 2000, options.device)
    with torch.no_grad(), evaluating(net):
        features = torch.cat([outputs(net, batch).features for batch in images.split(500)])
    return torch.stack([features[labels == label].mean(0) for label in labels.unique()])


def measure(
    detector: detectors.Detector,
    centers: Tensor,
    inliers: Tensor,
    outliers: Tensor,
    options: Any,
) -> dict[str, Any]:
    """Return the AUROC clean, under suite and loop, with one side attacked and with both."""
    images = {"in": inliers, "out": outliers}
    suite = standard(options.radius)
    scores: dict[str, dict[str, Tensor]] = {"clean": {}, "suite": {}, "loop": {}}
    seconds = {"suite": 0.0, "loop": 0.0}
    winners = {}
    with evaluating(detector):
        for side, direction in SIDES.items():
            with torch.no_grad():
                scores["clean"][side] = detector(images[side])
            begin = time.perf_counter()
            scores["suite"][side] = attack_score(detector, images[side], suite, direction).values
            seconds["suite"] += time.perf_counter() - begin
            begin = time.perf_counter()
            values, winners[side] = naive(detector, centers, images[side], direction, options)
            scores["loop"][side] = values
            seconds["loop"] += time.perf_counter() - begin
    clean = scores["clean"]
    areas = {"clean": auroc(clean["in"], clean["out"])}
    for attack in ("suite", "loop"):
        attacked = scores[attack]
        areas[f"{attack} in"] = auroc(attacked["in"], clean["out"])
        areas[f"{attack} out"] = auroc(clean["in"], attacked["out"])
        areas[f"{attack} both"] = auroc(attacked["in"], attacked["out"])
    return {"auroc": areas, "took": seconds, "winners": winners}


def naive(
    detector: detectors.Detector, centers: Tensor, images: Tensor, direction: int, options: Any
) -> tuple[Tensor, dict[str, int]]:
    """Return the worst true scores `(N,)`, and how many images each objective won."""
    with torch.no_grad():
        worst = direction * detector(images)
    winner = ["clean"] * len(images)
    for name, objective in objectives(detector, centers, images, direction).items():
        for restart in range(options.restarts):
            for candidate in descend(objective, images, restart, options):
                with torch.no_grad():
                    values = direction * detector(candidate)
                for index in (values < worst).nonzero()[:, 0].tolist():
                    winner[index] = name
                worst = torch.minimum(worst, values)
    return direction * worst, {name: winner.count(name) for name in dict.fromkeys(winner)}


def objectives(
    detector: detectors.Detector, centers: Tensor, images: Tensor, direction: int
) -> dict[str, Objective]:
    """Return what the loop minimises, by name."""
    goals: dict[str, Objective] = {"score": lambda x: direction * detector.surrogate(x)}
    if not detector.networks:
        return goals
    net = detector.networks[0]
    with torch.no_grad():
        out = outputs(net, images)
        order = out.logits.argsort(1, descending=True)  # (N, K)
        distances = torch.cdist(out.features, centers.to(out.features))  # (N, K)

    def odds(x: Tensor, rank: int) -> Tensor:
        log_p = F.log_softmax(net(x), 1).gather(1, order[:, rank : rank + 1])[:, 0]
        return log_p - torch.log1p(-log_p.exp().clamp_max(1 - 1e-6))

    def tie(x: Tensor) -> Tensor:
        top = net(x).gather(1, order[:, :3])  # (N, 3)
        return (top - top.mean(1, keepdim=True)).square().sum(1)

    def center(x: Tensor, rank: int) -> Tensor:
        near = distances.argsort(1)[:, rank]
        return direction * -(outputs(net, x).features - centers[near]).square().sum(1)

    goals["log-odds"] = lambda x: direction * odds(x, 0)
    if direction == 1:
        goals["uniform"] = lambda x: net(x).logsumexp(1) - net(x).mean(1)
        goals["tie"] = tie
    for rank in range(1 if direction == 1 else 0, 3):
        goals[f"class {rank + 1}"] = lambda x, rank=rank: -odds(x, rank)
    for rank in range(1 if direction == 1 else 2):
        goals[f"centre {rank + 1}"] = lambda x, rank=rank: center(x, rank)
    if hasattr(detector, "bank"):
        goals["neighbour held"] = held_neighbour(detector, images, direction)
    return goals


def held_neighbour(detector: Any, images: Tensor, direction: int) -> Objective:
    """Return the distance to the rows of the bank that are the clean images' k-th neighbours."""
    net, bank = detector.networks[0], detector.bank
    with torch.no_grad():
        features = F.normalize(outputs(net, images).features, dim=1)
        rows = torch.cdist(features, bank).topk(detector.neighbours, largest=False).indices[:, -1]

    def distance(x: Tensor) -> Tensor:
        features = F.normalize(outputs(net, x).features, dim=1)
        return -direction * (features - bank[rows]).square().sum(1)

    return distance


def descend(objective: Objective, images: Tensor, restart: int, options: Any) -> list[Tensor]:
    """Return where the loop stood at its best by its own objective, and at its end."""
    draws = torch.Generator().manual_seed(1000 + restart)
    low = (images - options.radius).clamp(0, 1)
    high = (images + options.radius).clamp(0, 1)
    noise = torch.rand(images.shape, generator=draws).to(images)
    current = low + noise * (high - low) if restart else images
    best = current
    best_values = torch.full((len(images),), torch.inf)
    for step in range(options.steps):
        leaf = current.detach().requires_grad_()
        values = objective(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        better = values.detach() < best_values
        best = torch.where(better.view(-1, 1, 1, 1), current, best)
        best_values = torch.where(better, values.detach(), best_values)
        size = options.radius / 2 * (1 - step / options.steps)
        current = torch.minimum(torch.maximum(current - size * gradient.sign(), low), high)
    return [best.detach(), current.detach()]


def write(options: Any, results: dict[str, dict[str, Any]]) -> int:
    """Write the page; return 1 where the loop beats the suite by more than the slack."""
    rows = []
    beaten = []
    for name, result in results.items():
        areas = result["auroc"]
        cells = [f"{areas['clean']:.3f}"]
        for attacked in ("in", "out", "both"):
            suite = areas[f"suite {attacked}"]
            loop = areas[f"loop {attacked}"]
            cells.append(f"{suite:.3f} / {loop:.3f}")
            if suite > loop + options.slack:
                beaten.append(f"{name} ({attacked}, by {suite - loop:.3f})")
        took = result["took"]  # seconds
        cells.append(f"{took['suite'] / 60:.1f} / {took['loop'] / 60:.1f}")
        rows.append([name, *cells])
    header = ("detector", "clean", "inliers", "outliers", "both", "minutes")
    verdict = f"The loop is stronger by more than {options.slack} on: {', '.join(beaten)}."
    if not beaten:
        verdict = f"The loop is nowhere stronger by more than {options.slack}."
    lines = [
        f"ResNet-20, {options.limit} CIFAR-10 test images against {options.limit // 2} each of "
        f"CIFAR-100 and SVHN, Linf radius {options.radius * 255:g}/255; detectors fitted on "
        f"{options.fit:,} training images. Each cell is *suite / loop*: AUROC under the standard "
        "suite and under the naive loop, with that side attacked; lower is stronger.",
        "",
        f"The loop: {options.steps} float32 sign steps from radius / 2 down to 0, "
        f"{options.restarts} restarts of each objective (the score, log-odds, single classes, "
        "class centres; inliers also towards uniform and ties; the k-th neighbour held for KNN).",
        "",
        verdict,
        "",
        *table(header, rows),
    ]
    write_page(options.output, "The standard suite and a naive loop", lines)
    return 1 if beaten else 0


if __name__ == "__main__":
    sys.exit(main())
