"""What fitting promises: the right statistics, in few passes, from any loader; and state that
survives saving.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import empirical_covariance, shrunk_covariance
from sklearn.linear_model import LogisticRegression
from torch import nn

from robust_ood import detectors
from robust_ood.data.loaders import Batch
from robust_ood.detectors.fitting.calibration import CalibrationSlopes, best_temperature
from robust_ood.detectors.fitting.gaussians import whitening
from robust_ood.detectors.fitting.image_keys import image_digests, image_keys
from robust_ood.detectors.fitting.passes import Pass
from robust_ood.detectors.fitting.quantiles import Quantile
from robust_ood.detectors.fitting.statistics import ClassExtremes, ClassMoments, Sample
from robust_ood.detectors.neighbours import smallest
from robust_ood.errors import UserError
from robust_ood.models import ThinResNet

SMALL = {
    "knn": {"neighbours": 5},
    "combood": {"neighbours": 5, "layers": "norm"},
    "gram": {"layers": "norm"},
    "rankfeat": {"layers": "norm"},
    "weiper": {"repeats": 5},
    "corp": {"random_features": 64},
    "mahalanobis-layers": {"layers": ["conv", "norm"]},
}
OF_OTHER_NETWORKS = (
    "complexity",
    "deep-ensemble",
    "likelihood",
    "discriminator",
    "outlier-class",
    "reconstruction",
    "zero-shot",
    "neglabel",
)

NAMES = [name for name in detectors.REGISTRY if name not in OF_OTHER_NETWORKS]


def build(name, net):
    quick = {"safe-spot": {"method": "fgsm", "attack_steps": 2}}
    return detectors.build(name, net, **SMALL.get(name, {}), **quick.get(name, {}))


@pytest.fixture(scope="module")
def problem(make_net, make_images):
    """A network, batches of 240 images with labels of which some are the predicted ones, and images
    to score.
    """
    net = make_net(dtype=torch.float32)
    images = make_images(240, dtype=torch.float32)
    with torch.no_grad():
        labels = torch.where(
            torch.arange(240) % 3 == 0, torch.arange(240) % 4, net(images).argmax(1)
        )
    return (
        net,
        list(zip(images.split(60), labels.split(60), strict=True)),
        make_images(9, seed=5, dtype=torch.float32),
    )


def rows(count, size, seed=0, kind=torch.float64):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=kind)


# --- statistics


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5), offset=st.sampled_from([0.0, 1e4])
)
def test_moments_of_any_split_equal_those_of_all(sizes, offset):
    vectors = rows(sum(sizes) + 3, 4) + offset
    classes = torch.cat(
        [
            torch.arange(3),
            torch.randint(3, (sum(sizes),), generator=torch.Generator().manual_seed(1)),
        ]
    )
    moments = ClassMoments(3)
    for part, labels in zip(vectors.split([3, *sizes]), classes.split([3, *sizes]), strict=True):
        moments.add(part, labels)
    centered = vectors.clone()
    for c in range(3):
        centered[classes == c] -= vectors[classes == c].mean(0)
    torch.testing.assert_close(
        moments.within, centered.T @ centered / len(vectors), atol=1e-6, rtol=1e-6
    )
    overall = torch.from_numpy(empirical_covariance(vectors.numpy()))
    torch.testing.assert_close(moments.overall, overall, atol=1e-6, rtol=1e-6)


def test_sums_are_float64_whatever_the_features_are():
    moments = ClassMoments(1)
    for part in (rows(20_000, 1, kind=torch.float32) * 1e-3 + 100).split(100):
        moments.add(part, torch.zeros(100, dtype=torch.int64))
    assert moments.within.sqrt().item() == pytest.approx(
        1e-3, rel=0.02
    )  # float32 sums give garbage


@settings(max_examples=60)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    share=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
)
def test_streamed_quantiles_equal_numpy(values, share):
    tensor = torch.tensor(values)
    quantile = Quantile(share)
    for passes in quantile.rounds(
        lambda statistic: Pass(statistic, lambda seen: (seen,), nn.Identity())
    ):
        for part in tensor.split(7):
            for item in passes:
                item.statistic.add(part)
    expected = np.quantile(tensor.double().numpy(), share)
    assert quantile.value == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_extremes_are_of_each_class():
    vectors, classes = rows(40, 3), torch.arange(40) % 4
    extremes = ClassExtremes(4)
    for part, labels in zip(vectors.split(7), classes.split(7), strict=True):
        extremes.add(part, labels)
    assert torch.equal(extremes.low, torch.stack([vectors[classes == c].amin(0) for c in range(4)]))
    assert torch.equal(
        extremes.high, torch.stack([vectors[classes == c].amax(0) for c in range(4)])
    )


@settings(max_examples=20)
@given(order=st.permutations(range(30)), size=st.sampled_from([1, 8, 29, 40]))
def test_a_sample_does_not_depend_on_order(order, size):
    vectors, keys = rows(30, 2), torch.randperm(30, generator=torch.Generator().manual_seed(3))
    sample = Sample(size)
    for part in torch.tensor(order).split(4):
        sample.add(vectors[part], keys[part])
    sample.reduce()
    assert torch.equal(sample.rows, vectors[keys.argsort()[:size]])


def test_image_keys_are_of_the_image_alone_and_spread(make_images):
    images = make_images(500, dtype=torch.float32)
    numbers = image_keys(images)
    assert torch.equal(image_keys(images[17:18]), numbers[17:18])
    assert len(numbers.unique()) == 500
    assert (numbers >= 0).all()
    shares = torch.bincount(numbers % 10, minlength=10)  # 50 each, with a standard deviation of 7
    assert 20 < shares.min() <= shares.max() < 80
    assert image_digests((images * 255).round().to(torch.uint8)) == image_digests(images)


@settings(max_examples=40)
@given(size=st.integers(1, 1200), count=st.integers(1, 6), levels=st.sampled_from([3, 10**9]))
def test_the_smallest_are_those_of_a_full_sort(size, count, levels):
    count = min(count, size)
    values = torch.randint(
        levels, (4, size), generator=torch.Generator().manual_seed(size)
    ).double()
    found, columns = smallest(values, count)
    assert torch.equal(found.sort(1).values, values.sort(1).values[:, :count])
    assert torch.equal(values.gather(1, columns), found)
    assert all(len(set(row)) == count for row in columns.tolist())


# --- linear algebra and calibration


def test_whitened_lengths_are_mahalanobis_distances():
    vectors = rows(200, 5) @ rows(5, 5, seed=1)
    covariance = torch.from_numpy(empirical_covariance(vectors.numpy()))
    for shrinkage in (0.0, 0.3):
        expected = torch.from_numpy(shrunk_covariance(covariance.numpy(), shrinkage=shrinkage))
        matrix = whitening(covariance, shrinkage)
        torch.testing.assert_close(matrix.T @ expected @ matrix, torch.eye(5, dtype=torch.float64))
    assert torch.equal(whitening(covariance, "auto"), whitening(covariance, 0.0))


def test_singular_covariances_are_shrunk_just_enough():
    vectors = torch.cat([rows(50, 3), torch.zeros(50, 1)], dim=1)  # a dead feature
    covariance = vectors.T @ vectors / 50
    scales = torch.linalg.svdvals(whitening(covariance)).square()
    assert scales.max() / scales.min() == pytest.approx(1e6, rel=1e-3)
    with pytest.raises(UserError, match="singular"):
        whitening(covariance, 0.0)
    with pytest.raises(UserError, match="do not vary"):
        whitening(torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.05, 1.0, 37.0])
def test_calibration_finds_the_temperature_that_labels_were_drawn_with(temperature):
    logits = rows(40_000, 4) * 3 * temperature
    labels = torch.multinomial(
        (logits / temperature).softmax(1), 1, generator=torch.Generator().manual_seed(0)
    )[:, 0]
    coarse = CalibrationSlopes.coarse()
    coarse.add(logits, labels)
    fine = coarse.refined()
    fine.add(logits, labels)
    assert best_temperature(fine) == pytest.approx(temperature, rel=0.03)
    inverse = torch.tensor(1 / best_temperature(fine), requires_grad=True, dtype=torch.float64)
    loss = nn.functional.cross_entropy(logits * inverse, labels)
    slope, scale = torch.autograd.grad(loss, inverse)[0], temperature
    assert abs(slope.item()) < 1e-4 * scale


# --- fitting


class TupleBatch(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


@pytest.mark.parametrize("name", NAMES)
def test_the_fit_does_not_depend_on_batches_order_or_kind_of_loader(problem, name):
    net, loader, images = problem
    whole, labels = torch.cat([b[0] for b in loader]), torch.cat([b[1] for b in loader])
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = build(name, net).fit([TupleBatch(whole, labels)])(images)
        shuffled = [(whole[part], labels[part]) for part in order.split(37)]
        torch.testing.assert_close(
            build(name, net).fit(shuffled)(images), expected, rtol=1e-4, atol=1e-4
        )


def numbers_held(value):
    """Return how many numbers the tensors hold that a statistic refers to."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, dict):
        return sum(map(numbers_held, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(numbers_held, value))
    return 0


class Watched(nn.Module):
    """A detector, and what its statistics hold when a round ends."""

    def __init__(self, detector):
        super().__init__()
        self.detector, self.held = detector, []

    def learn(self):
        for passes in self.detector.learn():
            yield passes
            self.held.append(sum(numbers_held(vars(item.statistic)) for item in passes))


# They keep a sample whose bound is larger than these few images.
SAMPLED = ("adascale-a", "adascale-l", "mahalanobis-layers")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SAMPLED])
def test_fitting_holds_as_much_of_many_images_as_of_few(problem, name):
    net, loader, _ = problem
    bounded = {
        "knn": {"neighbours": 5, "bank_size": 60},
        "combood": {"neighbours": 5, "bank_size": 60, "layers": "norm"},
        "nnguide": {"bank_size": 60},
        "relation": {"bank_size": 60},
    }
    held = []
    for times in (1, 4):
        # Shifted a little, so that no image comes twice.
        batches = [(x * (1 - 0.01 * n), y) for n in range(times) for x, y in loader]
        chosen = bounded.get(name)
        detector = build(name, net) if chosen is None else detectors.build(name, net, **chosen)
        watched = Watched(detector)
        detectors.fit([watched], batches)
        kept = sum(buffer.numel() for buffer in detector.buffers())
        held.append((*watched.held, kept))
    few, many = held
    assert len(few) == len(many)
    for before, after in zip(few, many, strict=True):
        assert after <= 1.25 * before + 64  # four times the images; a subspace may gain a direction


