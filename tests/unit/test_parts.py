"""Parts as configs write them: a name with settings, whatever the part is."""

import pytest

from robust_ood.errors import UserError
from robust_ood.settings import Part, import_path, read_part

LONG = {"class_path": "mine.Attack", "init_args": {"steps": 3}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("pgd", Part("pgd", {})),
        ({"name": "pgd", "steps": 3}, Part("pgd", {"steps": 3})),
        ({"name": "pgd", "steps": 3, "label": 7}, Part("pgd", {"steps": 3}, "7")),
        ({"name": "mine.Attack", "steps": 3}, Part("mine.Attack", {"steps": 3})),
        (LONG, Part("mine.Attack", {"steps": 3})),
        ({**LONG, "label": "ours"}, Part("mine.Attack", {"steps": 3}, "ours")),
        ({"class_path": "mine.Attack"}, Part("mine.Attack", {})),
        ({"class_path": "mine.Attack", "init_args": None}, Part("mine.Attack", {})),
    ],
)
def test_a_part_is_a_name_with_settings(given, expected):
    assert read_part("attacks", given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "attacks: expected a name, or .*, got 3"),
        (None, "attacks: expected a name, or .*, got None"),
        (["pgd"], r"attacks: expected a name, or .*, got \['pgd'\]"),
        ({"steps": 3}, "attacks: .* has no 'name'"),
        ({"name": 3}, "attacks.name: expected a string, got 3"),
        (
            {"class_path": "mine.Attack", "init_args": [3]},
            r"attacks.init_args: expected a mapping .* got \[3\]",
        ),
    ],
)
def test_what_is_no_part_is_refused_by_field(given, message):
    with pytest.raises(UserError, match=f"^{message}"):
        read_part("attacks", given)


def test_a_registered_name_comes_before_an_import_path():
    assert Part("a.b", {}).maker("attacks", {"a.b": dict}) is dict


@pytest.mark.parametrize("path", ["no_such_module.Attack", "math.no_such_name", ".pi", "pi."])
def test_a_path_that_cannot_be_imported_is_named(path):
    with pytest.raises(UserError, match=f"^attacks: cannot import '{path}'"):
        import_path("attacks", path)


def test_a_path_to_a_constant_is_refused():
    with pytest.raises(UserError, match=r"^attacks: 'math\.pi' is not a class or function"):
        import_path("attacks", "math.pi")


def test_an_unknown_name_comes_with_the_nearest_known_one():
    with pytest.raises(UserError, match="pgd"):
        Part("pdg", {}).maker("attacks", {"pgd": dict})
