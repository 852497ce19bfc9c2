"""Features, heads and twenty scores of the libraries' networks equal what is computed without ours.

Features come from the libraries' own calls, scores from NumPy; a network whose logits are not the
output of one layer refuses the detectors that read it, in one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.linalg import eigh, norm, pinv
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor, nn

from robust_ood import detectors
from robust_ood.errors import UserError
from robust_ood.models import find_head, outputs, wrap

timm = pytest.importorskip("timm")
K = 4
SIZE = 32
MEAN = (0.5, 0.4, 0.3)
STD = (0.5, 0.25, 0.2)


# --- networks, and their features by their own libraries


def vit(**settings) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=K, **settings
    )


def deit_distilled() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=K
    )


def convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=K)


def bit() -> nn.Module:
    """A ResNet-v2 of BiT, whose head is a 1 x 1 convolution after pooling."""
    from timm.layers import GroupNormAct
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        layers=(1, 1), channels=(16, 24), stem_chs=8, num_classes=K,
        norm_layer=partial(GroupNormAct, num_groups=4),
    )  # fmt: skip


def squeezenet() -> nn.Module:
    """SqueezeNet, narrower: a 1 x 1 convolution, ReLU, then pooling."""
    from torchvision.models.squeezenet import Fire, SqueezeNet

    net = SqueezeNet("1_1", num_classes=K)
    net.features = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), Fire(16, 8, 12, 12), Fire(24, 8, 12, 12)
    )
    net.classifier[1] = nn.Conv2d(24, K, 1)
    return net


def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [MBConvConfig(1, 3, 1, 16, 8, 1, 1, 1), MBConvConfig(2, 3, 2, 8, 12, 1, 1, 1)]
    return EfficientNet(blocks, dropout=0.2, num_classes=K, last_channel=24)


def hugging_face() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            image_size=SIZE, patch_size=8, num_labels=K,
        )
    )  # fmt: skip


class Case(NamedTuple):
    """A network, its features `(N, D)` by its library, its last layer, and whether that gives the
    logits.
    """

    make: Callable[[], nn.Module]
    features: Callable[[Any, Tensor], Tensor]
    layer: Callable[[Any], nn.Module]
    exact: bool = True


def pre_logits(net, x):
    return net.forward_head(net.forward_features(x), pre_logits=True).flatten(1)


CASES = {
    "vit": Case(vit, pre_logits, lambda net: net.head),
    "vit, mean token": Case(partial(vit, global_pool="avg"), pre_logits, lambda net: net.head),
    "deit, distilled": Case(
        deit_distilled, lambda net, x: net.forward_features(x)[:, 0], lambda net: net.head, False
    ),
    "convnext": Case(convnext, pre_logits, lambda net: net.head.fc),
    "bit": Case(bit, pre_logits, lambda net: net.head.fc),
    "squeezenet": Case(
        squeezenet, lambda net, x: net.features(x).mean((2, 3)), lambda net: net.classifier[1], False
    ),
    "efficientnet": Case(
        efficientnet,
        lambda net, x: net.avgpool(net.features(x)).flatten(1),
        lambda net: net.classifier[1],
    ),
    "hugging face": Case(
        hugging_face, lambda net, x: net.vit(x).last_hidden_state[:, 0], lambda net: net.classifier
    ),
}  # fmt: skip


class Seen(NamedTuple):
    """A set's images, and in NumPy its logits `(N, K)`, features `(N, D)` and labels `(N,)`."""

    images: Tensor
    logits: np.ndarray
    features: np.ndarray
    labels: np.ndarray


class Problem(NamedTuple):
    case: Case
    net: nn.Module
    normalised: Callable[[Tensor], Tensor]
    train: Seen
    test: Seen

    @property
    def weight(self) -> np.ndarray:
        return self.case.layer(self.net).weight.detach().flatten(1).numpy()

    @property
    def bias(self) -> np.ndarray:
        return self.case.layer(self.net).bias.detach().numpy()


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def logits_by_library(net: nn.Module, x: Tensor) -> Tensor:
    given = net(x)
    return given if isinstance(given, Tensor) else given.logits


