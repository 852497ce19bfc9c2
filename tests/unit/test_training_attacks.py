"""Cheaper forms of training attacks: noise before a single step, and fewer steps early."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer

from robust_ood import L2, Linf, Unbounded
from robust_ood.attacks import PGD, Budget, TrainingBudget, budget_of, build
from robust_ood.callbacks import Checkpoints, Guards
from robust_ood.data import Batch, OODData
from robust_ood.errors import UserError
from robust_ood.training import ADV, ALOE, Optimization

RADIUS = 8 / 255
NOISY = {"name": "pgd", "radius": "8/255", "steps": 1, "start_noise": 2}
EARLY = [(0.3, 1), (0.6, 3)]


@pytest.fixture
def batch(make_images):
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    return Batch(make_images(6), labels, make_images(4, seed=1), torch.arange(6), epoch=2, step=5)


def test_n_fgsm_is_its_formula(make_net, batch):
    net = make_net()
    method = ADV(net, NOISY)
    noise = Linf(2 * RADIUS).sample(batch.images, method.draws("attack inliers", batch))
    assert (noise - batch.images).abs().max() > 1.8 * RADIUS
    leaf = noise.clone().requires_grad_()
    loss = F.cross_entropy(net.eval()(leaf), batch.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected = (noise + RADIUS * gradient.sign()).clamp(0, 1)  # not to the radius
    inliers, _ = method.attacked(batch)
    torch.testing.assert_close(inliers, expected, rtol=0, atol=1e-15)
    assert (inliers - batch.images).abs().max() > 2 * RADIUS


def test_noise_of_l2_is_within_its_ball(make_net, batch):
    attack = TrainingBudget(L2(0.5), steps=1, start_noise=1.0)
    start = attack.start(batch.images, torch.Generator().manual_seed(0))
    assert (start - batch.images).flatten(1).norm(dim=1).max() <= 0.5 + 1e-9
    assert attack.searched.radius == pytest.approx(1.0, rel=1e-5)


def test_early_searches_are_short_and_reach_as_far():
    attack = TrainingBudget(Linf(RADIUS), 10, 2 / 255, early_steps=EARLY)
    sizes = []
    for progress in (0.0, 0.29, 0.3, 0.59, 0.6, 1.0):
        now = attack.at(progress)
        sizes.append((now.steps, round(now.step_size * 255, 6)))
    assert sizes == [(1, 10), (1, 10), (3, 6.666667), (3, 6.666667), (10, 2), (10, 2)]
    noisy = TrainingBudget(Linf(RADIUS), 10, 2 / 255, start_noise=2.0, early_steps=EARLY)
    single = noisy.at(0)
    assert isinstance(single, TrainingBudget)
    assert (single.start_noise, single.step_size, noisy.at(0.5).steps) == (2.0, RADIUS, 3)
    assert noisy.searched == noisy.at(0.5).searched == Linf(RADIUS)
    plain = Budget(Linf(RADIUS), 3)
    assert plain.at(0.1) is plain


MISTAKES = [
    ({"start_noise": 2}, "start_noise: is for a single step"),
    ({"steps": 1, "start_noise": -1}, r"start_noise: -1.* >= 0"),
    ({"steps": 1, "start_noise": float("nan")}, "start_noise: .*nan"),
    ({"early_steps": [[0.3, 10]]}, "early_steps: 10 steps are not fewer than all 10"),
    ({"early_steps": [[0.6, 1], [0.3, 2]]}, r"early_steps: 0.3 is not a share .* \(0.6, 1\]"),
    ({"early_steps": [[0.3, 0]]}, "early_steps: 0 is not a whole number >= 1"),
    ({"early_steps": [[1.5, 1]]}, "early_steps: 1.5 is not a share"),
    ({"early_steps": [[0.5]]}, "early_steps"),
    ({"early_steps": 3}, "early_steps"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_mistakes_name_the_setting(settings, message):
    with pytest.raises(UserError, match=message):
        budget_of("inlier_attack", {"name": "pgd", **settings})


def test_training_settings_are_no_evaluations():
    with pytest.raises(UserError, match="start_noise"):
        build(NOISY)
    with pytest.raises(UserError, match="Unbounded region has none"):
        TrainingBudget(Unbounded(), 1, 0.1, start_noise=1.0)


# Runs
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 32), ("validation", 12), ("outliers", 50), ("ood", 9)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


class Counted(ALOE):
    """ALOE that notes how many steps its searches have."""

    def run_attack(self, attack, *arguments):
        self.__dict__.setdefault("steps", []).append(attack.at(self.progress).steps)
        return super().run_attack(attack, *arguments)


def fit(make_net, arrays, folder, attack, *callbacks, resume=None, make=Counted):
    torch.manual_seed(1 if resume else 0)
    net = make_net(seed=3 if resume else 0, dtype=torch.float32)
    method = make(net, attack, optimization=Optimization(0.05))
    data = OODData(
        "train", "validation", outliers="outliers", validation_ood=["ood"], root=arrays,
        num_classes=4, batch_size=8, outlier_batch_size=3, augmentation="none",
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, max_epochs=2,
        callbacks=[Checkpoints(every_n_steps=1, keep_every_n_steps=1), *callbacks],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(method, data, ckpt_path=resume)
    return method, trainer


def test_steps_follow_the_run_and_resume_exactly(make_net, arrays, tmp_path):
    attack = TrainingBudget(
        Linf(RADIUS), 3, RADIUS, start_noise=2.0, early_steps=[(0.3, 1), (0.7, 2)]
    )
    whole, _ = fit(make_net, arrays, tmp_path / "whole", attack)
    assert whole.steps == [1, 1, 1, 2, 2, 2, 3, 3]
    checkpoint = tmp_path / "whole" / "step-2.ckpt"
    again, _ = fit(make_net, arrays, tmp_path / "again", attack, resume=checkpoint)
    assert again.steps == [1, 2, 2, 2, 3, 3]
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name


def test_a_single_step_on_either_side_is_compared_with_ten(make_net, arrays, tmp_path):
    single = PGD(Linf(RADIUS), steps=1, step_size=RADIUS)
    _, trainer = fit(make_net, arrays, tmp_path / "both", single, Guards())
    logged = trainer.callback_metrics
    names = ("fgsm_accuracy", "pgd_accuracy", "fgsm_auroc", "pgd_auroc", "catastrophic_overfitting")
    assert {f"val/{name}" for name in names} <= set(logged)
    assert logged["val/pgd_auroc"] <= logged["val/fgsm_auroc"]

    def outliers_only(net, attack, **settings):
        return ALOE(net, PGD(Linf(RADIUS), steps=2), attack, **settings)

    _, trainer = fit(make_net, arrays, tmp_path / "out", single, Guards(), make=outliers_only)
    assert "val/pgd_auroc" in trainer.callback_metrics
    assert "val/pgd_accuracy" not in trainer.callback_metrics


def test_a_collapsed_auroc_is_said(make_net, arrays, tmp_path, monkeypatch):
    values = iter([0.5, 0.4, 0.9, 0.05])  # one step, ten steps; after two epochs
    monkeypatch.setattr(Guards, "_auroc", lambda *_: next(values))
    monkeypatch.setattr(Guards, "_accuracy", lambda *_: 0.5)
    single = PGD(Linf(RADIUS), steps=1, step_size=RADIUS)
    with pytest.warns(UserWarning, match=r"AUROC under 10 steps of PGD fell from 0\.400 to 0\.050"):
        _, trainer = fit(make_net, arrays, tmp_path, single, Guards())
    assert trainer.callback_metrics["val/catastrophic_overfitting"] == 1
