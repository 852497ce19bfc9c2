"""What benchmarks/pgd.py times side by side does the same work; what benchmarks/evaluation.py
times, runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from robust_ood import attacks, detectors
from robust_ood.models import WideResNet

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pgd = pytest.importorskip("pgd", reason="benchmarks/ stands beside the package in a checkout only")
evaluation = pytest.importorskip(
    "evaluation", reason="benchmarks/ stands beside the package in a checkout only"
)


def test_every_contestant_in_float32_finds_the_same_images(make_net, make_images):
    net = make_net(dtype=torch.float32, classes=10).requires_grad_(False)
    images, labels = make_images(8, size=8, dtype=torch.float32), torch.arange(8)
    found = {name: attack() for name, attack in pgd.attacks(net, images, labels, steps=4).items()}
    same = {
        "bare loop, channels last",
        "minimize",
        "minimize, channels last",
        *pgd.LIBRARIES,
    } & set(found)
    assert len(same) >= 3  # libraries that are not installed are left out, and named
    for name in same:
        off = ((found[name] - found["bare loop"]).abs() > 1e-5).float().mean()
        assert off < 0.005, name  # a sum in another order can turn the sign of a gradient near zero
    losses = {
        name: functional.cross_entropy(net(images), labels).item() for name, images in found.items()
    }
    assert losses["default path"] > 0.95 * losses["bare loop"]
    assert losses["default path, float32"] > 0.95 * losses["bare loop"]


def test_all_that_is_timed_runs(monkeypatch):
    short = attacks.Suite({"pgd": attacks.PGD(evaluation.REGION, steps=1)})
    monkeypatch.setattr(evaluation.attacks, "standard", lambda radius: short)
    torch.manual_seed(0)
    net = WideResNet(depth=10, width=1, num_classes=10).eval()
    images, train = torch.rand(2, 3, 8, 8), [(torch.rand(60, 3, 8, 8), torch.arange(60) % 10)]
    chosen = {name: detectors.build(name, net) for name in evaluation.TIMED if name != "knn"}
    detectors.fit(chosen.values(), train)
    options = argparse.Namespace(depth=10, width=1)
    parts = [
        evaluation.clean(chosen, images),
        evaluation.theirs(net, images),
        evaluation.fitting(net, train),
        evaluation.attacking(net, images),
        evaluation.growth(options, net, images),
    ]
    assert evaluation.ALL in parts[0]
    for contestants in parts:
        seconds = evaluation.interleaved({**contestants}, rounds=1)
        assert all(len(times) == 1 for times in seconds.values())
