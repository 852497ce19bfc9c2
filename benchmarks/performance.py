"""The index of the pages on speed and memory: the finding of each, and where it is.

    python benchmarks/performance.py

A page states its finding in a sentence in bold type, which is taken from there: no number is copied
by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from page import ROOT

INTRODUCTION = """# Performance

What the framework costs beside the arithmetic, measured side by side: contestants take turns in
one run, and each ratio compares neighbours. `make bench` makes all of these pages again; each names
the command that made it, the machine, the versions and the day.

None of this was measured on a GPU, because none was available. `benchmarks/training_step.py` takes
`--device cuda`.
"""


def main() -> None:
    docs = ROOT / "docs"
    lines = [INTRODUCTION]
    for path in sorted((docs / "performance").glob("*.md")):
        lines.append(entry(path, docs))
    (docs / "performance.md").write_text("\n".join([*lines, ""]))


def entry(path: Path, docs: Path) -> str:
    """Return a list item: a link to the page, and its finding where it states one."""
    text = path.read_text()
    title = text.partition("\n")[0].removeprefix("# ")
    finding = re.search(r"\*\*(.+?)\*\*", text, re.DOTALL)
    said = f": {finding[1]}" if finding else "."
    return f"- [{title}]({path.relative_to(docs).as_posix()}){said}"


if __name__ == "__main__":
    main()
