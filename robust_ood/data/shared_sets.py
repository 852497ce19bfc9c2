"""Sets that an experiment names both to train or tune on and to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_ood.data.named import data_set_key, part_key, source_of
from robust_ood.data.sources.spec import SetSpec
from robust_ood.errors import UserError


def refuse_shared_sets(
    tests: Mapping[str, Sequence[str | SetSpec]],
    outliers: str | SetSpec | None,
    validation_ood: Sequence[str | SetSpec],
    root: Path,
) -> None:
    """Refuse an OOD test set that a method is also trained or tuned on.

    No part of the data set of the outliers may be a test. Validation sets may be other parts of a
    test's data set.

    Args:
        tests: OOD test sets by the field of `data` that names them.
        outliers: auxiliary outliers, or None.
        validation_ood: OOD sets to validate on and to choose hyper-parameters with.
        root: folder of the data.

    Raises: `UserError` naming both fields.
    """
    trained = None if outliers is None else data_set_key(outliers, root, "outliers")
    tuned = {part_key(spec, root, "validation_ood") for spec in validation_ood}
    for field, specs in tests.items():
        for spec in specs:
            if data_set_key(spec, root, field) == trained:
                raise _shared(field, spec, "outliers")
            if part_key(spec, root, field) in tuned:
                raise _shared(field, spec, "validation_ood")


def _shared(field: str, spec: str | SetSpec, other_field: str) -> UserError:
    return UserError(
        f"data.{field}: {source_of(spec)} is also in data.{other_field}, so the test would not be "
        "independent; name another set, or allow it with data.allow_overlap: true"
    )
