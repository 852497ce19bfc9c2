"""Scoring: images to scores, clean or attacked through a detector, in batches that fit into memory.

Evaluations, the validation callback and benchmarks all score here.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from robust_ood.attacks import PGD, LabelAttack, ScoreAttack, attack_labels, attack_score
from robust_ood.attacks.apply import Attacked
from robust_ood.attacks.objectives import READ_CLASSIFIERS, Direction
from robust_ood.data import ImageSet, OODData
from robust_ood.data.limits import limited
from robust_ood.data.memory import take_by_threads
from robust_ood.data.sets import ReadImages
from robust_ood.data.transforms import as_float
from robust_ood.detectors import Detector
from robust_ood.detectors.fitting.heap import give_back
from robust_ood.detectors.sharing import score_images
from robust_ood.errors import UserError
from robust_ood.evaluation.fingerprints import content
from robust_ood.inputs import accepted, check_labels, logits_of
from robust_ood.modes import evaluating

T = TypeVar("T")
CHUNK = 512
"""How many images are scored and stored together, by default."""
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class Chunk(NamedTuple):
    """The images `start` to `stop` of a set, and the fingerprint of their pixels.

    threads: how many read them.
    """

    images: ImageSet
    start: int
    stop: int
    content: str
    threads: int = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self) -> ReadImages:
        """Return the images that can be read, uint8, with labels and indices."""
        taken = take_by_threads(self.images, torch.arange(self.start, self.stop), self.threads)
        self.images.note_unreadable(taken.unreadable)
        return taken

    def read_labels(self) -> Tensor:
        """Return the labels `(n,)` of all images, also of those that cannot be read."""
        return self.images.read_labels(torch.arange(self.start, self.stop))


def chunks(images: ImageSet, limit: int | None, size: int = CHUNK, threads: int = 0) -> list[Chunk]:
    """Return a set, or `limit` of its images (see `data.limits`), in chunks of at most `size`.

    threads: how many read a chunk's images.
    """
    images = limited(images, limit)
    total = len(images)
    listed = []
    for start in range(0, total, size):
        stop = min(start + size, total)
        listed.append(Chunk(images, start, stop, content(images, start, stop, threads), threads))
    return listed


class TestSet(NamedTuple):
    """Images to score: the in-distribution (`group` "id"), shifted inliers ("shifted"), an OOD set,
    or those for thresholds ("validation"), which are scored before any attack.
    """

    images: ImageSet
    group: str
    chunks: list[Chunk]

    @property
    def direction(self) -> Direction:
        """+1 where an attack lowers scores, -1 where it raises them."""
        return 1 if self.group in ("id", "shifted") else -1

    @property
    def is_tested(self) -> bool:
        """Whether it is attacked."""
        return self.group != "validation"

    @property
    def is_certified(self) -> bool:
        """Whether bounds are computed, where certificates are asked for."""
        return self.group not in ("shifted", "validation")


def test_sets(data: OODData, limit: int | None, chunk: int) -> list[TestSet]:
    """Return the sets in chunks, the in-distribution first, validation images last.

    Raises: `UserError` without any OOD set.
    """
    inliers = data.inliers("test")
    ood_sets = data.ood_sets()
    if not ood_sets:
        raise UserError("data: neither near nor far names an OOD set to evaluate on")
    sets = []
    groups = [("id", inliers), *ood_sets]
    for images in data.shifted_sets():
        groups.append(("shifted", images))
    if data.names["validation"] is not None:
        groups.append(("validation", data.inliers("validation")))
    for group, images in groups:
        few = limited(images, limit)
        sets.append(TestSet(few, group, chunks(few, None, chunk, data.reading.workers)))
    return sets


class _Images(Protocol):
    """A batch: images `(n, C, H, W)`, labels and indices `(n,)`."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def indices(self) -> Tensor: ...


