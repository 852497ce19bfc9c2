"""A run resumed from the checkpoint of any step sees the batches, and ends with the weights, of the
whole run.
"""

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from robust_ood.data import OODData

STEPS_AN_EPOCH = 5


class Tiny(LightningModule):
    """A linear model with a schedule per step, which asks Lightning for the number of steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(6 * 6 * 3, 2)
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((batch.epoch, batch.step, batch.indices.tolist()))
        return (
            self.net(batch.images.flatten(1)).square().mean()
            - self.net(batch.outliers.flatten(1)).mean()
        )

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EveryStep(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(folder, checkpoint=None, **settings):
    model = Tiny()
    data = OODData(
        train="train",
        outliers="pool",
        root=folder,
        num_classes=2,
        batch_size=4,
        outlier_batch_size=3,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (4 * STEPS_AN_EPOCH + 2, 6, 6, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images, labels=np.arange(len(images)) % 2)
    np.save(folder / "pool.npy", draw.integers(0, 256, (7, 6, 6, 3), dtype=np.uint8))
    return folder, fit(folder, callbacks=[EveryStep(folder)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "step", [1, STEPS_AN_EPOCH - 1, STEPS_AN_EPOCH, STEPS_AN_EPOCH + 1, 2 * STEPS_AN_EPOCH - 1]
)
def test_resumed_at_any_step(whole, step):
    folder, model = whole
    resumed = fit(folder, folder / f"{step}.ckpt")
    assert [place[:2] for place in model.seen] == [
        (e, s) for e in range(2) for s in range(STEPS_AN_EPOCH)
    ]
    assert resumed.seen == model.seen[step:]
    assert torch.equal(resumed.net.weight, model.net.weight)


@pytest.mark.filterwarnings("ignore")
def test_epochs_cut_short_start_at_their_first_batch(whole):
    model = fit(whole[0], limit_train_batches=2)
    assert [place[:2] for place in model.seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
