"""What `results.json` lists: rows by the published schema, and what stands beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

METRICS = (
    "auroc",
    "aupr_in",
    "aupr_out",
    "fpr95",
    "fpr95_ood_positive",
    "detection_error",
    "tpr_deployed",
    "fpr_deployed",
)


@dataclass(frozen=True)
class Row:
    """One detector against one attack on one OOD set: rates in [0, 1], by the definitions in
    `robust_ood.metrics`.

    attacked: which images the attack changed, "none", "in", "out" or "both". ood: the set, or
    "near" / "far" for the mean over a group. fpr95: share of OOD accepted when 95 % of ID is
    accepted. fpr95_ood_positive: share of ID rejected when 95 % of OOD is rejected. tpr_deployed,
    fpr_deployed: shares of ID and OOD accepted at the threshold that accepts 95 % of the *clean*
    ID. seconds: what computing the scores took, whenever that was.
    """

    model: str
    detector: str
    attack: str
    attacked: str
    norm: str
    radius: float
    steps: int
    restarts: int
    id: str
    ood: str
    group: str
    n_id: int
    n_ood: int
    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float
    fpr95_ood_positive: float
    detection_error: float
    tpr_deployed: float
    fpr_deployed: float
    seconds: float


@dataclass(frozen=True)
class Accuracy:
    """Classification accuracy, a fraction in [0, 1], clean (attack "none") or under an attack on
    the classifier.
    """

    model: str
    id: str
    attack: str
    norm: str
    radius: float
    steps: int
    restarts: int
    n: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Interval:
    """Bootstrap percentile intervals of one row's AUROC and FPR95, `(low, high)`; averages over
    groups have none.
    """

    model: str
    detector: str
    attack: str
    attacked: str
    id: str
    ood: str
    group: str
    level: float
    samples: int
    auroc: tuple[float, float]
    fpr95: tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of rows over the checkpoints of one recipe.

    recipe: its name; its models are those that `models` names. Other fields as in `Row`; of
    accuracies `detector`, `ood` and `group` are None and the one metric is "accuracy".
    """

    recipe: str
    models: tuple[str, ...]
    detector: str | None
    attack: str
    attacked: str | None
    norm: str
    radius: float
    steps: int
    restarts: int
    id: str
    ood: str | None
    group: str | None
    mean: dict[str, float]
    std: dict[str, float]


@dataclass(frozen=True)
class Wins:
    """How many images of a set each member of an attack won: whose candidate was kept; "clean" is
    the image itself.

    detector: None for an attack on the classifier.
    """

    model: str
    detector: str | None
    attack: str
    images: str
    group: str
    n: int
    wins: dict[str, int]


@dataclass(frozen=True)
class Failure:
    """A detector that could not be fitted, scored or checked: it has no rows, the rest has.

    detector: None where it is the network's accuracy that failed. stage: "fit", "score", "classify"
    or "check". attack: "none" where it failed on clean images or in fitting.
    """

    model: str
    detector: str | None
    attack: str
    stage: str
    error: str
    traceback: str = field(default="", compare=False)


@dataclass(frozen=True)
class CellFiles:
    """Where the scores of one set lie: files relative to the folder of `results.json`, in the order
    of the images.

    detector: None for the classifier's right answers. group: "id", "near" or "far".
    """

    model: str
    detector: str | None
    attack: str
    images: str
    group: str
    files: tuple[str, ...]
