"""Alarms for misleading numbers: signs that an attack failed although the detector is not robust.

After Carlini et al. 2019 ("On evaluating adversarial robustness") and the checks of AutoAttack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.attacks import PGD, ScoreAttack, Square
from robust_ood.attacks.apply import region_of_attack
from robust_ood.attacks.objectives import Direction
from robust_ood.attacks.precision import resolve
from robust_ood.attacks.quantised import suite_of
from robust_ood.detectors import MSP, Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.probe import Probe
from robust_ood.evaluation.records import Row
from robust_ood.inputs import checked
from robust_ood.metrics import auroc
from robust_ood.modes import evaluating, ordinary
from robust_ood.randomness import generators
from robust_ood.regions import L2, Linf, Region

_STEPS = 5
_SLACK = 0.03  # of AUROC: what two honest attacks on few images may differ by
_FAR = 0.1


@typed
def check(
    detector: Detector,
    inliers: Tensor,
    outliers: Tensor,
    *attacks: ScoreAttack,
    name: str = "detector",
    limit: int = 16,
) -> list[str]:
    """Return warnings, one line each, that say what to do; none for a healthy detector.

    The probes are short attacks in float32, one set of them for each norm and radius that occurs,
    however many attacks share it. What two radii have in common, such as one being twice the other,
    is computed once.

    Args:
        detector: the detector that numbers are reported of.
        inliers: some clean in-distribution images `(N, C, H, W)` in [0, 1].
        outliers: some clean OOD images `(M, C, H, W)`.
        attacks: the attacks that numbers are reported under; each is tried itself where it is cheap
            (at most 100 steps) and none of that norm and radius is the plain attack through the
            detector's own score.
        name: what the warnings call the detector.
        limit: use only the first so many images of each set.
    """
    inliers = ordinary(checked(inliers, "inliers")[:limit])
    outliers = ordinary(checked(outliers, "outliers")[:limit])
    if inliers.shape[1:] != outliers.shape[1:]:
        raise UserError(
            f"outliers: images {tuple(outliers.shape[1:])}, but inliers are "
            f"{tuple(inliers.shape[1:])}"
        )
    probe = Probe(detector, inliers, outliers.to(inliers.dtype))
    budgets: dict[Region, list[ScoreAttack]] = {}
    for attack in attacks:
        budgets.setdefault(region_of_attack(attack), []).append(attack)
    with evaluating(detector):
        warnings = list(_of_scores(probe))
        # Without gradients there is no white-box attack to compare with.
        differentiable = probe.differentiable()
        if differentiable:
            warnings += _of_gradients(probe, next(iter(budgets), Linf(1 / 255)))
        else:
            warnings.append(
                "its score carries no gradient, so no white-box attack can work; "
                "give it a differentiable surrogate"
            )
        radii = [region for region in budgets if region.radius > 0]
        if radii and differentiable:
            warnings += _of_everything(probe)
        for region in radii:
            if differentiable:
                warnings += _of_attacks(probe, region, budgets[region])
            else:
                warnings += _of_black_boxes(probe, region)
        for attack in attacks:
            warnings += _of_members(detector, attack)
    return [f"{name}: {warning}" for warning in dict.fromkeys(warnings)]


def check_bracket(row: Row, clean: Row | None) -> list[str]:
    """Return an alarm, "broken bracket", unless certified <= attacked <= clean.

    Args:
        row: of an attack, with a certificate.
        clean: the same detector on the same sets without attack, if it is there.
    """
    if row.lower is None:
        return []
    # What is attacked is a sample of the smoothed score; guaranteed bounds leave rounding.
    slack = _SLACK if row.bound == "certified" else 1e-6
    subject = (
        f"{row.model}, {row.detector}: broken bracket: {row.attack} ({row.attacked}, {row.ood})"
    )
    alarms = []
    if row.lower > row.auroc + slack:
        alarms.append(
            f"{subject} has the attacked AUROC {row.auroc:.4f} below the {row.bound} "
            f"{row.lower:.4f}: the bound or the attack has a bug"
        )
    if clean is not None and row.auroc > clean.auroc + slack:
        alarms.append(
            f"{subject} has the attacked AUROC {row.auroc:.4f} above the clean {clean.auroc:.4f}: "
            "the attack helps the detector"
        )
    return alarms


def _of_scores(probe: Probe) -> Iterator[str]:
    first = probe.scores()
    second = probe.scores()
    broken = (~first.isfinite()).float().mean().item()
    if broken:
        yield (
            f"{broken:.0%} of its scores are not finite; "
            "compute the operation that overflows in logarithms"
        )
        return
    if (first - second).abs().max() > 1e-4 * first.std() + 1e-7:
        yield (
            "two evaluations of the same images differ, so attacks and metrics see noise; "
            "fix its random draws, or attack the expectation (noise_draws)"
        )
    clean = probe.auroc(first)
    if clean < 0.4:
        yield (
            f"clean AUROC {clean:.2f} on {len(probe.outliers)} images of the first OOD set: "
            "the network is surer of them than of its own, "
            "or the score has the wrong sign (higher must mean in-distribution)"
        )


def _of_gradients(probe: Probe, region: Region) -> Iterator[str]:
    gradients = probe.gradients()
    flat = gradients.flatten(1)  # (N, C * H * W)
    broken = (~flat.isfinite().all(1)).float().mean().item()
    if broken:
        yield (
            f"{broken:.0%} of the images have non-finite input gradients; "
            "compute the surrogate in logarithms"
        )
    zero = (flat == 0).all(1).float().mean().item()
    if zero > 0.05:
        yield (
            f"{zero:.0%} of the images have an input gradient of exactly zero "
            "(saturation, rounding, fp16); attack logits or log-odds instead, in float32"
        )
        return
    # Short enough for the gradient to hold, long enough not to be rounded away.
    step = 0.1 * max(region.radius, 1e-3)
    with torch.no_grad():
        moved = probe.detector(region.move(probe.images, gradients, step))
    wrong = (moved > probe.scores()).float().mean().item()
    if wrong > 0.6:
        yield (
            f"a small step down its surrogate raises the true score of {wrong:.0%} of the images; "
            "the surrogate has the wrong sign or belongs to another score"
        )


def _of_everything(probe: Probe) -> Iterator[str]:
    everything = probe.probed(_exact(Linf(1.0), steps=2 * _STEPS, random_start=False))
    if everything > 0.2:
        yield (
            f"with every image allowed (Linf 1) the attacked AUROC is still {everything:.2f} "
            "and not near 0; the gradients are masked, so report a black-box attack too"
        )


def _of_attacks(probe: Probe, region: Region, attacks: list[ScoreAttack]) -> Iterator[str]:
    attacked = probe.probed(_exact(region, steps=_STEPS))
    wider = probe.probed(_exact(region.scaled(2), steps=_STEPS))
    if wider > attacked + _SLACK:
        yield (
            f"twice the radius is a weaker attack (AUROC {attacked:.2f} -> {wider:.2f}); "
            "try more steps and Auto-PGD"
        )
    longer = probe.probed(_exact(region, steps=3 * _STEPS))
    if longer > attacked + _SLACK:
        yield (
            f"three times the steps are a weaker attack (AUROC {attacked:.2f} -> {longer:.2f}); "
            "check the gradients"
        )
    if any(_rounded(probe, attack) for attack in attacks):
        rounded = probe.probed(PGD(region, steps=3 * _STEPS, precision="bfloat16"))
        if rounded > longer + _SLACK:
            yield (
                "the attack in bfloat16 is weaker than in float32 "
                f"(AUROC {longer:.2f} -> {rounded:.2f}); "
                "set its precision to float32, or needs_float32 in the detector's attack_surface"
            )
    attacked = min(attacked, longer)
    yield from _blind_beats(probe, region, attacked)
    if _idle(probe, region):
        yield (
            "restarts never help and the loss is flat along the attack; "
            "start elsewhere or attack another objective"
        )
    yield from _of_weak_attacks(probe, attacks, attacked)


def _of_weak_attacks(probe: Probe, attacks: list[ScoreAttack], adaptive: float) -> Iterator[str]:
    # Headlines show the strongest attack, so a weak one beside an adaptive one does no harm.
    if any(_plain(attack) for attack in attacks):
        return
    for attack in attacks:
        settings = attack.settings()
        if settings["steps"] * settings["restarts"] > 100:
            continue
        reported = probe.attacked(attack)
        if reported > adaptive + _FAR:
            yield (
                f"the reported attack {type(attack).__name__} (AUROC {reported:.2f}) is far weaker "
                f"than one through the detector ({adaptive:.2f}); report an adaptive one, such as "
                "pgd, too"
            )


def _of_members(detector: Detector, attack: ScoreAttack) -> Iterator[str]:
    left_out: Sequence[str] = []
    suite = suite_of(attack)
    if suite is not None:
        left_out = suite.left_out(detector)
    if left_out:
        yield (
            f"the suite's {', '.join(left_out)} do not apply, because it names no classifier; "
            "override `networks` to return those that its score reads"
        )


def _rounded(probe: Probe, attack: ScoreAttack) -> bool:
    """Return whether an attack's gradients are bfloat16 on this detector and device."""
    setting = attack.precision if isinstance(attack, PGD) else "auto"
    return resolve(setting, probe.images, probe.detector) == "bfloat16"


