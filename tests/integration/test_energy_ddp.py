"""Two processes (DDP over gloo) train methods that keep more than weights, and continue them bit for
bit: chains of samples, several networks, perturbations that are reused.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

import robust_ood
from robust_ood.callbacks import Checkpoints
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import ConvNet
from robust_ood.training import ADV, JEM, ConfidenceGAN

STATES = (
    *("state_dict", "optimizer_states", "lr_schedulers", "global_step"),
    *("replay", "perturbations"),
)
FREE = {"name": "pgd", "radius": "16/255", "steps": 1, "replays": 3}
METHODS = {
    "JEM": lambda net: JEM(net, steps=2, buffer_size=24, restart_probability=0.3),
    "ConfidenceGAN": lambda net: ConfidenceGAN(net, 1.0, 8, 5, 4),
    "replays": lambda net: ADV(net, FREE, attack_mode="train"),
}
STRATEGIES = {"JEM": "ddp", "ConfidenceGAN": "ddp_find_unused_parameters_true", "replays": "ddp"}


def train(name, arrays, folder, strategy, resume=None):
    torch.manual_seed(0)
    method = METHODS[name](ConvNet((4,), (2,), 1, (6,), 4, image_size=8, activation="silu"))
    data = OODData("train", "validation", root=arrays, num_classes=4, batch_size=8,
                   augmentation="none")  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, logger=False,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[Checkpoints(every_n_steps=1, keep_every_n_steps=1)],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(method, data, ckpt_path=resume)
    return method


def run_process(folder, rank):
    found = {}
    for name, strategy in STRATEGIES.items():
        method = train(name, folder, folder / name, strategy)
        found[name] = method.net.state_dict()
        if name == "JEM":
            found["replay"] = method.replay
        train(name, folder, folder / f"{name}-resumed", strategy, folder / name / "step-2.ckpt")
    try:
        train("ConfidenceGAN", folder, folder / "refused", "ddp")
    except UserError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"found-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, outputs_of):
    folder = tmp_path_factory.mktemp("ddp")
    draws = np.random.default_rng(0)
    for name in ("train", "validation"):
        images = draws.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, 64))
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
    outputs_of(processes, timeout=200)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(2)]


def differing(first, second):
    """Return whether two nested contents of checkpoints differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() != second.keys() or any(
            differing(first[key], second[key]) for key in first
        )
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) != len(second) or any(map(differing, first, second))
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return not torch.equal(first, second)
    return first != second


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_continue_bit_for_bit(folder, name):
    whole, resumed = (
        torch.load(folder / part / "last.ckpt", weights_only=True)
        for part in (name, f"{name}-resumed")
    )
    assert whole["global_step"] == 4
    assert [key for key in STATES if differing(whole.get(key), resumed.get(key))] == []
    assert differing(torch.load(folder / name / "step-2.ckpt", weights_only=True)["state_dict"],
                     whole["state_dict"])  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_with_the_same_network(found, name):
    first, second = (half[name] for half in found)
    assert not differing(first, second)


def test_the_checkpoint_holds_the_chains_of_both_processes(folder, found):
    replay = torch.load(folder / "JEM" / "last.ckpt", weights_only=True)["replay"]
    assert replay.shape == (24, 3, 8, 8)
    assert torch.equal(replay, torch.cat([half["replay"] for half in found]))
    assert differing(found[0]["replay"], found[1]["replay"])


def test_the_checkpoint_holds_the_perturbations_of_both_processes(folder):
    kept = torch.load(folder / "replays" / "step-2.ckpt", weights_only=True)["perturbations"]
    first, second = (half["attack inliers"] for half in kept)
    assert first.shape == second.shape == (8, 3, 8, 8)
    assert differing(first, second)


def test_plain_ddp_is_refused_for_several_networks(found):
    for half in found:
        assert half["refused"].startswith("trainer.strategy: ConfidenceGAN")
        assert "ddp_find_unused_parameters_true" in half["refused"]


if __name__ == "__main__":
    run_process(Path(sys.argv[1]), int(os.environ["LOCAL_RANK"]))
