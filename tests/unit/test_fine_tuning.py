"""Training the head alone, or named layers: what moves, what rests, and how a run goes on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from robust_ood import Linf, cli
from robust_ood.attacks import PGD
from robust_ood.callbacks import Checkpoints
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import ResNet18, Timm, wrap
from robust_ood.training import ALOE, Optimization, Standard

BATCHES = 3
ATTACK = PGD(Linf(8 / 255), steps=1)
VIT = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "drop_rate": 0.1,
}


class Normalised(nn.Module):
    """Convolution, batch normalisation and dropout before a head: what a train mode would move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
        self.neck = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        return self.head(self.neck(self.stem(images).mean((2, 3))).relu())


def vit() -> nn.Module:
    pytest.importorskip("timm")
    return Timm("vit_tiny_patch16_224", 4, arguments=VIT)


NETWORKS = {"convolution": Normalised, "wrapped": lambda: wrap(Normalised()), "transformer": vit}


def seeded(make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 8 * BATCHES), ("validation", 12), ("outliers", 50)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


def fit(method, arrays, folder=None, epochs=2, checkpoint=None, **settings) -> Trainer:
    data = OODData(
        train="train.npz", validation="validation.npz", outliers="outliers.npz", root=arrays, num_classes=4, size=8,
        batch_size=8, outlier_batch_size=8, augmentation="none",
    )  # fmt: skip
    callbacks = [] if folder is None else [Checkpoints(every_n_steps=1, keep_every_n_steps=1)]
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        enable_checkpointing=folder is not None, callbacks=callbacks, default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(method, data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def moved(net: nn.Module, before: nn.Module) -> set[str]:
    """Return the tensors of a network, buffers too, that differ from those of before."""
    old = before.state_dict()
    return {name for name, value in net.state_dict().items() if not torch.equal(value, old[name])}


def tuned(trainable, **settings) -> Optimization:
    return Optimization(0.1, {"name": "sgd", "momentum": 0.9}, trainable=trainable, **settings)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("attack_mode", ["eval", "train"])
@pytest.mark.parametrize("decay_all", [True, False])
def test_a_head_alone_is_trained_and_all_else_rests(arrays, name, attack_mode, decay_all):
    """Robustly, too: gradients pass through what is frozen, and its statistics stay."""
    net = seeded(NETWORKS[name])
    before = copy.deepcopy(net)
    method = ALOE(
        net, ATTACK, optimization=tuned("head", decay_all=decay_all), attack_mode=attack_mode
    )
    trainer = fit(method, arrays)
    prefix = "" if name == "convolution" else "module."
    assert moved(net, before) == {f"{prefix}head.weight", f"{prefix}head.bias"}
    (optimizer,) = trainer.optimizers
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    assert all(parameter.requires_grad for parameter in net.parameters())  # as it was given


def test_named_layers_are_trained(arrays):
    for net, names in ((seeded(Normalised), ["neck", "head"]), (wrap(seeded(Normalised)), "neck")):
        before = copy.deepcopy(net)
        fit(Standard(net, optimization=tuned(names)), arrays, epochs=1)
        layers = [names] if isinstance(names, str) else names
        trained = {name.removeprefix("module.").partition(".")[0] for name in moved(net, before)}
        assert trained == set(layers)


def test_what_a_user_froze_stays_frozen(arrays):
    net = seeded(Normalised)
    net.neck.bias.requires_grad_(False)
    before = copy.deepcopy(net)
    fit(Standard(net, optimization=tuned(["neck", "head"])), arrays, epochs=1)
    assert moved(net, before) == {"neck.weight", "head.weight", "head.bias"}
    assert not net.neck.bias.requires_grad


@pytest.mark.parametrize("name", NETWORKS)
def test_a_resumed_probe_ends_as_one_that_never_stopped(arrays, tmp_path, name):
    def method():
        return ALOE(seeded(NETWORKS[name]), ATTACK, optimization=tuned("head"))

    fit(method(), arrays, tmp_path / "whole")
    whole = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    kept = tmp_path / "whole" / f"step-{BATCHES + 1}.ckpt"  # within an epoch
    fit(method(), arrays, tmp_path / "again", checkpoint=kept)
    again = torch.load(tmp_path / "again" / "last.ckpt", weights_only=True)
    assert again["global_step"] == whole["global_step"] == 2 * BATCHES
    assert (
        again["optimizer_states"][0]["param_groups"] == whole["optimizer_states"][0]["param_groups"]
    )
    for name, value in whole["state_dict"].items():
        assert torch.equal(again["state_dict"][name], value), name
    for index, state in whole["optimizer_states"][0]["state"].items():
        momentum = again["optimizer_states"][0]["state"][index]["momentum_buffer"]
        assert torch.equal(momentum, state["momentum_buffer"])


def test_a_run_that_trains_other_layers_begins_without_the_old_momentum(arrays, tmp_path):
    first = Standard(seeded(Normalised), optimization=tuned(["neck"]))
    fit(first, arrays, tmp_path / "run", epochs=1)
    other = Standard(seeded(Normalised), optimization=tuned(["head"]))
    with pytest.warns(UserWarning, match="this run's begins without its state"):
        fit(other, arrays, tmp_path / "other", checkpoint=tmp_path / "run" / "last.ckpt")


TWO_HEADS = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.LogSoftmax(1))