@pytest.fixture(scope="module", params=CASES)
def problem(request) -> Problem:
    case = CASES[request.param]
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = case.make().double().eval()
    with torch.no_grad():
        for parameter in net.parameters():  # timm's heads begin at 0
            if parameter.dim() > 1:
                size = parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * size)
        case.layer(net).weight.mul_(2)
        case.layer(net).bias.copy_(torch.randn(K, generator=draws))
    sets = []
    for count in (120, 20):
        # Coarse and fine noise, so that images differ in more than their pixels.
        coarse = torch.rand(count, 3, 4, 4, generator=draws)
        fine = torch.rand(count, 3, SIZE, SIZE, generator=draws)
        images = 0.7 * F.interpolate(coarse, SIZE, mode="bilinear") + 0.3 * fine
        images = images.double()
        with torch.no_grad():
            logits = logits_by_library(net, normalised(images)).numpy()
            features = case.features(net, normalised(images)).numpy()
        # Mostly what the network says, so that there is a best temperature; no class is empty.
        numbers = np.arange(count)
        labels = np.where(numbers % 3 == 0, numbers // 3 % K, logits.argmax(1))
        sets.append(Seen(images, logits, features, labels))
    return Problem(case, net, normalised, *sets)


# --- scores, from logits, features and the head alone


def probabilities(problem):
    return softmax(problem.test.logits, axis=1)


def tempered(problem):
    train = problem.train

    def loss(log_t):
        log_p = log_softmax(train.logits / math.exp(log_t), axis=1)
        return -log_p[np.arange(len(log_p)), train.labels].mean()

    best = minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-10}).x
    return softmax(problem.test.logits / math.exp(best), axis=1).max(1)


def entropy(problem):
    p = probabilities(problem)
    return (p * np.log(p)).sum(1)


def gen(problem):
    p = probabilities(problem)
    return -(p**0.1 * (1 - p) ** 0.1).sum(1)


def kl_matching(problem):
    train = softmax(problem.train.logits, axis=1)
    predicted = train.argmax(1)
    typical = np.stack([train[predicted == k].mean(0) for k in np.unique(predicted)])
    p = probabilities(problem)[:, None]
    return -(p * (np.log(p) - np.log(typical))).sum(2).min(1)


def inverse_of(covariance):
    """Return the inverse, after the least shrinkage for a condition number of a million.

    Normalised features, a transformer's, have a direction without variance.
    """
    mean = np.trace(covariance) / len(covariance)

    def shrunk(share):
        return (1 - share) * covariance + share * mean * np.eye(len(covariance))

    def excess(log_share):
        return math.log(np.linalg.cond(shrunk(math.exp(log_share)))) - math.log(1e6)

    if np.linalg.cond(covariance) <= 1e6:
        return np.linalg.inv(covariance)
    return np.linalg.inv(shrunk(math.exp(brentq(excess, -25, -1, xtol=1e-12))))


def distances(features, labels, test):
    """Squared Mahalanobis distances `(N, K)` to class means, with the pooled covariance."""
    means = np.stack([features[labels == k].mean(0) for k in range(K)])
    centred = features - means[labels]
    inverse = inverse_of(centred.T @ centred / len(centred))
    difference = test[:, None] - means
    return np.einsum("nkd,de,nke->nk", difference, inverse, difference)


def mahalanobis(problem):
    return -distances(problem.train.features, problem.train.labels, problem.test.features).min(1)


def relative_mahalanobis(problem):
    """Fort Eq. 2: less the distance from one Gaussian of all the images."""
    features = problem.train.features
    centred = features - features.mean(0)
    inverse = inverse_of(centred.T @ centred / len(centred))
    difference = problem.test.features - features.mean(0)
    background = np.einsum("nd,de,ne->n", difference, inverse, difference)
    return mahalanobis(problem) + background


def knn(problem):
    bank = problem.train.features / norm(problem.train.features, axis=1, keepdims=True)
    test = problem.test.features / norm(problem.test.features, axis=1, keepdims=True)
    return -np.sort(norm(test[:, None] - bank, axis=2), axis=1)[:, 49]


def residual_of(problem, features):
    origin = -pinv(problem.weight) @ problem.bias
    centred = problem.train.features - origin
    values, directions = eigh(centred.T @ centred)
    smallest = directions[:, : len(values) - len(values) // 2]
    return norm((features - origin) @ smallest, axis=1)


def vim(problem):
    on_train = residual_of(problem, problem.train.features)
    alpha = problem.train.logits.max(1).mean() / on_train.mean()
    virtual = alpha * residual_of(problem, problem.test.features)
    return logsumexp(problem.test.logits, axis=1) - virtual


def energy_of(problem, features, weight=None):
    weight = problem.weight if weight is None else weight
    return logsumexp(features @ weight.T + problem.bias, axis=1)


def react(problem):
    limit = np.quantile(problem.train.features, 0.9)
    return energy_of(problem, np.minimum(problem.test.features, limit))


def kept(features, share):
    """Return which features are the largest of each image."""
    count = features.shape[1] - round(features.shape[1] * share)
    order = np.argsort(-features, axis=1)
    mask = np.zeros(features.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :count], True, axis=1)
    return mask


