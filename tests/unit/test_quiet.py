"""What commands keep from the user, and what they say."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import warnings
from robust_ood.cli.quiet import quiet
from robust_ood.deprecation import warn_renamed
quiet()
warn_renamed("data.workers", "data.reading.workers")
warnings.warn("of somebody else", DeprecationWarning)
warnings.warn("of the data")
"""


def test_our_deprecations_are_one_line_and_others_stay_as_they_are():
    code = f"def called():\n    {CODE.strip().replace(chr(10), chr(10) + '    ')}\ncalled()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *others = done.stderr.splitlines()
    assert first == (
        "warning: data.workers is deprecated and will be removed in the next release; "
        "use data.reading.workers"
    )
    assert any("UserWarning: of the data" in line for line in others)
