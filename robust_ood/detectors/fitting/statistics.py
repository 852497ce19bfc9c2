"""What fitting accumulates in constant memory: float64 sums, extremes and samples.

A statistic sees batches, then `reduce` adds up what the processes of a distributed run have seen.
All tensors are made at the first batch, on its device (on the CPU where the device has no float64).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.detectors.fitting.processes import gathered, total
from robust_ood.errors import UserError


@typed
def double(tensor: Tensor) -> Tensor:
    """Return the tensor, of any shape, detached, as float64."""
    tensor = tensor.detach()
    if tensor.device.type == "mps":  # has no float64
        tensor = tensor.cpu()
    return tensor.double()


class Statistic(ABC):
    """A running summary of batches."""

    @abstractmethod
    def add(self, *values: Tensor) -> None:
        """See one batch: tensors `(N, ...)` with the same number of rows."""

    @abstractmethod
    def reduce(self) -> None:
        """Add up what all processes have seen."""


class Average(Statistic):
    """The mean of each column of `(N, D)` values."""

    @typed
    def __init__(self) -> None:
        self.count = 0
        self.sums = torch.zeros(0)

    def add(self, *values: Tensor) -> None:
        """See values `(N, D)`."""
        sums = double(values[0]).sum(0)  # (D,)
        self.count += len(values[0])
        if self.sums.numel():
            sums = self.sums + sums
        self.sums = sums

    def reduce(self) -> None:
        """Add up counts and sums."""
        self.sums = total(self.sums)
        self.count = int(total(torch.tensor(self.count)))

    @property
    def mean(self) -> Tensor:
        """The means `(D,)`, float64."""
        return self.sums / self.count


class ClassMeans(Statistic):
    """Counts `(K,)` and means `(K, D)` of vectors by class."""

    @typed
    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(0)
        self.sums = torch.zeros(0)

    def add(self, *values: Tensor) -> None:
        """See vectors `(N, D)` and classes `(N,)`."""
        vectors = double(values[0])
        classes = values[1].to(vectors.device)
        if not self.counts.numel():
            self.counts = vectors.new_zeros(self.classes)
            self.sums = vectors.new_zeros(self.classes, vectors.shape[1])
        membership = F.one_hot(classes, self.classes).to(vectors)  # (N, K)
        self.counts += membership.sum(0)
        # Deterministic on every device, unlike index_add_.
        self.sums += membership.T @ vectors  # (K, D)

    def reduce(self) -> None:
        """Add up counts and sums."""
        self.counts = total(self.counts)
        self.sums = total(self.sums)

    @property
    def means(self) -> Tensor:
        """The class means `(K, D)`, float64.

        Raises: `UserError` for a class without images.
        """
        require_all(self.counts)
        return self.sums / self.counts[:, None]


class RightMeans(ClassMeans):
    """Means `(K, D)` of each class's rightly predicted images; of all, where none of them is."""

    @typed
    def __init__(self, classes: int) -> None:
        # Rows 0..K-1 are of images that are wrongly predicted, the others of those that are not.
        super().__init__(2 * classes)

    @staticmethod
    def rows(logits: Tensor, labels: Tensor) -> Tensor:
        """Return what `add` takes as classes `(N,)`, of logits `(N, K)` and labels `(N,)`."""
        right = (logits.argmax(1) == labels).long()
        return labels + logits.shape[1] * right

    @property
    def has_right(self) -> Tensor:
        """Whether some image of each class `(K,)` is rightly predicted."""
        return self.counts.chunk(2)[1] > 0

    @property
    def means(self) -> Tensor:
        """The means `(K, D)`, float64.

        Raises: `UserError` for a class without images.
        """
        wrong, right = self.counts.chunk(2)  # (K,) each
        require_all(wrong + right)
        wrong_sums, right_sums = self.sums.chunk(2)  # (K, D) each
        counts = torch.where(self.has_right, right, wrong)
        sums = torch.where(self.has_right[:, None], right_sums, wrong_sums)
        return sums / counts[:, None]


