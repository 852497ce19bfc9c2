"""Safe spots: nearby images on which an attacker fails, found before the attacker comes.

Source: "Exploiting safe spots in neural networks for preemptive robustness and out-of-distribution
detection". The search is two nested calls of the engine: the outer one moves the image, the inner
one attacks wherever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.errors import UserError, unknown_name
from robust_ood.inputs import accepted, checked, logits_of, sample_indices
from robust_ood.modes import differentiating, evaluating, ordinary
from robust_ood.perturb import Objective, minimize
from robust_ood.randomness import generator, generators
from robust_ood.regions import Region, Unbounded, region_of
from robust_ood.rules import Optimizer

Method = Literal["fgsm", "pgd", "full"]
STEPS = {"fgsm": 1, "pgd": 20, "full": 100}
_LEARNING_RATE = {"Linf": 0.1, "L2": 0.001}
NORMS = tuple(_LEARNING_RATE)
"""Norms that the search has a step size for."""


class Smoothing(NamedTuple):
    """Randomised smoothing of a classifier.

    sigma: the noise's standard deviation in pixel fractions. samples: draws for each value.
    """

    sigma: float
    samples: int


@typed
def search(  # noqa: PLR0913  # the settings that the paper and its code have
    net: nn.Module,
    images: Tensor,
    radius: float | str,
    norm: str = "Linf",
    method: Method = "full",
    labels: Tensor | None = None,
    *,
    steps: int | None = None,
    step_size: float | None = None,
    attack_radius: float | str | None = None,
    attack_steps: int = 20,
    attacks: int = 1,
    keep: Literal["best", "last"] = "last",
    smoothing: Smoothing | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Return images near the given ones whose class withstands an attack.

    Source: the paper's Algorithm 1 and Eq. 2 for "full" (no second-order derivatives, as in Sec.
    3.3; without the random start of the public code, as in the paper; for L2 that code takes plain
    gradient steps, which stall where the loss is flat, RMSprop's do not), Sec. 4 for "fgsm" and
    "pgd", Eq. 3 for `smoothing`.

    Args:
        net: classifier, images to logits `(N, K)`; in eval mode meanwhile.
        images: `(N, C, H, W)` in [0, 1].
        radius: how far the image may be moved, in `norm`, pixel fractions.
        norm: "Linf" or "L2".
        method: "fgsm", one step of the radius towards the label; "pgd", `steps` of `step_size`
            towards it; "full", descent on the loss after an attack.
        labels: classes `(N,)` to keep; the network's predictions by default.
        steps: 1, 20 or 100 by default, by method.
        step_size: `radius` ("fgsm") or `radius / 4` ("pgd") by default; "full" takes it as the
            learning rate of RMSprop, 0.1 for Linf (of a variable whose tanh is the image) and 0.001
            for L2.
        attack_radius: radius of the attacker that "full" defends against; `radius` by default.
        attack_steps: that attacker's steps, each of a quarter of its radius.
        attacks: attacks averaged at each outer step (N in Algorithm 1).
        keep: the "last" iterate, as published, or the "best" seen.
        smoothing: search for the smoothed classifier instead; every value draws fresh noise.
        seed: seed of the attacker's starts and of the noise.
        indices: sample indices `(N,)` that key the attacker's starts. By default all images share
            their draws, so that the result for an image does not depend on its batch.
        check: refuse images outside [0, 1], which waits for the device once.

    Returns:
        Safe-spot candidates `(N, C, H, W)`, detached, within the radius; flags and gradients of
        `net` are as before.

    Raises:
        UserError: unknown norm or method, `attacks` below 1.
    """
    region = _region(norm, radius)
    if method not in STEPS:
        raise unknown_name("method", method, STEPS)
    if attacks < 1:
        raise UserError(f"attacks: {attacks} is not a number of attacks >= 1")
    images = ordinary(checked(images) if check else images)
    with evaluating(net), differentiating():
        images = accepted(images, net)
        labels = _predictions(net, images, labels)
        loss = _Loss(net, _one_each(labels, images), smoothing, seed, indices)
        if steps is None:
            steps = STEPS[method]
        if step_size is None:
            step_size = _default_step_size(method, region)
        if method != "full":
            minimum = minimize(loss, images, region, steps=steps, step_size=step_size, keep=keep)
            return minimum.images
        attacker = region
        if attack_radius is not None:
            attacker = _region(norm, attack_radius)
        objective = _after_attack(loss, attacker, attack_steps, attacks)
        descend = _descend_in_box if norm == "Linf" else _descend
        return descend(objective, images, region, steps, step_size, keep)