def test_whole_numbers_are_pixels_of_255(problem):
    net, loader, images = problem
    levels = [((x * 255).round().to(torch.uint8), y) for x, y in loader]
    floats = [(x.float() / 255, y) for x, y in levels]
    nothing = torch.empty(0)
    batches = [Batch(x, y, nothing, nothing, 0, 0) for x, y in levels]
    with torch.no_grad():
        expected = detectors.Mahalanobis(net).fit(floats)(images)
        assert torch.equal(detectors.Mahalanobis(net).fit(levels)(images), expected)
        assert torch.equal(detectors.Mahalanobis(net).fit(batches)(images), expected)


class CountingNet(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.head, self.calls = net, net.head, 0

    def forward(self, images):
        self.calls += 1
        return self.net(images)


def test_detectors_fitted_together_share_forward_passes_and_equal_those_fitted_alone(problem):
    net, loader, images = problem
    counting = CountingNet(net)
    names = [
        "mahalanobis",
        "relative-mahalanobis",
        "knn",
        "vim",
        "residual",
        "react",
        "dice",
        "kl-matching",
        "msp-t",
    ]
    together = [build(name, counting) for name in names]
    assert counting.calls == 2  # one look for the head, and the trial of such images before it
    detectors.fit(together, loader)
    # Two passes for vim, react and the temperature, and the one trial of images of this size.
    assert counting.calls == 2 + 1 + 2 * len(loader)
    with torch.no_grad():
        for name, detector in zip(names, together, strict=True):
            assert torch.equal(detector(images), build(name, net).fit(loader)(images)), name


def test_fitting_leaves_flags_gradients_and_inference_mode_alone(problem):
    net, loader, images = problem
    net = copy.deepcopy(net).train()
    net.norm.eval()
    detector, standard = detectors.Mahalanobis(net), detectors.Standardize(detectors.ODIN(net))
    with torch.inference_mode():
        detectors.fit([detector, standard], loader)
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    net.eval()
    for fitted in (detector, standard):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(fitted.surrogate(leaf).sum(), leaf)
        assert gradient.abs().amax() > 0


def test_shaping_fits_the_inner_detector_on_what_it_will_see(problem):
    net, loader, images = problem
    detector = detectors.ReAct(detectors.Residual(net), percentile=50).fit(loader)
    with torch.no_grad():
        features = torch.cat([detectors.contract.outputs(net, x).features for x, _ in loader])
        clipped = features.clamp_max(float(np.quantile(features.double().numpy(), 0.5)))
    origin = -torch.linalg.pinv(net.head.weight.detach().double()) @ net.head.bias.detach().double()
    centered = clipped.double() - origin
    directions = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, :12]
    with torch.no_grad():
        scored = (
            detectors.contract.outputs(net, images).features.minimum(detector.threshold).double()
        )
    expected = -((scored - origin) @ directions).norm(dim=1)
    torch.testing.assert_close(detector(images).double(), expected, rtol=1e-4, atol=1e-6)


