"""PGD by this package, by other libraries and by a hand-written loop, on equal terms.

    python benchmarks/pgd.py --output docs/performance/pgd.md

About five minutes of one core; the libraries come with the extra `bench`. Each round runs every
contestant once, in turns; a ratio compares neighbours. The network has learned the embedded digits
for a moment, so that losses mean something.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from page import table, write_page
from rounds import CLOCK, interleaved, ratio, typical
from torch import Tensor, nn
from torch.nn import functional

from robust_ood import Linf, minimize
from robust_ood.attacks import PGD, misclassify
from robust_ood.attacks.objectives import wrong_label
from robust_ood.attacks.precision import resolve
from robust_ood.data.sources.digits import digits
from robust_ood.models import ThinResNet, WideResNet

RADIUS, STEP = 8 / 255, 2 / 255
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "WRN-16-2": lambda: WideResNet(depth=16, width=2, num_classes=10),
    "ResNet-20": lambda: ThinResNet(),
}
FASTEST = "bare loop, channels last, bfloat16"
LIBRARIES = {
    "torchattacks": "torchattacks",
    "Foolbox": "foolbox",
    "ART": "adversarial-robustness-toolbox",
}
Attack = Callable[[], Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("docs/performance/pgd.md"),
        help="Markdown page to write",
    )
    options = parser.parse_args()
    lines = [
        f"{options.steps} steps of 2/255 within Linf 8/255 from the clean image, on "
        f"{options.batch_size} embedded digits at 32 x 32; median (range) over {options.rounds} "
        f"rounds, {CLOCK}. The bare loop is `bare` in the script: float32, gradients of the "
        "images only, images in the usual memory layout (NCHW). The default path is "
        "`misclassify(net, images, labels, PGD(...))`: it also scores the clean and the found "
        "images in float32 and keeps the worst, which none of the others does.",
        "",
    ]
    findings: list[str] = []
    header = [
        "contestant",
        "time / bare loop",
        "pixels off the bare loop's",
        "mean cross-entropy / bare loop's",
    ]
    for name in options.networks:
        net, images, labels = problem(NETWORKS[name], options.batch_size)
        contestants = attacks(net, images, labels, options.steps)
        found = {label: attack().detach() for label, attack in contestants.items()}
        seconds = interleaved(contestants, options.rounds)
        lines += [f"## {name}", ""]
        lines += table(header, [row(label, seconds, found, net, labels) for label in contestants])
        default = seconds["default path"]
        findings.append(finding(name, seconds))
        others = [label for label in LIBRARIES if label in seconds]
        beaten = ", ".join(f"{label} {ratio(seconds[label], default)}" for label in others)
        lines += [
            f"The default path's gradients are {resolve('auto', images, net)} here. How many "
            f"times as long as the default path: {beaten}. As the default path in float32: "
            + ", ".join(
                f"{label} {ratio(seconds[label], seconds['default path, float32'])}"
                for label in others
            )
            + ". As the bare loop in bfloat16, which scores nothing and so bounds what any default "
            "can reach: "
            + ", ".join(f"{label} {ratio(seconds[label], seconds[FASTEST])}" for label in others)
            + ".",
            "",
        ]
        print("\n".join(lines[-4 - len(contestants) :]), flush=True)
    installed = [package for label, package in LIBRARIES.items() if label in seconds]
    summary = [f"**{'; '.join(findings)}.**", ""]
    write_page(options.output, "PGD side by side", [*summary, *lines], *installed)
    return 0


def problem(build: Callable[[], nn.Module], count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network that has seen some digits, and digits of the test part."""
    torch.manual_seed(0)
    net, (train, targets) = build().train(), of_part("train", 640)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
    for chosen in torch.randperm(len(train)).split(64):
        optimizer.zero_grad()
        functional.cross_entropy(net(train[chosen]), targets[chosen]).backward()
        optimizer.step()
    return net.eval(), *of_part("test", count)


def of_part(part: str, count: int) -> tuple[Tensor, Tensor]:
    chosen = digits(part)
    images = torch.from_numpy(chosen.images[:count]).permute(0, 3, 1, 2).float() / 255
    return images.contiguous(), torch.from_numpy(chosen.labels[:count]).long()


def attacks(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> dict[str, Attack]:
    """Return what is compared, by name; what is not installed is said and left out."""
    region, objective = Linf(RADIUS), wrong_label(net, labels, "cross_entropy")
    settings = PGD(region, steps=steps, step_size=STEP, random_start=False)
    exact = PGD(region, steps=steps, step_size=STEP, random_start=False, precision="float32")

    def engine(start: Tensor) -> Tensor:
        return minimize(objective, start, region, steps=steps, step_size=STEP, keep="last").images

    last = images.contiguous(memory_format=torch.channels_last)
    found: dict[str, Attack] = {
        "bare loop": partial(bare, net, images, labels, steps),
        "bare loop, channels last": partial(bare, net, last, labels, steps),
        FASTEST: partial(bare, net, last, labels, steps, bfloat16=True),
        "minimize": partial(engine, images),
        "minimize, channels last": partial(engine, last),
        "default path, float32": lambda: misclassify(net, images, labels, exact),
        "default path": lambda: misclassify(net, images, labels, settings),
    }
    for name, make in (("torchattacks", torchattacks), ("Foolbox", foolbox), ("ART", art)):
        try:
            found[name] = make(net, images, labels, steps)
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
    return found


def bare(
    net: nn.Module, images: Tensor, labels: Tensor, steps: int, *, bfloat16: bool = False
) -> Tensor:
    """Return what a loop finds that somebody in a hurry would write, and write well."""
    current = images.clone()
    for _ in range(steps):
        current.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = net(current)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, current)
        with torch.no_grad():
            current = current + STEP * gradient.sign()
            current = torch.clamp(current, images - RADIUS, images + RADIUS).clamp(0, 1)
    return current.detach()


def torchattacks(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Attack:
    import torchattacks

    return partial(torchattacks.PGD(net, RADIUS, STEP, steps, random_start=False), images, labels)


def foolbox(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Attack:
    import foolbox

    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
    return lambda: attack.run(model, images, labels, epsilon=RADIUS)


def art(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Attack:
    logging.disable(logging.WARNING)
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    loss = nn.CrossEntropyLoss()
    model = PyTorchClassifier(
        net, loss, tuple(images.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        model, eps=RADIUS, eps_step=STEP, max_iter=steps, batch_size=len(images), verbose=False
    )
    return lambda: torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def finding(name: str, seconds: dict[str, list[float]]) -> str:
    """Return, in words, what the default path and the engine take on one network."""
    faster = [
        f"{factor:.1f} times as fast as {label}"
        for label in LIBRARIES
        if label in seconds and (factor := typical(seconds[label], seconds["default path"]))
    ]
    engine = typical(seconds["minimize"], seconds["bare loop"])
    return (
        f"On {name}, the default path is {', '.join(faster)}; the engine takes {engine:.2f} of the "
        "bare loop's time"
    )


def row(
    label: str,
    seconds: dict[str, list[float]],
    found: dict[str, Tensor],
    net: nn.Module,
    labels: Tensor,
) -> list[str]:
    ours, reference = found[label], found["bare loop"]
    off = ((ours - reference).abs() > 1e-5).float().mean()
    with torch.no_grad():
        losses = [
            functional.cross_entropy(net(images), labels).item() for images in (ours, reference)
        ]
    return [
        label,
        ratio(seconds[label], seconds["bare loop"]),
        f"{off:.2%}",
        f"{losses[0] / losses[1]:.4f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
