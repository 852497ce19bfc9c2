"""KNN by indexes of faiss: the neighbours, the scores and the attacks of an exact search."""

import copy
import sys

import pytest
import torch
from torch import nn

from robust_ood.attacks import PGD, attack_score
from robust_ood.detectors import KNN
from robust_ood.errors import UserError
from robust_ood.regions import Linf


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3000, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def fitted(net, images, index, **settings):
    pytest.importorskip("faiss")
    detector = KNN(net, neighbours=5, index=index, **settings)
    return detector.fit([images])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("count", [1, 7, 64])  # faiss has other code for few queries
def test_the_flat_index_is_exact(net, images, normalize, count):
    exact = fitted(net, images, "exact", normalize=normalize)
    flat = fitted(net, images, "faiss-flat", normalize=normalize)
    assert flat.recall() == 1.0
    queries = torch.rand(count, 3, 8, 8)
    torch.testing.assert_close(flat(queries), exact(queries), atol=2e-6, rtol=1e-5)


def test_inverted_lists_say_what_they_miss(net, images):
    few = fitted(net, images, "faiss-ivf", probes=1)
    many = fitted(net, images, "faiss-ivf", probes=10_000)
    assert few.recall() < many.recall() == 1.0
    exact = fitted(net, images, "exact")
    queries = torch.rand(32, 3, 8, 8)
    torch.testing.assert_close(many(queries), exact(queries), atol=2e-6, rtol=1e-5)
    # Of fewer features, the k-th nearest is farther away.
    assert (few(queries) <= exact(queries) + 2e-6).all()


def test_lists_that_hold_too_few_are_searched_exactly(net, images):
    lists = fitted(net, images[:200], "faiss-ivf", probes=1)
    lists.neighbours = 150
    exact = fitted(net, images[:200], "exact")
    exact.neighbours = 150
    torch.testing.assert_close(lists(images[:9]), exact(images[:9]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("index", ["faiss-flat", "faiss-ivf"])
def test_attacks_are_as_strong_as_through_an_exact_search(net, images, index):
    exact = fitted(net, images, "exact")
    indexed = fitted(net, images, index, probes=8)
    attack = PGD(Linf(8 / 255), steps=10)
    few = images[:16]
    through_exact = attack_score(exact, few, attack, 1)
    through_index = attack_score(indexed, few, attack, 1)
    transferred = indexed(through_exact.images).mean()
    moved = indexed(few).mean() - through_index.values.mean()
    assert moved > 0
    # The attack through the index is no weaker than the one that knows all neighbours.
    assert through_index.values.mean() <= transferred + 0.05 * moved


def test_gradients_are_those_of_the_exact_distance(net, images):
    exact = fitted(net, images, "exact")
    flat = fitted(net, images, "faiss-flat")
    gradients = []
    for detector in (exact, flat):
        queries = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(4))
        queries.requires_grad_()
        detector.surrogate(queries).sum().backward()
        gradients.append(queries.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("index", ["faiss-flat", "faiss-ivf"])
def test_copies_and_states_need_no_index(net, images, index):
    detector = fitted(net, images, index)
    scores = detector(images[:20])
    assert torch.equal(copy.deepcopy(detector)(images[:20]), scores)
    loaded = KNN(net, neighbours=5, index=index)
    loaded.load_state_dict(detector.state_dict())
    assert torch.equal(loaded(images[:20]), scores)
    # Another bank has another index.
    other = loaded.fit([images[1000:]])
    assert not torch.equal(other(images[:20]), scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": "annoy"}, "index: expected .*faiss-flat.*annoy"),
        ({"index": "faiss-hnsw"}, "index: expected .*faiss-hnsw"),
        ({"index": "faiss-ivf", "probes": 0}, "probes: expected at least 1, got 0"),
        ({"probes": 1.5}, "probes"),
    ],
)
def test_bad_settings_are_one_line(net, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        KNN(net, **settings)
    assert "\n" not in str(raised.value)


def test_the_missing_extra_is_named(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"index: .*robust-ood\[neighbours\]"):
        KNN(net, index="faiss-flat")
