"""The names that `evaluation` imports from here until its rewriting is merged."""

from robust_ood.data.sources.files import ImageFiles

__all__ = ["ImageFiles"]
