"""YAML within bounds: what has no end is refused at once, and no value is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from robust_ood.cli.configs import read_config, with_includes
from robust_ood.cli.yaml_text import LARGEST, load_settings, load_yaml, read_text
from robust_ood.errors import UserError


def bomb(levels: int) -> str:
    """Return a short text that stands for 10 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nesting depth"),
        ("{a: " * 60 + "}" * 60, "lists or mappings deep"),
        ("\n".join("  " * depth + "a:" for depth in range(60)), "lists or mappings deep"),
        (bomb(12), "line 5: more than 100,000 values"),
        ("a: &a [*a]", "line 1: *a contains itself"),
        ("a: &a {b: {c: *a}}", "*a contains itself"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice, first in line 1"),
        ("model: {seed: 1, seed: 2}", "line 1: 'seed' is given twice"),
        (f"a: {'9' * 5000}", "a number of 5,000 characters"),
        (f"a: {'1:' * 3000}1", "a number of 6,001 characters"),
        ("a: !!int x", "does not fit its tag"),
        ("a: !!timestamp 2020-13-45", "does not fit its tag"),
        ("a: 'b\0'", "characters are not allowed"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_text_beyond_the_bounds_is_refused(text, said):
    with pytest.raises(yaml.YAMLError) as caught:
        load_yaml(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [1, 2]\nb: *a", {"a": [1, 2], "b": [1, 2]}),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
        ("[{name: msp}, {name: msp}]", [{"name": "msp"}, {"name": "msp"}]),
        ("a: 1e-3", {"a": 0.001}),
        ("'" + "9" * 5000 + "'", "9" * 5000),
        ("", None),
    ],
)
def test_what_is_within_is_read(text, expected):
    assert load_yaml(text) == expected


def test_a_section_alone_is_a_mapping():
    assert load_settings("trainer:") == {"trainer": None}


@pytest.mark.parametrize("name", ["/dev/zero", "/", "nowhere.yaml", "a\0b", "x" * 5000])
def test_what_is_no_file_is_not_read(name):
    with pytest.raises(UserError, match=r"^config: ") as caught:
        read_text(Path(name), "config")
    assert len(str(caught.value)) < 200


def test_a_large_file_is_no_config(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(UserError, match="is it a config"):
        read_config(path)


def test_a_config_in_latin_1_is_named(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_bytes("a: \xe4".encode("latin-1"))
    with pytest.raises(UserError, match="not a text in UTF-8"):
        read_config(path)


def test_an_empty_config_has_no_settings(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert read_config(path) == {}


def test_includes_end(tmp_path):
    """Thirty files that include two each would be a billion."""
    for level in range(30):
        names = [f"{level + 1}.yaml"] * 2 if level < 29 else []
        (tmp_path / f"{level}.yaml").write_text(yaml.safe_dump({"include": names}))
    with pytest.raises(UserError, match="more than 1000 files"):
        with_includes(["-c", str(tmp_path / "0.yaml")])


@pytest.mark.parametrize(
    "given", [["--include", "base.yaml"], ["--include=base.yaml"], ["--include", "[base.yaml]"]]
)
def test_an_option_includes_as_a_config_does(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("limit: 3")
    assert with_includes(given) == ["-c", "base.yaml"]


@pytest.mark.parametrize(
    "value", ["missing.yaml", "[missing.yaml]", "", "[]", "[1]", "[''", "['']"]
)
def test_an_option_that_includes_nothing_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^(include|config): "):
        with_includes(["--include", value])
