"""Texts for messages: nothing in them moves a cursor, colours a line or begins a new one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_ood.texts import printable


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("Zürich 猫 кошка 🐈", "Zürich 猫 кошка 🐈"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x00c\x7f", r"a\rb\x00c\x7f"),
        ("first\nsecond\u2028third\x85", r"first\nsecond\u2028third\x85"),
        ("name\u202egnp.exe", r"name\u202egnp.exe"),
        ("file\udcff.png", r"file\xff.png"),
        ("back\\slash", "back\\slash"),
        ("", ""),
    ],
)
def test_control_characters_are_written_out(text, written):
    assert printable(text) == written


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_printable_on_one_line_and_stays_so(text):
    written = printable(text)
    assert written.isprintable()
    assert len(written.splitlines()) <= 1
    assert printable(written) == written
    written.encode("utf-8")
