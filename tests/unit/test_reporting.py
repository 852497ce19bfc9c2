"""Reports over made-up results: what the page says against the numbers it was made of."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from robust_ood.errors import UserError
from robust_ood.evaluation import Accuracy, FolderStore, Results, Row
from robust_ood.evaluation.pictures import Picture, write_picture
from robust_ood.evaluation.results import CellFiles, Failure, Interval, Wins
from robust_ood.evaluation.store import Cell

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from robust_ood import reporting
from robust_ood.reporting import summary, tables
from robust_ood.reporting.report_data import read_folders

RADII = {"none": 0.0, "pgd-4/255": 4 / 255, "suite": 8 / 255}
LOSSES = {"near": (0.875, 0.375, -0.5), "far": (1.0, 0.875, -0.125)}
VOID = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "track",
    "wbr",
}


def make_row(
    model: str, detector: str, attack: str, attacked: str, ood: str, group: str, auroc: float
) -> Row:
    budget = {
        "norm": "none" if attack == "none" else "Linf",
        "radius": RADII[attack],
        "steps": 10,
        "restarts": 1,
    }
    rates = {"aupr_in": 0.5, "aupr_out": 0.5, "fpr95_ood_positive": 0.25, "detection_error": 0.125}
    deployed = {"tpr_deployed": 0.95, "fpr_deployed": 0.0625}
    names = {"model": model, "detector": detector, "attack": attack, "attacked": attacked}
    images = {"id": "digits", "ood": ood, "group": group, "n_id": 50, "n_ood": 40}
    rates |= {"auroc": auroc, "fpr95": 1 - auroc}
    return Row(**names, **budget, **images, **rates, **deployed, seconds=1.0)


def make_results(model: str, fall: float) -> Results:
    """Make results of two detectors, three OOD sets and two attacks, which cost up to `fall`."""
    results = Results(
        environment={
            "command": "evaluate.py --name <x>",
            "checks": True,
            "versions": {"torch": "2"},
        }
    )
    sets = [("cifar", "near", 0.9), ("svhn", "far", 0.98), ("dots", "far", 0.96)]
    for detector, extra in (("msp", 0.0), ("knn", 0.15)):
        for attack, share in (("none", 0.0), ("pgd-4/255", 0.5), ("suite", 1.0)):
            for attacked, part in (
                (("in", 0.3), ("out", 0.4), ("both", 1.0)) if share else (("none", 0.0),)
            ):
                values = [(o, g, a - (fall + extra) * share * part) for o, g, a in sets]
                rows = [make_row(model, detector, attack, attacked, o, g, a) for o, g, a in values]
                for group in ("near", "far"):
                    mean = np.mean([a for _, g, a in values if g == group]).item()
                    rows.append(make_row(model, detector, attack, attacked, group, group, mean))
                results.rows += rows
                results.intervals += [
                    Interval(
                        model,
                        detector,
                        attack,
                        attacked,
                        "digits",
                        o,
                        g,
                        0.95,
                        (a - 0.01, a + 0.01),
                        (0.0, 0.1),
                    )
                    for o, g, a in values
                ]
    for attack, accuracy in (("none", 0.9 - fall / 10), ("pgd-4/255", 0.5), ("suite", 0.25)):
        settings = (RADII[attack], 10, 1, 50, accuracy, 1.0)
        results.classification.append(Accuracy(model, "digits", attack, "Linf", *settings))
    results.members = [
        Wins(model, "msp", "suite", "digits", "id", 50, {"clean": 5, "pgd": 30, "square": 15})
    ]
    return results


def add_scores(folder: Path, results: Results) -> None:
    """Store scores of single images, in two parts each, and list them."""
    store = FolderStore(folder)
    draws = np.random.default_rng(0)
    for model in {row.model for row in results.rows}:
        for detector in ("msp", "knn"):
            for attack, shift in (("none", 0.0), ("pgd-4/255", 0.5), ("suite", 1.0)):
                for images, group, mean in (
                    ("digits", "id", 2 - shift),
                    ("cifar", "near", shift),
                    ("svhn", "far", shift),
                ):
                    files = []
                    for part in range(2):
                        key = f"{model}{detector}{attack}{images}{part}".encode().hex()
                        with store.claim(key[:9], wait=True):
                            store.write(
                                key,
                                Cell(
                                    {"scores": draws.normal(mean, 1, 25).astype(np.float32)},
                                    {"seconds": 1},
                                ),
                            )
                        files.append(store.path(key))
                    results.cells.append(
                        CellFiles(model, detector, attack, images, group, tuple(files))
                    )


def add_pictures(folder: Path, model: str) -> None:
    draws = np.random.default_rng(1)
    sides = ("in", "near", "far")
    traces = {}
    for side in sides:
        steps = np.arange(4)[:, None] * np.ones(9)
        traces |= {f"{side}_scores": draws.normal(side == "in", 0.5, (4, 9))}
        traces |= {f"{side}_linf": 0.01 * steps, f"{side}_l2": 0.3 * steps}
    pixels = draws.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    groups = {"groups": ["in", "far"], "sets": ["digits", "svhn"]}
    shifts = {side: draws.normal(0, 1, (2, 9)) for side in sides}
    shifts["sizes"] = np.array([0.001, 0.01])
    landscape = {"offsets": np.linspace(-0.1, 0.1, 5), "scores": draws.normal(0, 1, (2, 5, 5))}
    strips = {
        "clean": pixels,
        "attacked": 255 - pixels,
        "before": np.array([2.0, 0.0]),
        "after": np.array([0.5, 1.5]),
    }
    for kind, arrays, about in (
        ("shift", shifts, {}),
        ("curves", traces, {"norm": "Linf", "loss_of_auroc": LOSSES}),
        ("landscape", landscape, groups),
        ("strips", strips, groups | {"attack": "suite"}),
    ):
        write_picture(folder, Picture(kind, model, "msp", arrays, about))
    write_picture(
        folder, Picture("shift", model, "knn", {}, {"failed": "its score has no gradient"})
    )
    write_picture(folder, Picture("shift", model, "gone", shifts, {}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    found = []
    for model, fall in (("OE", 0.7), ("ALOE", 0.05)):
        folder = tmp_path_factory.mktemp(model)
        results = make_results(model, fall)
        add_scores(folder, results)
        add_pictures(folder, model)
        if model == "OE":
            results.warnings.append("OE, knn: the gradients are masked <b>")
            results.failures.append(Failure("OE", "vim", "none", "fit", "singular & sad"))
        results.write(folder)
        found.append(folder)
    return found


@pytest.fixture(scope="module")
def report(folders, tmp_path_factory) -> Path:
    return reporting.write_report(folders, tmp_path_factory.mktemp("report") / "all.html")


class Page(HTMLParser):
    """Elements of a page, and whether each that was opened was closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(report.read_text())