def test_several_layers_with_noise_equal_the_formula(problem):
    net, loader, images = problem
    noise, other = torch.rand(2, 60, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    plain = detectors.Mahalanobis(net, ("conv", "penultimate"))
    noisy = detectors.LayerNoise(plain, "1/255").fit(loader, outliers=[noise])
    total = plain.bias
    for place in range(2):
        leaf = images.clone().requires_grad_()
        score = plain.layer_score(detectors.contract.outputs(net, leaf, ("conv",)), place)
        moved = images + torch.autograd.grad(score.sum(), leaf)[0].sign() / 255
        with torch.no_grad():
            out = detectors.contract.outputs(net, moved, ("conv",))
            total = total + plain.weights[place] * plain.layer_score(out, place)
    torch.testing.assert_close(noisy(images), total, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert noisy(loader[0][0]).mean() > noisy(other).mean()


def test_layers_are_weighed_by_a_regression_on_outliers_in_any_order(problem):
    net, loader, images = problem
    noise = torch.rand(80, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    layered = detectors.Mahalanobis(net, ("conv", "penultimate")).fit(
        loader, outliers=noise.split(30)
    )
    with torch.no_grad():
        sides = [torch.cat([x for x, _ in loader]), noise]
        out = [detectors.contract.outputs(net, side, ("conv",)) for side in sides]
        columns = torch.cat(
            [torch.stack([layered.layer_score(o, place) for place in range(2)], 1) for o in out]
        ).double()
    standard = (columns - columns.mean(0)) / columns.std(0)
    target = np.repeat([1.0, 0.0], [len(sides[0]), 80])
    model = LogisticRegression(max_iter=1000).fit(standard.numpy(), target)
    with torch.no_grad():
        log_odds = layered.weigh(list(columns.T))
    np.testing.assert_allclose(
        log_odds, model.decision_function(standard.numpy()), rtol=1e-3, atol=1e-3
    )
    backwards = detectors.Mahalanobis(net, ("conv", "penultimate")).fit(
        loader[::-1], outliers=[noise.flip(0)]
    )
    torch.testing.assert_close(backwards(images), layered(images), rtol=1e-4, atol=1e-4)


def test_of_many_images_a_thousand_weigh_the_layers(problem, monkeypatch):
    net, loader, _ = problem
    seen = []
    layered = detectors.Mahalanobis(net, ("conv", "penultimate"))
    monkeypatch.setattr(detectors.fitting.regression, "COUNT", 50)
    scores = layered._layer_scores
    monkeypatch.setattr(
        layered, "_layer_scores", lambda images: seen.append(len(images)) or scores(images)
    )
    layered.fit(loader, outliers=[torch.rand(70, 3, 6, 6)])
    assert sum(seen) == 100


def test_without_outliers_layers_count_alike_and_the_detector_says_so(problem):
    net, loader, _ = problem
    noisy = detectors.build("mahalanobis-layers", net, layers=["conv", "penultimate"]).fit(loader)
    assert noisy.detector.weights.tolist() == [1.0, 1.0]
    assert dict(noisy.learns_from) == {"outliers": "its layers all count alike"}
    assert not detectors.Mahalanobis(net).learns_from


def test_a_temperature_is_fitted_on_validation_images_where_there_are_any(problem):
    net, loader, _ = problem
    # Labels that the network gets wrong more often than those it is fitted on want a flatter
    # softmax.
    held_out = [
        (x, torch.where(torch.arange(len(x)) % 2 == 0, torch.arange(len(x)) // 2 % 4, y))
        for x, y in loader
    ]
    plain = detectors.build("msp-t", net).fit(loader)
    careful = detectors.build("msp-t", net).fit(loader, validation=held_out)
    assert careful.temperature > 1.2 * plain.temperature
    assert dict(careful.learns_from) == {
        "validation": "its temperature is fitted on training images"
    }


@pytest.mark.parametrize(
    "name", ["mahalanobis", "relative-mahalanobis", "knn", "vim", "dice", "gradnorm"]
)
def test_a_half_precision_network_s_features_are_scored_in_full_precision(problem, name):
    net, loader, images = problem
    detector = build(name, net).fit(loader)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = detector(images)
        out = detectors.contract.outputs(net, images)
    with torch.no_grad():
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, detector.score(out))


# --- state


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_round_trip_through_a_file(problem, make_net, name, tmp_path):
    net, loader, images = problem
    fitted = nn.ModuleDict({"one": build(name, net).fit(loader)})
    torch.save(fitted.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = nn.ModuleDict({"one": build(name, make_net(seed=7, dtype=torch.float32))})
    fresh.load_state_dict(state)
    alone = build(name, make_net(seed=8, dtype=torch.float32))
    alone.load_state_dict({key.removeprefix("one."): value for key, value in state.items()})
    with torch.no_grad():
        assert torch.equal(fresh["one"](images), fitted["one"](images))
        assert torch.equal(alone(images), fitted["one"](images))
    assert fresh["one"].fitted
    assert alone.fitted


def test_an_ensemble_s_state_survives_a_round_trip_through_a_file(problem, make_net, tmp_path):
    images = problem[2]
    one, other = (
        detectors.DeepEnsemble([make_net(seed=s, dtype=torch.float32) for s in seeds])
        for seeds in ((1, 2), (3, 4))
    )
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(images), one(images))
    with pytest.raises(UserError, match="of another detector or network"):
        detectors.DeepEnsemble(
            [make_net(seed=s, dtype=torch.float32) for s in (1, 2, 3)]
        ).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    "other", [lambda make: ThinResNet(8), lambda make: make(classes=5, dtype=torch.float32)]
)
def test_a_state_of_another_network_is_refused_whole(problem, make_net, other):
    net, loader, _ = problem
    state = detectors.Mahalanobis(net).fit(loader).state_dict()
    elsewhere = detectors.Mahalanobis(other(make_net))
    before = copy.deepcopy(elsewhere.state_dict())
    with pytest.raises(
        UserError, match="of another detector or network than this one over"
    ) as error:
        elsewhere.load_state_dict(state)
    assert "\n" not in str(error.value)
    assert not elsewhere.fitted
    assert all(
        torch.equal(v, before[k])
        for k, v in elsewhere.state_dict().items()
        if isinstance(v, torch.Tensor)
    )
    with pytest.raises((UserError, RuntimeError)):
        nn.ModuleDict({"one": elsewhere}).load_state_dict(
            {f"one.{key}": value for key, value in state.items()}
        )


def test_a_state_of_other_layers_or_another_detector_is_refused(problem):
    net, loader, _ = problem
    state = detectors.Mahalanobis(net, "norm").fit(loader).state_dict()
    with pytest.raises(UserError, match="another detector or network"):
        detectors.Mahalanobis(net, "conv").load_state_dict(state)
    with pytest.raises(UserError, match="learned from the layers"):
        nn.ModuleDict({"a": detectors.Mahalanobis(net, "conv")}).load_state_dict(
            {f"a.{k}": v for k, v in state.items()}
        )
    with pytest.raises(UserError, match="another detector or network"):
        detectors.KNN(net).load_state_dict(state)


# --- mistakes


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("pro", "safe-spot")])
def test_an_unfitted_detector_says_so(problem, name):
    detector = build(name, problem[0])
    if detector.fitted:
        detector(problem[2])
    else:
        with pytest.raises(UserError, match=r"not fitted; call fit\(loader\)"):
            detector(problem[2])


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda x, y: [], "loader: gives no images"),
        (lambda x, y: [x], "loader: gives images without labels"),
        (lambda x, y: [(x, y.clamp_max(2))], "loader: gives no image of class 3"),
        (lambda x, y: [(x, y + 1)], "loader: gives an image of class 4"),
        (lambda x, y: [(x, -torch.ones_like(y))], "loader: gives an image of class -1"),
        (lambda x, y: [{"images": x}], "loader: expected batches .* got a dict"),
    ],
)
def test_unusable_loaders_are_named(problem, loader, message):
    with pytest.raises(UserError, match=message):
        detectors.Mahalanobis(problem[0]).fit(loader(*problem[1][0]))


