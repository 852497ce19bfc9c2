"""Smoothed classifiers on images and on their safe spots: the columns of the safe spots paper's
Table 3, and what is certified beside them.

    python benchmarks/certified_safe_spots.py --folder runs/certified_safe_spots
    python benchmarks/certified_safe_spots.py --folder FOLDER --root ARRAYS --sigma 0.1 \\
        --natural cifar10_resnet20.th --gaussian last.ckpt

`--set` and `--size` are for other images: `--set imagenet/val --size 224 --root ROOT --radius 3`
with networks of ImageNet, such as exports of torchvision's ResNet-50, gives the right half. Without
networks, small ones are trained on the embedded digits (8 x 8). Finished batches are saved in
`--folder`; the same command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from page import table, write_page
from torch import Tensor, nn
from workbench import Parts, images_of, resnet20

from robust_ood import certify, safe_spots
from robust_ood.data.sources.digits import digits
from robust_ood.models import load_network

METHODS = ("None", "S-Full")
Read = Callable[[int, int], tuple[Tensor, Tensor]]
"""First image and how many, to images and labels."""


def main() -> None:
    options = parsed()
    nets, read = problem(options)
    systems = {"Natural": (nets["Natural"], False)}
    for name, net in nets.items():
        systems[f"{name}+Smoothing"] = (net, True)
    starts = range(0, options.limit, options.batch)
    settings = {name: str(value) for name, value in vars(options).items() if name != "output"}
    parts = Parts(options.folder, settings, len(systems) * len(METHODS) * len(starts))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for start in starts:
        images, labels = read(start, min(options.batch, options.limit - start))
        indices = torch.arange(start, start + len(images))
        for name, (net, smoothed) in systems.items():
            measure = measure_smoothed if smoothed else measure_alone
            for method in METHODS:
                made = partial(measure, net, images, labels, indices, method, options)
                part = parts(f"{name}-{method}-{start:05}", made)
                found.setdefault((name, method), []).append(part)
    write(options, list(systems), found)


def parsed() -> argparse.Namespace:
    # The paper's settings where it states them; smaller ones where the digits need no more.
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--folder", type=Path, required=True, help="where finished parts are kept")
    made.add_argument("--output", type=Path, default=Path("docs/results/certified_safe_spots.md"))
    made.add_argument("--natural", type=Path, help="weights (.th) or checkpoint of the network")
    made.add_argument("--gaussian", type=Path, help="checkpoint of one trained with noise")
    made.add_argument("--root", type=Path, help="folder of the images")
    made.add_argument("--set", default="cifar10_test", help="labelled images of the networks")
    made.add_argument("--size", type=int, help="side of the images; as they are by default")
    made.add_argument("--radius", type=float, default=0.5, help="of both sides, L2")
    made.add_argument("--sigma", type=float, default=0.25, help="of the noise; the paper's is 0.1")
    made.add_argument("--n", type=int, default=1000, help="draws that predict or certify")
    made.add_argument("--samples", type=int, default=16, help="draws at each step of a search")
    made.add_argument("--steps", type=int, default=100, help="of the safe-spot search")
    made.add_argument(
        "--rate", type=float, default=0.01, help="its learning rate; the paper's .001"
    )
    made.add_argument("--restarts", type=int, default=2, help="of the attack")
    made.add_argument("--limit", type=int, default=100, help="images")
    made.add_argument("--batch", type=int, default=50, help="images at a time")
    made.add_argument("--device", default="cpu")
    return made.parse_args()


def problem(options: argparse.Namespace) -> tuple[dict[str, nn.Module], Read]:
    """Return the networks by name, and what reads the test images."""
    if options.natural is None:
        nets = {"Natural": trained_on_digits(0.0), "Gaussian": trained_on_digits(options.sigma)}
        return nets, read_digits
    if options.gaussian is None or options.root is None:
        raise SystemExit("--natural: needs --gaussian and --root beside it")
    plain = options.natural
    natural = resnet20(plain) if plain.suffix == ".th" else load_network(plain)
    nets = {"Natural": natural.eval(), "Gaussian": load_network(options.gaussian).eval()}
    for net in nets.values():
        net.to(options.device)

    def read(first: int, count: int) -> tuple[Tensor, Tensor]:
        spec = options.set
        if options.size is not None:
            spec = {"source": spec, "size": options.size}
        return images_of(spec, options.root, count, options.device, first=first)

    return nets, read


def read_digits(first: int, count: int, part: str = "test") -> tuple[Tensor, Tensor]:
    """Return digits `(N, 3, 8, 8)` in [0, 1] and their labels."""
    chosen = digits(part)
    images = torch.from_numpy(chosen.images[first : first + count]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(chosen.labels[first : first + count])
    return F.avg_pool2d(images.float() / 255, 4), labels


def trained_on_digits(sigma: float) -> nn.Module:
    """Return a small network trained on digits with noise of this deviation."""
    images, labels = read_digits(0, 2000, "train")
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, 10),
        )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(600):
        chosen = torch.randint(len(images), (128,), generator=draws)
        noise = torch.randn(images[chosen].shape, generator=draws)
        loss = F.cross_entropy(net(images[chosen] + sigma * noise), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def search(
    net: nn.Module,
    images: Tensor,
    classes: Tensor,
    indices: Tensor,
    options: Any,
    smoothing: safe_spots.Smoothing | None,
) -> Tensor:
    """Return the safe spots of predicted classes, by S-Full in L2."""
    return safe_spots.search(
        net,
        images,
        options.radius,
        "L2",
        "full",
        classes,
        steps=options.steps,
        step_size=options.rate,
        smoothing=smoothing,
        indices=indices,
    )


def measure_alone(
    net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor, method: str, options: Any
) -> dict[str, Any]:
    """Return how many images are right, before and after the attack, without smoothing."""

    def right(given: Tensor) -> Tensor:
        with torch.no_grad():
            return net(given).argmax(1) == labels

    if method != "None":
        with torch.no_grad():
            classes = net(images).argmax(1)
        images = search(net, images, classes, indices, options, None)
    clean = right(images)
    survived = clean
    # An image survives only if it does in every restart.
    for seed in range(options.restarts):
        moved = safe_spots.attack(
            net, images, labels, options.radius, "L2", indices=indices, seed=seed
        )
        survived = survived & right(moved)
    return {"clean": int(clean.sum()), "attacked": int(survived.sum())}


def measure_smoothed(
    net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor, method: str, options: Any
) -> dict[str, Any]:
    """Return the same of the smoothed classifier, and how many are certified at each radius."""
    classifier = certify.smoothed_classifier(net, options.sigma, n=options.n)
    if method != "None":
        classes = classifier.predict(images, indices=indices, abstain=False).to(images.device)
        smoothing = safe_spots.Smoothing(options.sigma, options.samples)
        images = search(net, images, classes, indices, options, smoothing)
    moved = classifier.attack(
        images,
        labels,
        options.radius,
        restarts=options.restarts,
        samples=options.samples,
        indices=indices,
    )
    known = labels.cpu()
    # Fresh draws count both, so that the attacker's judge is not the court.
    clean = classifier.predict(images, indices=indices, abstain=False) == known
    after = classifier.predict(moved, indices=indices, abstain=False) == known
    certificates = classifier.certify(images, indices=indices)
    counts = {}
    for radius in radii(options):
        counts[f"{radius:g}"] = round(certificates.accuracy(known, radius) * len(known))
    return {
        "clean": int(clean.sum()),
        "attacked": int((clean & after).sum()),
        "certified": counts,
        "violations": int(((certificates.radii > options.radius) & (after != clean)).sum()),
    }


def radii(options: Any) -> tuple[float, ...]:
    """Return the radii at which accuracy is certified: 0, half of the attacker's, and its own."""
    return 0.0, options.radius / 2, options.radius