class ClassMoments(ClassMeans):
    """Class means, covariances around them (`within`) and around the common mean (`overall`)."""

    @typed
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.products = torch.zeros(0)

    def add(self, *values: Tensor) -> None:
        """See vectors `(N, D)` and classes `(N,)`."""
        super().add(*values)
        vectors = double(values[0])
        products = vectors.T @ vectors  # (D, D)
        if self.products.numel():
            products = self.products.add_(products)
        self.products = products

    def reduce(self) -> None:
        """Add up counts, sums and products."""
        super().reduce()
        self.products = total(self.products)

    @property
    def count(self) -> Tensor:
        """How many vectors."""
        return self.counts.sum()

    @property
    def mean(self) -> Tensor:
        """The common mean `(D,)`."""
        return self.sums.sum(0) / self.count

    @property
    def within(self) -> Tensor:
        """The tied covariance `(D, D)` around the class means, divided by the number of vectors.

        Raises: `UserError` for a class without images, or one image of each.
        """
        if bool((self.counts == 1).all()):
            raise UserError(
                "loader: gives one image of each class; a covariance around the class means needs "
                "several"
            )
        return (self.products - self.sums.T @ self.means) / self.count

    def around(self, origin: Tensor) -> Tensor:
        """Return the second moment `(D, D)` around a point `(D,)`."""
        shift = origin.to(self.products)
        # E[(x - o)(x - o)'] = E[xx'] - E[x]o' - oE[x]' + oo'
        cross = torch.outer(self.mean, shift)  # (D, D)
        return self.products / self.count - cross - cross.T + torch.outer(shift, shift)

    @property
    def overall(self) -> Tensor:
        """The covariance `(D, D)` around the common mean."""
        return self.around(self.mean)


class ClassCovariances(ClassMeans):
    """Class means, and each class's own covariance around its mean.

    One `(D, D)` matrix a class is held.
    """

    @typed
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.products = torch.zeros(0)

    def add(self, *values: Tensor) -> None:
        """See vectors `(N, D)` and classes `(N,)`."""
        super().add(*values)
        vectors = double(values[0])
        classes = values[1].to(vectors.device)
        if not self.products.numel():
            size = vectors.shape[1]
            self.products = vectors.new_zeros(self.classes, size, size)
        for label in torch.unique(classes).tolist():
            members = vectors[classes == label]
            self.products[label] += members.T @ members

    def reduce(self) -> None:
        """Add up counts, sums and products."""
        super().reduce()
        self.products = total(self.products)

    def covariances(self) -> Iterator[Tensor]:
        """Yield the covariance `(D, D)` of each class, divided by the number of its vectors.

        Raises: `UserError` for a class without images.
        """
        for label, mean in enumerate(self.means):
            # Centred products are smaller than these by cancellation, in float64.
            yield self.products[label] / self.counts[label] - torch.outer(mean, mean)


class ClassExtremes(Statistic):
    """The smallest and largest value of each column by class, `(K, D)` each."""

    @typed
    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(0)
        self.low = torch.zeros(0)
        self.high = torch.zeros(0)

    def add(self, *values: Tensor) -> None:
        """See vectors `(N, D)` and classes `(N,)`."""
        vectors = values[0].detach()
        classes = values[1].to(vectors.device)
        if not self.counts.numel():
            shape = (self.classes, vectors.shape[1])
            self.counts = vectors.new_zeros(self.classes)
            self.low = vectors.new_full(shape, torch.inf)
            self.high = vectors.new_full(shape, -torch.inf)
        self.counts += torch.bincount(classes, minlength=self.classes)
        index = classes[:, None].expand_as(vectors)  # (N, D)
        self.low.scatter_reduce_(0, index, vectors, "amin")
        self.high.scatter_reduce_(0, index, vectors, "amax")

    def reduce(self) -> None:
        """Take the extremes over all processes."""
        self.counts = total(self.counts)
        self.low = total(self.low, "min")
        self.high = total(self.high, "max")


