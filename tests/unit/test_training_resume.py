"""A run continued from any of its checkpoints ends as the run never stopped: weights, optimiser,
schedule, logged rows.
"""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from robust_ood import Linf
from robust_ood.attacks import PGD
from robust_ood.callbacks import Checkpoints, MetricsFile, recent
from robust_ood.data import OODData
from robust_ood.training import ALOE, Optimization

BATCHES, EPOCHS = 4, 2


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 8 * BATCHES), ("validation", 12), ("outliers", 50)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


def train(make_net, arrays, folder, resume=None, **options):
    torch.manual_seed(
        1 if resume else 0
    )  # a resumed run must not lean on what the process drew before
    folder.mkdir(exist_ok=True)
    attack = PGD(Linf(8 / 255), steps=2)
    method = ALOE(
        make_net(seed=3 if resume else 0, dtype=torch.float32),
        attack,
        attack,
        optimization=Optimization(0.05),
    )
    data = OODData("train", "validation", outliers="outliers", root=arrays, num_classes=4, batch_size=8,
                   outlier_batch_size=6)  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=[MetricsFile(folder)], default_root_dir=folder,
        log_every_n_steps=2, callbacks=[Checkpoints(every_n_steps=1, keep_every_n_steps=1)], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(method, data, ckpt_path=resume)
    content = torch.load(folder / "last.ckpt", weights_only=True)
    return content, (folder / "metrics.csv").read_text()


def same(first, second, path=""):
    """Return the places at which two nested checkpoints differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted({*first, *second}, key=str)
        return [
            place
            for key in keys
            for place in same(first.get(key), second.get(key), f"{path}/{key}")
        ]
    if (
        isinstance(first, (list, tuple))
        and isinstance(second, (list, tuple))
        and len(first) == len(second)
    ):
        return [
            place
            for i, pair in enumerate(zip(first, second, strict=True))
            for place in same(*pair, f"{path}/{i}")
        ]
    equal = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if equal else [f"{path}: {first!r:.80} != {second!r:.80}"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"check_val_every_n_epoch": 2},
        {"val_check_interval": 2},
        {"accumulate_grad_batches": 2},
        {"limit_val_batches": 0},
    ],
    ids=["each epoch", "every second epoch", "within epochs", "accumulating", "no validation"],
)
def test_every_checkpoint_continues_the_run(make_net, arrays, tmp_path, options):
    content, rows = train(make_net, arrays, tmp_path / "whole", **options)
    checkpoints = [
        tmp_path / "whole" / f"step-{step}.ckpt" for step in range(1, content["global_step"])
    ]
    differing = {}
    for checkpoint in checkpoints:
        folder = tmp_path / checkpoint.stem
        folder.mkdir()
        shutil.copy(tmp_path / "whole" / "metrics.csv", folder)
        resumed, resumed_rows = train(make_net, arrays, folder, resume=checkpoint, **options)
        places = [place for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch",
        "global_step")
                  for place in same(content[key], resumed[key], key)]  # fmt: skip
        if resumed_rows != rows:
            places.append("metrics.csv:\n" + resumed_rows + "instead of\n" + rows)
        if places:
            differing[checkpoint.stem] = places
    assert not differing, "\n".join(f"{name}: {places[0]}" for name, places in differing.items())


def test_a_user_s_copies_of_checkpoints_are_left_alone(make_net, arrays, tmp_path):
    mine = [
        tmp_path / name
        for name in ("last-good.ckpt", "last-01.ckpt", "lasting.ckpt", "step-best.ckpt")
    ]
    stale = [tmp_path / name for name in ("last-7.ckpt", "step-999.ckpt", "best.ckpt")]
    for path in [*mine, *stale]:
        path.write_text("older")
    train(make_net, arrays, tmp_path)
    assert all(path.read_text() == "older" for path in mine)
    assert not any(path.exists() for path in stale)
    (tmp_path / "last-10.ckpt").write_text("newer than none")
    assert [path.name for path in recent(tmp_path)] == ["last.ckpt", "last-1.ckpt", "last-10.ckpt"]
