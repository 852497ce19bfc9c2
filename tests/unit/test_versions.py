"""The numbers of the code: raised where results change, and the code that they stand for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robust_ood.evaluation import versions
from robust_ood.evaluation.versions import PARTS, SCORES, code_version, digest

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "code.json"
COMMAND = "python tests/record_code.py"

PLAIN = 'def f(x, y=1):\n    return g(x, f"{x!r:>{y}} and {y}") + 1\n'
SAME = '''\
"""Says."""


def f(
    x,
    y=1,
):
    """Adds."""
    # why
    return (
        g(
            x,
            f\'{x!r:>{y}} \'
            f\'and {y}\',
        )
        + 1
    )
'''


@pytest.mark.parametrize("part", PARTS)
def test_code_that_changed_has_a_new_number_or_was_recorded_anew(part):
    recorded = json.loads(RECORD.read_text())[part]
    found = {
        path.relative_to(versions.PACKAGE).as_posix(): digest(path.read_text())
        for path in versions.modules(part)
    }
    changed = {
        name
        for name in recorded["modules"].keys() | found.keys()
        if recorded["modules"].get(name) != found.get(name)
    }
    assert not changed, (
        f"{sorted(changed)} changed. If scores, alarms or pictures change by it, raise the number "
        f"of {part!r} in robust_ood/evaluation/versions.py. Then, in both cases: {COMMAND}"
    )
    assert recorded["number"] == PARTS[part].number, (
        f"a new number of {part!r}; record it: {COMMAND}"
    )


def test_comments_docstrings_and_formatting_do_not_count():
    assert digest(PLAIN) == digest(SAME)


@pytest.mark.parametrize(
    ("old", "new"),
    [("+ 1", "+ 2"), ("y=1", "y=2"), (" and ", " or "), ("!r", "!s"), (":>", ":<"), ("g(", "h(")],
)
def test_code_counts(old, new):
    assert digest(PLAIN.replace(old, new)) != digest(PLAIN)


def test_every_part_is_in_the_version_and_its_number_changes_it(monkeypatch):
    before = code_version()
    assert all(f"{part} {PARTS[part].number}" in before.split(", ") for part in SCORES)
    assert code_version("metrics").startswith(before)
    monkeypatch.setitem(versions.PARTS, "attacks", PARTS["attacks"]._replace(number=99))
    assert code_version() != before


def test_a_path_that_is_gone_is_named(monkeypatch):
    monkeypatch.setitem(versions.PARTS, "data", versions.Part(1, ("data/gone.py",)))
    with pytest.raises(FileNotFoundError, match=r"gone\.py: correct PARTS"):
        list(versions.modules("data"))


SCRIPT = """
import sys
sys.path.insert(0, "robust_ood/evaluation")
from versions import PARTS, digest, modules
print([digest(path.read_text()) for part in PARTS for path in modules(part)])
"""


def pythons() -> list[str]:
    """Return other interpreters of this machine that run."""
    found = []
    for minor in range(10, 15):
        pyenv = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        path = str(pyenv[0]) if pyenv else shutil.which(f"python3.{minor}")
        if (
            path
            and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode
        ):
            found.append(path)
    return found


def test_every_version_of_python_finds_the_same_code():
    others = pythons()
    if not others:
        pytest.skip("no other Python here")
    found = {
        python: subprocess.run(
            [python, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for python in (sys.executable, *others)
    }
    assert len(set(found.values())) == 1, found
