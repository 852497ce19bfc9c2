"""Loaders: every batch is a pure function of (seed, epoch, step, rank)."""

from collections import Counter

import numpy as np
import pytest
import torch

from robust_ood.data import Batch, EvaluationLoader, ImageSet, OODData, TrainingLoader, to_float
from robust_ood.errors import UserError


def numbered(count, name="numbered", labels=True):
    """Images that carry their own index, so that a batch shows where it came from."""
    index = np.arange(count)
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = index % 256, index // 256
    return ImageSet(name, images, index % 10 if labels else None)


def indices_of(images):
    return (images[:, 0, 0, 0].long() + 256 * images[:, 1, 0, 0].long()).tolist()


def loader(count=50, outliers=23, *, batch=8, outlier_batch=6, seed=3, rank=0, world=1):
    return TrainingLoader(
        numbered(count),
        numbered(outliers, labels=False) if outliers else None,
        batch_size=batch,
        outlier_batch_size=outlier_batch,
        seed=seed,
        rank=rank,
        world=world,
    )


def epoch(loader, number):
    loader.set_epoch(number)
    return list(loader)


def same(a: Batch, b: Batch):
    return (a.epoch, a.step, a.replay) == (b.epoch, b.step, b.replay) and all(
        torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)
    )


def test_images_labels_and_indices_belong_together():
    for batch in epoch(loader(300), 2):
        assert indices_of(batch.images) == batch.indices.tolist()
        assert batch.labels.tolist() == [index % 10 for index in batch.indices.tolist()]
        assert batch.images.dtype == torch.uint8
        assert (batch.images.shape, batch.outliers.shape) == ((8, 3, 2, 2), (6, 3, 2, 2))


def test_an_epoch_uses_each_image_once_and_leaves_out_an_incomplete_batch():
    batches = epoch(loader(50), 0)
    assert [batch.step for batch in batches] == list(range(6)) == list(range(len(loader(50))))
    used = [index for batch in batches for index in batch.indices.tolist()]
    assert len(used) == len(set(used)) == 48


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    torch.manual_seed(0)
    first = epoch(loader(), 4)
    torch.manual_seed(1)
    torch.rand(3)
    again = loader()
    epoch(again, 0)  # what came before does not matter
    assert all(map(same, first, epoch(again, 4)))
    assert first[0].indices.tolist() != epoch(again, 5)[0].indices.tolist()
    assert first[0].indices.tolist() != epoch(loader(seed=4), 4)[0].indices.tolist()
    assert first[0].indices.tolist() != sorted(first[0].indices.tolist())