def _plain(attack: ScoreAttack) -> bool:
    """Return whether an attack, or one of a suite, is a longer version of the probes."""
    suite = suite_of(attack)
    if suite is not None:
        return any(_plain(member) for member in suite.on_detectors.values())
    if not isinstance(attack, PGD) or attack.noise:
        return False
    if attack.objective != "score" or attack.keep != "best" or attack.steps < _STEPS:
        return False
    return attack.steps * attack.step_size >= attack.region.radius


def _blind_beats(probe: Probe, region: Region, attacked: float) -> Iterator[str]:
    """Compare with attacks that should be weaker than those through the detector."""
    values = {"random noise": _under_noise(probe, region)}
    if _knows_square(region):
        values["Square"] = probe.probed(Square(region, queries=4 * _STEPS))
    if probe.detector.classifiers and not isinstance(probe.detector, MSP):
        transferred = _exact(region, steps=_STEPS, objective="msp", keep="objective")
        values["the attack transferred from MSP"] = probe.attacked(transferred)
    for name, value in values.items():
        if value < attacked - _SLACK:
            yield (
                f"{name} (AUROC {value:.2f}) beats the attack through its gradients "
                f"({attacked:.2f}), which are therefore of little use; "
                "fix the surrogate and report the standard suite"
            )


