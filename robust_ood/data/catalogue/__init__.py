"""The data sets that the papers use: where they come from, how they are stored, what to expect."""

from robust_ood.data.catalogue.entry import (
    CatalogueEntry,
    DatasetPart,
    Link,
    find_entry,
    find_part,
)
from robust_ood.data.catalogue.groups import GROUPS, OODGroups
from robust_ood.data.catalogue.large import LARGE
from robust_ood.data.catalogue.medical import MEDICAL
from robust_ood.data.catalogue.outliers import OUTLIERS
from robust_ood.data.catalogue.small import SMALL

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry for entry in (*SMALL, *LARGE, *MEDICAL, *OUTLIERS)
}
"""All data sets by name."""

__all__ = [
    "CATALOGUE",
    "GROUPS",
    "CatalogueEntry",
    "DatasetPart",
    "Link",
    "OODGroups",
    "find_entry",
    "find_part",
]
