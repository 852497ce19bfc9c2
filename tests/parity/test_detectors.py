"""Every detector against pytorch-ood where its definition is the paper's, and against naive
formulas elsewhere.

A reference sees arrays of forward passes in float64, never our statistics.
`benchmarks/detector_parity.py` runs the same references on real images.
"""

from __future__ import annotations

import contextlib
import copy
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial import distance as spatial
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler
from torch import Tensor, nn

from robust_ood import detectors, metrics
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.regression import COUNT
from robust_ood.errors import UserError
from robust_ood.models import outputs
from robust_ood.randomness import generator

pood = pytest.importorskip("pytorch_ood.detector")


class Data(NamedTuple):
    """Images, and what the network makes of them, in float64; maps by layer."""

    net: nn.Module
    images: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor
    maps: dict[str, Tensor]

    @property
    def weight(self):
        return self.net.head.weight.detach().double()

    @property
    def bias(self):
        return self.net.head.bias.detach().double()


def read(net, images, labels, layers=()) -> Data:
    parts = []
    with torch.no_grad():
        for batch in images.split(250):
            out = outputs(net, batch, layers)
            parts.append(
                (
                    out.logits.double(),
                    out.features.double(),
                    {k: v.double() for k, v in out.maps.items()},
                )
            )
    maps = {layer: torch.cat([part[2][layer] for part in parts]) for layer in layers}
    return Data(
        net,
        images,
        labels,
        torch.cat([p[0] for p in parts]),
        torch.cat([p[1] for p in parts]),
        maps,
    )


@contextlib.contextmanager
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# --- references: what is fitted on, what is scored -> scores, higher = more in-distribution


def msp(train, test):
    # In float32, like every user's: there sure images tie at 1, which changes the AUROC of
    # saturated networks.
    return -pood.MaxSoftmax.score(test.logits.float()).double()


def tempered_msp(train, test):
    from scipy.optimize import minimize_scalar

    def likelihood(log_t):
        return F.cross_entropy(train.logits / math.exp(log_t), train.labels).item()

    best = minimize_scalar(likelihood, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9}).x
    return -pood.MaxSoftmax.score(test.logits.float(), math.exp(best)).double()


def gen(
    train, test
):  # pytorch-ood clamps probabilities at 1e-7, which at gamma 0.1 changes the score
    return gen_of(test.logits.softmax(1))


def gen_of(p):
    rest = torch.stack(
        [p[:, [j for j in range(p.shape[1]) if j != k]].sum(1) for k in range(p.shape[1])], dim=1
    )
    return -(p**0.1 * rest**0.1).sum(1)


def largest(p):
    return p.amax(1)


def minus_entropy(p):
    return (p * p.log()).sum(1)


def kl_matching(train, test):
    return -pood.KLMatching(None).fit_logits(train.logits, train.labels).predict_logits(test.logits)


def mahalanobis(train, test):
    with in_float64():  # pytorch-ood halves the distance and does not divide the covariance by N
        fitted = pood.Mahalanobis(None).fit_features(train.features, train.labels)
        return -2 * len(train.labels) * fitted.predict_features(test.features)


def naive_distances(train, test):
    """Squared distances to each class mean, one image and class at a time."""
    means = [train[0][train[1] == c].mean(0) for c in range(int(train[1].max()) + 1)]
    centered = torch.cat([train[0][train[1] == c] - mean for c, mean in enumerate(means)])
    covariance = sum(torch.outer(row, row) for row in centered) / len(centered)
    return torch.stack(
        [
            torch.stack([(z - mean) @ torch.linalg.solve(covariance, z - mean) for mean in means])
            for z in test
        ]
    )


def layered_mahalanobis(train, test):
    scores = 0
    for layer in train.maps:
        pooled, scored = train.maps[layer].mean((2, 3)), test.maps[layer].mean((2, 3))
        scores = scores - naive_distances((pooled, train.labels), scored).amin(1)
    return scores


def relative_mahalanobis(train, test):
    with in_float64():
        fitted = pood.RMD(None).fit_features(train.features, train.labels)
        return -len(train.labels) * fitted.predict_features(test.features)


def knn(train, test):
    fitted = pood.KNN(None, k=50).fit_features(train.features, train.labels)
    return -fitted.predict_features(test.features)


def extremes(data):
    """The largest value and minus the smallest of each layer's map and of the logits, `(N, F)`."""
    columns = []
    for values in (*data.maps.values(), data.logits):
        flat = values.flatten(1).numpy()
        columns += [flat.max(1), -flat.min(1)]
    return np.stack(columns, axis=1)


