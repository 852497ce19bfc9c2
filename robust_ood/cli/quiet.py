"""What libraries say that is no news to a user: a run shows its progress and its results."""

from __future__ import annotations

import logging
import os
import warnings

_NO_NEWS = (
    r".*does not have many workers.*",  # our loaders read arrays in memory
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*GPU available but not used.*",
    # Lightning's calls of jsonargparse, for Lightning's developers
    r"\s*By default only one JsonargparseDeprecationWarning per type is shown",
    r"(?s)\s*.* was deprecated in v4\.\d+\.\d+ and will be removed in v5",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
    r".*Total length of `list` across ranks is zero.*",  # no validation images: nothing to validate on
    r".*AMP with fp16 is not supported on CPU.*",  # refused, by our own message
    r".*resuming from a checkpoint that ended before the epoch ended.*",  # our loaders continue inside an epoch
)


def quiet() -> None:
    """Silence messages that ask nothing of the user; warnings about what they should know stay."""
    for library in ("pytorch_lightning", "lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    os.environ.setdefault(
        "HF_HUB_VERBOSITY", "error"
    )  # timm's downloads: how they end is said, not each try
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message=message)