class Scored(NamedTuple):
    """Scores of images, on the CPU.

    scores: `(N,)` by detector. precisions: those of the attack's gradients. members: what found the
    images under an attack that sees this score, else none; winners: `(N,)` positions in it;
    attempts: on how many images each was run. images: the attacked ones `(N, C, H, W)`, where they
    are asked for.
    """

    scores: dict[str, Tensor]
    precisions: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    winners: Tensor | None = None
    attempts: tuple[int, ...] = ()
    images: Tensor | None = None


class Batches:
    """Splits images into batches; what runs out of memory is done again in halves.

    Args:
        size: images of the first batch; None takes all that come together.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._fitting: dict[Hashable, int] = {}

    def map(self, kind: Hashable, images: _Images, work: Callable[[ReadImages], T]) -> list[T]:
        """Return what `work` gives for consecutive batches; a size that fits is kept for its kind.

        Results do not depend on the size but by rounding: attacks are keyed by the index of each
        image.
        """
        results: list[T] = []
        start = 0
        count = len(images.images)
        while start < count:
            size = self._fitting.get(kind, self.size or count)
            chosen = slice(start, start + size)
            batch = ReadImages(images.images[chosen], images.labels[chosen], images.indices[chosen])
            try:
                results.append(work(batch))
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or len(batch.images) == 1:
                    raise
            else:
                start += size
                give_back()
                continue
            # Out of the handler, whose traceback holds on to the tensors.
            self._fitting[kind] = max(1, len(batch.images) // 2)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


class Scorer:
    """Scores images on a device.

    Args:
        device: where to compute; `bring` moves networks and detectors there.
        batch_size: images that are scored at a time, halved where they do not fit into memory; None
            takes them as they come.
    """

    def __init__(self, device: torch.device | str, batch_size: int | None = None) -> None:
        self.device = torch.device(device)
        self.batches = Batches(batch_size)
        self._held: tuple[nn.Module, list[Detector]] | None = None

    def bring(self, net: nn.Module, detectors: Mapping[str, Detector]) -> None:
        """Move a network and its detectors to the device, and those before back.

        So there is room for one network after the other.
        """
        if self._held is not None:
            held_net, held_detectors = self._held
            if held_net is net:  # its smoothed detectors are others than its own
                for detector in detectors.values():
                    if all(detector is not held for held in held_detectors):
                        detector.to(self.device)
                        held_detectors.append(detector)
                return
            for module in (held_net, *held_detectors):
                module.to("cpu")
        # Channels last is the layout that convolutions are fastest in.
        net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for detector in detectors.values():
            detector.to(self.device)
        self._held = (net, list(detectors.values()))

    def score(
        self,
        detectors: Mapping[str, Detector],
        batches: Iterable[_Images],
        attack: ScoreAttack | None = None,
        direction: Direction = 1,
        enough: float | None = None,
        *,
        keep_images: bool = False,
    ) -> Scored:
        """Return the true scores of several detectors on the same images.

        Args:
            detectors: by label.
            batches: uint8 or float images, with the indices that key an attack's draws.
            attack: None leaves the images clean; else they are attacked through the first detector.
            direction: +1 where the attack lowers scores, -1 where it raises them.
            enough: as in `attack_score`.
            keep_images: also return the attacked images, which are large.
        """
        work = partial(self._score, detectors, attack, direction, enough, keep_images)
        return _joined(detectors, self._results((*detectors, id(attack)), batches, work))

    def correct(
        self, net: nn.Module, batches: Iterable[_Images], attack: LabelAttack | None = None
    ) -> Scored:
        """Return whether a classifier is right, 1 or 0, under the label ""; attacked if asked."""
        work = partial(self._classify, net, attack)
        return _joined([""], self._results(("label", id(attack)), batches, work))

    def _results(
        self, kind: Hashable, batches: Iterable[_Images], work: Callable[[ReadImages], Scored]
    ) -> list[Scored]:
        results = []
        for batch in batches:
            results += self.batches.map(kind, batch, work)
        return results

    def _score(
        self,
        detectors: Mapping[str, Detector],
        attack: ScoreAttack | None,
        direction: Direction,
        enough: float | None,
        keep_images: bool,
        batch: ReadImages,
    ) -> Scored:
        images = as_input(batch.images, self.device)
        if attack is None:
            return Scored(score_images(detectors, images))
        first = next(iter(detectors.values()))
        run = partial(attack_score, first, images, attack, direction, indices=batch.indices)
        attacked = run(enough=enough)
        # Scored once more, because a random score that an attack has chosen by is biased.
        scores = score_images(detectors, attacked.images)
        if enough is not None:
            beyond = direction * attacked.values.cpu() < direction * enough
            stayed = direction * next(iter(scores.values())) < direction * enough
            if bool((beyond & ~stayed).any()):
                # A random score, of which "beyond" says nothing.
                attacked = run()
                scores = score_images(detectors, attacked.images)
        if proposal_group(attack, first) is not None:
            scored = Scored(scores, attacked.precisions)
        else:
            scored = _of_attack(scores, attacked)
        if keep_images:
            scored = scored._replace(images=attacked.images.cpu().contiguous())
        return scored

    def _classify(self, net: nn.Module, attack: LabelAttack | None, batch: ReadImages) -> Scored:
        images = as_input(batch.images, self.device)
        labels = batch.labels.to(self.device)
        if attack is None:
            return Scored({"": _is_right(net, images, labels)})
        attacked = attack_labels(net, images, labels, attack, indices=batch.indices)
        return _of_attack({"": _is_right(net, attacked.images, labels)}, attacked)


def _is_right(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with evaluating(net), torch.no_grad():
        logits: Tensor = logits_of(net(accepted(images, net)))
    check_labels(labels, logits.shape[1])
    return (logits.argmax(1) == labels).float().cpu()


def _of_attack(scores: dict[str, Tensor], attacked: Attacked) -> Scored:
    """Return scores with the attack's account, and without its images, which are large."""
    winners = attacked.winners.cpu()
    return Scored(scores, attacked.precisions, attacked.members, winners, attacked.attempts)


