"""Several attacks as one: the worst image of all of them, and who found it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import check_fields
from robust_ood.attacks.apply import Candidate, LabelAttack, ScoreAttack, Settings, Worst
from robust_ood.attacks.objectives import READ_CLASSIFIERS, Direction
from robust_ood.attacks.pgd import PGD
from robust_ood.attacks.published import apgd
from robust_ood.attacks.square import Square
from robust_ood.attacks.targeted import Targeted
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.regions import L1, region_of
from robust_ood.rules import Steepest


@dataclass(frozen=True)
class Suite:
    """A union of attacks on images `(N, C, H, W)`, at least as strong as each.

    Args:
        on_detectors: members that attack detectors, by name. Those that read a classifier are left
            out where the detector has none.
        on_classifiers: members that attack classifiers, by name, each on the images that those
            before it left correct.
        finish: continues at the worst image that the members found, through the detector's own
            score or, where the classifier is still correct, its margin. In float32 it takes back
            what members in a cheaper precision leave to rounding.
        enough: a score; images that a member brought beyond it are left alone by those after.
    """

    on_detectors: Mapping[str, ScoreAttack]
    on_classifiers: Mapping[str, LabelAttack] = field(default_factory=dict)
    finish: PGD | None = None
    enough: float | None = None
    keeps_clean = True
    stops_early = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.on_detectors and not self.on_classifiers:
            raise UserError("on_detectors: no attack given; a suite needs at least one")

    def settings(self) -> Settings:
        """Return the first member's norm and radius, and the steps or queries of all members."""
        first = next(iter(self.on_detectors.values())).settings()
        steps = self._steps(self.on_detectors.values())
        return Settings(norm=first["norm"], radius=first["radius"], steps=steps, restarts=1)

    def settings_on_classifiers(self) -> Settings:
        """Return the same with the steps of the members that attack classifiers, which may be 0."""
        return {**self.settings(), "steps": self._steps(self.on_classifiers.values())}

    def costs(self, detector: Detector) -> dict[str, int]:
        """Return the steps or queries that each member spends on an image, by its name."""
        left_out = self.left_out(detector)
        costs = {}
        for name, member in self._on_scores().items():
            if name not in left_out:
                settings = member.settings()
                costs[name] = settings["steps"] * settings["restarts"]
        return costs

    def _steps(self, members: Iterable[ScoreAttack | LabelAttack]) -> int:
        total = 0
        if self.finish is not None:
            total = self.finish.steps
        for member in members:
            settings = member.settings()
            total += settings["steps"] * settings["restarts"]
        return total

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield every member's candidates, under the member's name."""
        left_out = self.left_out(detector)
        found = Worst(lambda x, _: direction * detector(x))
        found.see(Candidate(images, "clean"))
        for name, member in self._on_scores().items():
            if name in left_out:
                continue
            at = self._left(found.values, direction)  # (n,), or None for all
            if at is not None and not len(at):
                return
            attacked = (_at(images, at), direction, _at(indices, at))
            if member is self.finish:
                assert found.images is not None  # the clean ones at least
                proposals = self.finish.on_score(detector, *attacked, _at(found.images, at))
            else:
                proposals = member.on_score(detector, *attacked)
            for candidate in proposals:
                candidate = _of_member(candidate, name, at)
                found.see(candidate)
                yield candidate

    def until(self, enough: float) -> Suite:
        """Return the suite that leaves alone images whose score is beyond `enough`."""
        return replace(self, enough=enough)

    def _on_scores(self) -> dict[str, ScoreAttack]:
        members = dict(self.on_detectors)
        if self.finish is not None:
            members[FINISH] = self.finish
        return members

    def _left(self, values: Tensor, direction: Direction) -> Tensor | None:
        """Return the positions of images that are not beyond `enough` yet; None is all of them."""
        if self.enough is None:
            return None
        # Of a tie, the next member decides.
        return (~(values < direction * self.enough)).nonzero()[:, 0]

    def left_out(self, detector: Detector) -> list[str]:
        """Return the members that read a classifier, where the detector reads none."""
        if detector.classifiers:
            return []
        members = self.on_detectors.items()
        return [name for name, member in members if _reads_classifier(member)]

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield every member's candidates; a member leaves alone what is already misclassified."""

        def margin(moved: Tensor, at: Tensor | None) -> Tensor:
            return losses.margin(logits_of(net(moved)), _at(labels, at))

        found = Worst(margin)
        found.see(Candidate(images, "clean"))
        members: dict[str, LabelAttack] = dict(self.on_classifiers)
        if self.finish is not None:
            members[FINISH] = self.finish
        for name, member in members.items():
            # A tie, which coarse logits have, may still be decided for the label.
            at = (~(found.values < 0)).nonzero()[:, 0]
            if not len(at):
                return
            attacked = (net, _at(images, at), labels[at], _at(indices, at))
            if member is self.finish:
                assert found.images is not None  # the clean ones at least
                proposals = self.finish.on_label(*attacked, start=_at(found.images, at))
            else:
                proposals = member.on_label(*attacked)
            for candidate in proposals:
                candidate = _of_member(candidate, name, at)
                found.see(candidate)
                yield candidate


