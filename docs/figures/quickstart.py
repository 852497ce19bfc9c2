"""Take the numbers that the front page shows out of a quickstart's results.

python docs/figures/quickstart.py runs/quickstart
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NUMBERS = Path(__file__).parent / "quickstart.json"

THREADS = 1  # of the run whose numbers are kept: OMP_NUM_THREADS=1


def extract(results: dict[str, Any]) -> dict[str, Any]:
    """Return the rows that the front page shows, with the run they are from."""
    rows = []
    for row in results["rows"]:
        if row["ood"] == "flower-patches":
            shown = ("model", "detector", "attack", "attacked", "n_id", "n_ood", "auroc", "fpr95")
            rows.append({name: row[name] for name in shown})
    environment = results["environment"]
    provenance = {
        "command": "make quickstart",
        "date": environment["date"][:10],
        "machine": f"{environment['machine']}, {THREADS} thread",
        "torch": environment["versions"]["torch"],
    }
    return {"provenance": provenance, "rows": rows}


if __name__ == "__main__":
    written = json.loads((Path(sys.argv[1]) / "results.json").read_text())
    NUMBERS.write_text(json.dumps(extract(written), indent=1) + "\n")
