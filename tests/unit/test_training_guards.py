"""Guards and dashboard: what stops a run, what is warned about, what TensorBoard gets."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.precision import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_ood import Linf, detectors, losses
from robust_ood.attacks import PGD, fgsm
from robust_ood.callbacks import (
    Averaging,
    Checkpoints,
    Dashboard,
    Diverged,
    Guards,
    RobustValidation,
)
from robust_ood.callbacks.dashboard import add_strips, strip
from robust_ood.data import ImageSet, OODData, SetSpec
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError
from robust_ood.training import ADV, ALOE, Optimization, Standard

RADIUS = 8 / 255
ATTACK = PGD(Linf(RADIUS), steps=2)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 32), ("validation", 12), ("outliers", 50), ("ood", 9)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


def fit(method, arrays, folder, *callbacks, logger=False, resume=None, sets=None, **options):
    chosen = {"outliers": "outliers", "validation_ood": ["ood"], "outlier_batch_size": 6} | (
        sets or {}
    )
    data = OODData("train", "validation", root=arrays, num_classes=4, batch_size=8, **chosen)
    settings = {"max_epochs": 1, "log_every_n_steps": 2} | options
    trainer = Trainer(
        accelerator="cpu", logger=logger, default_root_dir=folder, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
        use_distributed_sampler=False, **settings,
    )  # fmt: skip
    method.train()
    trainer.fit(method, data, ckpt_path=resume)
    return trainer


class Break(Callback):
    """Breaks the loss, or a weight, at one step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, module, outputs, *_):
        if trainer.global_step == self.step and self.what == "a weight":
            module.net.head.bias.data[1] = torch.nan

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step - 1 and self.what == "the loss":
            module.net.head.bias.data.fill_(torch.inf)


@pytest.mark.parametrize("what", ["the loss", "a weight"])
def test_numbers_that_are_not_finite_stop_the_run(make_net, arrays, tmp_path, what):
    method = Standard(make_net(dtype=torch.float32), optimization=Optimization(0.01))
    callbacks = [Break(3, what), Guards(), Checkpoints(every_n_steps=1)]
    message = rf"{what} is not finite after step 3 \(batch of epoch 0, step 2, rank 0\); last good checkpoint: .*last\.ckpt"
    with pytest.raises(Diverged, match=message):
        fit(method, arrays, tmp_path, *callbacks)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


def test_the_error_says_where_there_is_no_checkpoint(make_net, arrays, tmp_path):
    method = Standard(make_net(dtype=torch.float32))
    with pytest.raises(Diverged, match="last good checkpoint: none"):
        fit(method, arrays, tmp_path, Break(1, "the loss"), Guards())


class Forgetful(Standard):
    """Reads outliers and does not say so."""

    def loss(self, inlier_logits, outlier_logits, batch):
        entropy = losses.cross_entropy_to_uniform(outlier_logits).mean()
        return self.inlier_loss(inlier_logits, batch) + entropy


class ForgetfulOfOurLoss(Standard):
    """Likewise, by the method's own outlier loss."""

    def loss(self, inlier_logits, outlier_logits, batch):
        return self.inlier_loss(inlier_logits, batch) + self.outlier_loss(outlier_logits)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Forgetful,
            "the loss is not finite .*of Forgetful reads outliers, set needs_outliers = True",
        ),
        (ForgetfulOfOurLoss, "^needs_outliers: ForgetfulOfOurLoss takes a loss of outliers"),
    ],
)
def test_a_loss_of_outliers_that_says_nothing_of_them_is_told_how(
    make_net, arrays, tmp_path, kind, message
):
    method = kind(make_net(dtype=torch.float32))
    with pytest.raises(UserError, match=message):
        fit(method, arrays, tmp_path, Guards())


def test_a_later_nan_of_the_same_class_is_not_explained_by_outliers(make_net, arrays, tmp_path):
    class Mine(Standard):
        """A user's class whose loss needs no outliers."""

    with pytest.raises(Diverged) as caught:
        fit(Mine(make_net(dtype=torch.float32)), arrays, tmp_path, Break(2, "the loss"), Guards())
    assert "needs_outliers" not in str(caught.value)


