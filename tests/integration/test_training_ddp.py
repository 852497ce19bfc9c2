"""Two processes (DDP over gloo) train and validate as one process that sees both shares.

Run as a script, this file is one of the two processes. BatchNorm is in eval mode where gradients
are compared, because batch statistics of a half are not those of the whole. Draws are keyed by
rank, so methods that draw get draws keyed by image here; whether ranks draw differently is a test
of its own.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch.nn.utils.rnn import pad_sequence

import robust_ood
from robust_ood import L2, Linf
from robust_ood.attacks import PGD, fgsm
from robust_ood.callbacks import HardOutliers, RobustValidation
from robust_ood.data import OODData
from robust_ood.models import ConvNet, Discriminated, OutlierClass, WideResNet
from robust_ood.randomness import generator, generators
from robust_ood.training import (
    ACET,
    ADV,
    ALOE,
    AOE,
    ATD,
    ATOM,
    CCU,
    GOOD,
    HALO,
    NTOM,
    OE,
    RATIO,
    EnergyMargin,
    GaussianNoise,
    Optimization,
    ProoD,
    SafeSpotAware,
    Standard,
)

RADIUS = 8 / 255
FAST = PGD(Linf(RADIUS), steps=1, step_size=1.25 * RADIUS)


def pgd(steps, region=None):
    region = region or Linf(RADIUS)
    return PGD(region, steps=steps, step_size=region.radius / 4, random_start=False)


def replayed(net):
    attack = {"name": "pgd", "radius": RADIUS, "steps": 1, "replays": 2, "random_start": False}
    return ALOE(net, attack, attack_mode="train")


def spots(search, attack, **weights):
    return lambda net: SafeSpotAware(net, search, attack, **weights)


def discriminator():
    torch.manual_seed(1)
    return ConvNet((4,), (2,), 1, (6,), 1, nonpositive_head=True, image_size=16)


METHODS = {
    "Standard": Standard,
    "OE": OE,
    "ADV": lambda net: ADV(net, pgd(2)),
    "AOE": lambda net: AOE(net, pgd(2)),
    "ALOE": lambda net: ALOE(net, pgd(2), pgd(2)),
    "ALOE, AWP": lambda net: ALOE(net, pgd(2), pgd(2), weight_perturbation=0.05),
    "S-FGSM+ADV": spots(fgsm(Linf(RADIUS)), pgd(2)),
    "S-PGD+ADV, L2": spots(pgd(2, L2(0.5)), pgd(2, L2(0.5))),
    "S-FGSM+Fast": spots(fgsm(Linf(RADIUS)), FAST),
    "S-FGSM+ADV, outliers": spots(
        fgsm(Linf(RADIUS)), pgd(2), outlier_weight=0.5, safe_spot_weight=0.1
    ),
    "NTOM": lambda net: NTOM(OutlierClass(net)),
    "ATOM": lambda net: ATOM(OutlierClass(net), pgd(2)),
    "ACET": lambda net: ACET(net, pgd(2)),
    "RATIO": lambda net: RATIO(net, pgd(2, L2(0.5)), pgd(2, L2(1.0))),
    "EnergyMargin": lambda net: EnergyMargin(net, inlier_margin=-5.0, outlier_margin=-1.0),
    # From a random start: the divergence from the clean image's own answer is flat at the image.
    "HALO": lambda net: HALO(net, PGD(Linf(RADIUS), steps=2, step_size=RADIUS / 4)),
    "ATD": lambda net: ATD(Discriminated(net, (8,)), pgd(2)),
    "GaussianNoise": lambda net: GaussianNoise(net, 0.1),
    "GaussianNoise, outliers": lambda net: GaussianNoise(net, 0.1, outlier_weight=0.5),
    "GOOD": lambda net: GOOD(net, RADIUS, weight_ramp=(0, 0), radius_ramp=(0, 0)),
    "ProoD": lambda net: ProoD(
        net, discriminator(), RADIUS, weight_ramp=(0, 0), radius_ramp=(0, 0)
    ),
    "ProoD, classifier": lambda net: ProoD(net, discriminator(), part="classifier"),
    "CCU": lambda net: CCU(net, 16, 2, mixture_images=12),
    "ALOE, replays": replayed,
}
# The gradient at images that the first step's has moved, in an epoch of two steps.
STEPS = {"ALOE, replays": 2}


class Still(Callback):
    """Keeps BatchNorm's running statistics in use, and notes the gradient of the last optimiser
    step.
    """

    gradient: torch.Tensor

    def on_train_batch_start(self, trainer, module, *_):
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.eval()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradient = torch.cat(
            [
                parameter.grad.flatten()
                for parameter in module.parameters()
                if parameter.requires_grad
            ]
        ).clone()


def draws_by_image(method):
    """Replace a method's draws, keyed by rank, with draws of which each image's are its own."""

    def draws(purpose, batch):
        if not purpose.startswith("gaussian noise"):
            indices = batch.indices.tolist()
            if purpose == "attack both":
                indices += [1000 + index for index in indices]  # of the outliers beside them
            return generators(0, purpose, indices=indices)
        shared = generator(0, purpose)
        for _ in range(method.global_rank):  # go on where the process before stopped
            torch.randn(batch.images.shape, generator=shared)
        return shared

    method.draws = draws
    return method


def network():
    torch.manual_seed(0)
    net = WideResNet(10, 1, num_classes=4)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 2)
    return net


def data(folder, size):
    return OODData("train", "validation", outliers="outliers", validation_ood=["ood"], root=folder, num_classes=4,
                   batch_size=size, outlier_batch_size=size, augmentation="none")  # fmt: skip


def trainer(devices, callbacks, **options):
    return Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", callbacks=callbacks,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, max_epochs=1, **options,
    )  # fmt: skip


def gradient(name, folder, devices, size, **options):
    # Double precision: a rounding error that turned the sign of one pixel's step would be a
    # difference in images.
    still = Still()
    method = draws_by_image(METHODS[name](network()))
    steps = STEPS.get(name, 1)
    run = trainer(
        devices, [still], max_steps=steps, limit_val_batches=0, precision="64-true", **options
    )
    run.fit(method, data(folder, size // steps))
    return still.gradient


def mined(folder, devices, size):
    """Return the outliers that an epoch of two steps would train with."""
    mining = HardOutliers(pool=1.5, skip=0.125)
    run = trainer(devices, [mining], max_steps=1, limit_val_batches=0)
    run.fit(METHODS["ATOM"](network()), data(folder, size))
    return mining.chosen


def validation(size=16):
    attacks = {"pgd": PGD(Linf(RADIUS), steps=2), "pgd-l2": PGD(L2(0.5), steps=2)}
    return RobustValidation(["msp", "pro-gen"], attacks, limit=size)


def run_process(folder):
    found = {name: gradient(name, folder, 2, 32) for name in METHODS}
    method = ALOE(network(), FAST, FAST, optimization=Optimization(0.02))
    run = trainer(2, [validation()], limit_train_batches=1)
    run.fit(method, data(folder, 16))
    attacked = method.draws("attack both", next(iter(data(folder, 16).train_dataloader())))
    found |= {
        "weights": method.net.state_dict(),
        "rows": {k: float(v) for k, v in run.callback_metrics.items()},
    }
    found |= {"draw": torch.rand(4, generator=attacked), "mined": mined(folder, 2, 8)}
    torch.save(found, folder / f"found-{run.global_rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    draws = np.random.default_rng(0)
    for name, count in (("train", 64), ("validation", 13), ("outliers", 64), ("ood", 11)):
        images = draws.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


@pytest.fixture(scope="module")
def found(folder, outputs_of):
    """What each of the two processes found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"PYTHONPATH": str(Path(robust_ood.__file__).parents[1]), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | own | {"LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs_of(processes, timeout=500)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", METHODS)
