"""Record the code that results depend on: `python tests/record_code.py`.

Run it when `tests/unit/test_versions.py` says that code has changed, after raising the number of
the part in `robust_ood/evaluation/versions.py` if results change by it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Beside its package, the module needs nothing installed.
sys.path.insert(0, str(ROOT / "robust_ood" / "evaluation"))

from versions import PACKAGE, PARTS, digest, modules  # noqa: E402


def main() -> None:
    path = ROOT / "tests" / "code.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    record = {}
    for part, (number, _) in PARTS.items():
        digests = {}
        for module in modules(part):
            digests[module.relative_to(PACKAGE).as_posix()] = digest(module.read_text())
        record[part] = {"number": number, "modules": digests}
        old = before.get(part)
        if old is not None and old["modules"] != digests and old["number"] == number:
            print(f"{part}: code changed, the number {number} stays: results must be the same")
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