def _knows_square(region: Region) -> bool:
    """Return whether Square attacks in the region."""
    return isinstance(region, (Linf, L2))


def _of_black_boxes(probe: Probe, region: Region) -> Iterator[str]:
    if not _knows_square(region):
        yield f"no black-box attack is known in {region.name}; report Square in Linf or L2, too"
        return
    attacked = probe.probed(Square(region, queries=10 * _STEPS))
    yield (
        f"only black-box attacks apply to it: AUROC {attacked:.2f} under Square; "
        "report no gradient-based number"
    )


def _under_noise(probe: Probe, region: Region) -> float:
    """Return the AUROC under the worst of five random perturbations."""

    def worst(images: Tensor, direction: Direction) -> Tensor:
        values = []
        for trial in range(5):
            draws = generators(0, "sanity noise", trial, indices=range(len(images)))
            with torch.no_grad():
                values.append(direction * probe.detector(region.sample(images, draws)))
        return direction * torch.stack(values).amin(0)  # (trials, N) to (N,)

    return auroc(worst(probe.inliers, 1), worst(probe.outliers, -1))


def _idle(probe: Probe, region: Region) -> bool:
    """Return whether the restarts of an attack on inliers all end at the value they began at."""
    objective = probe.detector.surrogate
    attack = _exact(region, steps=2, restarts=2)
    draws = attack.draws(torch.arange(len(probe.inliers)))
    runs = attack.run(objective, probe.inliers, draws)
    ends = torch.stack([run.values for run in runs if run.values is not None])  # (restarts, N)
    with torch.no_grad():
        begin = objective(probe.inliers)
    flat = (ends - begin).abs().amax(0) <= 1e-6 * begin.abs().clamp_min(1e-6)
    return flat.float().mean().item() > 0.5


def _exact(region: Region, **settings: Any) -> PGD:
    """Return PGD in float32: what bfloat16 rounds away is no property of the detector."""
    return PGD(region, precision="float32", **settings)
