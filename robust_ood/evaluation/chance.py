"""An alarm for a classifier that is hardly better than guessing: wrong inputs, or wrong labels."""

from __future__ import annotations

from robust_ood.evaluation.records import Accuracy

_NEAR = 0.1  # of the way from chance to 1
_ENOUGH = 16  # images: on fewer, a good classifier may be unlucky


def check_accuracy(row: Accuracy, classes: int) -> list[str]:
    """Return an alarm where clean accuracy is near chance; none for attacked images.

    AUROC and accuracy of such a network say nothing about a method: its inputs are not those that
    it was trained on, or its classes are numbered in another way.

    Args:
        row: the accuracy of a network.
        classes: how many there are, K; chance is 1 / K.
    """
    if row.attack != "none" or classes < 2 or row.n < _ENOUGH:
        return []
    chance = 1 / classes
    if row.accuracy > chance + _NEAR * (1 - chance):
        return []
    return [
        f"{row.model}, classifier: accuracy {row.accuracy:.3f} on {row.id} is near chance "
        f"({chance:.3g} for {classes} classes): look for a wrong mean or std of the network, "
        "channels in another order, and labels that are shifted or numbered differently"
    ]
