"""The report in headless Chromium: no errors, no requests, sorting, both themes, phone and desktop
widths.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robust_ood.evaluation import Accuracy, Results, Row
from robust_ood.evaluation.pictures import Picture, write_picture

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytestmark = pytest.mark.usefixtures("tab")  # which skips where there is no browser


def made_up() -> Results:
    """Results of two networks with eight detectors of long and short names."""
    results = Results(
        environment={"command": "evaluate.py -c quickstart.yaml " + "--long_option value " * 12}
    )
    names = [
        "msp",
        "odin",
        "a detector with a rather long name",
        "energy",
        "knn",
        "vim",
        "gen",
        "pro-gen",
    ]
    for shift, model in enumerate(("OE", "ALOE")):
        for place, detector in enumerate(names):
            for attack, radius, attacked in (("none", 0.0, "none"), ("pgd-8/255", 8 / 255, "both")):
                auroc = 0.99 - 0.01 * place - (radius > 0) * (0.7 - 0.5 * shift)
                for ood, group in (("svhn", "far"), ("far", "far")):
                    settings = ("Linf", radius, 10, 1, "digits", ood, group, 50, 50)
                    results.rows.append(
                        Row(model, detector, attack, attacked, *settings, *[auroc] * 8, 1.0)
                    )
        results.classification.append(
            Accuracy(model, "digits", "none", "none", 0.0, 0, 0, 50, 0.9, 1.0)
        )
    results.warnings = ["OE, msp: " + "a_long_word" * 20]
    return results


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    from robust_ood.reporting import write_report

    folder = tmp_path_factory.mktemp("results")
    made_up().write(folder)
    draws = np.random.default_rng(0)
    arrays = {"offsets": np.linspace(-0.1, 0.1, 5), "scores": draws.normal(0, 1, (8, 5, 5))}
    about = {"groups": ["in"] * 4 + ["far"] * 4, "sets": ["digits"] * 4 + ["svhn"] * 4}
    write_picture(folder, Picture("landscape", "OE", "msp", arrays, about))
    return write_report([folder])


def complaints(tab: Any) -> list[dict[str, Any]]:
    """Return what the console says, and what was requested other than the page."""
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    said = [event for event in tab.events if event["method"] in kinds]
    asked = [event for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    fetched = [e for e in asked if not e["params"]["request"]["url"].startswith("data:")]
    return said + fetched[1:]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_it_fits_the_window_and_asks_for_nothing(tab, page, width, height, colours):
    tab.open(page, width, height, colours, phone=width < 500)
    assert tab.run("document.querySelectorAll('svg').length") >= 2
    assert complaints(tab) == []
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run("getComputedStyle(document.body).backgroundColor") == background(colours)


def background(colours: str) -> str:
    return "rgb(252, 252, 251)" if colours == "light" else "rgb(20, 23, 28)"


def test_the_toggle_overrules_the_system_and_is_remembered(tab, page):
    tab.open(page, 1200, 800, "light")
    shown = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    light = tab.run(ink)
    tab.run("document.querySelector('button[data-theme=dark]').click()")
    assert tab.run(shown) == background("dark")
    assert tab.run(ink) != light
    tab.open(page, 1200, 800, "light")
    assert tab.run(shown) == background("dark")
    tab.run("document.querySelector('button[data-theme=auto]').click()")
    assert tab.run(shown) == background("light")


def test_tables_sort_by_number_and_by_name(tab, page):
    tab.open(page, 1200, 800)
    rows = "[...document.querySelectorAll('#survival tbody tr')]"
    column = rows + ".map(row => row.cells[{0}].dataset.value ?? row.cells[{0}].textContent)"
    heads = "document.querySelectorAll('#survival thead tr:last-child th')"
    press = heads + "[{}].querySelector('button').click()"
    before = [float(v) for v in tab.run(column.format(3))]
    assert before != sorted(before)
    tab.run(press.format(3))
    assert [float(v) for v in tab.run(column.format(3))] == sorted(before)
    tab.run(press.format(3))
    assert [float(v) for v in tab.run(column.format(3))] == sorted(before, reverse=True)
    assert (
        tab.run("document.querySelector('#survival th[aria-sort]').getAttribute('aria-sort')")
        == "descending"
    )
    tab.run(press.format(1))
    names = tab.run(column.format(1))
    assert names == sorted(names)
    assert tab.run("document.querySelectorAll('#survival th[aria-sort]').length") == 1
    assert complaints(tab) == []


def test_sorted_rows_are_numbered_and_a_filter_keeps_those_with_its_words(tab, page):
    tab.open(page, 1200, 800)
    shown = "[...document.querySelectorAll('#survival tbody tr')].filter(row => !row.hidden)"
    assert tab.run("document.querySelectorAll('#survival table.ranked').length") == 0
    tab.run("document.querySelectorAll('#survival thead tr:last-child th button')[3].click()")
    assert tab.run("document.querySelectorAll('#survival table.ranked').length") == 1
    tab.run(
        "(() => { const input = document.querySelector('#survival .tools input');"
        "input.value = 'ALOE -gen'; input.dispatchEvent(new Event('input')); })()"
    )
    names = tab.run(shown + ".map(row => row.cells[0].textContent + row.cells[1].textContent)")
    assert len(names) == 6
    assert all("ALOE" in name and "gen" not in name for name in names)
    assert tab.run("document.querySelector('#survival .tools span').textContent") == "6 of 16 rows"
    assert complaints(tab) == []


def test_names_stay_in_view_on_a_phone_and_a_hint_says_that_there_is_more(tab, page):
    tab.open(page, 390, 844, phone=True)
    box = "document.querySelector('#survival .scroll')"
    name = "document.querySelector('#survival tbody th').getBoundingClientRect().left"
    assert "sideways" in tab.run(f"{box}.previousElementSibling.textContent")
    before = tab.run(name)
    tab.run(f"{box}.scrollLeft = 150")
    assert tab.run(f"{box}.scrollLeft") > 100
    assert tab.run(name) == before
    # A figure says so, too, and titles that sort are high enough for a finger.
    drawing = "document.querySelector('.drawing')"
    if tab.run(f"{drawing}.scrollWidth > {drawing}.clientWidth + 1"):
        assert "sideways" in tab.run(f"{drawing}.previousElementSibling.textContent")
    assert tab.run("document.querySelector('th button').getBoundingClientRect().height") >= 24
    tab.open(page, 1440, 900)
    assert "sideways" not in tab.run(f"{box}.previousElementSibling.textContent")


def test_it_is_readable_without_scripts(tab, page):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page, 1200, 800)
        assert tab.run("getComputedStyle(document.querySelector('.theme')).display") == "none"
        assert tab.run("document.querySelectorAll('#survival tbody tr').length") == 16
        assert tab.run("document.querySelectorAll('th button').length") == 0
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_it_prints(tab, page):
    tab.open(page, 1200, 800, "dark")
    printed = base64.b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")
    assert (
        2
        <= printed.count(b"/Type /Page\n")
        + printed.count(b"/Type /Page /")
        + printed.count(b"/Type/Page/")
        <= 40
    )


def test_screenshots_differ_between_themes(tab, page, tmp_path):
    pictures = []
    for colours in ("light", "dark"):
        tab.open(page, 1200, 800, colours)
        pictures.append(tab.picture(tmp_path / f"{colours}.png").read_bytes())
    assert all(len(picture) > 10_000 for picture in pictures)
    assert pictures[0] != pictures[1]


def test_a_caption_stays_in_view_while_its_table_scrolls(tab, page):
    tab.open(page, 390, 844, phone=True)
    scrolled = "document.querySelector('#survival .scroll')"
    tab.run(f"{scrolled}.scrollLeft = 300")
    assert tab.run(f"{scrolled}.scrollLeft") > 100
    place = f"{scrolled}.querySelector('caption > span').getBoundingClientRect()"
    assert 0 <= tab.run(f"{place}.left") < 40
    assert tab.run(f"{place}.right") <= 390
