"""A run continued from any of its checkpoints ends as the run never stopped: weights, optimiser,
schedule, logged rows.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger

from robust_ood import Linf, models, training
from robust_ood.attacks import PGD
from robust_ood.callbacks import Checkpoints, MetricsFile, recent
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.training import ALOE, JEM, ConfidenceGAN, Optimization

BATCHES, EPOCHS = 4, 2


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 8 * BATCHES), ("validation", 12), ("outliers", 50)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


class Count(Callback):
    """A user's callback with a state of its own, and a generator that goes on with it."""

    def __init__(self):
        self.batches = 0
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches += 1
        self.seen.append(outputs["loss"].item())

    def on_validation_end(self, trainer, module):
        self.seen.append(float(trainer.callback_metrics["val/accuracy"]))

    def state_dict(self):
        return {"batches": self.batches, "seen": self.seen}

    def load_state_dict(self, state_dict):
        self.batches = state_dict["batches"]
        self.seen = list(state_dict["seen"])


class Memory(Logger):
    """A user's logger that keeps what it is given."""

    name = "memory"
    version = "0"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


def aloe(net, optimization):
    attack = PGD(Linf(8 / 255), steps=2)
    return ALOE(net, attack, attack, optimization=optimization or Optimization(0.05))


def jem(net, optimization):
    return JEM(net, steps=2, buffer_size=16, optimization=optimization, restart_probability=0.3)


def confidence_gan(net, optimization):
    return ConfidenceGAN(net, 1.0, 8, 5, 4, optimization=optimization)


def flow(_, optimization):
    net = models.Glow(8, 3, levels=2, steps=2, hidden=4)
    return training.Flow(net, optimization=optimization)


def auto_encoder(_, optimization):
    net = models.AutoEncoder(8, (4,), latent_size=3)
    return training.AutoEncoder(net, input_noise=0.1, optimization=optimization)