def combood(train, test):
    """The authors' pipeline written out: scikit-learn's scalers, SciPy's distances."""
    features = [F.normalize(data.features, dim=1).numpy() for data in (test, train)]
    kth = np.sort(spatial.cdist(*features, "sqeuclidean"), axis=1)[:, 49]
    normal = make_pipeline(StandardScaler(), PowerTransformer())
    covariance = np.cov(normal.fit_transform(extremes(train)), rowvar=False)
    inverse = np.linalg.inv(covariance + np.identity(len(covariance)))
    origin = np.zeros(len(covariance))
    distances = [
        spatial.mahalanobis(row, origin, inverse) for row in normal.transform(extremes(test))
    ]
    scores = -np.sqrt(features[0].shape[1]) * np.log(kth) - np.square(distances)
    return torch.from_numpy(scores)


def vim(train, test):  # pytorch-ood computes the subspace in float32
    on_train, on_test = -residual(train, train), -residual(train, test)
    alpha = train.logits.amax(1).mean() / on_train.mean()
    return test.logits.exp().sum(1).log() - alpha * on_test


def residual(train, test):
    origin = -np.linalg.pinv(train.weight.numpy()) @ train.bias.numpy()
    centered = train.features.numpy() - origin
    values, directions = np.linalg.eigh(centered.T @ centered / len(centered))
    smallest = directions[:, np.argsort(values)[: len(values) - len(values) // 2]]
    return -torch.from_numpy(np.linalg.norm((test.features.numpy() - origin) @ smallest, axis=1))


def naive_gram(maps, power):
    """Row sums of the Gram matrices, made in full, then the root."""
    raised = maps.flatten(2) ** power
    sums = torch.einsum("nip,njp->nij", raised, raised).sum(2)
    return sums.sign() * sums.abs() ** (1 / power)


def gram(train, test, classes=None):
    held_out = image_keys(train.images) % 1_000_000 < 100_000
    predicted = train.logits.argmax(1)
    fitted, validated = (predicted if classes is None else classes)[~held_out], predicted[held_out]
    total = 0
    for layer in train.maps:
        scored = {}
        for name, data in (("train", train), ("test", test)):
            scored[name] = torch.cat(
                [naive_gram(data.maps[layer], p) for p in (1, 2, 3, 4, 5)], dim=1
            )
        seen = scored["train"][~held_out]
        low = torch.stack([seen[fitted == c].amin(0) for c in range(train.logits.shape[1])])
        high = torch.stack([seen[fitted == c].amax(0) for c in range(train.logits.shape[1])])

        def deviation(values, classes, low=low, high=high):
            return pood.Gram._deviation(values, low[classes], high[classes])

        expected = deviation(scored["train"][held_out], validated).mean()
        total = total + deviation(scored["test"], test.logits.argmax(1)) / expected
    return -total


def openood_gram(train, test):
    """OpenOOD v1.5, written out: one range a class, layer and power; sums over channels."""
    deviations = torch.zeros(len(test.images), dtype=torch.float64)
    predicted = test.logits.argmax(1).tolist()
    for layer in train.maps:
        for power in (1, 2, 3, 4, 5):
            seen = naive_gram(train.maps[layer], power)
            sums = naive_gram(test.maps[layer], power).sum(1)
            for image, label in enumerate(predicted):
                values = seen[train.labels == label]
                low, high = values.min(), values.max()
                below = F.relu(low - sums[image]) / (low + 1e-6).abs()
                above = F.relu(sums[image] - high) / (high + 1e-6).abs()
                deviations[image] += below + above
    return deviations / 50


def energy_of_head(data):
    return lambda features: features.flatten(1) @ data.weight.T + data.bias


def as_maps(data):
    return data.features[:, :, None, None]


def react(train, test):
    fitted = pood.ReAct(None, energy_of_head(train), percentile=0.9).fit_feature_maps(
        as_maps(train), train.labels
    )
    return -fitted.predict_feature_maps(as_maps(test))


def ash(variant):
    def reference(train, test):
        shaped = pood.ASH(None, energy_of_head(test), variant=f"ash-{variant}", percentile=0.9)
        return -shaped.predict_feature_maps(as_maps(test))

    return reference


def scale(train, test):
    return -pood.SCALE(None, energy_of_head(test), percentile=0.85).predict_feature_maps(
        as_maps(test)
    )


def dice(train, test):
    with in_float64():
        contributions = (train.features.mean(0) * train.weight).flatten()
        kept = contributions > np.quantile(contributions.numpy(), 0.9)
        sparse = train.weight * kept.view_as(train.weight)
    return (test.features @ sparse.T + train.bias).logsumexp(1)


def gradnorm(train, test):
    head = nn.Linear(train.weight.shape[1], len(train.weight)).double()
    head.load_state_dict({"weight": train.weight, "bias": train.bias})
    return -pood.GradNorm(head, param_filter=lambda name: name == "weight").predict(test.features)


def grad_uncertainty(train, test):
    """One backward pass an image, of the cross-entropy with a label of ones in logarithms."""
    head = nn.Linear(train.weight.shape[1], len(train.weight)).double()
    head.load_state_dict({"weight": train.weight, "bias": train.bias})
    scores = []
    for feature in test.features:
        loss = -head(feature).log_softmax(0).sum()
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        scores.append(sum(gradient.square().sum() for gradient in gradients))
    return torch.stack(scores)


# Signs of gradients, and bins of histograms: in float32, those of the smallest entries, and of values
# at the edges, would depend on the order of operations.
MOVED = (
    "adascale-a",
    "adascale-l",
    "iodin",
    "nac",
    "weiper",
    "odin",
    "input-noise",
    "mahalanobis-layers",
    "pro",
    "pro-msp",
    "pro-msp-t",
    "pro-ent",
    "pro-gen",
    "safe-spot",
)


def odin(train, test):
    net = copy.deepcopy(test.net).double()
    return -torch.cat([pood.ODIN(net).predict(batch) for batch in test.images.double().split(250)])


def in_batches(score):
    """A reference that reads a float64 network and float64 images, batch by batch."""

    def reference(train, test):
        net = copy.deepcopy(test.net).double()
        return torch.cat([score(net, x.double()).detach() for x in test.images.split(250)])

    return reference


def gradient_sign(score, images):
    leaf = images.detach().requires_grad_()
    return torch.autograd.grad(score(leaf).sum(), leaf)[0].sign()


def naive_pro(score, temperature=1):
    """The lowest of the values on a descent in three steps, for a score of probabilities."""

    def lowest(net, images):
        def value(x):
            return score((net(x) / temperature).softmax(1))

        values = [value(images).detach()]
        for _ in range(3):
            images = images - 1e-3 * gradient_sign(value, images)
            values.append(value(images).detach())
        return torch.stack(values).amin(0)

    return in_batches(lowest)


def naive_safe_spot(net, images):
    """S-FGSM to the predicted class, twenty steps of PGD away from it, then the mean of both
    largest probabilities.
    """
    labels, radius = net(images).argmax(1), 8 / 255

    def loss(x):
        return F.cross_entropy(net(x), labels, reduction="none")

    def inside(x, center):
        return x.minimum(center + radius).maximum(center - radius).clamp(0, 1)

    spots = inside(images - radius * gradient_sign(loss, images), images)
    noise = torch.rand(images.shape[1:], generator=generator(0, "safe spot attack", 0, 0)).double()
    attacked = inside(spots + radius * (2 * noise - 1), spots)
    for _ in range(20):
        attacked = inside(attacked + radius / 4 * gradient_sign(loss, attacked), spots)
    return (net(images).softmax(1).amax(1) + net(attacked).softmax(1).amax(1)) / 2


def layer_scores(train, layer):
    """A function of a network and images: minus the distances of one layer, penultimate or averaged
    maps, float64.
    """

    def read_layer(out):
        return out.features if layer == "penultimate" else out.maps[layer].mean((2, 3))

    known = train.features if layer == "penultimate" else train.maps[layer].mean((2, 3))
    means = torch.stack(
        [known[train.labels == c].mean(0) for c in range(int(train.labels.max()) + 1)]
    )
    precision = torch.linalg.inv(
        (known - means[train.labels]).T @ (known - means[train.labels]) / len(known)
    )

    def score(net, images):
        apart = (
            read_layer(outputs(net, images, () if layer == "penultimate" else (layer,)))[:, None]
            - means
        )
        return -torch.einsum("nkd,de,nke->nk", apart, precision, apart).amin(1)

    return score


def after_a_step(score):
    return lambda net, images: score(
        net, images + 0.0014 * gradient_sign(lambda x: score(net, x), images)
    )


def noisy_mahalanobis(train, test):
    return in_batches(after_a_step(layer_scores(train, "penultimate")))(train, test)


def weighing(images):
    """The training images that weigh the layers."""
    return images[image_keys(images).argsort()[:COUNT]]


def auxiliary(images):
    """Outliers that weigh the layers: images half drowned in noise."""
    return (images + torch.rand(images.shape, generator=torch.Generator().manual_seed(0))) / 2


def layered_with_noise(train, test):
    scores = [in_batches(after_a_step(layer_scores(train, layer))) for layer in train.maps]
    chosen = weighing(train.images)
    known = torch.cat([chosen, auxiliary(chosen)])
    columns = torch.stack([score(train, train._replace(images=known)) for score in scores], dim=1)
    mean, std = columns.mean(0), columns.std(0)
    target = torch.arange(len(known)) < len(chosen)
    weights = torch.zeros(len(scores) + 1, dtype=torch.float64)  # the last one is the bias

    def loss(w):  # scikit-learn's: the likelihood, and half the squared length of the weights
        logits = (columns - mean) / std @ w[:-1] + w[-1]
        return (
            F.binary_cross_entropy_with_logits(logits, target.double(), reduction="sum")
            + w[:-1].square().sum() / 2
        )

    for _ in range(50):  # Newton's steps, halved until they descend
        slope, curvature = torch.func.grad(loss)(weights), torch.func.hessian(loss)(weights)
        step = torch.linalg.solve(curvature, slope)
        while loss(weights - step) > loss(weights) and step.norm() > 1e-12:
            step = step / 2
        weights = weights - step
    tested = torch.stack([score(train, test) for score in scores], dim=1)
    return (tested - mean) / std @ weights[:-1] + weights[-1]


def ensemble(score):
    def reference(net, images):
        larger = F.interpolate(images, 24, mode="bilinear", antialias=True)
        return score((net(images).softmax(1) + net(larger).softmax(1)) / 2)

    return in_batches(reference)


def mean_of_two(train, test):
    def standardised(score):
        own = score(train, train)
        return (score(train, test) - own.mean()) / own.std(unbiased=False)

    return (standardised(msp) + standardised(mahalanobis)) / 2


def smoothed_msp(train, test):
    """The median of the largest probabilities, one noisy copy of all images after the other."""
    draws = torch.randn((100, *test.images.shape[1:]), generator=generator(0, "smoothed score", 0))
    with torch.no_grad():
        scores = [train.net(test.images + 0.25 * draw).softmax(1).amax(1) for draw in draws]
    return torch.stack(scores).sort(0).values[49]


def ross_msp(train, test):
    """Of largest probabilities, one noisy copy of all images after the other."""
    draws = torch.randn((25, *test.images.shape[1:]), generator=generator(0, "smoothed score", 0))

    def noisy(images):
        with torch.no_grad():
            return torch.stack(
                [train.net(images + 0.025 * draw).softmax(1).amax(1) for draw in draws]
            )

    threshold = torch.quantile(noisy(train.images).sort(0).values[12], 0.05)
    scores = noisy(test.images)
    median = scores.sort(0).values[12]
    spread = (scores - median).abs().mean(0).clamp(min=1e-12)  # saturated ones do not vary
    above = (median - threshold).clamp(min=0)
    return median.minimum(threshold) + above * (1 + 0.05 / spread)


# --- scores of OpenOOD's and pytorch-ood's tables


def she(train, test):
    fitted = pood.SHE(None, energy_of_head(train)).fit_features(train.features, train.labels)
    return -fitted.predict_features(test.features)


def fdbd(train, test):
    """One image and class at a time."""
    mean, scores = train.features.mean(0), []
    for feature, logits in zip(test.features, test.logits, strict=True):
        best = int(logits.argmax())
        others = [k for k in range(len(logits)) if k != best]
        apart = [
            (logits[best] - logits[k]) / (test.weight[best] - test.weight[k]).norm() for k in others
        ]
        scores.append(sum(apart) / len(others) / (feature - mean).norm())
    return torch.stack(scores)


def nci(train, test):
    centered = test.features - train.features.mean(0)
    weight = test.weight[test.logits.argmax(1)]
    cosines = F.cosine_similarity(centered, weight)
    return cosines * weight.norm(dim=1) + 1e-4 * test.features.abs().sum(1)


def nnguide(train, test):
    bank = [
        f / f.norm() * z.exp().sum().log()
        for f, z in zip(train.features, train.logits, strict=True)
    ]
    scores = []
    for feature, logits in zip(test.features, test.logits, strict=True):
        products = (torch.stack(bank) @ feature / feature.norm()).sort(descending=True).values
        scores.append(products[:10].mean() * logits.exp().sum().log())
    return torch.stack(scores)


def relation(train, test):
    p, q = test.logits.softmax(1), train.logits.softmax(1)
    scores = []
    for feature, own in zip(test.features, p, strict=True):
        cosines = F.cosine_similarity(feature[None], train.features)
        relations = [
            max(c.item(), 0) * (own @ other).item() for c, other in zip(cosines, q, strict=True)
        ]
        scores.append(sum(r for r in relations if r > 0.03))
    return torch.tensor(scores, dtype=torch.float64)


def gmm(train, test):
    return (
        -pood.GMM(None, reg=0)
        .fit_features(train.features, train.labels)
        .predict_features(test.features)
    )


def pnml(train, test):
    known = F.normalize(train.features, dim=1).numpy()
    tested = F.normalize(test.features, dim=1)
    inverse = torch.from_numpy(np.linalg.pinv(known))  # (D, N)
    size = (tested @ inverse).square().sum(1, keepdim=True)
    p = (tested @ test.weight.T + test.bias).softmax(1)
    terms = p / (p + (1 - p) * p ** (size / (1 + size)))
    return -terms.sum(1).log() / math.log(p.shape[1])


def reconstruction_error(known, tested, explained):
    """Minus the length of what a linear PCA leaves, of NumPy's SVD."""
    mean = known.mean(0)
    _, sizes, directions = np.linalg.svd(known - mean, full_matrices=False)
    shares = np.cumsum(sizes**2) / np.sum(sizes**2)
    kept = directions[: np.argmax(shares >= explained) + 1]
    left = (tested - mean) - (tested - mean) @ kept.T @ kept
    return torch.from_numpy(-np.linalg.norm(left, axis=1))


def cop(train, test):
    units = [F.normalize(data.features, dim=1).numpy() for data in (train, test)]
    return reconstruction_error(*units, 0.85)


RANDOM_FEATURES = 64


def corp(train, test):
    draws = generator(0, "random Fourier features")
    size = train.features.shape[1]
    frequencies = 2 * torch.randn(size, RANDOM_FEATURES, generator=draws).double().numpy()
    phases = 2 * np.pi * torch.rand(RANDOM_FEATURES, generator=draws).double().numpy()
    mapped = [
        np.cos(F.normalize(data.features, dim=1).numpy() @ frequencies + phases)
        * np.sqrt(2 / RANDOM_FEATURES)
        for data in (train, test)
    ]
    return reconstruction_error(*mapped, 0.8)


def vra(train, test):
    low, high = np.quantile(train.features.numpy(), (0.6, 0.95))
    rectified = test.features.clone()
    rectified[test.features > high] = high
    rectified[test.features < low] = 0
    return (rectified @ test.weight.T + test.bias).logsumexp(1)


def lts(train, test):
    with in_float64():
        return -pood.LTS(None, energy_of_head(test)).predict_features(test.features)


def optfs(train, test):
    """A mask for each bin, as the authors' code has it."""
    low, high = np.quantile(train.features.numpy(), (1e-3, 1 - 1e-3))
    width = (high - low) / 100
    known = train.weight[train.logits.argmax(1)] * train.features
    tested = test.weight[test.logits.argmax(1)] * test.features
    gains, scores = [], []
    for number in range(100):
        inside = [
            (data.features >= low + number * width) & (data.features < low + (number + 1) * width)
            for data in (train, test)
        ]
        gains.append((known * inside[0]).sum(1).mean())
        scores.append((tested * inside[1]).sum(1))
    theta = torch.stack(gains)
    return theta / theta.norm() * 10 @ torch.stack(scores)


def line(train, test):
    """One image at a time."""
    limit = np.quantile(train.features.numpy(), 0.9)
    predicted, scores = train.logits.argmax(1), []
    for feature in test.features.clamp(max=limit):
        label = (test.weight @ feature + test.bias).argmax()
        importance = test.weight[label] * train.features[predicted == label].mean(0)
        products = importance.abs() * test.weight
        neurons = importance > np.quantile(importance.numpy(), 0.1)
        weights = products > np.quantile(products.numpy(), 0.1)
        scores.append(((test.weight * weights) @ (feature * neurons) + test.bias).logsumexp(0))
    return torch.stack(scores)


def precise(data):
    return read(copy.deepcopy(data.net).double(), data.images.double(), data.labels)


def weiper(train, test):
    """One image at a time, with NumPy's histograms."""
    train, test = precise(train), precise(test)
    draws = torch.randn(
        REPEATS, *train.weight.shape, generator=generator(0, "weight perturbations")
    )
    noise = 2.1 * F.normalize(draws.double(), dim=2) * train.weight.norm(dim=1)[:, None]

    def spaces(data):
        logits = torch.einsum("nd,rkd->nrk", data.features, train.weight + noise) + train.bias
        return data.features.numpy(), logits.flatten(1).numpy(), logits.softmax(2).amax(2).mean(1)

    def histogram(values, ends):
        return np.histogram(values, 100, (ends[0], ends[1] + 1e-8))[0] / len(values)

    known, tested = spaces(train), spaces(test)
    total = tested[2].clone()
    for number, floor in ((0, 0.01), (1, 0.025)):
        ends = known[number].min(), known[number].max()
        typical = np.mean([histogram(row, ends) for row in known[number]], axis=0) + floor
        typical = typical / typical.sum()
        for image, row in enumerate(tested[number]):
            padded = np.pad(histogram(row, ends), (9, 10), mode="edge")
            seen = np.convolve(padded, np.ones(20) / 20, mode="valid") + floor
            seen = seen / seen.sum()
            total[image] -= float(
                np.sum(typical * np.log(typical / seen)) + np.sum(seen * np.log(seen / typical))
            )
    return total


REPEATS = 20


def nac(train, test):
    """One neuron at a time, with NumPy's histograms."""
    train, test = precise(train), precise(test)

    def states(data):
        excess = data.logits.softmax(1) - 1 / data.logits.shape[1]
        return torch.sigmoid(100 * data.features * (excess @ data.weight)).numpy()

    scores = 0
    for known, tested in zip(states(train).T, states(test).T, strict=True):
        counts = np.histogram(known, 50, (0, 1))[0]
        scores = scores + np.minimum(counts[np.minimum((tested * 50).astype(int), 49)], 50)
    return torch.from_numpy(scores / 50 / len(train.weight.T))


def feature_dropout(train, test):
    p = 0
    for draw in range(30):
        uniform = torch.rand(test.features.shape[1], generator=generator(0, "dropout", draw, 0))
        kept = test.features * (uniform >= 0.5) * 2
        p = p + (kept @ test.weight.T + test.bias).softmax(1) / 30
    return p.amax(1)


def rankfeat_of_layers(layers):
    """Each layer's maps through a whole singular-value decomposition."""

    def reference(net, images):
        def changed(_, __, maps):
            u, s, v = torch.linalg.svd(maps.flatten(2), full_matrices=False)
            return maps - (s[:, :1, None] * u[:, :, :1] @ v[:, :1]).view_as(maps)

        logits = 0
        for layer in layers:
            hook = net.get_submodule(layer).register_forward_hook(changed)
            with torch.no_grad():
                logits = logits + net(images) / len(layers)
            hook.remove()
        return logits.logsumexp(1)

    return in_batches(reference)


def rankfeat(train, test):
    return rankfeat_of_layers(tuple(train.maps)[-2:])(train, test)


def rankweight(train, test):
    """The last weight before the head, through a whole singular-value decomposition."""
    net = copy.deepcopy(test.net).double()
    layer = [part for part in net.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-2]
    u, s, v = np.linalg.svd(layer.weight.detach().flatten(1).numpy(), full_matrices=False)
    layer.weight.data.sub_(torch.from_numpy(s[0] * np.outer(u[:, 0], v[0])).view_as(layer.weight))
    with torch.no_grad():
        logits = torch.cat([net(batch) for batch in test.images.double().split(250)])
    return logits.logsumexp(1)


def openmax(train, test):
    """Image by image, with scipy's distribution and a root of the likelihood's slope."""
    from scipy.optimize import brentq
    from scipy.stats import weibull_min

    logits, labels = train.logits.numpy(), train.labels.numpy()
    right = logits.argmax(1) == labels
    centres, fits = [], []
    for label in range(logits.shape[1]):
        members = logits[right & (labels == label)]
        centres.append(members.mean(0))
        tail = np.sort(np.linalg.norm(members - centres[-1], axis=1))[-20:]
        moved = 10000 + tail - tail[0]
        shares = moved / moved.max()

        def slope(k, shares=shares, moved=moved):
            powers = shares**k
            return (powers * np.log(moved)).sum() / powers.sum() - 1 / k - np.log(moved).mean()

        k = brentq(slope, 10, 1e7, rtol=1e-13)
        fits.append((tail[0], k, moved.max() * (shares**k).mean() ** (1 / k)))
    scores = []
    for row in test.logits.numpy():
        known, unknown = row.copy(), 0.0
        order = (-row).argsort()[:10]
        for rank, label in enumerate(order):
            smallest, k, scale = fits[label]
            far = 10000 + np.linalg.norm(row - centres[label]) - smallest
            given = row[label] * weibull_min.cdf(far, k, scale=scale) * (1 - rank / len(order))
            known[label] -= given
            unknown += given
        scores.append(-1 / (1 + np.exp(known - unknown).sum()))
    return torch.tensor(scores)


def adascale(variant):
    """One image at a time, sorting everything."""

    def quantities(net, images):
        def largest_logit(x):
            return net(x).amax(1)

        leaf = images.detach().requires_grad_()
        gradients = torch.autograd.grad(largest_logit(leaf).sum(), leaf)[0].flatten(1)
        values = []
        for image, gradient in zip(images, gradients, strict=True):
            step = torch.zeros_like(gradient)
            chosen = gradient.abs().argsort()[: int(len(gradient) * 0.05)]
            step[chosen] = 0.125 * gradient[chosen].sign()
            pair = torch.stack([image, image + step.view_as(image)])
            with torch.no_grad():
                before, after = outputs(net, pair).features
            order = before.argsort(descending=True)
            first, second = (order[: max(int(len(order) * share), 1)] for share in (0.05, 0.01))
            values.append(after[first].relu().sum() + 10 * (before - after)[second].abs().sum())
        return torch.stack(values)

    def reference(train, test):
        net = copy.deepcopy(test.net).double()
        known = quantities(net, train.images.double())
        tested, scores = precise(test), []
        for feature, quantity in zip(tested.features, quantities(net, tested.images), strict=True):
            percentile = 75 + (1 - (known <= quantity).double().mean().item()) * 10
            count = len(feature) - round(len(feature) * percentile / 100)
            ratio = feature.relu().sum() / feature.relu().sort(descending=True).values[:count].sum()
            if variant == "A":
                logits = test.weight @ (feature * ratio.exp()) + test.bias
            else:
                logits = (test.weight @ feature + test.bias) * ratio**2
            scores.append(logits.logsumexp(0))
        return torch.stack(scores)

    return reference


def iodin(net, images):
    """One image at a time, one value of it moved."""
    scores = []
    for image in images:
        leaf = image[None].detach().requires_grad_()
        logits = net(leaf) / 1000
        loss = F.cross_entropy(logits, logits.argmax(1))
        gradient = torch.autograd.grad(loss, leaf)[0].flatten()
        moved = image.flatten().clone()
        largest_one = gradient.abs().argmax()
        moved[largest_one] -= 0.0014 * gradient[largest_one].sign()
        scores.append((net(moved.view_as(leaf)) / 1000).softmax(1).amax())
    return torch.stack(scores)


REFERENCES = {
    "msp": msp,
    "msp-t": tempered_msp,
    "entropy": lambda train, test: -pood.Entropy.score(test.logits),
    "gen": gen,
    "maxlogit": lambda train, test: -pood.MaxLogit.score(test.logits),
    "energy": lambda train, test: -pood.EnergyBased.score(test.logits),
    "oe-score": lambda train, test: test.logits.exp().sum(1).log() - test.logits.mean(1),
    "kl-matching": kl_matching,
    "mahalanobis": mahalanobis,
    "mahalanobis over layers": layered_mahalanobis,
    "relative-mahalanobis": relative_mahalanobis,
    "knn": knn,
    "combood": combood,
    "vim": vim,
    "residual": residual,
    "gram": gram,
    "react": react,
    "ash-p": ash("p"),
    "ash-b": ash("b"),
    "ash-s": ash("s"),
    "scale": scale,
    "dice": dice,
    "gradnorm": gradnorm,
    "grad-uncertainty": grad_uncertainty,
    "odin": odin,
    "input-noise": noisy_mahalanobis,
    "mahalanobis-layers": layered_with_noise,
    "pro": naive_pro(largest),
    "pro-msp": naive_pro(largest),
    "pro-msp-t": naive_pro(largest, 10),
    "pro-ent": naive_pro(minus_entropy),
    "pro-gen": naive_pro(gen_of),
    "safe-spot": in_batches(naive_safe_spot),
    "ross": ross_msp,
    "smoothed": smoothed_msp,
    "deep-ensemble": ensemble(minus_entropy),
    "ensemble by msp": ensemble(largest),
    "mean": mean_of_two,
    "she": she,
    "fdbd": fdbd,
    "nci": nci,
    "nnguide": nnguide,
    "relation": relation,
    "gmm": gmm,
    "pnml": pnml,
    "cop": cop,
    "corp": corp,
    "vra": vra,
    "lts": lts,
    "optfs": optfs,
    "line": line,
    "weiper": weiper,
    "nac": nac,
    "feature-dropout": feature_dropout,
    "rankfeat": rankfeat,
    "rankweight": rankweight,
    "openmax": openmax,
    "iodin": in_batches(iodin),
    "adascale-a": adascale("A"),
    "adascale-l": adascale("L"),
}


def make(name, net, layers):
    if name == "mahalanobis over layers":
        return detectors.Mahalanobis(net, layers)
    if name in ("deep-ensemble", "ensemble by msp"):
        return detectors.DeepEnsemble(
            [net, net], "msp" if "msp" in name else "entropy", sizes=[None, 24]
        )
    settings = {
        "combood": {"layers": layers},
        "gram": {"layers": layers},
        "mahalanobis-layers": {"layers": layers},
        "scale": {"percentile": 85},
        "gmm": {"shrinkage": 0.0},
        "weiper": {"repeats": REPEATS},
        "rankfeat": {"layers": layers[-2:]},
        "corp": {"random_features": RANDOM_FEATURES},
        "safe-spot": {"method": "fgsm"},
    }
    return detectors.build(name, net, **settings.get(name, {}))


PRECISE = detectors.LayerNoise | detectors.NAC | detectors.WeiPer | detectors.AdaScale


def fit(detector, loader):
    """Return the detector, fitted on batches of images and labels; layers are weighed, and
    histograms made, in float64.
    """
    if not isinstance(detector, PRECISE):
        return detector.fit(loader)
    precise = [(images.double(), labels) for images, labels in loader]
    outliers = auxiliary(weighing(torch.cat([images for images, _ in loader])))
    return copy.deepcopy(detector).double().fit(precise, outliers=[outliers.double()])


def scores_of(name, detector, images):
    """Our scores `(N,)`, as their papers define them."""
    return both_values_of(name, detector, images)[1]


def both_values_of(name, detector, images):
    """Our scores `(N,)` in the form that detectors give, and as their papers define them."""
    if name in MOVED:
        detector, images = copy.deepcopy(detector).double(), images.double()
    with torch.no_grad():
        given = torch.cat([detector(batch) for batch in images.split(250)])
        published = torch.cat([detector.published(batch) for batch in images.split(250)])
    return given, published


def difference(ours, theirs):
    """The largest difference, relative to the reference's value or its spread, whichever is
    larger.
    """
    scale = theirs.abs().maximum(theirs.std())
    return ((ours.double() - theirs).abs() / scale).max().item()


class SmallNet(nn.Module):
    """Two convolutions, so that there are two layers of maps, and a head of 24 features."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 24, 3, stride=2, padding=1),
        )
        self.head = nn.Linear(24, 5)

    def forward(self, images):
        maps = torch.relu(self.second(torch.relu(self.first(images - 0.5) * 4)) + 0.3)
        return self.head(maps.mean((2, 3)))


def patterns(count):
    """Noisy images with a random colour in each quarter."""
    quarters = F.interpolate(torch.rand(count, 3, 2, 2), size=8, mode="nearest")
    return (quarters + 0.2 * torch.randn(count, 3, 8, 8)).clamp(0, 1)


LAYERS = ("first", "second")


@pytest.fixture(scope="module", params=[0, 1])
def problem(request):
    """A random network, 600 images to fit on, and images to score: 100 like those and 100 of
    noise.
    """
    with torch.random.fork_rng():
        torch.manual_seed(request.param)
        net = SmallNet().eval()
        labels = torch.arange(600) % 5
        images = patterns(600)
        with torch.no_grad():  # logits of a size that predicts every class, and some of them surely
            logits = net(images)
            net.head.weight.mul_(12)
            net.head.bias.copy_(-(logits.mean(0) - net.head.bias) * 12)
            labels = torch.where(
                torch.rand(600) < 0.6, net(images).argmax(1), labels
            )  # some of them classified wrongly
        inliers = patterns(100)
        outliers = torch.rand(100, 3, 8, 8).round()
    train = read(net, images, labels, LAYERS)
    assert len(train.logits.argmax(1).unique()) == 5
    return train, read(net, torch.cat([inliers, outliers]), torch.zeros(200), LAYERS)


@pytest.mark.parametrize("name", REFERENCES)
def test_scores_equal_the_reference(problem, name):
    train, test = problem
    detector = make(name, train.net, LAYERS)
    detector = fit(
        detector,
        [(train.images[i : i + 200], train.labels[i : i + 200]) for i in range(0, 600, 200)],
    )
    given, ours = both_values_of(name, detector, test.images)
    theirs = REFERENCES[name](train, test).detach()
    ordered = ours[given.argsort()]
    assert (ordered.diff() >= -1e-6 * ours.abs().max()).all()
    assert difference(ours, theirs) < 1e-4
    assert metrics.auroc(ours[:100], ours[100:]) == pytest.approx(
        metrics.auroc(theirs[:100], theirs[100:]), abs=5e-5
    )


def test_settings_that_follow_other_codes(problem):
    train, test = problem
    loader = [(train.images, train.labels)]
    with torch.no_grad():
        halved = detectors.Mahalanobis(train.net, reference=True).fit(loader)(test.images)
        summed = detectors.GradNorm(train.net, reference=True)(test.images)
        by_label = detectors.Gram(train.net, LAYERS, classes="labels").fit(loader)(test.images)
        gram_of_openood = detectors.Gram(train.net, LAYERS, definition="openood").fit(loader)
        assert difference(gram_of_openood(test.images), openood_gram(train, test)) < 1e-4
        state = gram_of_openood.state_dict()
        with pytest.raises(UserError, match="another detector"):
            detectors.Gram(train.net, LAYERS).load_state_dict(state)
    with in_float64():
        lee = (
            pood.Mahalanobis(None)
            .fit_features(train.features, train.labels)
            .predict_features(test.features)
        )
    assert difference(halved, -len(train.labels) * lee) < 1e-4
    openood = []  # the sum over classes of the cross-entropy with targets of one
    for features in test.features[:20]:
        weight = train.weight.clone().requires_grad_()
        loss = -(weight @ features + train.bias).log_softmax(0).sum()
        openood.append(torch.autograd.grad(loss, weight)[0].abs().sum())
    assert difference(summed[:20], torch.stack(openood)) < 1e-4
    assert difference(by_label, gram(train, test, classes=train.labels)) < 1e-4


def test_grad_uncertainty_is_pytorch_oods_where_no_probability_is_tiny(problem):
    train, test = problem
    theirs = pood.GradUncertainty(test.net.head.double()).predict(test.features)
    test.net.head.float()
    ours = grad_uncertainty(train, test)
    # Below it, torch's binary cross-entropy cuts gradients off.
    ordinary = test.logits.softmax(1).amin(1) > 1e-12
    assert ordinary.sum() > 100
    assert difference(ours[ordinary], -theirs.detach()[ordinary]) < 1e-6


def test_openmax_is_pytorch_oods_up_to_the_precision_of_its_search(problem):
    train, test = problem
    right = train.logits.argmax(1) == train.labels
    theirs = pood.OpenMax(None, tailsize=20, alpha=10)
    theirs.fit_logits(train.logits[right], train.labels[right])
    loader = [(train.images, train.labels)]
    with torch.no_grad():
        ours = detectors.OpenMax(train.net).fit(loader).published(test.images)
    assert (ours.double() + theirs.predict_logits(test.logits)).abs().max() < 0.02


def test_every_registered_score_has_a_reference():
    # Those of other networks: tests/unit/test_zero_shot.py, test_generative.py,
    # test_energy_models.py, test_training_outliers.py, test_dropout.py
    elsewhere = {
        "zero-shot",
        "neglabel",
        "likelihood",
        "complexity",
        "reconstruction",
        "gradient-norm",
        "discriminator",
        "outlier-class",
        "mc-dropout",
    }
    assert set(detectors.REGISTRY) - elsewhere == set(REFERENCES) - {
        "mahalanobis over layers",
        "ensemble by msp",
    }
