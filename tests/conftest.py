"""Small networks and images that many tests share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from robust_ood.models import Normalize

settings.register_profile("robust_ood", deadline=None)  # a busy machine's pauses are no failures
settings.load_profile("robust_ood")
torch.set_num_threads(
    1
)  # the tests' tensors are tiny: threads that wait for one another cost more than they give


class TinyNet(nn.Module):
    """A convolution, BatchNorm, dropout and a linear head; batch statistics matter in train
    mode.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.normalize = Normalize((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.conv(self.normalize(images))))
        return self.head(self.drop(self.pool(maps).flatten(1)))


@pytest.fixture(scope="session")
def make_net():
    """Make a random network in eval mode: `make_net(seed, classes, dtype)`."""

    def make(
        seed: int = 0, classes: int = 4, dtype: torch.dtype = torch.float64, width: int = 6
    ) -> TinyNet:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = TinyNet(classes, width)
            nn.init.normal_(net.head.weight, std=1.0)
            net.norm.running_mean.uniform_(-0.5, 0.5)
            net.norm.running_var.uniform_(0.5, 2.0)
        return net.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_images():
    """Make random images, some of whose pixels are exactly 0 or 1: `make_images(count, seed, size,
    dtype)`.
    """

    def make(
        count: int = 6, seed: int = 0, size: int = 6, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        return (
            (torch.rand(count, 3, size, size, generator=draws, dtype=torch.float64) * 1.4 - 0.2)
            .clamp(0, 1)
            .to(dtype)
        )

    return make


def patterned(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw noisy images of four fixed patterns, with their classes."""
    ramp = torch.linspace(0, 1, 8)
    across, down = ramp.expand(8, 8), ramp.expand(8, 8).T
    patterns = torch.stack(
        [across, down, (across + down) / 2, (across - 0.5).abs() * 2]
    )  # (4, 8, 8)
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draws)
    noise = torch.randn(count, 3, 8, 8, generator=draws) * 0.15
    return (patterns[labels][:, None] * 0.6 + 0.2 + noise).clamp(0, 1), labels


@pytest.fixture(scope="session")
def trained(make_net):
    """A float32 network trained on patterns: `(net, inliers, labels, outliers)`; it tells them from
    uniform noise.
    """
    net = make_net(dtype=torch.float32, width=8).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # dropout
        for step in range(60):
            images, labels = patterned(32, seed=step)
            noise = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(10_000 + step))
            logits = net(torch.cat([images, noise]))
            unsure = logits[32:].logsumexp(1) - logits[32:].mean(1)
            loss = nn.functional.cross_entropy(logits[:32], labels) + 0.5 * unsure.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    inliers, labels = patterned(24, seed=20_000)
    outliers = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(20_001))
    net.eval().zero_grad()
    return net, inliers, labels, outliers