def train(
    make_net,
    arrays,
    folder,
    resume=None,
    optimization=None,
    callbacks=(),
    loggers=(),
    make_method=aloe,
    **options,
):
    torch.manual_seed(
        1 if resume else 0
    )  # a resumed run must not lean on what the process drew before
    folder.mkdir(exist_ok=True)
    method = make_method(make_net(seed=3 if resume else 0, dtype=torch.float32), optimization)
    data = OODData(
        "train",
        "validation",
        outliers="outliers",
        root=arrays,
        num_classes=4,
        batch_size=8,
        outlier_batch_size=6,
    )
    settings = {"max_epochs": EPOCHS, **options}
    trainer = Trainer(
        accelerator="cpu",
        logger=[MetricsFile(folder), *loggers],
        default_root_dir=folder,
        log_every_n_steps=2,
        callbacks=[*callbacks, Checkpoints(every_n_steps=1, keep_every_n_steps=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **settings,
    )
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
    assert_exact(make_net, arrays, tmp_path, **options)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("make_method", [jem, confidence_gan, flow, auto_encoder])
def test_methods_with_more_to_remember_continue(make_net, arrays, tmp_path, make_method, precision):
    """Chains of samples, and networks that are trained beside the classifier."""
    assert_exact(make_net, arrays, tmp_path, make_method=make_method, precision=precision)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_methods_of_several_parts_take_this_runs_settings(make_net, arrays, tmp_path, interval):
    """Each part's schedule then stands where it would have stood under them from the start."""
    train(make_net, arrays, tmp_path / "first", make_method=confidence_gan)
    changed = Optimization(
        optimizer={"name": "adam", "lr": 0.01}, scheduler="cosine", interval=interval
    )
    checkpoint = tmp_path / "first" / f"step-{BATCHES}.ckpt"
    folder = tmp_path / "resumed"
    folder.mkdir()
    shutil.copy(tmp_path / "first" / "metrics.csv", folder)
    resumed, _ = train(make_net, arrays, folder, checkpoint, changed, make_method=confidence_gan)
    whole, _ = train(
        make_net, arrays, tmp_path / "whole", optimization=changed, make_method=confidence_gan
    )
    assert not same(whole["lr_schedulers"], resumed["lr_schedulers"])
    assert whole["global_step"] == resumed["global_step"] == BATCHES * EPOCHS


STATES = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "epoch",
    "global_step",
    "replay",
)


def assert_exact(make_net, arrays, tmp_path, make_callbacks=tuple, **options):
    """Continue a run from each of its checkpoints, and compare with the run never stopped."""
    whole = tmp_path / "whole"
    content, rows = train(make_net, arrays, whole, callbacks=make_callbacks(), **options)
    differing = []
    for step in range(1, content["global_step"]):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        shutil.copy(whole / "metrics.csv", folder)
        checkpoint = whole / f"step-{step}.ckpt"
        resumed, resumed_rows = train(
            make_net, arrays, folder, checkpoint, callbacks=make_callbacks(), **options
        )
        for key in STATES:
            for place in same(content.get(key), resumed.get(key), key):
                differing.append(f"step {step}: {place}")
        if resumed_rows != rows:
            differing.append(f"step {step}: metrics.csv:\n{resumed_rows}instead of\n{rows}")
    assert not differing, "\n".join(differing[:5])


RECIPES = {
    "AdamW, warm-up, cosine": Optimization(
        optimizer={"name": "adamw", "lr": 1e-3},
        scheduler={"name": "cosine_annealing", "warmup": 0.3},
        decay_all=False,
    ),
    "one cycle": Optimization(
        optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9}, scheduler="one_cycle"
    ),
    "cosine by epoch": Optimization(0.05, interval="epoch"),
    "plateau": Optimization(
        optimizer={"name": "adamw", "lr": 1e-3},
        scheduler={"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 10.0},
        monitor="val/accuracy",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_optimiser_and_schedule_continues(make_net, arrays, tmp_path, name):
    assert_exact(make_net, arrays, tmp_path, optimization=RECIPES[name], max_epochs=3)


def test_a_plateau_lowers_the_learning_rate_where_a_validation_is_no_better(
    make_net, arrays, tmp_path
):
    content, _ = train(make_net, arrays, tmp_path, optimization=RECIPES["plateau"], max_epochs=3)
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert group["lr"] == 1e-3 / 4  # the first of three validations is the best so far


def test_a_plateau_that_follows_nothing_is_a_mistake(make_net, arrays, tmp_path):
    optimization = Optimization(scheduler="plateau", monitor="val/robust")
    with pytest.raises(
        UserError, match=r"optimization.monitor: 'val/robust' is not logged; .*val/"
    ):
        train(make_net, arrays, tmp_path, optimization=optimization)


CHANGES = {
    "learning rate and schedule": (
        Optimization(0.05),
        Optimization(0.01, optimizer={"name": "sgd", "weight_decay": 0.3}, scheduler="one_cycle"),
    ),
    "sequence": (Optimization(0.05), RECIPES["AdamW, warm-up, cosine"]),
    "from a plateau": (RECIPES["plateau"], RECIPES["one cycle"]),
    "by epoch": (RECIPES["one cycle"], RECIPES["cosine by epoch"]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("step", [3, BATCHES])
def test_a_run_goes_on_where_its_own_settings_would_have_brought_it(
    make_net, arrays, tmp_path, name, step
):
    """The learning rates are those of a run that had the new settings from its first step."""
    old, new = CHANGES[name]
    train(make_net, arrays, tmp_path / "old", optimization=old)
    whole, _ = train(make_net, arrays, tmp_path / "new", optimization=new)
    checkpoint = tmp_path / "old" / f"step-{step}.ckpt"
    content, _ = train(make_net, arrays, tmp_path / "on", checkpoint, optimization=new)
    expected = whole["optimizer_states"][0]["param_groups"]
    assert content["optimizer_states"][0]["param_groups"] == expected
    assert not same(whole["lr_schedulers"], content["lr_schedulers"])


def test_a_changed_plateau_goes_on_from_what_it_has_seen(make_net, arrays, tmp_path):
    old = RECIPES["plateau"]
    new = dataclasses.replace(old, learning_rate=1e-2)
    train(make_net, arrays, tmp_path / "old", optimization=old, max_epochs=3)
    checkpoint = tmp_path / "old" / f"step-{2 * BATCHES}.ckpt"
    content, _ = train(
        make_net, arrays, tmp_path / "on", checkpoint, optimization=new, max_epochs=3
    )
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(1e-2 / 4)


def test_a_user_s_callback_and_loggers_continue(make_net, arrays, tmp_path):
    assert_exact(make_net, arrays, tmp_path, make_callbacks=lambda: [Count()])


@pytest.mark.parametrize("step", [2, 3, BATCHES])
def test_every_logger_gets_the_rows_that_the_run_never_stopped_logs(
    make_net, arrays, tmp_path, step
):
    whole = Memory()
    csv = CSVLogger(tmp_path, "csv", "whole")
    train(make_net, arrays, tmp_path / "whole", loggers=[whole, csv])
    rest = Memory()
    rest_csv = CSVLogger(tmp_path, "csv", "rest")
    checkpoint = tmp_path / "whole" / f"step-{step}.ckpt"
    train(make_net, arrays, tmp_path / "on", checkpoint, loggers=[rest, rest_csv])
    assert rest.rows
    assert rest.rows == whole.rows[-len(rest.rows) :]
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["Checkpoints"]["rows"]
    assert len(rest.rows) == len(whole.rows) - saved
    rows = [
        (tmp_path / "csv" / name / "metrics.csv").read_text().splitlines()
        for name in ("whole", "rest")
    ]
    assert len(rows[1]) == len(rest.rows) + 1
    assert rows[0][0] == rows[1][0]
    assert rows[0][-len(rest.rows) :] == rows[1][1:]


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


def test_another_number_of_threads_is_a_warning(make_net, arrays, tmp_path, monkeypatch):
    train(make_net, arrays, tmp_path)
    content = torch.load(tmp_path / "step-3.ckpt", weights_only=True)
    assert content["threads"] == torch.get_num_threads()
    hook = Checkpoints().on_load_checkpoint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hook(None, None, content)
        hook(None, None, {})  # of a release that did not say
    with pytest.warns(UserWarning, match=r"had 99 CPU threads .* OMP_NUM_THREADS=99"):
        hook(None, None, {"threads": 99})
