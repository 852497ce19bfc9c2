"""Batches do not depend on who reads them: this process, worker processes, or the device."""

import multiprocessing
import pickle
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood.data import (
    EvaluationLoader,
    ImageSet,
    OODData,
    Reading,
    ReadingOptions,
    TrainingLoader,
)
from robust_ood.data.memory import take_by_threads
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.form import ImageForm
from robust_ood.data.transforms import Augmentation
from robust_ood.errors import UserError


def numbered(count, labels=True):
    """Images that carry their own index."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return ImageSet("numbered", images, np.arange(count) % 10 if labels else None)


def epoch(loader, number):
    loader.set_epoch(number)
    return list(loader)


def same(a, b):
    return a[4:] == b[4:] and all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))


@pytest.fixture(scope="module")
def in_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    paths = [folder / f"{index:02}.png" for index in range(40)]
    for index, path in enumerate(paths):
        Image.fromarray(np.full((6, 6, 3), index, np.uint8)).save(path)
    return ImageSet("pets", ImageFiles(paths, ImageForm(2), "pets"), np.arange(40) % 3)


def loader(inliers, outliers, reading=None):
    return TrainingLoader(
        inliers, outliers, batch_size=8, outlier_batch_size=6, seed=1, reading=reading
    )


@pytest.mark.parametrize("reading", [Reading(1), Reading(2), Reading(device=torch.device("cpu"))])
def test_who_reads_does_not_matter(in_files, tmp_path, reading):
    np.save(tmp_path / "outliers.npy", numbered(23).images)
    mapped = ImageSet("mapped", np.load(tmp_path / "outliers.npy", mmap_mode="r"))
    for inliers, outliers in (
        (in_files, mapped),
        (numbered(50), numbered(23, labels=False)),
        (numbered(50), None),
    ):
        other = loader(inliers, outliers, reading)
        for number in (0, 3):
            expected = epoch(loader(inliers, outliers), number)
            assert all(map(same, epoch(other, number), expected))
            assert len(expected) == len(other)


def test_workers_resume_in_the_middle(in_files):
    whole = epoch(loader(in_files, in_files), 2)
    stopped = loader(in_files, in_files, Reading(2))
    stopped.set_epoch(2)
    running = iter(stopped)
    before = [next(running), next(running)]
    state = stopped.state_dict()  # workers have read further ahead than what was handed out
    del running
    resumed = loader(in_files, in_files, Reading(2))
    resumed.load_state_dict(state)
    assert all(map(same, [*before, *epoch(resumed, 2)], whole))


def test_an_epoch_that_was_cut_short_is_not_continued(in_files):
    source = loader(in_files, None)
    source.set_epoch(0)
    running = iter(source)
    next(running)
    assert all(map(same, epoch(source, 1), epoch(loader(in_files, None), 1)))
    stale = loader(in_files, None)
    stale.load_state_dict({"epoch": 0, "position": 2})
    assert all(map(same, epoch(stale, 1), epoch(loader(in_files, None), 1)))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="who sent a signal is not known")
@pytest.mark.parametrize("name", ["TERM", "HUP", "INT"])
def test_workers_go_on_when_a_launcher_signals_the_whole_group(in_files, name):
    """torchrun and SLURM do; the run still needs batches to complete its step."""
    whole = epoch(loader(in_files, in_files), 0)
    others = set(multiprocessing.active_children())
    running = iter(loader(in_files, in_files, Reading(2)))
    before = [next(running), next(running)]  # one of each worker
    workers = [str(process.pid) for process in set(multiprocessing.active_children()) - others]
    assert len(workers) == 2
    subprocess.run(["kill", f"-{name}", *workers], check=True)
    time.sleep(0.2)
    assert all(map(same, [*before, *running], whole))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="who sent a signal is not known")
def test_a_worker_obeys_its_parent(in_files):
    others = set(multiprocessing.active_children())
    running = iter(loader(in_files, in_files, Reading(1)))
    next(running)
    (worker,) = set(multiprocessing.active_children()) - others
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(running)


def test_evaluation_by_workers(in_files):
    expected = list(EvaluationLoader(in_files, batch_size=7, limit=30))
    found = list(EvaluationLoader(in_files, batch_size=7, limit=30, reading=Reading(2)))
    assert len(found) == 5
    assert all(map(same, found, expected))


def test_workers_leave_the_global_generator_alone(in_files):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    epoch(loader(in_files, None, Reading(1)), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(UserError, match=r"workers: expected .* >= 0, got -1"):
        Reading(-1)


# Augmentation by workers
# ---------------------------------------------------------------------------------------------------------


class OnCPU:
    """What the module asks of a trainer on the CPU; the second of two processes."""

    class strategy:  # noqa: N801  # an attribute of trainers
        root_device = torch.device("cpu")

    global_rank, world_size, training = 1, 2, True


AUGMENTATIONS = [
    "crop_and_flip",
    "none",
    ["RandAugment", {"name": "GaussianBlur", "kernel_size": 3}, {"name": "mixup", "alpha": 0.5}],
    [
        {"name": "RandomResizedCrop", "size": 8},
        {"name": "ToDtype", "dtype": torch.float32, "scale": True},
    ],
]


def augmented(in_files, augmentation, workers):
    data = OODData(
        augmentation=augmentation,
        num_classes=3,
        batch_size=4,
        outlier_batch_size=6,
        reading=ReadingOptions(workers=workers),
    )
    data.names["train"] = "pets"
    data.auxiliary = "pets"
    data._loaded["'pets'"] = in_files
    data.trainer = OnCPU()
    source = data.train_dataloader()
    source.set_epoch(1)
    return [data.on_after_batch_transfer(batch, 0) for batch in source]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_who_augments_does_not_matter(large_files, augmentation):
    expected = augmented(large_files, augmentation, 0)
    assert len(expected) == 5
    assert all(map(same, augmented(large_files, augmentation, 2), expected))
    plain = augmented(large_files, "none", 0)
    assert same(expected[0], plain[0]) == (augmentation == "none")


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_leaves_outliers_alone(large_files, name):
    plain = augmented(large_files, "none", 0)
    for mixed, batch in zip(augmented(large_files, [name], 0), plain, strict=True):
        assert torch.equal(mixed.outliers, batch.outliers)
        assert not torch.equal(mixed.images, batch.images)
        assert mixed.labels.shape == (4, 3)  # shares of the classes


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    draw = np.random.default_rng(0)
    paths = [folder / f"{index:02}.png" for index in range(40)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
    return ImageSet("pets", ImageFiles(paths, ImageForm(8), "pets"), np.arange(40) % 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_an_augmentation_is_one_line_from_workers_too(in_files, workers):
    def ragged(batch):
        raise UserError("data.augmentation: Ragged gives images of several shapes")

    source = TrainingLoader(
        in_files,
        None,
        batch_size=8,
        outlier_batch_size=0,
        seed=1,
        reading=Reading(workers),
        augment=ragged,
    )
    with pytest.raises(UserError) as caught:
        list(source)
    assert str(caught.value) == "data.augmentation: Ragged gives images of several shapes"


def test_augmentations_reach_workers_that_do_not_fork():
    images = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8).repeat(4, 1, 1, 1)
    for given in AUGMENTATIONS[:3]:
        augmentation = Augmentation(given, 3)
        copied = pickle.loads(pickle.dumps(augmentation))
        expected = augmentation.transformed(images, 0, "augment inliers", 1, 2, 3)
        assert torch.equal(copied.transformed(images, 0, "augment inliers", 1, 2, 3), expected)


# On a GPU
# ---------------------------------------------------------------------------------------------------------


class Strategy:
    root_device = torch.device("cuda")


class Trainer:
    """What the module asks of a trainer on a GPU."""

    strategy, global_rank, world_size, training = Strategy(), 0, 1, True


@pytest.mark.parametrize(
    ("settings", "free", "wanted"),
    [
        ({}, 40_000, Reading(device=Strategy.root_device)),
        ({}, 30_000, Reading(pin=True)),  # 9,600 bytes are more than a quarter of that
        ({"reading": ReadingOptions(on_device=False)}, 40_000, Reading(pin=True)),
        ({"outliers": "mapped", "reading": ReadingOptions(workers=2)}, 10**9, Reading(2, pin=True)),
        ({"reading": ReadingOptions(workers=2)}, 40_000, Reading(device=Strategy.root_device)),
    ],
)
def test_sets_are_kept_on_the_gpu_where_they_fit_and_pinned_where_not(
    tmp_path, monkeypatch, settings, free, wanted
):
    images = np.zeros((50, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.zeros(50, int))
    np.save(tmp_path / "mapped.npy", images)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**10))
    data = OODData(train="train", root=tmp_path, **settings)
    data.trainer = Trainer()
    assert data._training_reading() == wanted


def test_pinned_batches_are_the_same_and_nothing_of_them_is_left_out(monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: (pinned.append(tensor), tensor.clone())[1]
    )
    inliers, outliers = numbered(50), numbered(23, labels=False)
    found = epoch(loader(inliers, outliers, Reading(pin=True)), 1)
    assert all(map(same, found, epoch(loader(inliers, outliers), 1)))
    assert len(pinned) == 3 * len(found)  # images, labels, outliers


def test_threads_take_what_one_thread_takes(in_files, tmp_path):
    indices = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    alone = in_files.take(indices)
    for threads in (0, 1, 3):
        together = take_by_threads(in_files, indices, threads)
        assert all(map(torch.equal, together[:3], alone[:3]))
        assert together.unreadable == ()


def test_threads_name_unreadable_images_in_order(tmp_path):
    paths = [tmp_path / f"{index:02}.png" for index in range(40)]
    for index, path in enumerate(paths):
        if index % 9:
            Image.fromarray(np.full((6, 6, 3), index, np.uint8)).save(path)
        else:
            path.write_bytes(b"no image")
    images = ImageSet("pets", ImageFiles(paths, ImageForm(2), "pets"), np.arange(40) % 3)
    alone = images.take(torch.arange(40))
    together = take_by_threads(images, torch.arange(40), 3)
    assert len(alone.unreadable) == 5
    assert together.unreadable == alone.unreadable
    assert all(map(torch.equal, together[:3], alone[:3]))


def test_items_that_draw_are_read_by_one_thread(monkeypatch):
    class Drawing:
        draws = True
        dtype = np.dtype(np.uint8)
        shape = (40, 2, 2, 3)

        def __len__(self):
            return 40

        def __getitem__(self, indices):
            return np.random.randint(0, 256, (len(indices), 2, 2, 3), dtype=np.uint8)

    images = ImageSet("drawing", Drawing(), None)
    np.random.seed(0)
    alone = images.take(torch.arange(40))
    np.random.seed(0)
    assert torch.equal(take_by_threads(images, torch.arange(40), 3).images, alone.images)


def test_an_evaluation_has_the_same_rows_with_workers(tmp_path, make_net):
    from robust_ood.detectors import MSP
    from robust_ood.evaluation import Grid, Store

    for name in ("test", "far"):
        for index in range(36):
            label = f"{index % 4}" if name == "test" else "."
            path = tmp_path / name / label / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    net = make_net(dtype=torch.float32)
    rows = []
    for workers in (0, 3):
        data = OODData(
            root=tmp_path, test="test", far=["far"], num_classes=4, size=6,
            reading=ReadingOptions(workers=workers, memory_limit=0),
        )  # fmt: skip
        grid = Grid(data, {}, Store())
        grid.add("net", net, {"msp": MSP(net)})
        grid.compute()
        rows.append([replace(row, seconds=0.0) for row in grid.results().rows])
        assert grid.sets[0].chunks[0].threads == workers
    assert rows[0] == rows[1]
