"""Training steps a second through `train.py` and in a bare hand-written loop of the same mathematics, in one run.

    python benchmarks/training_step.py --output docs/performance/training_step.md

Blocks of both alternate: a block is one start of the real command (Lightning, loader, augmentation, logging,
checkpoints off) or of the bare loop, on the same network, batch sizes, attack and precision. A ratio compares
neighbours; shown are the median over blocks and its range.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import clock
import numpy as np
import torch
from page import table, write_page
from torch import Tensor, nn
from torch.nn import functional

from robust_ood.cli import train
from robust_ood.models import DenseNet, WideResNet

RADIUS, STEPS = 1 / 255, 2
ATTACKED = {"standard": (False, False), "oe": (False, False), "adv": (True, False), "aoe": (True, False),
            "aloe": (True, True)}  # fmt: skip
EXPOSED = ("oe", "aoe", "aloe")
NETWORKS = {
    "WRN-10-1": (WideResNet, {"depth": 10, "width": 1}),
    "WRN-16-2": (WideResNet, {"depth": 16, "width": 2}),
    "WRN-40-2": (WideResNet, {"depth": 40, "width": 2}),
    "DenseNet-BC-100-12": (DenseNet, {"depth": 100, "growth": 12}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = f"method:network; methods {', '.join(ATTACKED)}; networks {', '.join(NETWORKS)}"
    parser.add_argument("--cases", nargs="+", default=["aloe:WRN-16-2", "aloe:DenseNet-BC-100-12"], help=cases)
    parser.add_argument("--precisions", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--batch-size", type=int, default=32, help="inliers; twice as many outliers")
    parser.add_argument("--steps", type=int, default=8, help="steps of a block that count")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="Markdown page to write")
    options = parser.parse_args()
    rows = []
    for case in options.cases:
        method, network = case.split(":")
        speeds = {}
        for precision in options.precisions:
            bare, stack = measure(method, network, precision, options)
            ratios = [ours / theirs for ours, theirs in zip(stack, bare, strict=True)]
            speeds[precision] = statistics.median(stack)
            faster = speeds[options.precisions[0]] / speeds[precision]
            ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            times = [f"{1e3 * statistics.median(one):.0f}" for one in (bare, stack)]
            rows.append((method, network, precision, *times, ratio, f"{faster:.2f}"))
            print(*rows[-1], flush=True)
    if options.output:
        write_page(options.output, "Training steps against a bare loop", report(rows, options))


def measure(method: str, network: str, precision: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return seconds a step of each block, bare and through the command."""
    bare, stack = [], []
    with tempfile.TemporaryDirectory() as folder:
        arrays(Path(folder), options)
        for _ in range(options.blocks):
            bare.append(bare_block(method, network, precision, Path(folder), options))
            stack.append(command_block(method, network, precision, Path(folder), options))
    return bare, stack


def arrays(folder: Path, options: argparse.Namespace) -> None:
    """Write random images: what they show does not change what they cost."""
    draw = np.random.default_rng(0)
    count = options.batch_size * (options.steps + 8)
    for name, size in (("train", count), ("outliers", 2 * count)):
        images = draw.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(size) % 10)