def write(
    options: Any, systems: list[str], found: dict[tuple[str, str], list[dict[str, Any]]]
) -> None:
    def share(counts: list[int]) -> str:
        return f"{sum(counts) / options.limit:.1%}"

    rows = []
    certified = []
    for name in systems:
        cells = []
        for method in METHODS:
            parts = found[name, method]
            shown = [share([part[kind] for part in parts]) for kind in ("clean", "attacked")]
            cells.append(" / ".join(shown))
            # Without smoothing nothing is certified.
            if "certified" in parts[0]:
                at = [
                    share([part["certified"][key] for part in parts])
                    for key in parts[0]["certified"]
                ]
                certified.append((name, method, *at))
        rows.append((name, *cells))
    source = "digits (8 x 8)" if options.natural is None else f"images of {options.set}"
    lines = [
        f"The first {options.limit} {source}. The defender moves each image to a safe spot of its "
        f"predicted class (S-Full, {options.steps} steps) within the L2 radius {options.radius:g}, "
        "then the attacker moves it within the same radius again: PGD of 20 steps with "
        f"{options.restarts} restarts, randomised ({options.samples} draws a step) where the "
        f"classifier is smoothed. Noise of sigma {options.sigma:g}, votes of {options.n} draws.",
        "",
        "## Accuracy before / after the attack",
        "",
        *table(("network", *METHODS), rows),
        "## Certified accuracy",
        "",
        "No attack within the L2 radius changes the smoothed class, with probability 0.999 for "
        "each image (Cohen et al. 2019, n0 = 100). The safe spot itself is the image that is "
        "certified.",
        "",
        *table(("network", "images", *(f"L2 {r:g}" for r in radii(options))), certified),
    ]
    violations = sum(part.get("violations", 0) for parts in found.values() for part in parts)
    lines += [f"Certified images that the attack turned nevertheless: {violations}.", ""]
    write_page(options.output, "Safe spots of smoothed classifiers", lines)


if __name__ == "__main__":
    main()
