"""The records of an evaluation, and what each of their fields may hold.

The annotations are the schema: `robust_ood.evaluation.results` checks files against them when it
reads and when it writes, and `docs/results_schema.md` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

Rate = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
# Far above any real value, and finite: a table or an axis can still show them.
Radius = Annotated[float, Meta(ge=0, le=1e9)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Score = Annotated[float, Meta(ge=-1e300, le=1e300)]
Bounds = tuple[Rate, Rate]
# Not literals, so that the code that makes records may hand over any text.
Side = Annotated[str, Meta(pattern=r"^(none|in|out|both)\Z")]
OODGroup = Annotated[str, Meta(pattern=r"^(near|far|full-near|full-far)\Z")]
Group = Annotated[str, Meta(pattern=r"^(id|near|far|shifted|validation)\Z")]
BoundKind = Annotated[str, Meta(pattern=r"^(none|certified|guaranteed)\Z")]

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
    """One detector against one attack on one OOD set: rates in [0, 1].

    `robust_ood.metrics` defines the rates. attacked: which images the attack changed, "none", "in",
    "out" or "both". group: of the OOD set, "near" or "far"; "full-near" or "full-far" where `id`
    has covariate-shifted inliers, too. ood: the set, or its group for the mean over a group. fpr95:
    share of OOD accepted when 95 % of ID is accepted. fpr95_ood_positive: share of ID rejected when
    95 % of OOD is rejected. tpr_deployed, fpr_deployed: shares of ID and OOD accepted at
    `threshold`, which accepts 95 % of the clean images of `threshold_set`: validation images, or
    for want of these the ID test images themselves. seconds: what computing the scores took,
    whenever that was.

    lower, fpr95_upper, detection_error_upper: what no attack of this norm and radius makes worse;
    None without a certificate. bound: "certified" with the probability 1 - alpha, for the score
    under noise of sigma by so many draws; or "guaranteed"; or "none".
    """

    model: str
    detector: str
    attack: str
    attacked: Side
    norm: str
    radius: Radius
    steps: Count
    restarts: Count
    id: str
    ood: str
    group: OODGroup
    n_id: Count
    n_ood: Count
    auroc: Rate
    aupr_in: Rate
    aupr_out: Rate
    fpr95: Rate
    fpr95_ood_positive: Rate
    detection_error: Rate
    tpr_deployed: Rate
    fpr_deployed: Rate
    seconds: Seconds
    threshold: Score | None = None
    threshold_set: str | None = None
    lower: Rate | None = None
    fpr95_upper: Rate | None = None
    detection_error_upper: Rate | None = None
    bound: BoundKind = "none"
    sigma: Radius = 0.0
    draws: Count = 0
    alpha: Rate = 0.0


@dataclass(frozen=True)
class Accuracy:
    """Classification accuracy, in [0, 1], clean (attack "none") or under an attack."""

    model: str
    id: str
    attack: str
    norm: str
    radius: Radius
    steps: Count
    restarts: Count
    n: Count
    accuracy: Rate
    seconds: Seconds


@dataclass(frozen=True)
class Interval:
    """Intervals `(low, high)` of one row's metrics; `robust_ood.metrics` says how they are made.

    tpr_deployed, fpr_deployed: at the threshold as it is; None where it was set on the test images.
    """

    model: str
    detector: str
    attack: str
    attacked: Side
    id: str
    ood: str
    group: OODGroup
    level: Share
    auroc: Bounds
    fpr95: Bounds
    tpr_deployed: Bounds | None = None
    fpr_deployed: Bounds | None = None

    def __post_init__(self) -> None:
        for name in ("auroc", "fpr95", "tpr_deployed", "fpr_deployed"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise ValueError(
                    f"{name}: expected the lower end first, got {bounds[0]}, {bounds[1]}"
                )


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
    attacked: Side | None
    norm: str
    radius: Radius
    steps: Count
    restarts: Count
    id: str
    ood: str | None
    group: OODGroup | None
    mean: dict[str, Rate]
    std: dict[str, Rate]

    def __post_init__(self) -> None:
        metric = "accuracy" if self.detector is None else "auroc"
        for name in ("mean", "std"):
            if metric not in getattr(self, name):
                raise ValueError(f"{name}: expected a number for {metric}, got none")
        if self.mean.keys() != self.std.keys():
            raise ValueError("std: expected the metrics of mean, got others")


@dataclass(frozen=True)
class Wins:
    """How many images of a set each member of an attack won: whose candidate was kept.

    wins: "clean" is the image itself. detector: None for an attack on the classifier. saved: the
    share of the attack's steps and queries that it left out, because they could no longer change a
    reported number.
    """

    model: str
    detector: str | None
    attack: str
    images: str
    group: Group
    n: Positive
    wins: dict[str, Count]
    saved: Rate = 0.0

    def __post_init__(self) -> None:
        if sum(self.wins.values()) > self.n:
            raise ValueError(f"wins: expected no more than the {self.n} images, got more")


@dataclass(frozen=True)
class Failure:
    """A detector that could not be fitted, scored or checked: it has no rows, the rest has.

    detector: None where it is the network's accuracy that failed. stage: "fit", "score",
    "classify", "check", "transfer", "universal" or "certify". attack: "none" where it failed on
    clean images or in fitting.
    """

    model: str
    detector: str | None
    attack: str
    stage: str
    error: str
    traceback: str = field(default="", compare=False)


@dataclass(frozen=True)
class CellFiles:
    """Where the scores of one set lie.

    detector: None for the classifier's right answers. group: "id", "near", "far",
    "shifted" or "validation". files: relative to the folder of `results.json`, in the order of the
    images.
    """

    model: str
    detector: str | None
    attack: str
    images: str
    group: Group
    files: Annotated[tuple[str, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        for name in self.files:
            # A file of others must not make a report read elsewhere.
            parts = name.replace("\\", "/").split("/")
            if not name or "\0" in name or parts[0] == "" or ".." in parts:
                raise ValueError("files: expected paths inside the folder of results, got others")
