"""Planning: which tasks the rows of a network need, in the order in which results get complete."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from robust_ood.attacks import Attack
from robust_ood.attacks.apply import StopsEarly
from robust_ood.evaluation.scoring import Chunk, Scorer, TestSet, chunks, proposal_group
from robust_ood.evaluation.settled import Bars
from robust_ood.evaluation.store import Store
from robust_ood.evaluation.tasks import AccuracyTask, Model, SanityTask, ScoreTask, Task
from robust_ood.evaluation.transfer_rows import is_source
from robust_ood.evaluation.universal_fits import FittingImages, UniversalTask

FEW = 16  # images of each side that the sanity checks use


@dataclass(frozen=True)
class Planner:
    """Plans the tasks of one network after the other.

    sets, scorer, store: those of the grid. attacks: by label. limit, sanity, skip_settled: as in
    `evaluate`. kept: labels of the attacks whose images are kept, all of them if `saves`, else
    those of `sources`. fitting: by attack, the images that universal perturbations are found on.
    """

    sets: Sequence[TestSet]
    attacks: Mapping[str, Attack]
    store: Store
    scorer: Scorer
    limit: int | None
    sanity: bool
    skip_settled: bool
    kept: frozenset[str]
    saves: bool
    sources: Sequence[str]
    fitting: Mapping[str, FittingImages]

    def tasks(self, model: Model) -> Iterator[Task]:
        """Yield the tasks in the order in which results become complete."""
        fingerprints = {label: model.fingerprint(label) for label in model.detectors}
        bars: dict[str, Bars] = {}
        budgets: dict[str, Attack | None] = {"none": None, **self.attacks}
        for label, attack in budgets.items():
            if label not in self.fitting:
                for set_index, chunk in labelled_chunks(self.sets, model.net):
                    yield AccuracyTask(model, chunk, label, attack, self.scorer, set_index)
            for names in self._groups(model, attack):
                group = {name: fingerprints[name] for name in names}
                stop = None
                if isinstance(attack, StopsEarly) and attack.stops_early:
                    stop = bars[names[0]]
                preparation = None
                if attack is not None and label in self.fitting:
                    (name,) = names
                    found_on = self.fitting[label]
                    subject = (model, name, label, attack)
                    preparation = UniversalTask(*subject, found_on, self.scorer, self.store)
                    yield preparation
                tasks = list(self._score_tasks(model, group, label, attack, stop, preparation))
                if attack is None:
                    bars = self._bars(tasks, names)
                yield from tasks
        if self.sanity:
            yield from self._sanity_tasks(model)

    def _score_tasks(
        self,
        model: Model,
        group: Mapping[str, str],
        label: str,
        attack: Attack | None,
        bars: Bars | None,
        preparation: UniversalTask | None,
    ) -> Iterator[ScoreTask]:
        """Yield the tasks of detectors, by label their fingerprints, under one attack."""
        # Validation images first: without a threshold there are no rows.
        in_order = sorted(enumerate(self.sets), key=lambda numbered: numbered[1].is_tested)
        for index, test_set in in_order:
            if attack is not None and not test_set.is_tested:
                continue
            for chunk in test_set.chunks:
                images = (test_set, index, chunk)
                keeps = label in self.kept and self._keeps_images(model.name, group)
                yield ScoreTask(
                    model,
                    group,
                    *images,
                    label,
                    attack,
                    self.scorer,
                    None if keeps else bars,  # images that are kept are attacked to the end
                    keeps_images=keeps,
                    preparation=preparation,
                )

    def _keeps_images(self, model: str, labels: Iterable[str]) -> bool:
        if self.saves:
            return True
        return any(is_source(self.sources, model, label) for label in labels)

    def _bars(self, clean: Sequence[ScoreTask], labels: Sequence[str]) -> dict[str, Bars]:
        """Return the bars of detectors, by label, from the tasks of their clean scores."""
        bars = {}
        for label in labels:
            keys: dict[int, list[str]] = {}
            for task in clean:
                keys.setdefault(task.set_index, []).append(task.keys[label])
            bars[label] = Bars(self.store, self.sets, keys, skip=self.skip_settled)
        return bars

    def _groups(self, model: Model, attack: Attack | None) -> list[list[str]]:
        """Return the labels of detectors, those together that are scored on the same images."""
        groups: dict[Hashable, list[str]] = {}
        for name, detector in model.detectors.items():
            group: Hashable = None  # clean images serve all
            if attack is not None:
                group = proposal_group(attack, detector) or name
            groups.setdefault(group, []).append(name)
        return list(groups.values())

    def _sanity_tasks(self, model: Model) -> Iterator[SanityTask]:
        few = min(FEW, self.limit or FEW)
        (inliers,) = chunks(self.sets[0].images, few)
        (outliers,) = chunks(self.sets[1].images, few)
        # A universal perturbation has an alarm of its own, where it is found.
        attacks = {}
        for label, attack in self.attacks.items():
            if label not in self.fitting:
                attacks[label] = attack
        for label in model.detectors:
            yield SanityTask(model, label, inliers, outliers, attacks, self.scorer)


def labelled_chunks(sets: Sequence[TestSet], net: nn.Module) -> Iterator[tuple[int, Chunk]]:
    """Yield the chunks that a network has an accuracy on, with the positions of their sets.

    Those are the in-distribution's and, where they have labels, shifted inliers'. A flow or an
    auto-encoder has no classes.
    """
    if not getattr(net, "classifies", True):
        return
    for set_index, images in enumerate(sets):
        is_labelled = images.group == "shifted" and images.images.labels is not None
        if images.group == "id" or is_labelled:
            for chunk in images.chunks:
                yield set_index, chunk