@typed
def attack(  # noqa: PLR0913  # the settings that the paper and its code have
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    radius: float | str,
    norm: str = "Linf",
    *,
    steps: int = 20,
    smoothing: Smoothing | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Return adversarial images `(N, C, H, W)` by the paper's attacker.

    They are, for instance, `x_a` around safe spots `x_s`. Source: Sec. 3.2 and 4: PGD on the
    cross-entropy of `labels` `(N,)`, a random start, steps of a quarter of the radius, last
    iterate. With `smoothing`, the randomised PGD of Eq. 3. Other arguments as in `search`.
    """
    with evaluating(net), differentiating():
        images = accepted(ordinary(checked(images) if check else images), net)
        loss = _Loss(net, _one_each(ordinary(labels), images), smoothing, seed, indices)
        return loss.attack(images, _region(norm, radius), steps)


def _region(norm: str, radius: float | str) -> Region:
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    return region_of(norm, radius)


def _one_each(labels: Tensor, images: Tensor) -> Tensor:
    """Return the labels; raise `UserError` unless they are `(N,)`."""
    if labels.shape != images.shape[:1]:
        raise UserError(
            f"labels: shape {tuple(labels.shape)} for {len(images)} images, expected one each"
        )
    return labels


def _default_step_size(method: Method, region: Region) -> float:
    """Return the step size, or for "full" the learning rate, that the paper and its code have."""
    if method == "full":
        return _LEARNING_RATE[region.name]
    if method == "fgsm":
        return float(region.radius)
    return region.radius / 4


class _Loss:
    """The cross-entropy of fixed labels, `(N,)`, and the attack that climbs it.

    Each use takes the next draws.
    """

    def __init__(
        self,
        net: nn.Module,
        labels: Tensor,
        smoothing: Smoothing | None,
        seed: int,
        indices: Tensor | None,
    ) -> None:
        self.net = net
        self.labels = labels
        self.smoothing = smoothing
        self.seed = seed
        if indices is None:
            self.indices = [0] * len(labels)
        else:
            self.indices = sample_indices(indices, len(labels)).tolist()
        self.draws: Iterator[int] = count()

    def __call__(self, images: Tensor) -> Tensor:
        if self.smoothing is None:
            return losses.cross_entropy(logits_of(self.net(images)), self.labels)
        sigma, samples = self.smoothing
        draws = generator(self.seed, "smoothing", next(self.draws))
        noise = sigma * torch.randn((samples, *images.shape[1:]), generator=draws).to(images)
        noisy = (images[:, None] + noise).flatten(0, 1)  # (N * samples, C, H, W)
        log_p = losses.wide(logits_of(self.net(noisy))).log_softmax(1)  # (N * samples, K)
        log_p = log_p.view(len(images), samples, -1)  # (N, samples, K)
        # Logits whose softmax is the mean softmax: the mean's logarithm, up to a constant.
        return losses.cross_entropy(log_p.logsumexp(1), self.labels)

    def attack(self, images: Tensor, region: Region, steps: int) -> Tensor:
        starts = generators(self.seed, "safe spot attack", next(self.draws), indices=self.indices)
        start = region.sample(images, starts)
        return minimize(
            lambda x: -self(x),
            images,
            region,
            steps=steps,
            step_size=region.radius / 4,
            start=start,
            keep="last",
        ).images


def _after_attack(loss: _Loss, region: Region, steps: int, attacks: int) -> Objective:
    """Return the mean loss after attacks from wherever an image is.

    The attack's perturbation counts as a constant.
    """

    def objective(images: Tensor) -> Tensor:
        centers = images.detach()
        values = []
        for _ in range(attacks):
            perturbation = loss.attack(centers, region, steps) - centers
            values.append(loss(images + perturbation))
        return torch.stack(values).mean(0)

    return objective


def _descend(
    objective: Objective,
    images: Tensor,
    region: Region,
    steps: int,
    rate: float,
    keep: Literal["best", "last"],
) -> Tensor:
    return minimize(
        objective,
        images,
        region,
        steps=steps,
        step_size=rate,
        rule=Optimizer(torch.optim.RMSprop),
        keep=keep,
    ).images


def _descend_in_box(
    objective: Objective,
    images: Tensor,
    region: Region,
    steps: int,
    rate: float,
    keep: Literal["best", "last"],
) -> Tensor:
    """Descend in a free variable whose tanh spans the allowed box of each pixel."""
    lower = (images - region.radius).clamp_min(0)
    upper = (images + region.radius).clamp_max(1)
    width = upper - lower

    def image(variable: Tensor) -> Tensor:
        return lower + (variable.tanh() + 1) / 2 * width

    # Just inside the box, as in the public code: at its very edge the variable would be infinite.
    inside = ((images - lower) / width.clamp_min(1e-12) - 0.5) * 1.999
    free = Unbounded(clip=False)
    variable = _descend(lambda v: objective(image(v)), inside.atanh(), free, steps, rate, keep)
    return region.project(image(variable), images)


def _predictions(net: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    if labels is not None:
        return ordinary(labels)
    with torch.no_grad():
        predicted: Tensor = logits_of(net(images)).argmax(1)
    return predicted
