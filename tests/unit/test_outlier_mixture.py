"""Auxiliary outliers from several sources: which image stands where, resumed and shared alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer

from robust_ood.callbacks import Checkpoints, HardOutliers
from robust_ood.data import OODData, TrainingLoader
from robust_ood.data.outlier_stream import BLOCK, OutlierStream, _shared_out
from robust_ood.data.storage import UnreadableImagesError
from robust_ood.errors import UserError
from robust_ood.training import OE, Optimization

LENGTHS = {"train": 48, "light": 13, "dark": 29}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Arrays whose first pixel says which image of which set it is, and a folder of images."""
    folder = tmp_path_factory.mktemp("sources")
    draws = np.random.default_rng(0)
    for number, (name, count) in enumerate(LENGTHS.items()):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = number
        images[:, 0, 0, 1] = np.arange(count)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    (folder / "generated").mkdir()
    for number in range(5):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(
            folder / "generated" / f"{number}.png"
        )
    return folder


def data(root, outliers, **settings):
    return OODData(
        "train", outliers=outliers, root=root, num_classes=4, batch_size=8, size=8,
        outlier_batch_size=10, augmentation="none", **settings,
    )  # fmt: skip


MIXTURE = [{"set": "light", "weight": 3}, {"set": {"source": "dark"}, "weight": 1}]


def seen(loader, epochs=range(3)):
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        for batch in loader:
            found.append(batch.outliers[:, :2, 0, 0])
    return torch.cat(found)  # (n, 2): set, image


def test_each_source_has_its_share_and_uses_all_its_images(root):
    images = data(root, MIXTURE).outliers()
    stream = OutlierStream(images, seed=1)
    drawn = stream.indices(torch.arange(BLOCK))
    assert (drawn < 13).sum() == BLOCK * 3 // 4
    for first, last, count in ((0, 13, 7500), (13, 42, 2500)):
        used = torch.bincount(drawn[(drawn >= first) & (drawn < last)] - first)
        assert len(used) == last - first
        assert used.min() >= count // len(used)
        assert used.max() <= count // len(used) + 1
    # Whatever piece of the stream is asked for, and across the border of a block.
    across = torch.arange(BLOCK - 37, BLOCK + 41)
    whole = OutlierStream(images, seed=1).indices(torch.arange(2 * BLOCK))
    assert torch.equal(stream.indices(across), whole[across])
    assert not torch.equal(OutlierStream(images, seed=2).indices(across), whole[across])


def test_batches_are_of_the_sources_and_do_not_depend_on_processes(root):
    module = data(root, MIXTURE)
    found = seen(module.train_dataloader())
    assert set(found[:, 0].tolist()) == {1, 2}
    settings = {"seed": 0, "world": 2, "batch_size": 4, "outlier_batch_size": 5}
    parts = []
    for rank in range(2):
        loader = TrainingLoader(module.inliers("train"), module.outliers(), rank=rank, **settings)
        parts.append(seen(loader).view(-1, 5, 2))
    together = torch.stack(parts, 1).reshape(-1, 2)
    assert torch.equal(together, found)


def test_one_source_is_drawn_as_ever(root):
    plain = seen(data(root, "dark").train_dataloader())
    listed = seen(data(root, [{"set": "dark", "weight": 5}]).train_dataloader())
    assert torch.equal(plain, listed)


def test_a_folder_of_generated_images_is_a_source(root):
    module = data(root, [{"set": "generated", "weight": 0.5}, {"set": "dark", "weight": 0.5}])
    images = module.outliers()
    assert images.name == "generated+dark"
    assert len(images) == 34
    read = images.read(torch.tensor([4, 5, 0]))
    assert read[0].unique().tolist() == [160]
    assert read[1, :2, 0, 0].tolist() == [2, 0]
    files = data(root, [*MIXTURE, {"set": "generated"}], reading=_on_disk()).outliers()
    assert not files.in_memory
    assert torch.equal(
        files.read(torch.tensor([46, 41])), torch.cat([read[:1], files.read(torch.tensor([41]))])
    )


def _on_disk():
    from robust_ood.data import ReadingOptions

    return ReadingOptions(memory_limit=0)


def test_an_unreadable_image_of_any_source_is_named(root):
    images = data(root, [*MIXTURE, {"set": "generated"}], reading=_on_disk()).outliers()
    part = images.images.parts[2]

    class Broken:
        dtype, shape = part.dtype, part.shape

        def __len__(self):
            return len(part)

        def __getitem__(self, indices):
            raise UnreadableImagesError([len(indices) - 1], ["generated/3.png (cut)"])

    images.images.parts[2] = Broken()
    taken = images.take(torch.tensor([0, 43, 1]))
    assert taken.indices.tolist() == [0, 1]
    assert taken.unreadable == ("generated/3.png (cut)",)


MISTAKES = [
    ([], "data.outliers: is an empty list"),
    ([{"set": "light", "weight": 0}], r"data.outliers\[0\].weight: expected .* > 0, got 0"),
    ([{"set": "light"}, {"set": "dark", "weight": -1}], r"data.outliers\[1\].weight"),
    ([{"set": "light", "weight": float("nan")}], r"data.outliers\[0\].weight"),
    ([{"set": "light", "weight": "much"}], r"data.outliers\[0\].weight"),
    ([{"set": "light", "wieght": 1}], r"data.outliers\[0\].wieght: no such setting; did you mean"),
    ([{"source": "light"}], r"data.outliers\[0\]: expected \{set"),
    (["light"], r"data.outliers\[0\]: expected \{set"),
    ([{"set": {"sauce": 1}}], r"data.outliers\[0\].set"),
]


@pytest.mark.parametrize(("outliers", "message"), MISTAKES)
def test_mistakes_name_their_place(root, outliers, message):
    with pytest.raises(UserError, match=message):
        data(root, outliers)


def test_mistakes_that_show_when_sets_are_read(root, tmp_path):
    with pytest.raises(UserError, match=r"data.outliers\[1\].set: .*missing"):
        data(root, [{"set": "light"}, {"set": "missing"}]).outliers()
    np.savez(root / "wide.npz", images=np.zeros((3, 9, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r"data.outliers\[1\]: images of wide are \(3, 9, 9\)"):
        OODData("train", outliers=[{"set": "light"}, {"set": "wide"}], root=root).outliers()
    with pytest.raises(UserError, match=r"dark is also in data\.outliers"):
        data(root, MIXTURE, far=["dark"])
    with pytest.raises(UserError, match=r"weight: 1e-09 of 1 is less than one outlier in 10000"):
        _shared_out(BLOCK, (1.0, 1e-9))


def fit(make_net, root, folder, mining, resume=None):
    torch.manual_seed(1 if resume else 0)
    net = make_net(seed=3 if resume else 0, dtype=torch.float32)
    method = OE(net, optimization=Optimization(0.05))
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, max_epochs=2,
        callbacks=[Checkpoints(every_n_steps=1, keep_every_n_steps=1), mining],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(method, data(root, MIXTURE), ckpt_path=resume)
    return method.state_dict()


@pytest.mark.parametrize("pool", [None, 2])
def test_resuming_is_exact(make_net, root, tmp_path, pool):
    skip = 0.125
    mining = HardOutliers(pool, skip)
    whole = fit(make_net, root, tmp_path / "whole", mining)
    if pool:
        share = (mining.chosen < 13).float().mean()
        assert 0 < share < 1
    checkpoint = tmp_path / "whole" / "step-8.ckpt"
    again = fit(make_net, root, tmp_path / "again", HardOutliers(pool, skip), checkpoint)
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
