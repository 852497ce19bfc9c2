"""Alarms for numbers that lie: signs that an attack failed for a reason other than a robust detector.

After Carlini et al. 2019 ("On evaluating adversarial robustness") and the checks of AutoAttack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_ood.attacks import PGD, ScoreAttack, Square, attack_score
from robust_ood.attacks.objectives import Direction
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.metrics import auroc
from robust_ood.modes import differentiating, evaluating, ordinary
from robust_ood.randomness import generators
from robust_ood.regions import NORMS, Linf, Region

_STEPS = 10
_SLACK = 0.03  # of AUROC: what two honest attacks on few images may differ by
_FAR = 0.1


def check(
    detector: Detector,
    inliers: Tensor,
    outliers: Tensor,
    attack: ScoreAttack,
    *,
    name: str = "detector",
    limit: int = 32,
) -> list[str]:
    """Return warnings, one line each, that name the detector and what to do; none for a healthy detector.

    Args:
        detector: the detector that numbers are reported of.
        inliers: some clean in-distribution images `(N, C, H, W)` in [0, 1].
        outliers: some clean OOD images `(M, C, H, W)`.
        attack: the attack that numbers are reported under; its norm and radius are the budget of the probes, and it is
            tried itself where it is cheap (at most 100 steps).
        name: what the warnings call the detector.
        limit: use only the first so many images of each set.
    """
    probe = _Probe(detector, ordinary(inliers[:limit]), ordinary(outliers[:limit]), _region(attack))
    with evaluating(detector):
        warnings = list(_of_scores(probe))
        gradient_warnings = list(_of_gradients(probe))
        warnings += gradient_warnings
        if probe.region.radius > 0:
            # Without gradients there is no white-box attack to compare with.
            warnings += _of_attacks(probe, attack) if probe.differentiable() else _of_black_boxes(probe)
    return [f"{name}: {warning}" for warning in warnings]


@dataclass
class _Probe:
    """The detector, a few images, and the budget."""

    detector: Detector
    inliers: Tensor
    outliers: Tensor
    region: Region

    def scores(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.detector(self.inliers), self.detector(self.outliers)

    def attacked(self, attack: ScoreAttack) -> float:
        """Return the AUROC under an attack on both sides."""
        low = attack_score(self.detector, self.inliers, attack, 1).values
        high = attack_score(self.detector, self.outliers, attack, -1).values
        return auroc(low, high)

    def gradients(self) -> Tensor:
        """Return the surrogate's input gradients at all images."""
        with differentiating():
            leaf = torch.cat([self.inliers, self.outliers]).requires_grad_()
            (gradient,) = torch.autograd.grad(self.detector.surrogate(leaf).sum(), leaf)
        return ordinary(gradient)

    def differentiable(self) -> bool:
        with differentiating():
            values = self.detector.surrogate(self.inliers[:1].clone().requires_grad_())
        return bool(values.requires_grad)


def _region(attack: ScoreAttack) -> Region:
    settings = attack.settings()
    if settings["norm"] not in NORMS:
        raise UserError(f"attack: the checks need an Linf or L2 budget, not {settings['norm']}")
    return NORMS[settings["norm"]](settings["radius"])


def _of_scores(probe: _Probe) -> Iterator[str]:
    first, second = torch.cat(probe.scores()), torch.cat(probe.scores())
    broken = (~first.isfinite()).float().mean().item()
    if broken:
        yield f"{broken:.0%} of its scores are not finite; compute the operation that overflows in logarithms"
        return
    if (first - second).abs().max() > 1e-4 * first.std() + 1e-7:
        yield (
            "two evaluations of the same images differ, so attacks and metrics see noise; "
            "fix its random draws, or attack the expectation (noise_draws)"
        )
    clean = auroc(*probe.scores())
    if clean < 0.4:
        yield f"clean AUROC {clean:.2f}: OOD images score higher; higher must mean in-distribution, so check the sign"


def _of_gradients(probe: _Probe) -> Iterator[str]:
    if not probe.differentiable():
        yield "its score carries no gradient, so no white-box attack can work; give it a differentiable surrogate"
        return
    gradient = probe.gradients().flatten(1)
    broken = (~gradient.isfinite().all(1)).float().mean().item()
    if broken:
        yield f"{broken:.0%} of the images have non-finite input gradients; compute the surrogate in logarithms"
    zero = (gradient == 0).all(1).float().mean().item()
    if zero > 0.05:
        yield (
            f"{zero:.0%} of the images have an input gradient of exactly zero (saturation, rounding, fp16); "
            "attack logits or log-odds instead, in float32"
        )
        return
    wrong = _uphill(probe)
    if wrong > 0.6:
        yield (
            f"a small step down its surrogate raises the true score of {wrong:.0%} of the images; the surrogate "
            "has the wrong sign or belongs to another score"
        )