class LargestOfClasses(Statistic):
    """The largest values of each class, `(K, size)`, the largest first; -inf where it has fewer."""

    @typed
    def __init__(self, classes: int, size: int) -> None:
        for name, number in (("classes", classes), ("size", size)):
            if number < 1:
                raise UserError(f"{name}: expected a whole number >= 1, got {number}")
        self.size = size
        self.largest = torch.full((classes, size), -torch.inf, dtype=torch.float64)

    def add(self, *values: Tensor) -> None:
        """See values `(N,)` and their classes `(N,)`; -inf counts as no value."""
        numbers = double(values[0])
        known = self.largest.to(numbers.device)
        classes = values[1].to(numbers.device)
        number_of_classes = len(known)
        kept = torch.arange(number_of_classes, device=numbers.device).repeat_interleave(self.size)
        numbers = torch.cat([known.flatten(), numbers])
        classes = torch.cat([kept, classes])
        # By class, and the largest first within it: each class has `size` entries at least.
        order = numbers.argsort(descending=True, stable=True)
        order = order[classes[order].argsort(stable=True)]
        counts = F.one_hot(classes, number_of_classes).sum(0)
        first = counts.cumsum(0) - counts  # (K,), where each class begins
        places = first[:, None] + torch.arange(self.size, device=numbers.device)
        self.largest = numbers[order][places]

    def reduce(self) -> None:
        """Take the largest over all processes."""
        rows = gathered(self.largest[None]).transpose(0, 1).flatten(1)  # (K, processes * size)
        self.largest = rows.topk(self.size).values


class BinCounts(Statistic):
    """How often each column of `(N, D)` bin numbers is in each bin, `(D, bins)`."""

    @typed
    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.counts = torch.zeros(0)

    def add(self, *values: Tensor) -> None:
        """See bin numbers `(N, D)`, in 0..bins-1."""
        columns = values[0].detach().long().T  # (D, N)
        if not self.counts.numel():
            self.counts = columns.new_zeros(len(columns), self.bins)
        self.counts.scatter_add_(1, columns, torch.ones_like(columns))

    def reduce(self) -> None:
        """Add up the counts."""
        self.counts = total(self.counts)


class Sample(Statistic):
    """A uniform sample of rows, without replacement: the `size` rows whose keys are smallest.

    With keys that depend on the images alone, the sample depends neither on their order nor on how
    processes share them.
    """

    @typed
    def __init__(self, size: int) -> None:
        self.size = size
        self.rows = torch.zeros(0)
        self.keys = torch.zeros(0, dtype=torch.int64)
        self.filled = 0

    def add(self, *values: Tensor) -> None:
        """See rows `(N, D)` and integer keys `(N,)`."""
        rows = values[0].detach()
        keys = values[1]
        if not self.keys.numel():
            self.rows = rows.new_empty(self.size, rows.shape[1])
            self.keys = keys.new_empty(self.size)
        # The sample is filled first; then rows with small keys replace others.
        added = min(len(rows), self.size - self.filled)
        end = self.filled + added
        self.rows[self.filled : end] = rows[:added]
        self.keys[self.filled : end] = keys[:added]
        self.filled = end
        if added < len(rows):
            self._replace(rows[added:], keys[added:])

    def _replace(self, rows: Tensor, keys: Tensor) -> None:
        """Replace the rows with the largest keys by new ones with smaller keys."""
        # Rows that stay are not copied: only their replacements are written.
        all_keys = torch.cat([self.keys, keys])
        kept = all_keys.topk(self.size, largest=False).indices
        entering = kept[kept >= self.size] - self.size
        leaving = torch.ones_like(self.keys, dtype=torch.bool)
        leaving[kept[kept < self.size]] = False
        self.rows[leaving] = rows[entering]
        self.keys[leaving] = keys[entering]

    def reduce(self) -> None:
        """Draw the sample from what all processes kept, in the order of the keys."""
        rows = gathered(self.rows[: self.filled])
        keys = gathered(self.keys[: self.filled])
        # Sorted, so that the order does not depend on how processes shared the images.
        order = keys.argsort(stable=True)[: self.size]
        self.rows = rows[order]
        self.keys = keys[order]
        self.filled = len(order)


@typed
def require_all(
    counts: Tensor,
    problem: str = "loader: gives no image of class {}; every class of the network needs some",
) -> None:
    """Raise `UserError` where a class has no images.

    Args:
        counts: `(K,)`.
        problem: the message, with {} for the classes without images.
    """
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(map(str, empty[:5]))
        if len(empty) > 5:
            shown += ", ..."
        raise UserError(problem.format(shown))