def test_reading_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    epoch(loader(), 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_ranks_share_each_epoch_without_overlap():
    ranks = [
        epoch(loader(64, 24, batch=8, outlier_batch=6, rank=rank, world=2), 1) for rank in (0, 1)
    ]
    assert [len(batches) for batches in ranks] == [4, 4]
    inliers = [{i for batch in batches for i in batch.indices.tolist()} for batches in ranks]
    assert not inliers[0] & inliers[1]
    assert inliers[0] | inliers[1] == set(range(64))
    outliers = Counter(
        i for batches in ranks for batch in batches for i in indices_of(batch.outliers)
    )
    assert outliers == Counter(
        list(range(24)) * 2
    )  # 2 ranks x 4 steps x 6 outliers are two whole passes


def test_a_step_of_two_ranks_is_one_step_of_one_rank():
    alone = epoch(loader(64, 24, batch=16, outlier_batch=12), 1)
    first, second = (
        epoch(loader(64, 24, batch=8, outlier_batch=6, rank=rank, world=2), 1) for rank in (0, 1)
    )
    for whole, a, b in zip(alone, first, second, strict=True):
        assert whole.indices.tolist() == [*a.indices.tolist(), *b.indices.tolist()]
        assert indices_of(whole.outliers) == [*indices_of(a.outliers), *indices_of(b.outliers)]


@pytest.mark.parametrize(
    ("outliers", "outlier_batch"), [(23, 6), (7, 6), (5, 13), (1, 3), (500, 6)]
)
def test_outliers_are_one_endless_stream_of_shuffled_passes(outliers, outlier_batch):
    source = loader(50, outliers, outlier_batch=outlier_batch)
    stream = [
        i
        for number in range(12)
        for batch in epoch(source, number)
        for i in indices_of(batch.outliers)
    ]
    assert len(stream) == 12 * 6 * outlier_batch
    passes = [stream[start : start + outliers] for start in range(0, len(stream), outliers)]
    assert all(sorted(one) == list(range(outliers)) for one in passes[:-1])
    assert len(set(passes[-1])) == len(passes[-1])
    if 1 < outliers <= 23:
        assert len({tuple(one) for one in passes[:-1]}) > 1


def test_an_image_set_too_large_for_one_byte_is_shuffled_evenly():
    source = loader(2000, None, batch=100, outlier_batch=0)
    first = np.array(
        [batch.indices.tolist() for number in range(40) for batch in epoch(source, number)[:1]]
    )
    counts = np.histogram(first, bins=10, range=(0, 2000))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square, 9 degrees of freedom, p = .001


@pytest.mark.parametrize("replays", [1, 2, 4])
@pytest.mark.parametrize("stop", range(1, 7))
def test_resuming_after_any_batch_equals_never_stopping(stop, replays):
    whole = [*epoch(repeating(replays), 3), *epoch(repeating(replays), 4)]
    source = repeating(replays)
    source.set_epoch(3)
    running = iter(source)
    before = [next(running) for _ in range(stop)]
    state = source.state_dict()

    resumed = repeating(replays)
    resumed.load_state_dict(state)
    resumed.set_epoch(3 if stop < 6 else 4)
    after = list(resumed)
    resumed.set_epoch(4)
    after += list(resumed) if stop < 6 else []
    assert len(before) + len(after) == len(whole)
    assert all(map(same, [*before, *after], whole))


def repeating(replays, **settings):
    source = loader(**settings)
    source.replays = replays
    return source


@pytest.mark.parametrize("replays", [2, 3, 4, 9])
def test_replays_are_batches_in_a_row_and_all_images_have_their_turn(replays):
    """Of 6 steps an epoch, whatever m; distinct batches are those of the loader without replays."""
    source = repeating(replays)
    different = -(-6 // replays)
    batches = []
    for number in range(2 * replays):
        steps = epoch(source, number)
        assert len(steps) == len(source) == 6
        for place, batch in enumerate(steps):
            assert (batch.epoch, batch.step + batch.replay) == (number, place)
            assert batch.replay == place % replays
            assert same(batch, steps[batch.step]._replace(replay=batch.replay))
        batches += [batch for batch in steps if batch.replay == 0]
    assert len(batches) == 2 * replays * different
    plain = loader()
    expected = [batch for number in range(2 * replays) for batch in epoch(plain, number)]
    for batch, other in zip(batches, expected, strict=False):
        assert batch.indices.tolist() == other.indices.tolist()
        assert indices_of(batch.outliers) == indices_of(other.outliers)


def test_replays_of_two_ranks_and_of_chosen_outliers():
    alone = repeating(3, count=64, outliers=24, batch=16, outlier_batch=12)
    halves = []
    for rank in (0, 1):
        half = repeating(3, count=64, outliers=24, outlier_batch=6, rank=rank, world=2)
        half.choose_outliers = lambda number: torch.arange(20)
        halves.append(half)
    chosen = []
    for whole, first, second in zip(epoch(alone, 1), *(epoch(h, 1) for h in halves), strict=True):
        assert whole.indices.tolist() == [*first.indices.tolist(), *second.indices.tolist()]
        chosen.append([*indices_of(first.outliers), *indices_of(second.outliers)])
    assert chosen[0] == chosen[1] == chosen[2] == list(range(12))
    assert chosen[3] == [*range(12, 20), *range(4)]


def test_without_outliers_their_tensor_is_empty():
    for source in (loader(outliers=0), loader(outlier_batch=0)):
        assert next(iter(source)).outliers.shape == (0, 3, 2, 2)


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(
        UserError, match=r"batch_size: 40 on 2 process\(es\) is more than the 50 images of numbered"
    ):
        loader(50, batch=40, world=2)


@pytest.mark.parametrize(
    ("count", "limit", "world"), [(10, None, 1), (10, 7, 1), (10, 99, 3), (1, None, 2)]
)
def test_evaluation_reads_each_image_once_in_order(count, limit, world):
    parts = [
        EvaluationLoader(numbered(count), batch_size=4, limit=limit, rank=r, world=world)
        for r in range(world)
    ]
    seen = []
    for rank, part in enumerate(parts):
        batches = list(part)
        assert len(batches) == len(part)
        assert all(len(batch.outliers) == 0 for batch in batches)
        indices = [i for batch in batches for i in batch.indices.tolist()]
        assert indices == [i for batch in batches for i in indices_of(batch.images)]
        assert all(index % world == rank for index in indices)
        seen += indices
    assert sorted(seen) == list(range(min(count, limit or count)))


def test_floats_are_exact_fractions():
    assert torch.equal(to_float(torch.arange(256, dtype=torch.uint8)), torch.arange(256) / 255)


def test_a_limit_draws_from_the_whole_set_and_always_the_same():
    by_class = ImageSet("by class", numbered(40).images, np.arange(40) // 10)
    seen = [
        torch.cat(
            [
                batch.labels
                for batch in OODData(evaluation_batch_size=3).evaluation_loader(by_class, limit)
            ]
        )
        for limit in (8, 8, 40, None)
    ]
    assert set(seen[0].tolist()) == {0, 1, 2, 3}
    assert torch.equal(seen[0], seen[1])
    assert len(seen[0]) == 8
    assert seen[2].tolist() == seen[3].tolist() == by_class.labels.tolist()


def test_outliers_that_nobody_reads_are_not_loaded(tmp_path):
    data = OODData(train="digits/train", outliers="absent.npy", outlier_batch_size=0, root=tmp_path)
    data.setup("fit")
    assert not len(next(iter(data.train_dataloader())).outliers)
    with pytest.raises(UserError, match=r"data\.outliers: no such file"):
        OODData(train="digits/train", outliers="absent.npy", root=tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size: expected .* >= 1, got 0"),
        ({"evaluation_batch_size": -1}, r"data\.evaluation_batch_size: expected .* >= 1, got -1"),
        ({"outlier_batch_size": -1}, r"data\.outlier_batch_size: expected .* >= 0, got -1"),
    ],
)
def test_unusable_sizes(settings, message):
    with pytest.raises(UserError, match=message):
        OODData(**settings)


def test_a_part_that_is_not_named_is_refused_only_where_it_is_needed(tmp_path):
    data = OODData(train="digits/train")
    data.setup("fit")
    with pytest.raises(UserError, match=r"data\.test: not given"):
        data.setup("test")


def test_pixels_become_the_nearest_floats_of_their_fractions():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    expected = values.double().div(255).float()  # rounded once
    assert torch.equal(to_float(values), expected)
    images = values.expand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    assert to_float(images).is_contiguous(memory_format=torch.channels_last)
    assert images[0, 0, 0, 1] == 1  # what was given is left alone