def _uphill(probe: _Probe) -> float:
    """Return the share of images whose true score rises along the surrogate's descent."""
    images, scores = torch.cat([probe.inliers, probe.outliers]), torch.cat(probe.scores())
    step = 0.1 * max(probe.region.radius, 1e-3)
    with torch.no_grad():
        moved = probe.detector(images - step * probe.region.steepest(probe.gradients()))
    return float((moved > scores).float().mean())


def _of_attacks(probe: _Probe, attack: ScoreAttack) -> Iterator[str]:
    found = probe.attacked(PGD(probe.region, steps=_STEPS))
    wider = probe.attacked(PGD(_scaled(probe.region, 2), steps=_STEPS))
    if wider > found + _SLACK:
        yield f"twice the radius is a weaker attack (AUROC {found:.2f} -> {wider:.2f}); try more steps and Auto-PGD"
    longer = probe.attacked(PGD(probe.region, steps=3 * _STEPS))
    if longer > found + _SLACK:
        yield f"three times the steps are a weaker attack (AUROC {found:.2f} -> {longer:.2f}); check the gradients"
    found = min(found, longer)
    everything = probe.attacked(PGD(Linf(1.0), steps=3 * _STEPS, random_start=False))
    if everything > 0.2:
        yield (
            f"with every image allowed (Linf 1) the attacked AUROC is still {everything:.2f} and not near 0; "
            "the gradients are masked, so report a black-box attack too"
        )
    yield from _blind_beats(probe, found)
    if _idle(probe):
        yield "restarts never help and the loss is flat along the attack; start elsewhere or attack another objective"
    settings = attack.settings()
    if settings["steps"] * settings["restarts"] <= 100:
        reported = probe.attacked(attack)
        if reported > found + _FAR:
            yield (
                f"the reported attack (AUROC {reported:.2f}) is far weaker than one through the detector "
                f"({found:.2f}); report the adaptive one"
            )


def _blind_beats(probe: _Probe, found: float) -> Iterator[str]:
    """Compare with attacks that should be weaker than those through the detector."""
    blind: dict[str, ScoreAttack] = {"Square": Square(probe.region, queries=5 * _STEPS)}
    if probe.detector.networks:
        blind["the attack transferred from MSP"] = PGD(probe.region, steps=_STEPS, objective="msp", keep="objective")
    values = {"random noise": _under_noise(probe)} | {name: probe.attacked(one) for name, one in blind.items()}
    for name, value in values.items():
        if value < found - _SLACK:
            yield (
                f"{name} (AUROC {value:.2f}) beats the attack through its gradients ({found:.2f}), which are therefore "
                "of little use; fix the surrogate and report the standard suite"
            )


def _of_black_boxes(probe: _Probe) -> Iterator[str]:
    found = probe.attacked(Square(probe.region, queries=10 * _STEPS))
    yield f"only black-box attacks apply to it: AUROC {found:.2f} under Square; report no gradient-based number"


def _under_noise(probe: _Probe) -> float:
    """Return the AUROC under the worst of ten random perturbations."""

    def worst(images: Tensor, direction: Direction) -> Tensor:
        values = []
        for trial in range(10):
            draws = generators(0, "sanity noise", trial, indices=range(len(images)))
            with torch.no_grad():
                values.append(direction * probe.detector(probe.region.sample(images, draws)))
        return direction * torch.stack(values).amin(0)

    return auroc(worst(probe.inliers, 1), worst(probe.outliers, -1))


def _idle(probe: _Probe) -> bool:
    """Return whether the restarts of an attack on inliers all end where they began, at the same value."""
    objective = probe.detector.surrogate
    attack = PGD(probe.region, steps=3, restarts=3)
    found = attack.search(objective, probe.inliers, attack.draws(torch.arange(len(probe.inliers))))
    ends = torch.stack([run.values for run in found if run.values is not None])  # (restarts, N)
    with torch.no_grad():
        begin = objective(probe.inliers)
    flat = (ends - begin).abs().amax(0) <= 1e-6 * begin.abs().clamp_min(1e-6)
    return flat.float().mean().item() > 0.5


def _scaled(region: Region, factor: float) -> Region:
    return NORMS[region.name](factor * region.radius)
