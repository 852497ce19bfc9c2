"""Silences the libraries' routine messages: a run shows its progress and its results."""

from __future__ import annotations

import logging
import os
import re
import warnings
from typing import Any

from robust_ood.errors import Notice

_ROUTINE_MESSAGES = (
    r".*does not have many workers.*",  # our loaders read arrays in memory
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*GPU available but not used.*",
    # Lightning's calls of jsonargparse, for Lightning's developers
    r"\s*By default only one JsonargparseDeprecationWarning per type is shown",
    r"(?s)\s*.* was deprecated in v4\.\d+\.\d+ and will be removed in v5",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
    # without validation images there is nothing to validate on
    r".*Total length of `list` across ranks is zero.*",
    # refused, by our own message
    r".*AMP with fp16 is not supported on CPU.*",
    # what a run does not train rests in eval mode
    r".*module\(s\) in eval mode at the start of training.*",
    # our loaders continue inside an epoch
    r".*resuming from a checkpoint that ended before the epoch ended.*",
)

_OUR_DEPRECATIONS = r".* is deprecated and will be removed in the next release; use .*"


def quiet() -> None:
    """Silence messages that ask nothing of the user; warnings about what they should know stay."""
    for library in ("pytorch_lightning", "lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Of timm's downloads, a message tells how they ended, not each attempt.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for message in _ROUTINE_MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    # Python hides deprecations outside of `__main__`; ours name a setting that the user wrote.
    warnings.filterwarnings("default", message=_OUR_DEPRECATIONS, category=DeprecationWarning)
    warnings.formatwarning = _in_one_line


_formatwarning = warnings.formatwarning


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    """Format what we say ourselves without the place in our code, which says nothing to a user."""
    if issubclass(category, Notice):
        return f"warning: {message}\n"
    if category is DeprecationWarning and re.fullmatch(_OUR_DEPRECATIONS, str(message)):
        return f"warning: {message}\n"
    return _formatwarning(message, category, filename, lineno, line)
