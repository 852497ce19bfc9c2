"""docs/papers.md names every equation, algorithm, table and figure of the five papers, and only
what is there.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text()


def numbered(kind: str, last: int) -> list[str]:
    return [f"{kind} {number}" for number in range(1, last + 1)]


# What each paper numbers, counted in the papers themselves.
INVENTORY = {
    "ALOE": [*numbered("Eq.", 10), *numbered("Alg.", 2), *numbered("Table", 4), *numbered("Fig.", 2)],
    "PRO": [*numbered("Eq.", 10), "Alg. 1", "Claim 1", *numbered("Table", 2), *numbered("Fig.", 7)],
    "Fort": [*numbered("Eq.", 8), *numbered("Table", 5), *numbered("Fig.", 13)],
    "OOD attack on encoders": ["Alg. 1", *numbered("Table", 8), *numbered("Fig.", 25)],
    "Safe spots": [
        *numbered("Eq.", 4), "Alg. 1", *numbered("Def.", 2), *numbered("Lemma", 2), "Prop. 1", *numbered("Table", 4),
        *numbered("Fig.", 3),
    ],
}  # fmt: skip
# What defines something and has no number.
UNNUMBERED = {
    "ALOE": [
        'Sec. "Possible Variants", ADV', 'Sec. "Possible Variants", AOE', 'Sec. "Mahalanobis", pre-processing',
        'Sec. "Evaluation Metrics"', 'Sec. "Hyperparameters", Mahalanobis', 'App. "In-distribution Dataset", GTSRB',
        'App. "OOD Test Dataset"',
    ],
    "PRO": [
        "Sec. 3, metrics", "Sec. 5.1, PRO-MSP, PRO-MSP-T, PRO-ENT, PRO-GEN", "Sec. 5.1, hyper-parameters",
        "Sec. 5.3, landscape",
    ],
    "Fort": [
        "Sec. 2.2, means and covariance", "Sec. 2.3, RMD", "Sec. 2.4, MSP", "Sec. 2.7", "Sec. 3.1, interpolation",
        "Sec. 3.1, attack", "Sec. 3.4, resize",
    ],
    "OOD attack on encoders": [
        "Sec. 2.1, restarts", "Sec. 2.2", "Sec. 2.3, Glow", "Sec. 2.4, reconstruction", "Sec. 3, MAPE", "App. A",
        "App. B", "App. C, ODIN", "App. D, Mahalanobis", "App. E, Outlier Exposure", "App. F, Deep Ensemble",
        "App. G, confidence-calibrated classifiers", "App. H, Gram", "App. I, Glow and complexity", "App. J, JEM",
        "Sec. 4, CCU",
    ],
    "Safe spots": [
        "Sec. 3.2, PGD dynamics", "Sec. 3.3", "Sec. 3.4, smoothed classifier", "Sec. 3.5", "Sec. 3.6, score D",
        "Sec. 4.3, certified robustness", "Sec. 4, adversarial accuracy",
    ],
}  # fmt: skip
LACKING = r"[Mm]issing|no command|no config|no recipe|not implemented|lack"


def rows(paper: str) -> list[list[str]]:
    section = PAGE.split(f"\n## {paper}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][
        2:
    ]  # after the heading and the rule
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def commands() -> list[str]:
    """Return all that stands in backticks or in code blocks."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [
        *re.findall(
            r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
        ),
        *blocks,
    ]


def expanded(path: str) -> list[str]:
    """Return the paths that a path with braces stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(choice) for choice in product(*parts)]


@cache
def resolve(name: str) -> object:
    """Return what a dotted name names: the longest prefix that is a module, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("paper", INVENTORY)
def test_every_item_of_a_paper_has_one_row(paper):
    assert sorted(row[0] for row in rows(paper)) == sorted([*INVENTORY[paper], *UNNUMBERED[paper]])


@pytest.mark.parametrize("paper", INVENTORY)
def test_every_row_says_where_and_whether(paper):
    for row in rows(paper):
        assert len(row) == 5, row
        assert all(row), row
        assert row[4] in ("done", "open"), row
        if row[4] == "open":
            assert re.search(LACKING, " ".join(row)), row
        elif row[0].startswith(("Table", "Fig.")) and row[3] != "drawing":
            assert re.search(r"\.py|command|[A-Z]\d", row[3]), row
        named = re.findall(r"\b(?!L2)[A-Z]\d\b", row[3])
        assert set(named) <= set(re.findall(r"^# ([A-Z]\d)\b", PAGE, re.MULTILINE)), row


def test_every_code_name_is_there():
    names = {name for text in commands() for name in re.findall(r"\brobust_ood(?:\.\w+)+", text)}
    assert len(names) > 40
    for name in names:
        assert resolve(name) is not None, name


def test_every_path_is_there():
    found = re.findall(
        r"\b(?:configs|tests|benchmarks|docs)/[\w/{},]+\.(?:py|yaml|md)", "\n".join(commands())
    )
    found = [path.replace("METHOD", "{standard,oe,adv,aoe,aloe}") for path in found]
    found = [path.replace("SET", "{cifar10,cifar100,gtsrb}") for path in found]
    found = [path.replace("RECIPE", "{fgsm,pgd,fgsm_l2,pgd_l2}") for path in found]
    paths = {one for path in found for one in expanded(path)}
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (ROOT / path).is_file()] == []


def test_every_test_is_there():
    for file, function in set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGE)):
        assert f"def {function}(" in (ROOT / file).read_text(), f"{file}::{function}"


def test_every_registered_name_is_there():
    from robust_ood import attacks, detectors
    from robust_ood.models import KEY_MAPS

    named = {name for text in re.findall(r"--(?:attacks|detectors) '\[(.*?)\]'", PAGE)
             for name in re.findall(r"(?:^|name: |, )([a-z][\w-]*)(?=[,}\]]|$)", text)}  # fmt: skip
    assert named
    assert named <= {*attacks.REGISTRY, *detectors.REGISTRY}
    assert set(re.findall(r"key map `([\w-]+)`", PAGE)) <= set(KEY_MAPS)