def test_a_class_that_the_network_never_predicts_gets_the_range_of_all(problem):
    net = copy.deepcopy(problem[0])
    net.head.bias.data[1] = -1e4
    with pytest.warns(
        UserWarning, match=r"^Gram: the network predicts class 1 for no image"
    ) as seen:
        detector = detectors.Gram(net, "norm").fit(problem[1])
    assert len(seen) == 1
    others = [0, 2, 3]
    assert torch.equal(detector.low[1], detector.low[others].amin(0))
    assert torch.equal(detector.high[1], detector.high[others].amax(0))
    assert detector(problem[2]).isfinite().all()
    assert detectors.Gram(net, "norm", classes="labels").fit(problem[1]).fitted
    with pytest.raises(UserError, match="loader: gives no image of class 3"):
        detectors.Gram(net, "norm", classes="labels").fit(
            [(x, y.clamp_max(2)) for x, y in problem[1]]
        )


def test_a_loader_that_ends_for_good_is_refused_where_two_passes_are_needed(problem):
    with pytest.raises(UserError, match="gives no images when it is iterated again; give a list"):
        detectors.ViM(problem[0]).fit(batch for batch in problem[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda net: detectors.Mahalanobis(net, "nrom"),
            "layers: unknown name 'nrom'; did you mean 'norm'",
        ),
        (lambda net: detectors.Mahalanobis(net, "all"), "does not name its feature layers"),
        (lambda net: detectors.Mahalanobis(net, ()), r"layers: expected one or more .* got \[\]"),
        (lambda net: detectors.Mahalanobis(net, ("norm", "norm")), "without duplicates, got"),
        (
            lambda net: detectors.RelativeMahalanobis(net, ("conv", "norm")),
            "layers: expected a string, got a tuple",
        ),
        (
            lambda net: detectors.LayerNoise(detectors.MSP(net), 0.1),
            "detector: expected a Mahalanobis",
        ),
        (
            lambda net: detectors.LayerNoise(detectors.Mahalanobis(net), -0.1),
            "magnitude: expected a number >= 0, got -0.1",
        ),
        (lambda net: detectors.KNN(net, neighbours=0), r"neighbours: expected 1\.\.50000 .* got 0"),
        (
            lambda net: detectors.KNN(net, neighbours=9, bank_size=8),
            r"neighbours: expected 1\.\.8 .* got 9",
        ),
        (lambda net: detectors.ViM(net, dimensions=24), r"dimensions: expected 1\.\.23 .* got 24"),
        (lambda net: detectors.Gram(net, "penultimate"), "'penultimate' has no pixels"),
        (lambda net: detectors.Gram(net, "norm", powers=(0,)), r"powers: expected .* got \[0\]"),
        (
            lambda net: detectors.Gram(net, "norm", classes="true"),
            "classes: expected .* got 'true'",
        ),
        (lambda net: detectors.Gram(net, "norm", held_out=1.0), "held_out: expected .* got 1.0"),
        (lambda net: detectors.ReAct(net, percentile=100), "percentile: expected .* got 100"),
        (lambda net: detectors.ASH(net, variant="X"), "variant: expected .* got 'X'"),
        (
            lambda net: detectors.SCALE(detectors.PRO(detectors.MSP(net))),
            r"put it inside: PRO\(SCALE",
        ),
        (lambda net: detectors.DICE(net, percentile=-1), "percentile: expected .* got -1"),
        (
            lambda net: detectors.GradNorm(net, temperature=0),
            "temperature: expected a number > 0, got 0",
        ),
        (
            lambda net: detectors.MSP(net, temperature="fitted"),
            "temperature: expected .* got 'fitted'",
        ),
        (lambda net: detectors.SafeSpot(net, share=2), "share: expected .* got 2"),
        (lambda net: detectors.Mean([]), "detectors: none"),
        (lambda net: detectors.DeepEnsemble([]), "networks: expected .* got 0 networks"),
        (
            lambda net: detectors.DeepEnsemble([net, net], sizes=[8]),
            "networks: expected .* got 2 networks and 1 sizes",
        ),
        (lambda net: detectors.DeepEnsemble([net, ThinResNet(8)]), "different numbers of classes"),
        (lambda net: detectors.DeepEnsemble([net], "gen"), "score: expected .* got 'gen'"),
        (lambda net: detectors.Resized(net, 0), "size: expected .* got 0"),
    ],
)
def test_mistakes_are_named(problem, make, message):
    with pytest.raises(UserError, match=message):
        make(problem[0])


def test_more_neighbours_than_images_are_named(problem):
    with pytest.raises(UserError, match=r"neighbours: expected .* images \(240\), got 300"):
        detectors.KNN(problem[0], neighbours=300).fit(problem[1])


def test_constant_scores_cannot_be_standardised(problem):
    image = problem[1][0][0][:1]
    with pytest.raises(UserError, match="same score"):
        detectors.Standardize(detectors.MSP(problem[0])).fit([image.expand(8, -1, -1, -1)])
