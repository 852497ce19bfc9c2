"""Whatever users name: no markup, no escape code, no formula, no path, in all that is written."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from robust_ood.callbacks.metrics_file import MetricsFile
from robust_ood.errors import UserError
from robust_ood.evaluation import FolderStore, ProgressBar, Results, Row, print_results, read_cell
from robust_ood.evaluation.pictures import Picture, read_pictures, write_picture
from robust_ood.evaluation.records import Accuracy, Failure, Interval, Summary, Wins
from robust_ood.evaluation.store import Cell
from robust_ood.names import LONGEST_FILE_NAME, as_path, file_name, spreadsheet_cell

NAMES = {
    "closing markup": "[/b]",
    "markup": "[red]net[/red]",
    "half markup": "[bold",
    "a link": "[link=https://example.org]x",
    "backslash": "net\\",
    "emoji code": ":smile:",
    "escape code": "\x1b[31mred\x1b]0;title\x07",
    "line breaks": "one\r\ntwo\x85three\u2028four",
    "right to left": "abc\u202edef",
    "half a pair": "caf\udce9",
    "script": "</svg><script>alert(1)</script>",
    "quotes": "\"'&<>",
    "formula": '=HYPERLINK("x")',
    "path": "../../etc",
    "above": "..",
    "bar": "a|b",
    "dollar": "$\\frac{1}$",
    "underscore": "_hidden",
    "long": "long" * 200,
    "letters": "Zürich 北京",
    "nothing": "",
}
RATES = (0.75, 0.5, 0.5, 0.25, 0.25, 0.125, 0.95, 0.0)


def results_of(name: str) -> Results:
    """Make results in which everything that users name has one name."""
    rows = []
    for attack, attacked, radius in (("none", "none", 0.0), (name, "both", 0.125)):
        for ood in (name, "far"):
            places = (name, name, attack, attacked, "Linf", radius, 10, 1, name, ood, "far")
            rows.append(Row(*places, 50, 40, *RATES, 1.0))
    mean = {"auroc": 0.75, "fpr95": 0.25}
    summary = Summary(
        name, (name,), name, name, "both", "Linf", 0.125, 10, 1, name, "far", "far", mean, mean
    )
    interval = Interval(name, name, name, "both", name, name, "far", 0.95, (0.7, 0.8), (0.0, 0.1))
    return Results(
        rows=rows,
        classification=[Accuracy(name, name, name, "Linf", 0.125, 10, 1, 50, 0.5, 1.0)],
        warnings=[f"{name}, {name}: masked"],
        environment={"command": name, "config": {name: [name]}, name: {name: name}},
        intervals=[interval],
        members=[Wins(name, name, name, name, "id", 50, {name: 5, "pgd": 30, "clean": 1})],
        failures=[Failure(name, name, name, "fit", name, f"{name}\n{name}")],
        summary=[summary],
    )


def obeys_nothing(text: str) -> bool:
    """Return whether a terminal would only show a text."""
    return all(character == "\n" or character.isprintable() for character in text)


@pytest.mark.parametrize("full", [False, True], ids=["page", "full"])
@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_terminal_tables_show_names_as_they_are(name, full):
    text = io.StringIO()
    print_results(results_of(name), Console(file=text, width=2000), full=full)
    printed = text.getvalue()
    assert obeys_nothing(printed)
    assert printed.encode()
    if name.isprintable() and len(name) < 100:
        assert f"{name}, {name}: masked" in printed
        assert any(line.startswith(name) for line in printed.splitlines())


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_the_progress_bar_shows_names_as_they_are(name):
    text = io.StringIO()
    console = Console(file=text, width=2000, force_terminal=True, color_system=None)
    with ProgressBar(console) as progress:
        progress.expect(2)
        progress.begin(name)
        progress.done(1)
    assert "\x1b[31m" not in text.getvalue()
    if name.isprintable():
        assert name in text.getvalue()


class Texts(HTMLParser):
    """The texts of a page and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.data += data


def add_picture(folder: Path, name: str) -> None:
    arrays = {"offsets": np.linspace(-1, 1, 3), "scores": np.arange(18.0).reshape(2, 3, 3)}
    facts = {"groups": ["in", "far"], "sets": [name, name]}
    write_picture(folder, Picture("landscape", name, name, arrays, facts))


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_a_report_takes_any_name(tmp_path, name):
    pytest.importorskip("matplotlib")
    from robust_ood.reporting import write_report

    folder = tmp_path / "results"
    results_of(name).write(folder)
    add_picture(folder, name)
    text = write_report(str(folder), tensorboard=name in ("..", "long" * 200)).read_text("utf-8")
    page = Texts(text)
    assert page.tags.count("script") == 1
    assert page.tags.count("svg") == 2
    assert obeys_nothing(page.data.replace("\N{NO-BREAK SPACE}", " "))
    if name.isprintable() and len(name) < 100:
        assert f"{name}, {name}: masked" in page.data
    beside = folder / "report_files"
    assert len(list(beside.glob("*.png"))) == 2
    for path in (folder / "results.csv", *beside.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for cells in csv.reader(file):
                assert not any(re.match(r"[=+@\t\r]", cell) for cell in cells)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_names_that_look_alike_get_figures_and_runs_of_their_own(tmp_path):
    pytest.importorskip("matplotlib")
    from robust_ood.reporting import write_report

    alike = ("a b", "a-b", "A/b", "report", "Report", "x" * 300, "x" * 301)
    results = Results()
    for name in alike:
        results.rows += results_of(name).rows
        add_picture(tmp_path, name)
    results.write(tmp_path)
    write_report([tmp_path], tensorboard=True)
    beside = tmp_path / "report_files"
    assert len(list(beside.glob("landscape-*.png"))) == len(alike)
    runs = [path.name.lower() for path in (beside / "tensorboard").iterdir()]
    assert len(set(runs)) == len(alike) + 1
    assert "a b" in runs


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_a_file_name_is_one_part_of_a_path(tmp_path, name):
    file = file_name(name)
    assert len(file.encode()) <= LONGEST_FILE_NAME + 10
    (tmp_path / file).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert file_name(name) == file


def test_ordinary_file_names_stay_and_others_differ():
    for name in ("OE", "pro (msp)", "cifar10-aloe.v2", "北京"):
        assert file_name(name) == name
    changed = ["a/b", "a_b", "a:b", "a\\b", "..", ".", "", "_", "x" * 500, "x" * 501]
    assert len(set(map(file_name, changed))) == len(changed)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_text_that_a_spreadsheet_would_run_stands_behind_an_apostrophe(text):
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-0.5, -1, 0.0, None, "a=b", "'=x", "", "1e-5"])
def test_numbers_and_other_texts_stay_as_they_are(value):
    assert spreadsheet_cell(value) is value