def standard(radius: float | str, norm: str = "Linf") -> Suite:
    """Return the standard suite, which has no setting but the budget.

    On detectors: PGD and Auto-PGD through the detector's own score with restarts; both of the ALOE
    paper's attacks, on the published trajectory (10 steps of 1/255 for Linf); its softmax
    objectives by Auto-PGD; ties between the likeliest classes; the classifier's MSP; features away
    from the image's own, or towards a class's; the likeliest classes one by one; Square.

    On classifiers, after AutoAttack: Auto-PGD with restarts on the cross-entropy and on the DLR
    loss (the margin below 3 classes), towards each class, and Square; a short PGD goes first and
    spares them the easy images.

    Members in the cheap precision find most of it. The longest ones are in float32, and so is the
    last, which goes on from the worst image found: what is reported does not depend on rounding.

    Args:
        radius: in pixel fractions, a number or a fraction as "8/255".
        norm: "Linf" or "L2".
    """
    region = region_of(norm, radius)
    if isinstance(region, L1):
        raise UserError(
            "norm: the standard suite attacks in Linf and L2; in L1, take apgd with restarts"
        )
    if not region.radius > 0:
        raise UserError(f"radius: {radius} leaves a suite nothing to do; expected one > 0")
    published = 1 / 255 if norm == "Linf" else None
    return Suite(
        on_detectors={
            # First those that settle most images a step (benchmarks/settled_images.py): after them,
            # the long ones have fewer to work on.
            "softmax": apgd(region, steps=20, objective="softmax"),
            "aloe-unmoved": PGD(region, steps=10, step_size=published, objective="unmoved"),
            "aloe": PGD(region, steps=10, step_size=published, objective="softmax"),
            "pgd": PGD(region, steps=100, restarts=2, precision="float32"),
            "apgd": apgd(region, steps=100, restarts=2, precision="float32"),
            "tied": PGD(region, steps=40, objective="tied"),
            "msp": PGD(region, steps=20, objective="msp"),
            "features": apgd(region, steps=20, objective="features"),
            "targeted": Targeted(apgd(region, steps=20), classes=3),
            "square": Square(region, queries=300),
        },
        on_classifiers={
            "pgd": PGD(region, steps=10),
            "apgd-ce": apgd(region, steps=100, restarts=2),
            "apgd-dlr": apgd(
                region, steps=100, restarts=3, loss="dlr_or_margin", precision="float32"
            ),
            "targeted": Targeted(apgd(region, steps=100, precision="float32"), classes=9),
            "square": Square(region, queries=1000),
        },
        finish=PGD(
            region,
            steps=50,
            step_size=region.radius / 4,
            rule=Steepest(momentum=0.9, decay="cosine"),
            loss="margin",
            precision="float32",
        ),
    )


FINISH = "finish"
"""The member that a suite's `finish` is named."""


def _of_member(candidate: Candidate, name: str, at: Tensor | None) -> Candidate:
    """Return a member's candidate for the images at some positions, as one of the suite's."""
    inner = candidate.at  # of a member that leaves images alone itself
    if at is not None and inner is not None:
        inner = at[inner]
    elif inner is None:
        inner = at
    return candidate._replace(member=name, at=inner)


def _at(values: Tensor, at: Tensor | None) -> Tensor:
    """Return the values at some positions; of images in the layout that they have."""
    if at is None:
        return values
    chosen = values[at.to(values.device)]
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
        chosen = chosen.contiguous(memory_format=torch.channels_last)
    return chosen


def _reads_classifier(member: Any) -> bool:
    return isinstance(member, Targeted) or getattr(member, "objective", None) in READ_CLASSIFIERS