def _joined(labels: Iterable[str], batches: list[Scored]) -> Scored:
    """Return the scores of all batches as one; none where no image could be read."""
    scores = {}
    for label in labels:
        columns = [torch.empty(0)]  # `cat` needs one, also where no image could be read
        for batch in batches:
            columns.append(batch.scores[label])  # (n,)
        scores[label] = torch.cat(columns)
    precisions: set[str] = set()
    members: dict[str, int] = {}  # positions, in the order of first occurrence
    attempts: Counter[str] = Counter()
    winners = []
    for batch in batches:
        precisions.update(batch.precisions)
        for name in batch.members:
            members.setdefault(name, len(members))
        attempts.update(dict(zip(batch.members, batch.attempts, strict=True)))
        if batch.winners is not None:
            # Batches need not name their members in the same order.
            positions = torch.tensor([members[name] for name in batch.members])
            winners.append(positions[batch.winners])
    joined = torch.cat(winners) if winners else None
    tried = tuple(attempts[name] for name in members)
    images = None
    kept = [batch.images for batch in batches if batch.images is not None]
    if kept:
        images = torch.cat(kept)
    return Scored(scores, tuple(sorted(precisions)), tuple(members), joined, tried, images)


def proposal_group(attack: ScoreAttack, detector: Detector) -> Hashable | None:
    """Return what detectors have in common on which this attack proposes the same images.

    A transferred attack on classifiers looks at nothing but them, so its images serve every
    detector that reads them. None where the attack goes through the detector itself.
    """
    if not isinstance(attack, PGD):
        return None
    if attack.keep == "best" or attack.objective not in READ_CLASSIFIERS:
        return None
    return tuple(id(net) for net in detector.networks) or None


def as_input(images: Tensor, device: torch.device) -> Tensor:
    """Return images `(N, C, H, W)`, uint8 or attacked ones in [0, 1], as floats on the device.

    Their memory is channels last.
    """
    return as_float(images.to(device)).contiguous(memory_format=torch.channels_last)
