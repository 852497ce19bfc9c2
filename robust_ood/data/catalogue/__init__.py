"""The data sets that the papers use: where they come from, how they lie on disk, what to expect of
them.
"""

from robust_ood.data.catalogue.entry import Entry, Link, Part, find_entry, find_part
from robust_ood.data.catalogue.groups import GROUPS, Groups
from robust_ood.data.catalogue.large import LARGE
from robust_ood.data.catalogue.outliers import OUTLIERS
from robust_ood.data.catalogue.small import SMALL

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (*SMALL, *LARGE, *OUTLIERS)}
"""All data sets by name."""

__all__ = ["CATALOGUE", "GROUPS", "Entry", "Groups", "Link", "Part", "find_entry", "find_part"]