@pytest.mark.parametrize(
    ("net", "trainable", "message"),
    [
        (Normalised, ["heads"], r"^optimization.trainable: unknown name 'heads'; did you mean 'head'"),
        (Normalised, "neck.0", r"^optimization.trainable: unknown name 'neck.0'"),
        (Normalised, "stem.2", r"^optimization.trainable: stem.2 has no weights to train"),
        (lambda: copy.deepcopy(TWO_HEADS), "head", r"^optimization.trainable: which layer is the head is not known"),
        (lambda: wrap(seeded(Normalised)), ["body"], r"^optimization.trainable: unknown name 'body'"),
    ],
)  # fmt: skip
def test_layers_that_are_not_there_are_one_line(arrays, net, trainable, message):
    with pytest.raises(UserError, match=message) as refused:
        fit(Standard(net(), optimization=tuned(trainable)), arrays)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("trainable", ["", []])
def test_training_nothing_is_refused(trainable):
    with pytest.raises(UserError, match=r"^trainable: expected all, head or names of layers"):
        Optimization(trainable=trainable)


def test_a_probe_from_the_command_line(tmp_path, capsys):
    """Pre-train, then fine-tune the head robustly; a resumed run must not change what it trains."""
    pytest.importorskip("timm")
    quick = [
        "--trainer.max_steps",
        "2",
        "--trainer.enable_progress_bar",
        "false",
        "--data.batch_size",
        "8",
    ]
    quick += ["--data.outlier_batch_size", "8", "--trainer.limit_val_batches", "1"]
    before, probe = tmp_path / "before", tmp_path / "probe"
    config = "configs/experiments/digits_{}.yaml".format
    assert cli.train(["fit", "-c", config("standard_vit"), "--output", str(before), *quick]) == 0
    tune = ["fit", "-c", config("aloe_vit_probe"), "--output", str(probe)]
    given = ["--init_from", str(before / "last.ckpt"), *quick]
    assert cli.train([*tune, *given]) == 0
    old = torch.load(before / "last.ckpt", weights_only=True)["state_dict"]
    new = torch.load(probe / "last.ckpt", weights_only=True)["state_dict"]
    changed = {
        name
        for name, value in new.items()
        if name.startswith("net.") and not torch.equal(value, old[name])
    }
    assert changed == {"net.module.head.weight", "net.module.head.bias"}
    capsys.readouterr()
    other = ["--ckpt_path", "last", "--model.optimization.trainable", "all"]
    assert cli.train([*tune, *quick, "--trainer.max_steps", "3", *other]) == 2
    assert "model.init_args.optimization.trainable (was head, now all)" in capsys.readouterr().err
    unknown = ["--model.optimization.trainable", "[tail]"]
    assert (
        cli.train(
            ["fit", "-c", config("aloe_vit"), "--output", str(tmp_path / "x"), *quick, *unknown]
        )
        == 2
    )
    assert capsys.readouterr().err.startswith("error: optimization.trainable: unknown name 'tail'")
    assert not (tmp_path / "x").exists()


def test_our_networks_have_heads_to_train(arrays):
    net = seeded(lambda: ResNet18(num_classes=4))
    before = copy.deepcopy(net)
    fit(Standard(net, optimization=tuned("head")), arrays, epochs=1, limit_train_batches=1)
    assert moved(net, before) == {"head.weight", "head.bias"}
