"""Names that are names, numbers that have an end, and which process this is."""

from __future__ import annotations

import pytest

from robust_ood.cli.bounds import check_name, check_numbers, check_path
from robust_ood.cli.processes import check_processes, is_first
from robust_ood.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "a/../b",
        "a\\..",
        "/tmp/x",
        "a\0b",
        "\x1b[31m",
        "a\nb",
        "x" * 300,
    ],
)
def test_what_is_no_name_is_refused(name):
    with pytest.raises(UserError, match=r"^experiment: ") as caught:
        check_name("experiment", name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["aloe", "aloe/last", "a b", "ä", "v1.2..3", "[red]", "-1"])
def test_other_names_are_names(name):
    check_name("experiment", name)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"intervals": 10**12}, "intervals"),
        ({"checkpoints": {"keep": 10**9}}, "checkpoints.keep"),
        ({"attacks": ["pgd", {"name": "pgd", "steps": 10**23}]}, "attacks.steps"),
        ({"net": {"init_args": {"depth": 10**23}}}, "net.depth"),
        ({"data": {"count": 10**23}}, "data.count"),
    ],
)
def test_a_number_without_end_is_refused(settings, key):
    with pytest.raises(UserError, match=f"^{key}: .* is too large"):
        check_numbers(settings)


def test_large_numbers_that_end_are_accepted():
    check_numbers({"limit": 10**15, "steps": 10**6, "replace": True, "lr": 1e300, "name": "9"})


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 256, "/tmp/" + "x" * 5000])
def test_what_can_be_no_path_is_refused(path):
    with pytest.raises(UserError, match=r"^output: "):
        check_path("output", path)
    check_path("output", "~/a b/[c].yaml")


@pytest.fixture
def environment(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE"),
        ({"RANK": "-1"}, "RANK"),
        ({"JSONARGPARSE_DEBUG": "x"}, "JSONARGPARSE_DEBUG"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK"),
    ],
)
def test_a_launchers_variables_that_make_no_sense_are_named(environment, variables, key):
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(UserError, match=f"^{key}: "):
        check_processes()


@pytest.mark.parametrize(("rank", "first"), [("0", True), ("1", False)])
def test_the_first_of_several_processes(environment, rank, first):
    check_processes()
    assert is_first()
    for name, value in {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}.items():
        environment.setenv(name, value)
    check_processes()
    assert is_first() == first