def test_logged_names_come_back_from_metrics_csv(tmp_path):
    names = {"=x": 1.0, "-y": 2.0, "\x1b[31m": 3.0, "caf\udce9": 4.0, "val/ü": 5.0}
    MetricsFile(tmp_path).log_metrics(names, 1)
    again = MetricsFile(str(tmp_path))
    again.truncate(1)
    again.log_metrics(names, 2)
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        titles, *rows = csv.reader(file)
    assert sorted(titles[2:]) == sorted(["'-y", "'=x", "caf\\xe9", "\\x1b[31m", "val/ü"])
    assert [len(row) for row in rows] == [7, 7]
    assert rows[0][2:] == rows[1][2:]


def test_texts_stand_for_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    store = FolderStore("runs")
    store.write("abc", Cell({"scores": np.ones(2, np.float32)}, {"seconds": 1}))
    assert read_cell("runs/" + store.path("abc")).about["seconds"] == 1
    results_of("net").write("runs")
    assert Results.read("runs") == Results.read(Path("runs")) == Results.read("~/runs")
    add_picture("runs", "net")
    assert len(read_pictures("runs")) == 1


@pytest.mark.parametrize("value", [None, 3, "", b"runs", [], "a\0b"], ids=repr)
def test_what_is_no_path_is_named(value):
    for read in (Results.read, FolderStore, read_cell, read_pictures, Results().write):
        with pytest.raises(UserError, match=r"^\w+: expected a path, got"):
            read(value)
    with pytest.raises(UserError, match=r"^out: expected a path, got"):
        as_path(value, "out")


@pytest.mark.parametrize("value", [None, 3, "", [""], [None], ["a\0b"], {}], ids=repr)
def test_what_are_no_folders_of_results_is_named(value):
    pytest.importorskip("matplotlib")
    from robust_ood.reporting import write_report

    with pytest.raises(UserError, match=r"^results: expected"):
        write_report(value)
    with pytest.raises(UserError, match=r"^output: expected a path"):
        write_report("runs", 3)


@pytest.fixture
def reported(tmp_path) -> Path:
    """A folder with results and a report over them."""
    pytest.importorskip("matplotlib")
    from robust_ood.reporting import write_report

    results_of("net").write(tmp_path)
    add_picture(tmp_path, "net")
    write_report(tmp_path, tensorboard=True)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


@pytest.mark.parametrize(
    "step", ["board.log", "page.page", "page.write_figures", "gallery.landscape_figures"]
)
def test_a_report_that_fails_leaves_the_one_before(reported, monkeypatch, step):
    from robust_ood.reporting import board, gallery, page, write_report

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    module, name = step.split(".")
    if step == "gallery.landscape_figures":
        sections = [kind._replace(draw=fail) for kind in page.SECTIONS]
        monkeypatch.setattr(page, "SECTIONS", sections)
    else:
        monkeypatch.setattr({"board": board, "page": page, "gallery": gallery}[module], name, fail)
    results = Results.read(reported)
    results.rows = [replace(row, auroc=0.5) for row in results.rows]
    results.write(reported)
    before = contents(reported)
    with pytest.raises(OSError, match="No space left"):
        write_report(reported, tensorboard=True)
    assert contents(reported) == before


def test_a_new_report_takes_the_place_of_the_one_before(reported):
    from robust_ood.reporting import write_report

    (reported / "report_files" / "mine.txt").write_text("kept")
    events = len(list(reported.rglob("events.*")))
    write_report(reported, tensorboard=True)
    assert len(list(reported.rglob("events.*"))) == events == 2
    assert (reported / "report_files" / "mine.txt").read_text() == "kept"
    assert not list(reported.rglob("*.partial"))


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
@pytest.mark.parametrize("place", ["report.html", "report_files/landscape-net-net.png"])
def test_links_and_special_files_are_not_replaced(reported, kind, place):
    import os

    from robust_ood.reporting import write_report

    path = reported / place
    path.unlink()
    target = reported / "target"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    if kind == "link":
        target.write_text("mine")
    before = contents(reported)
    with pytest.raises(UserError, match=r"^output: .* is a symbolic link or no ordinary file"):
        write_report(reported)
    assert contents(reported) == before
    assert path.is_symlink() or path.is_fifo()


def test_a_page_with_any_name_links_to_its_figures(reported):
    from robust_ood.reporting import write_report

    page = write_report(reported, reported / "a #1?:100%.html")
    links = re.findall(r'href="([^"#][^"]*\.png)"', page.read_text("utf-8"))
    assert links == ["a%20%231%3F%3A100%25_files/landscape-net-net.png"] or len(links) == 2
    assert all("#" not in link and ":" not in link for link in links)