def ash(problem, variant):
    features = problem.test.features
    mask = kept(features, 0.9)
    pruned = features * mask
    total = features.sum(1, keepdims=True)
    if variant == "b":
        pruned = mask * total / mask.sum(1, keepdims=True)
    if variant == "s":
        pruned = pruned * np.exp(np.clip(total / pruned.sum(1, keepdims=True), -50, 50))
    return energy_of(problem, pruned)


def scale(problem):
    features = problem.test.features
    pruned = features * kept(features, 0.85)
    ratio = features.sum(1, keepdims=True) / pruned.sum(1, keepdims=True)
    return energy_of(problem, features * np.exp(np.clip(ratio, -50, 50)))


def dice(problem):
    contributions = problem.train.features.mean(0) * problem.weight
    sparse = problem.weight * (contributions > np.quantile(contributions, 0.9))
    return energy_of(problem, problem.test.features, sparse)


def gradnorm(problem):
    off_uniform = np.abs(probabilities(problem) - 1 / K).sum(1)
    return off_uniform * np.abs(problem.test.features).sum(1)


def odin(problem):
    x = problem.test.images.clone().requires_grad_()
    log_p = (logits_by_library(problem.net, problem.normalised(x)) / 1000).log_softmax(1)
    (gradient,) = torch.autograd.grad(log_p.amax(1).sum(), x)
    with torch.no_grad():
        moved = problem.normalised(x + 0.0014 * gradient.sign())
        return (logits_by_library(problem.net, moved) / 1000).softmax(1).amax(1).numpy()


def ensemble(problem):
    """Of the network with itself at another resolution, whose images are resized to its own."""
    return entropy(problem)


OF_LOGITS = {
    "msp": lambda problem: probabilities(problem).max(1),
    "msp-t": tempered,
    "entropy": entropy,
    "gen": gen,
    "maxlogit": lambda problem: problem.test.logits.max(1),
    "energy": lambda problem: logsumexp(problem.test.logits, axis=1),
    "oe-score": lambda p: logsumexp(p.test.logits, axis=1) - p.test.logits.mean(1),
    "kl-matching": kl_matching,
    "odin": odin,
    "deep-ensemble": ensemble,
}
OF_FEATURES = {
    "mahalanobis": mahalanobis,
    "relative-mahalanobis": relative_mahalanobis,
    "knn": knn,
}
OF_THE_HEAD = {
    "vim": vim,
    "residual": lambda problem: -residual_of(problem, problem.test.features),
    "react": react,
    "ash-p": partial(ash, variant="p"),
    "ash-b": partial(ash, variant="b"),
    "ash-s": partial(ash, variant="s"),
    "scale": scale,
    "dice": dice,
    "gradnorm": gradnorm,
}
SETTINGS: dict[str, dict[str, Any]] = {"scale": {"percentile": 85}}


def build(name: str, net: nn.Module) -> detectors.Detector:
    if name == "deep-ensemble":
        return detectors.DeepEnsemble([net, net], sizes=[SIZE, None])
    return detectors.build(name, net, **SETTINGS.get(name, {}))


def test_features_head_and_logits_are_the_librarys(problem):
    out = outputs(wrap(problem.net, MEAN, STD), problem.test.images)
    np.testing.assert_allclose(out.logits.detach(), problem.test.logits, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(out.features.detach(), problem.test.features, rtol=1e-9, atol=1e-12)
    if problem.case.exact:
        head = find_head(wrap(problem.net, MEAN, STD))
        np.testing.assert_array_equal(head.weight.detach(), problem.weight)
        np.testing.assert_array_equal(out.head.bias.detach(), problem.bias)
    else:
        with pytest.raises(UserError, match=r"^head: the logits of \w+ are not the output of"):
            find_head(wrap(problem.net, MEAN, STD))


@pytest.mark.parametrize("name", [*OF_LOGITS, *OF_FEATURES, *OF_THE_HEAD])
def test_scores_are_those_of_an_independent_computation(problem, name):
    net = wrap(problem.net, MEAN, STD)
    if name in OF_THE_HEAD and not problem.case.exact:
        with pytest.raises(UserError, match=r"net: \w+ needs a linear head; ") as refused:
            build(name, net)
        assert "\n" not in str(refused.value)
        return
    labels = torch.from_numpy(problem.train.labels)
    detector = build(name, net).fit([(problem.train.images, labels)])
    with torch.no_grad():
        ours = detector.published(problem.test.images).numpy()
    reference = {**OF_LOGITS, **OF_FEATURES, **OF_THE_HEAD}[name](problem)
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-6 * np.abs(reference).max())


def test_twenty_detectors_are_compared():
    assert len([*OF_LOGITS, *OF_FEATURES, *OF_THE_HEAD]) >= 20
