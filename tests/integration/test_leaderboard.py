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
from robust_ood.reporting.leaderboard import HASHES, Standing, replaces, seal, standings

pytest.importorskip("jinja2")
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
    assert page.count('class="sortable"') == 4
    rows = json.loads((output / "leaderboard.json").read_text())["rows"]
    assert [row["attacked"] for row in rows] == ["none", "in", "out", "both"]
    assert rows[-1]["threat"] == "Linf 16/255, both sides"
    assert rows[-1]["sanity"] == "not checked"
    assert rows[-1]["far"] <= rows[-1]["clean_far"]
    table = (output / "leaderboard.md").read_text()
    assert NETWORK in table
    assert "**Attacked: Linf 16/255, both sides**" in table


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
    row = standings([sent])[-1]
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