def test_the_page_is_well_formed_and_its_identifiers_unique(page):
    assert page.open == []
    marks = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(marks) == len(set(marks))
    assert len(marks) > 20


def test_nothing_is_fetched(page, report):
    text = report.read_text()
    assert not re.findall(r"""https?:|wss?:|["'(=]//""", text)
    assert "@import" not in text
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("#", "data:", "all_files/"))
                assert not value.startswith("all_files/") or (report.parent / value).is_file()


def test_links_and_references_within_the_page_lead_somewhere(page, report):
    marks = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    wanted = {a["href"][1:] for _, a in page.elements if (a.get("href") or "").startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", report.read_text()))
    assert wanted <= marks


def test_tables_have_captions_and_scopes_and_figures_have_words(page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") >= 5
    assert all(
        a.get("scope") in ("col", "row", "colgroup") for tag, a in page.elements if tag == "th"
    )
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert len(drawings) >= 9
    assert all(len(a["aria-label"]) > 40 and a["role"] == "img" for a in drawings)
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_table_has_its_legend_before_it(report, folders):
    before_tables = report.read_text().split("<table")[:-1]
    for text in before_tables:
        legend, _, rest = text.rpartition('<p class="legend">')[2].partition("</p>")
        assert len(legend) > 60
        assert re.fullmatch(r'\s*<div class="scroll" [^>]*>\s*', rest)
    assert len(before_tables) >= 5


def test_numbers_are_those_of_the_results(report, folders):
    """Each table row carries the unrounded values; those of `results.json` are all among them."""
    shown = {float(value) for value in re.findall(r'data-value="([^"]+)"', report.read_text())}
    for folder in folders:
        content = json.loads((folder / "results.json").read_text())
        for row in content["rows"]:
            single_mean = row["ood"] == row["group"] == "near"
            assert single_mean or row["auroc"] in shown
        assert all(row["accuracy"] in shown for row in content["classification"])


def test_survival_compares_clean_with_the_strongest_attack(folders):
    table = tables.survival(read_folders(folders))
    (line,) = [row for row in table.rows if [c.text for c in row[:2]] == ["OE", "knn"]]
    near_clean, near_attacked, near_change = (cell.value for cell in line[2:5])
    assert (near_clean, near_attacked) == pytest.approx((0.9, 0.9 - 0.85))
    assert near_change == pytest.approx(-0.85)
    assert line[3].chance
    assert not line[2].chance
    assert line[4].tint == -1
    assert line[8].value == pytest.approx(0.97 - 0.85)  # far: the mean of two sets
    assert line[3].note.startswith("0.040\N{EN DASH}0.060\nsuite")  # one set: its interval
    assert line[8].note == "suite"  # two sets: none


def test_losses_of_auroc_are_those_of_the_pictures_and_come_with_their_figures(folders, report):
    data = read_folders(folders)
    table = tables.losses(data)
    assert table is not None
    lines = {}
    for row in table.rows:
        lines[tuple(cell.text for cell in row[:3])] = row
    assert list(lines) == [
        ("OE", "msp", "near"),
        ("OE", "msp", "far"),
        ("ALOE", "msp", "near"),
        ("ALOE", "msp", "far"),
    ]
    attacked, before, after, change = lines["OE", "msp", "near"][3:]
    assert attacked.text == "both"
    assert (before.value, after.value, change.value) == LOSSES["near"]
    assert (before.chance, after.chance, change.tint) == (False, True, -1)
    assert lines["ALOE", "msp", "far"][6].tint == -0.25
    section = report.read_text().partition('<section id="norm"')[2].partition("</section>")[0]
    assert f"<caption><span>{table.caption}</span></caption>" in section

    # Pictures of older versions keep no losses.
    data.pictures = [replace(picture, about={}) for picture in data.pictures]
    assert tables.losses(data) is None


def test_summary_says_what_survived_and_what_did_not(folders):
    text = summary.sentences(read_folders(folders))
    near = next(line for line in text if line.startswith("OE, near"))
    assert near.endswith(
        "all 2 detectors fall below chance (msp 0.900 → 0.200, knn 0.900 → 0.050)."
    )
    far = next(line for line in text if line.startswith("ALOE, far"))
    assert "1 of 2 detectors keeps an AUROC of at least 0.9 (msp 0.970 → 0.920)" in far
    assert "1 of 2 detectors ends between 0.5 and 0.9 (knn 0.970 → 0.770)" in far
    assert any(
        "Best under its strongest attack on near OOD: ALOE with msp, 0.850" in line for line in text
    )
    reach = next(line for line in text if line.startswith("ALOE, far OOD, by radius"))
    assert reach.endswith(
        "an AUROC of at least 0.9 stays with msp up to Linf 8/255; 1 detector at no radius."
    )
    lower = next(line for line in text if line.startswith("OE, near OOD, by radius"))
    assert lower.endswith(
        "an AUROC of at least 0.5 stays with msp up to Linf 4/255; 1 detector at no radius."
    )
    equal = [replace(row, auroc=0.75) for row in read_folders(folders).means]
    source = read_folders(folders)
    source.means = equal
    assert "4 of 4 pairs of network and detector, all at 0.750" in " ".join(
        summary.sentences(source)
    )
    source.means = [replace(row, auroc=0.25) for row in source.means]
    assert "on near OOD, no pair of network and detector stays above chance." in " ".join(
        summary.sentences(source)
    )
    clean, *attacked = [line for line in text if line.startswith("Classification")]
    difference = "\N{MINUS SIGN}6.5 points against ALOE"
    assert f"OE 83.0 % ({difference}, the most accurate); ALOE 89.5 %" in clean
    # Each budget has a sentence of its own: no two radii are compared.
    assert [line.partition(" within ")[2] for line in attacked] == [
        "Linf 4/255: OE 50.0 % (pgd-4/255); ALOE 50.0 % (pgd-4/255).",
        "Linf 8/255: OE 25.0 % (suite); ALOE 25.0 % (suite).",
    ]


def test_warnings_failures_and_markup_in_names_are_shown_first_and_as_text(report):
    text = report.read_text()
    assert "OE, knn: the gradients are masked &lt;b&gt;" in text
    assert "OE, vim (fit): singular &amp; sad" in text
    assert "figure shift of knn on OE: its score has no gradient" in text
    assert text.index("singular") < text.index('id="findings-title"')
    assert "evaluate.py --name &lt;x&gt;" in text
    assert "No sanity check raised an alarm" not in text


def test_different_protocols_interruptions_and_missing_checks_are_said(folders):
    source = read_folders(folders)
    assert summary.caveats(source) == []
    source.results.complete = False
    source.environments[0][1]["checks"] = False
    source.sets = [replace(row, n_ood=7) if row.model == "OE" else row for row in source.sets]
    interrupted, different, unchecked = summary.caveats(source)
    assert "did not finish" in interrupted
    assert "different images (OE / ALOE)" in different
    assert "switched off" in unchecked
    assert not any(
        "Best" in line or "points" in line for line in summary.sentences(source)
    )  # nothing to compare


def test_each_figure_has_a_picture_and_its_data(report):
    beside = report.parent / "all_files"
    pictures = {path.stem for path in beside.glob("*.png")}
    assert pictures == {path.stem for path in beside.glob("*.csv")}
    expected = {
        "auroc-by-radius-linf",
        "auroc-by-norm-linf-outliers",
        "auroc-by-norm-l2-outliers",
        "scores-msp",
        "scores-knn",
        "shifts-msp",
        "landscape-oe-msp",
        "images-aloe-msp",
    }
    assert expected <= pictures
    assert all((beside / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in pictures)
    with (beside / "auroc-by-radius-linf.csv").open() as file:
        lines = list(csv.DictReader(file))
    own = [
        line
        for line in lines
        if (line["model"], line["group"], line["detector"]) == ("OE", "far", "msp")
    ]
    assert [float(line["radius"]) for line in own] == [0, 4 / 255, 8 / 255]
    assert [float(line["auroc"]) for line in own] == pytest.approx([0.97, 0.97 - 0.35, 0.97 - 0.7])


def test_histograms_hold_every_image(report):
    with (report.parent / "all_files" / "scores-msp.csv").open() as file:
        lines = list(csv.DictReader(file))
    shares: dict[tuple[str, ...], float] = {}
    for line in lines:
        key = (line["model"], line["attack"], line["side"])
        shares[key] = shares.get(key, 0) + float(line["share"])
    assert len(shares) == 2 * 2 * 3
    assert {attack for _, attack, _ in shares} == {"clean", "suite"}
    assert list(shares.values()) == pytest.approx([1.0] * 12)


def files_of(page: Path) -> dict[str, bytes]:
    """Return the bytes of a page and of what lies beside it, but for TensorBoard's."""
    beside = page.parent / f"{page.stem}_files"
    return {path.name: path.read_bytes() for path in [page, *beside.iterdir()] if path.is_file()}


def test_tensorboard_gets_the_numbers_the_tables_and_the_figures_and_the_page_stays_the_same(
    report, folders, tmp_path
):
    """The same results give the same bytes, with TensorBoard's files or without."""
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for chosen in (folders[:1], folders):  # the second report replaces what the first one wrote
        page = reporting.write_report(chosen, tmp_path / "all.html", tensorboard=True)
    again, before = files_of(page), files_of(report)
    assert len(again) > 10
    assert set(again) == set(before)
    assert [name for name, content in again.items() if content != before[name]] == []
    assert len(list((tmp_path / "all_files" / "tensorboard").rglob("events.*"))) == 3

    def run(name: str) -> EventAccumulator:
        found = EventAccumulator(
            str(tmp_path / "all_files" / "tensorboard" / name), {"scalars": 0, "tensors": 0}
        )
        return found.Reload()

    curve = run("OE").Scalars("AUROC, far OOD, Linf/msp")
    assert [event.step for event in curve] == [0, 16, 31]  # 0, 4/255 and 8/255
    assert [event.value for event in curve] == pytest.approx([0.97, 0.97 - 0.35, 0.97 - 0.7])
    assert [event.value for event in run("ALOE").Scalars("accuracy/suite")] == [0.25]
    whole = run("report")
    texts = {
        tag: whole.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in whole.Tags()["tensors"]
    }
    assert "OE, knn: the gradients are masked <b>" in texts["warnings/text_summary"]
    assert "all 2 detectors fall below chance" in texts["findings/text_summary"]
    (survival,) = [text for tag, text in texts.items() if "strongest attack on inliers" in tag]
    legend, blank, *lines = survival.splitlines()
    assert legend == tables.SURVIVAL_LEGEND
    assert blank == ""
    assert lines[0].startswith(
        "| Network | Detector | near OOD: AUROC clean | near OOD: AUROC attacked |"
    )
    assert lines[2].startswith(
        "| OE | msp | 0.900 (0.890\N{EN DASH}0.910) | 0.200 (0.190\N{EN DASH}0.210, suite) |"
    )
    pictures = sorted((tmp_path / "all_files").glob("*.png"))
    assert len(whole.Tags()["images"]) == len(pictures)
    sizes = {Image.open(path).size for path in pictures}
    assert {
        (event[0].width, event[0].height) for event in map(whole.Images, whole.Tags()["images"])
    } == sizes


def test_two_folders_with_one_name_stay_apart(folders, tmp_path):
    other = tmp_path / "second"
    results = make_results("OE", 0.1)
    results.warnings = ["OE, msp: doubtful"]
    results.write(other)
    source = read_folders([folders[0], other])
    assert source.models == ["OE", "OE (second)"]
    assert "OE (second), msp: doubtful" in source.results.warnings
    assert {row.model for row in source.results.classification} == {"OE", "OE (second)"}
    worst = [source.worst(model, "msp", "near").auroc for model in source.models]
    assert worst == pytest.approx([0.2, 0.8])


def test_results_without_scores_or_attacks_still_make_a_page(tmp_path):
    results = make_results("plain", 0.1)
    results.rows = [row for row in results.rows if row.attack == "none"]
    results.classification, results.members, results.intervals = results.classification[:1], [], []
    results.write(tmp_path)
    text = reporting.write_report([tmp_path]).read_text()
    assert Page(text).open == []
    assert "no attack was run" in text
    assert "Score distributions are missing" in text
    assert "0.900" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", "damaged"),
        (json.dumps({"schema": 99, "rows": []}), "not of schema 1 to 2"),
        (json.dumps({"schema": 1, "rows": [{"model": 1}], "classification": []}), "damaged"),
        (
            json.dumps(
                {"schema": 1, "rows": [], "classification": [], "warnings": [], "environment": {}}
            ),
            "no rows",
        ),
    ],
)
def test_folders_that_hold_no_results_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=words):
        reporting.write_report([tmp_path])
    assert not (tmp_path / "report.html").exists()


def test_damaged_or_missing_files_beside_results_are_named(folders, tmp_path):
    results = make_results("OE", 0.1)
    add_scores(tmp_path, results)
    results.write(tmp_path)
    lost = tmp_path / results.cells[0].files[0]
    lost.unlink()
    with pytest.raises(UserError, match=rf"{lost.name}.*evaluate again"):
        reporting.write_report([tmp_path])
    lost.write_bytes(b"PK no")
    with pytest.raises(UserError, match="unreadable"):
        reporting.write_report([tmp_path])
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "x.npz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"figures: .*x\.npz is damaged"):
        reporting.write_report([tmp_path])


def test_an_output_that_is_no_page_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match="no HTML file"):
        reporting.write_report(folders, tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(
        reporting, "find_spec", lambda module: None if module == "matplotlib" else object()
    )
    with pytest.raises(
        UserError, match=r"matplotlib not installed; pip install 'robust-ood\[report\]'"
    ):
        reporting.check_installed()