def command_block(method: str, network: str, precision: str, folder: Path, options: argparse.Namespace) -> float:
    """Return the median seconds from the end of a step to the end of the next, in a run of the real command."""
    kind, settings = NETWORKS[network]
    arguments = [
        "fit", "-c", f"configs/methods/{method}.yaml", "--net", f"robust_ood.models.{kind.__name__}",
        *(f"--net.init_args.{name}={value}" for name, value in settings.items()), "--net.init_args.num_classes=10",
        "--data.root", str(folder), "--data.train", "train.npz", "--data.outliers", "outliers.npz",
        "--data.batch_size", str(options.batch_size), "--data.outlier_batch_size", str(2 * options.batch_size),
        "--trainer.max_steps", str(options.steps + 3), "--trainer.precision", precision, "--trainer.accelerator", "cpu",
        "--trainer.devices", "1", "--trainer.callbacks+=clock.Clock",
        "--output", str(folder / "run"), "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    clock.TIMES.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        code = train(arguments)
    if code:
        raise SystemExit(code)
    return typical(clock.TIMES)


def bare_block(method: str, network: str, precision: str, folder: Path, options: argparse.Namespace) -> float:
    """Return the same of a loop that somebody in a hurry would write, and write well."""
    kind, settings = NETWORKS[network]
    net = kind(num_classes=10, **settings).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True)
    inliers, outliers = (np.load(folder / f"{name}.npz") for name in ("train", "outliers"))
    labels = torch.from_numpy(inliers["labels"])
    pixels = {
        "in": torch.from_numpy(inliers["images"]).permute(0, 3, 1, 2),
        "out": torch.from_numpy(outliers["images"]).permute(0, 3, 1, 2),
    }
    order, size = torch.randperm(len(labels)), options.batch_size
    times = []
    for step in range(options.steps + 3):
        index = order[step * size : (step + 1) * size]
        images, target = augmented(pixels["in"][index]), labels[index]
        exposed = augmented(pixels["out"][step * 2 * size : (step + 1) * 2 * size]) if method in EXPOSED else images[:0]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "32-true"):
            images, exposed = attacked(net, images, target, exposed, *ATTACKED[method])
            torch.clear_autocast_cache()
            logits = net(torch.cat([images, exposed])).float()
            loss = functional.cross_entropy(logits[: len(images)], target)
            if len(exposed):
                loss = loss + 0.5 * -logits[len(images) :].log_softmax(1).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter())
    return typical(times)


def attacked(
    net: nn.Module, images: Tensor, target: Tensor, exposed: Tensor, inside: bool, outside: bool
) -> tuple[Tensor, Tensor]:
    """Return inliers and outliers after PGD in eval mode, in one batch where both are attacked."""
    if not inside:
        return images, exposed
    clean = torch.cat([images, exposed]) if outside else images
    moved = (clean + torch.empty_like(clean).uniform_(-RADIUS, RADIUS)).clamp(0, 1)
    net.eval()
    for _ in range(STEPS):
        moved.requires_grad_()
        logits = net(moved).float()
        loss = functional.cross_entropy(logits[: len(images)], target, reduction="sum")
        if outside:
            loss = loss - logits[len(images) :].log_softmax(1).mean(1).sum()
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + RADIUS * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, clean - RADIUS), clean + RADIUS).clamp(0, 1)
    net.train()
    return (moved[: len(images)], moved[len(images) :]) if outside else (moved, exposed)


def augmented(images: Tensor) -> Tensor:
    """Return float images, cropped and mirrored at random."""
    padded = functional.pad(images, (4, 4, 4, 4))
    places, mirror = torch.randint(0, 9, (2, len(images))), torch.rand(len(images)) < 0.5
    parts = [padded[i, :, y : y + 32, x : x + 32] for i, (y, x) in enumerate(zip(*places.tolist(), strict=True))]
    cropped = torch.stack([part.flip(2) if mirrored else part for part, mirrored in zip(parts, mirror, strict=True)])
    return cropped.contiguous(memory_format=torch.channels_last).float().div_(255)


def typical(times: list[float]) -> float:
    """Return the median interval without the first steps, which allocate and choose kernels."""
    return statistics.median(np.diff(times)[2:])


def report(rows: list[tuple[str, ...]], options: argparse.Namespace) -> list[str]:
    """Return the page's lines."""
    return [
        f"Milliseconds a step on {options.batch_size} inliers and {2 * options.batch_size} outliers (where the method "
        f"has them); attacks of {STEPS} steps from a random start. The stack is `train.py fit` with Lightning, loader, "
        f"augmentation and logging. Ratio: stack / bare loop, median of {options.blocks} interleaved blocks of "
        f"{options.steps} steps (range). Last column: times faster than {options.precisions[0]} in the stack.",
        "",
        *table(("method", "network", "precision", "bare", "stack", "ratio", "faster"), rows),
    ]


if __name__ == "__main__":
    main()
