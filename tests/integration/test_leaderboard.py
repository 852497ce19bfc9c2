"""The leaderboard: what it re-checks, what it refuses, and which row stands."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from robust_ood import cli
from robust_ood.attacks import build_all as build_attacks
from robust_ood.data import OODData
from robust_ood.detectors import build_all as build_detectors
from robust_ood.errors import UserError
from robust_ood.evaluation import evaluate
from robust_ood.models import pretrained, zoo_names
from robust_ood.reporting.leaderboard import (
    HASHES,
    SIDES,
    Standing,
    replaces,
    seal,
    standings,
)

pytest.importorskip("jinja2")
from robust_ood.reporting.leaderboard_page import tables, write  # needs Jinja2

NETWORK = zoo_names()[0]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "short"
    net = pretrained(NETWORK)
    data = OODData(
        train="digits/train", test="digits/test", far=["noise/gaussian"], num_classes=10, root="."
    )
    results = evaluate(
        net,
        detectors=build_detectors(["msp"], net),
        attacks=build_attacks([{"name": "pgd", "radius": 16 / 255, "steps": 2}]),
        data=data,
        model=NETWORK,
        limit=12,
        folder=folder,
        sanity=False,
    )
    results.write(folder)
    return folder


@pytest.fixture
def sent(evaluated, tmp_path) -> Path:
    """A sealed copy, as somebody would send it."""
    folder = tmp_path / "sent"
    shutil.copytree(evaluated, folder)
    seal(folder)
    return folder


def change(folder: Path, **fields: object) -> None:
    """Write other numbers into a folder and seal it again, as a cheat would."""
    path = folder / "results.json"
    content = json.loads(path.read_text())
    for row in content["rows"]:
        row.update(fields)
    path.write_text(json.dumps(content))
    seal(folder)


def test_the_command_writes_a_page_tables_and_json(evaluated, tmp_path, capsys):
    folder = tmp_path / "mine"
    shutil.copytree(evaluated, folder)
    output = tmp_path / "board"
    assert cli.main(["leaderboard", str(folder), "--seal", "true", "--output", str(output)]) == 0
    page = (output / "leaderboard.html").read_text()
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert page.count('class="sortable"') == 1
    rows = json.loads((output / "leaderboard.json").read_text())["rows"]
    assert [row["attacked"] for row in rows] == ["both", "in", "out", "none"]
    assert rows[0]["threat"] == "Linf 16/255, both sides"
    assert rows[0]["sanity"] == "not checked"
    assert rows[0]["far"] <= rows[0]["clean_far"]
    assert rows[0]["far_sets"] == ["gaussian-noise"]
    table = (output / "leaderboard.md").read_text()
    assert "**digits: Linf 16/255**" in table
    line = next(line for line in table.splitlines() if f"| {NETWORK} | msp |" in line)
    for row in rows:
        assert f"{row['far']:.3f}" in line
    low, high = rows[0]["far_interval"]
    assert f"({low:.3f} to {high:.3f})" in line
    assert "Far: gaussian-noise. Sanity: not checked. Attack, steps x restarts: pgd" in table


def test_a_row_without_hashes_is_refused_in_one_line(evaluated, tmp_path, capsys):
    assert cli.main(["leaderboard", str(evaluated), "--output", str(tmp_path / "board")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"has no {HASHES}" in printed
    assert not (tmp_path / "board").exists()


def test_what_was_changed_after_sealing_is_refused(sent):
    sealed = json.loads((sent / HASHES).read_text())["sha256"]
    cell = next(sent / name for name in sealed if name.endswith(".npz"))
    cell.write_bytes(cell.read_bytes() + b"x")
    with pytest.raises(UserError, match="is not the file that was sealed"):
        standings([sent])


def test_numbers_that_the_scores_do_not_give_are_refused(sent):
    change(sent, auroc=0.987)
    with pytest.raises(UserError, match=r"states AUROC 0\.987000; its scores give"):
        standings([sent])


def test_weights_that_are_not_the_zoo_s_are_refused(sent):
    with pytest.raises(UserError, match=f"the weights of {NETWORK} are not those of the zoo"):
        standings([sent], {NETWORK: "0" * 32})


def test_a_network_without_a_fingerprint_is_refused(sent):
    path = sent / "results.json"
    content = json.loads(path.read_text())
    del content["environment"]["networks"]
    path.write_text(json.dumps(content))
    seal(sent)
    with pytest.raises(UserError, match="states no fingerprint of the weights"):
        standings([sent])


@pytest.mark.parametrize(
    ("hashes", "words"),
    [
        ("not json", "is damaged"),
        ('{"sha256": {}}', "has no hash of results.json"),
        ('{"sha256": {"../secret": "0", "results.json": "0"}}', "outside of the folder"),
    ],
)
def test_hashes_that_are_none_are_refused(sent, hashes, words):
    (sent / HASHES).write_text(hashes)
    with pytest.raises(UserError, match=words):
        standings([sent])


def test_a_stronger_attack_replaces_a_row(sent):
    row = standings([sent])[0]
    assert row.attacked == "both"
    assert row.far is not None
    stronger = replace(row, far=row.far - 0.01, far_interval=(0.0, row.far))
    assert replaces(stronger, row)
    assert not replaces(row, stronger)
    lucky = replace(stronger, images=row.images - 1)
    assert not replaces(lucky, row)
    clear = replace(lucky, far_interval=(0.0, row.far - 0.005))
    assert replaces(clear, row)
    clean: Standing = replace(row, attacked="none")
    assert replaces(replace(clean, images=clean.images + 1), clean)
    assert not replaces(clean, clean)


def test_the_same_folder_twice_is_one_row_each(sent):
    assert standings([sent, sent]) == standings([sent])


def test_every_file_of_scores_needs_a_hash(sent):
    path = sent / HASHES
    content = json.loads(path.read_text())
    scores = [name for name in content["sha256"] if name.endswith(".npz")]
    assert len(scores) >= 4  # inliers and outliers, clean and attacked
    del content["sha256"][scores[0]]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"has no hash of {scores[0]}"):
        standings([sent])


@pytest.fixture
def row(sent) -> Standing:
    """The row with both sides attacked."""
    return standings([sent])[0]


@pytest.mark.parametrize(
    "changes", [{"far_sets": ("svhn",)}, {"form": "8 x 8 pixels"}, {"id": "cifar10"}]
)
def test_rows_of_other_images_do_not_compare(row, changes):
    other = replace(row, **changes)
    assert other.subject != row.subject
    assert len(tables([row, other])) == 2
    assert len(tables([row, replace(row, detector="energy")])) == 1


def test_the_size_of_images_stands_in_the_row(evaluated, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(evaluated, folder)
    path = folder / "results.json"
    content = json.loads(path.read_text())
    content["environment"]["config"] = {"data": {"size": 8, "channels": 1}}
    path.write_text(json.dumps(content))
    seal(folder)
    assert {row.form for row in standings([folder])} == {"8 x 8 pixels, grey"}


def test_a_network_without_an_attack_has_a_table_of_its_own(row):
    clean = replace(row, weights="other", attacked="none", norm="none", radius=0.0, threat="none")
    attacked, quiet = tables([row, clean])
    assert (attacked.caption, quiet.caption) == ("digits: Linf 16/255", "digits: clean")
    assert attacked.full_titles()[2:4] == ["Far both sides", "Far clean"]
    assert "Far clean" in quiet.full_titles()
    assert "Far both sides" not in quiet.full_titles()


def many(row: Standing) -> list[Standing]:
    """Rows of sixteen networks, near and far, each side attacked."""
    rows = []
    for side in SIDES:
        for number in range(16):
            far = 0.95 - 0.05 * number
            name = f"a-network-with-a-rather-long-name-{number}"
            changes = {"network": name, "weights": name, "attacked": side, "far": far}
            rows.append(replace(row, **changes, near=far / 2, near_interval=(0.0, far)))
    return rows


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_the_page_fits_a_browser_sorts_and_filters(tab, row, tmp_path, width, height):
    page = write(many(row), tmp_path)[0]
    tab.open(page, width, height, phone=width < 500)
    said = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in tab.events if event["method"] in said] == []
    assert tab.run("document.documentElement.scrollWidth") <= width
    column = (
        "[...document.querySelectorAll('tbody tr')].map(row => Number(row.cells[2].dataset.value))"
    )
    best_first = tab.run(column)
    assert best_first == sorted(best_first, reverse=True)
    tab.run("document.querySelectorAll('thead tr:last-child th button')[2].click()")
    assert tab.run(column) == sorted(best_first)
    tab.run(
        "(() => { const input = document.querySelector('.tools input');"
        "input.value = 'name-7'; input.dispatchEvent(new Event('input')); })()"
    )
    shown = "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).length"
    assert tab.run(shown) == 1