def messages(method, arrays, folder, *callbacks, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(method, arrays, folder, *callbacks, **options)
    return [str(warning.message) for warning in caught]


def test_an_attack_that_does_not_raise_the_loss_is_warned_about(make_net, arrays, tmp_path):
    class Overshooting(ADV):
        """Its goal is highest where the attack goes."""

        def inlier_goal(self, batch):
            steps = []

            def goal(logits):
                steps.append(None)
                return logits.sum(1) * 0 + len(steps)  # grows with every step

            return goal

    warned = messages(
        Overshooting(make_net(dtype=torch.float32), ATTACK), arrays, tmp_path, Guards()
    )
    assert any(
        "attack inliers: reached its aim on only 0% of the images at step 1" in text
        for text in warned
    )
    good = messages(ADV(make_net(dtype=torch.float32), ATTACK), arrays, tmp_path, Guards())
    assert not [text for text in good if "reached its aim" in text]


@pytest.mark.parametrize(("precision", "share", "said"), [("16-mixed", 0.5, True), ("16-mixed", 0.005, False),
                                                          ("bf16-mixed", 0.5, False)])  # fmt: skip
def test_vanished_gradients_are_warned_about_under_float16(
    make_net, arrays, tmp_path, precision, share, said
):
    """A network that sees only a part of each image has zero gradients for the rest."""

    class Partial(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.head = net, net.head
            blind = torch.zeros(192)
            blind[: round(share * 192)] = 1
            self.register_buffer("seen", 1 - blind.view(3, 8, 8))

        def forward(self, images):
            return self.net(images * self.seen)

    method = ADV(Partial(make_net(dtype=torch.float32)), ATTACK)
    # By name, Lightning would take bfloat16 in float16's place on the CPU.
    plugin = MixedPrecision(precision, "cpu")
    warned = messages(
        method, arrays, tmp_path, Guards(attacks_every_n_steps=1), plugins=[plugin], max_steps=2
    )
    zeros = [
        text for text in warned if "of the input gradients are exactly zero under float16" in text
    ]
    assert bool(zeros) == said
    if said:
        assert float(re.search(r"([\d.]+)% of the input", zeros[0])[1]) == pytest.approx(50, abs=5)


def test_catastrophic_overfitting_is_warned_about(make_net, arrays, tmp_path, monkeypatch):
    accuracies = iter([(0.5, 0.4), (0.6, 0.38), (0.9, 0.05)])  # FGSM, PGD: after three epochs
    current = []

    def accuracy(self, trainer, module, data, attack):
        if not current:
            current.extend(next(accuracies))
        return current.pop(0)

    monkeypatch.setattr(Guards, "_accuracy", accuracy)
    method = ADV(make_net(dtype=torch.float32), fgsm(Linf(RADIUS)))
    warned = messages(method, arrays, tmp_path, Guards(), max_epochs=3)
    found = [text for text in warned if "catastrophic overfitting" in text]
    assert found == [
        text for text in found if "fell from 0.400 to 0.050 while that under FGSM is 0.900" in text
    ]
    assert len(found) == 1


def test_single_step_training_is_checked_in_validation(make_net, arrays, tmp_path):
    checked = fit(
        ADV(make_net(dtype=torch.float32), fgsm(Linf(RADIUS))), arrays, tmp_path, Guards()
    )
    assert {"val/fgsm_accuracy", "val/pgd_accuracy"} <= set(checked.callback_metrics)
    many = fit(ADV(make_net(dtype=torch.float32), ATTACK), arrays, tmp_path, Guards())
    assert "val/pgd_accuracy" not in many.callback_metrics


def board(folder):
    events = EventAccumulator(
        str(folder), size_guidance={"images": 0, "histograms": 0, "tensors": 0}
    )
    events.Reload()
    return events


def test_tensorboard_shows_what_a_run_did(make_net, arrays, tmp_path):
    dashboard = Dashboard()
    dashboard.config = {"data": {"batch_size": 8}}
    validation = RobustValidation(["msp"], {"pgd": ATTACK}, limit=9)
    method = ALOE(make_net(dtype=torch.float32), ATTACK, ATTACK, optimization=Optimization(0.05))
    fit(
        method,
        arrays,
        tmp_path,
        dashboard,
        validation,
        Guards(),
        logger=TensorBoardLogger(tmp_path, "", ""),
    )
    events = board(tmp_path)
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/inlier_loss", "train/outlier_loss", "train/accuracy", "train/learning_rate",
            "images_per_second", "val/loss", "val/accuracy", "val/pgd/accuracy", "val/robust_auroc",
            "val/ood/msp/pgd-both/auroc", "val/ood/msp/none/fpr95"} <= scalars  # fmt: skip
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    expected = [0.025 * (1 + math.cos(math.pi * step / 4)) for step in (1, 3)]
    assert rates == pytest.approx(expected, abs=1e-6)
    assert all(event.value > 0 for event in events.Scalars("images_per_second"))
    assert set(events.Tags()["histograms"]) == {
        f"scores/ood/msp/{s}/{a}" for s in ("in", "out") for a in ("none", "pgd")
    }
    assert set(events.Tags()["images"]) == {"attack/msp/pgd/in", "attack/msp/pgd/out"}
    (image,) = events.Images("attack/msp/pgd/in")
    assert (image.width, image.height) == (3 * 8, 4 * 8)
    assert b"batch_size: 8" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_strips_show_the_perturbation_at_full_contrast():
    clean = torch.full((2, 3, 4, 4), 0.5)
    attacked = clean.clone()
    attacked[0, :, 0, 0], attacked[0, :, 1, 1], attacked[1, 0, 0, 0] = 0.6, 0.45, 0.501
    shown = strip(clean, attacked)
    assert shown.shape == (3, 8, 12)
    middle = shown[:, :, 4:8]
    assert torch.allclose(middle[:, 0, 0], torch.tensor(1.0))
    assert torch.allclose(middle[:, 1, 1], torch.tensor(0.25))
    assert middle[0, 4, 0].item() == pytest.approx(1.0)
    assert middle[1, 4, 0].item() == 0.5
    assert torch.equal(shown[:, :4, 8:], attacked[0])


def test_robust_validation_leaves_no_trace(make_net, arrays, tmp_path):
    """Training with it and without it ends alike."""
    ends = []
    for callbacks in ([], [RobustValidation(["msp", "pro-gen"], {"pgd": ATTACK}, limit=6)]):
        method = ALOE(
            make_net(dtype=torch.float32), ATTACK, ATTACK, optimization=Optimization(0.05)
        )
        torch.manual_seed(5)
        fit(method, arrays, tmp_path, *callbacks, max_epochs=2)
        ends.append(
            (
                method.net.state_dict(),
                torch.rand(3),
                [part.training for part in method.net.modules()],
            )
        )
    (first, draw, modes), (second, other_draw, other_modes) = ends
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(draw, other_draw)
    assert modes == other_modes


def test_robust_validation_of_an_ood_set_that_is_called_like_the_inliers(
    make_net, arrays, tmp_path
):
    found = []
    for name in ("ood", "validation"):
        validation = RobustValidation(["msp"], {"pgd": ATTACK}, limit=9)
        sets = {"validation_ood": [SetSpec("ood", name=name)]}
        trainer = fit(
            Standard(make_net(dtype=torch.float32)), arrays, tmp_path, validation, sets=sets
        )
        found.append(trainer.callback_metrics["val/robust_auroc"])
    assert found[0] == found[1] != 0.5


def test_robust_validation_fits_all_detectors_together_and_reads_outliers_only_for_those_that_learn_from_them(
    make_net, arrays, tmp_path, monkeypatch
):
    fitted, fit_all = [], detectors.fit
    monkeypatch.setattr(
        detectors,
        "fit",
        lambda some, *a, **k: fitted.append((len(some), k)) or fit_all(some, *a, **k),
    )
    sets = {"outliers": "absent.npy", "outlier_batch_size": 0}
    method = Standard(make_net(dtype=torch.float32))
    fit(
        method,
        arrays,
        tmp_path,
        RobustValidation([{"name": "knn", "neighbours": 2}, "mahalanobis"], {"pgd": ATTACK}),
        sets=sets,
    )
    ((count, loaders),) = fitted
    assert (count, loaders["outliers"]) == (2, None)
    layered = [{"name": "mahalanobis", "layers": ["conv", "penultimate"]}]
    with pytest.raises(UserError, match=r"data\.outliers: no such file"):
        fit(method, arrays, tmp_path, RobustValidation(layered, {"pgd": ATTACK}), sets=sets)


def test_a_strip_leaves_out_what_cannot_be_read(make_net, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(path)
    paths[1].write_bytes(b"no picture")
    images = ImageSet("pets", ImageFiles(paths, ImageForm(8), "pets"))
    bad = ImageSet("bad", ImageFiles(paths[1:2], ImageForm(8), "bad"))
    shown = {}

    class Board:
        def add_image(self, name, image, step):
            shown[name] = image

    logger = TensorBoardLogger(tmp_path, "", "")
    logger._experiment = Board()
    trainer = Trainer(
        accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False
    )
    net = make_net(dtype=torch.float32)
    add_strips(trainer, "msp", detectors.MSP(net), ATTACK, images, bad, torch.device("cpu"))
    assert set(shown) == {"attack/msp/in"}
    levels = shown["attack/msp/in"][0, ::8, 0] * 255
    assert levels.round().tolist() == [0, 80, 120, 160]


def test_the_average_is_what_validation_sees(make_net, arrays, tmp_path):
    averaging = Averaging(0.9)
    nets = []

    class Follow(Callback):
        """Averages by the written-out rule, and notes what validation and training see."""

        def on_train_batch_end(self, trainer, module, *_):
            now = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
            steps = trainer.global_step
            decay = min(0.9, (1 + steps) / (10 + steps))
            self.average = {
                name: decay * self.average[name] + (1 - decay) * tensor
                if tensor.is_floating_point()
                else tensor
                for name, tensor in now.items()
            }
            self.last = now

        def on_fit_start(self, trainer, module):
            self.average = {
                name: tensor.clone() for name, tensor in module.net.state_dict().items()
            }

        def on_validation_epoch_start(self, trainer, module):
            nets.append({name: tensor.clone() for name, tensor in module.net.state_dict().items()})

    follow = Follow()
    method = ALOE(make_net(dtype=torch.float32), ATTACK, ATTACK, optimization=Optimization(0.05))
    fit(method, arrays, tmp_path, averaging, follow, Checkpoints())
    for name, expected in follow.average.items():
        torch.testing.assert_close(nets[0][name], expected)
        torch.testing.assert_close(method.net.state_dict()[name], follow.last[name], rtol=0, atol=0)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.testing.assert_close(
        saved["state_dict"]["net.head.weight"], follow.average["head.weight"]
    )
    assert torch.equal(saved["raw_state_dict"]["net.head.weight"], follow.last["head.weight"])


def test_a_run_resumed_without_the_average_goes_on_from_the_weights_under_training(
    make_net, arrays, tmp_path
):
    begun = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            begun.append(module.net.head.weight.detach().clone())

    def method():
        return ALOE(make_net(dtype=torch.float32), ATTACK, ATTACK, optimization=Optimization(0.05))

    fit(method(), arrays, tmp_path, Averaging(0.9), Checkpoints())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    fit(
        method(),
        arrays,
        tmp_path,
        Averaging(None),
        Checkpoints(),
        Look(),
        resume=tmp_path / "last.ckpt",
        max_epochs=2,
    )
    assert torch.equal(begun[0], saved["raw_state_dict"]["net.head.weight"])
    assert not torch.equal(begun[0], saved["state_dict"]["net.head.weight"])
    assert "raw_state_dict" not in torch.load(tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guards(attacks_every_n_steps=0), "guards.attacks_every_n_steps: 0"),
        (lambda: Guards(limit=-1), "guards.limit: -1"),
        (lambda: Averaging(1.0), "averaging.decay: 1.0"),
        (lambda: Checkpoints(keep=0), "checkpoints.keep: 0"),
        (lambda: Checkpoints(every_n_minutes=0), "checkpoints.every_n_minutes: 0"),
        (lambda: RobustValidation(every_n_epochs=0), "robust_validation.every_n_epochs: 0"),
        (lambda: RobustValidation(limit=0), "robust_validation.limit: 0"),
        (
            lambda: RobustValidation(["msp"], {"none": ATTACK}),
            r"robust_validation\.attacks: 'none' is the label",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