def test_gradient_of_two_halves_is_that_of_the_whole(found, folder, name):
    whole = gradient(name, folder, 1, 64)
    assert whole.norm() > 0.1
    for half in found:
        torch.testing.assert_close(half[name], whole, rtol=1e-8, atol=1e-10)


def test_gradient_of_accumulated_halves_is_that_of_the_whole(folder):
    whole = gradient("ALOE", folder, 1, 64)
    halves = gradient("ALOE", folder, 1, 32, accumulate_grad_batches=2)
    torch.testing.assert_close(halves, whole, rtol=1e-8, atol=1e-10)


def test_gradients_of_different_methods_differ(found):
    """Else the comparisons above would compare nothing that a method does."""
    # Networks with a gate have more parameters.
    gradients = pad_sequence([found[0][name] for name in METHODS], batch_first=True)
    distances = torch.cdist(gradients, gradients) + torch.eye(len(METHODS))
    assert distances.min() > 1e-3


def test_two_processes_mine_the_outliers_that_one_does(found, folder):
    """Each scores a share of the pool, whose order decides who is chosen."""
    whole = mined(folder, 1, 16)
    assert len(set(whole.tolist())) > 16
    for half in found:
        assert torch.equal(half["mined"], whole)


def test_processes_draw_differently(found):
    assert not torch.equal(found[0]["draw"], found[1]["draw"])


def test_processes_end_with_the_same_weights(found):
    trained = {name for name, _ in network().named_parameters()}
    first, second = (half["weights"] for half in found)
    assert all(torch.equal(first[name], second[name]) for name in trained)


def test_validation_rows_of_two_processes_are_those_of_one(found, folder):
    net = network()
    net.load_state_dict(found[0]["weights"])
    run = trainer(1, [validation()])
    run.validate(ALOE(net, FAST, FAST), data(folder, 16), verbose=False)
    rows = {name: value for name, value in found[0]["rows"].items() if name.startswith("val/")}
    assert len(rows) > 2 * 7 * 2
    assert rows == {
        name: pytest.approx(float(value), abs=1e-6) for name, value in run.callback_metrics.items()
    }
    assert rows == {name: value for name, value in found[1]["rows"].items() if name in rows}
    assert 0 < rows["val/ood/msp/none/auroc"] < 1


if __name__ == "__main__":
    run_process(Path(sys.argv[1]))
