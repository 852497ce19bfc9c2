"""Adversarial training as a bare loop that somebody in a hurry would write, and write well.

Plain PyTorch and nothing of this package but the networks: channels_last, one joint attack batch,
gradients of the images alone, no forward pass that is not needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robust_ood.models import DenseNet, WideResNet

RADIUS, STEPS = 1 / 255, 2
METHODS = {  # inliers attacked, outliers used, outliers attacked
    "standard": (False, False, False),
    "oe": (False, True, False),
    "adv": (True, False, False),
    "aoe": (True, True, False),
    "aloe": (True, True, True),
}
NETWORKS = {
    "WRN-10-1": (WideResNet, {"depth": 10, "width": 1}),
    "WRN-16-2": (WideResNet, {"depth": 16, "width": 2}),
    "WRN-40-2": (WideResNet, {"depth": 40, "width": 2}),
    "DenseNet-BC-100-12": (DenseNet, {"depth": 100, "growth": 12}),
}


class BareLoop:
    """One of the methods on one of the networks.

    Args:
        method: a name in `METHODS`.
        network: a name in `NETWORKS`.
        bfloat16: run forward passes under autocast.
        folder: where `train.npz` and `outliers.npz` are.
        size: inliers of a batch; outliers are twice as many.
        device: where to train.
    """

    def __init__(
        self, method: str, network: str, bfloat16: bool, folder: Path, size: int, device: str
    ) -> None:
        kind, settings = NETWORKS[network]
        self.net = (
            kind(num_classes=10, **settings).to(device, memory_format=torch.channels_last).train()
        )
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True
        )
        self.inside, self.exposing, self.outside = METHODS[method]
        self.bfloat16, self.size, self.device, self.done = bfloat16, size, device, 0
        inliers, outliers = (np.load(folder / f"{name}.npz") for name in ("train", "outliers"))
        self.labels = torch.from_numpy(inliers["labels"])
        self.inliers, self.outliers = (
            torch.from_numpy(one["images"]).permute(0, 3, 1, 2) for one in (inliers, outliers)
        )
        self.order = torch.randperm(len(self.labels))

    def step(self) -> Tensor:
        """Train on the next batch and return the loss."""
        begin, end = self.done * self.size, (self.done + 1) * self.size
        self.done += 1
        index = self.order[begin:end]
        images, labels = (
            augmented(self.inliers[index].to(self.device)),
            self.labels[index].to(self.device),
        )
        exposed = images[:0]
        if self.exposing:
            exposed = augmented(self.outliers[2 * begin : 2 * end].to(self.device))
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bfloat16):
            if self.inside:
                images, exposed = self.attacked(images, labels, exposed)
            torch.clear_autocast_cache()
            logits = self.net(torch.cat([images, exposed])).float()
            loss = functional.cross_entropy(logits[: len(images)], labels)
            if self.exposing:
                loss = loss - 0.5 * logits[len(images) :].log_softmax(1).mean(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def attacked(self, images: Tensor, labels: Tensor, exposed: Tensor) -> tuple[Tensor, Tensor]:
        """Return inliers and outliers after PGD in eval mode; both are attacked in one batch."""
        count = len(images)
        clean = torch.cat([images, exposed]) if self.outside else images
        moved = (clean + torch.empty_like(clean).uniform_(-RADIUS, RADIUS)).clamp(0, 1)
        self.net.eval()
        for _ in range(STEPS):
            moved.requires_grad_()
            logits = self.net(moved).float()
            loss = functional.cross_entropy(logits[:count], labels, reduction="sum")
            if self.outside:
                loss = loss - logits[count:].log_softmax(1).mean(1).sum()
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = moved.detach() + RADIUS * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, clean - RADIUS), clean + RADIUS).clamp(0, 1)
        self.net.train()
        return (moved[:count], moved[count:]) if self.outside else (moved, exposed)


def augmented(images: Tensor) -> Tensor:
    """Return float images, cropped and mirrored at random."""
    padded = functional.pad(images, (4, 4, 4, 4))
    places, mirror = torch.randint(0, 9, (2, len(images))), torch.rand(len(images)) < 0.5
    parts = [
        padded[i, :, y : y + 32, x : x + 32]
        for i, (y, x) in enumerate(zip(*places.tolist(), strict=True))
    ]
    cropped = torch.stack(
        [part.flip(2) if mirrored else part for part, mirrored in zip(parts, mirror, strict=True)]
    )
    return cropped.contiguous(memory_format=torch.channels_last).float().div_(255)


def write_arrays(folder: Path, size: int, steps: int) -> None:
    """Write random images for so many batches: what they show does not change what they cost."""
    draw = np.random.default_rng(0)
    for name, count in (("train", size * steps), ("outliers", 2 * size * steps)):
        images = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(count) % 10)


def command_arguments(
    method: str,
    network: str,
    bfloat16: bool,
    folder: Path,
    size: int,
    device: str,
    processes: int = 1,
) -> list[str]:
    """Return the arguments of `train.py` for the same training, timed; `size`: inliers a batch."""
    kind, settings = NETWORKS[network]
    return [
        "fit", "-c", f"configs/methods/{method}.yaml",
        "--net", f"robust_ood.models.{kind.__name__}",
        *(f"--net.init_args.{name}={value}" for name, value in settings.items()),
        "--net.init_args.num_classes=10",
        "--data.root", str(folder), "--data.train", "train.npz", "--data.outliers", "outliers.npz",
        "--data.batch_size", str(size), "--data.outlier_batch_size", str(2 * size),
        "--trainer.precision", "bf16-mixed" if bfloat16 else "32-true",
        "--trainer.accelerator", "gpu" if device == "cuda" else device,
        "--trainer.devices", str(processes),
        "--trainer.callbacks+=clock.Clock", "--output", str(folder / "run"),
    ]  # fmt: skip
