"""Folders evaluated apart, joined into recipes; tables and figures for a paper."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robust_ood import cli
from robust_ood.errors import UserError
from robust_ood.evaluation import Accuracy, Results, Row
from robust_ood.evaluation.pictures import Picture
from robust_ood.evaluation.results import Interval

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from robust_ood import reporting
from robust_ood.reporting import summary, tables
from robust_ood.reporting.doubts import is_doubted, warnings_of
from robust_ood.reporting.figures.roc import GRID, mean_roc, roc
from robust_ood.reporting.formats import PlainTable, as_latex
from robust_ood.reporting.recipes import (
    choose_folders,
    first_checkpoints,
    headline,
    incomplete_means,
    parse_recipes,
    read_recipes,
    words_on_checkpoints,
)
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.seed_sentences import detector_sentences
from robust_ood.reporting.table_files import table_files

AUROCS = {"aloe": (0.8, 0.84, 0.88), "oe": (0.1, 0.2, 0.3)}
DEVIATION = 0.04  # of ALOE's


def results_of(attacked: float, *, attack: str = "pgd_16", detectors=("msp", "knn")) -> Results:
    """Make results of one network on one set, clean and under one attack of Linf 16/255."""
    results = Results(environment={"command": "evaluate"})
    for detector in detectors:
        for label, side, auroc in (("none", "none", 0.95), (attack, "both", attacked)):
            budget = ("none", 0.0, 0, 0) if label == "none" else ("Linf", 16 / 255, 10, 1)
            for ood in ("svhn", "far"):
                rates = (auroc, 0.5, 0.5, 1 - auroc, 0.5, 0.5, 0.95, 0.1, 1.0, -2.0, "val")
                images = ("digits", ood, "far", 50, 40)
                results.rows.append(Row("net", detector, label, side, *budget, *images, *rates))
                bounds = ((max(0.0, auroc - 0.05), min(1.0, auroc + 0.05)), (0.0, 1.0))
                names = ("net", detector, label, side, "digits", ood, "far", 0.95)
                results.intervals.append(Interval(*names, *bounds))
    for label, accuracy in (("none", 0.9), (attack, attacked / 2)):
        settings = ("digits", label, "Linf", 16 / 255, 10, 1, 50, accuracy, 1.0)
        results.classification.append(Accuracy("net", *settings))
    return results


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for method, aurocs in AUROCS.items():
        for seed, auroc in enumerate(aurocs):
            results_of(auroc).write(root / f"{method}-{seed}")
    return root


def joined(root: Path) -> ReportData:
    recipes = {"aloe": f"{root}/aloe-*", "oe": f"{root}/oe-*"}
    return read_recipes(choose_folders([], recipes))


def test_recipes_are_means_first_and_checkpoints_are_called_after_their_folders(root):
    data = joined(root)
    assert data.recipes == {
        "aloe": ["aloe-0", "aloe-1", "aloe-2"],
        "oe": ["oe-0", "oe-1", "oe-2"],
    }
    first = headline(data)
    assert first.models == ["aloe", "oe"]
    worst = first.worst("aloe", "msp", "far")
    assert worst.auroc == pytest.approx(np.mean(AUROCS["aloe"]))
    assert first.deviation(worst) == pytest.approx(DEVIATION)
    words = " ".join(summary.sentences(first))
    assert "2 recipes of 6 checkpoints and 2 detectors were scored" in words
    assert "msp 0.950 ± 0.000 → 0.840 ± 0.040" in words
    table = tables.survival(first)
    assert [row[0].text for row in table.rows] == ["aloe", "aloe", "oe", "oe"]
    assert table.rows[0][3].text == "0.840 ± 0.040"
    assert "(aloe: 3, oe: 3)" in table.legend


def test_the_page_folds_single_checkpoints_and_its_figure_has_bands(root, tmp_path):
    page = reporting.write_report(
        output=tmp_path / "all.html",
        recipes={"aloe": [f"{root}/aloe-*"], "oe": f"{root}/oe-*"},
        figure_format="pdf",
    )
    text = page.read_text()
    head, _, fold = text.partition('<details class="single">')
    assert "0.840 ± 0.040" in head
    assert "aloe-1" not in head.partition('id="survival-title"')[2]
    assert ">aloe-1<" in fold
    beside = tmp_path / "all_files"
    rows = list(csv.DictReader((beside / "auroc-by-radius-linf.csv").open()))
    aloe = [row for row in rows if (row["model"], row["detector"]) == ("aloe", "msp")]
    assert [float(row["deviation"]) for row in aloe] == pytest.approx([0, DEVIATION])
    assert (beside / "auroc-by-radius-linf.pdf").read_bytes().startswith(b"%PDF")
    assert (beside / "auroc-by-radius-of-single-checkpoints-linf.png").is_file()


def test_figures_of_images_show_one_checkpoint_of_each_recipe(root, tmp_path):
    data = joined(root)
    for place, model in enumerate(data.models):
        arrays = {"offsets": np.zeros(5), "scores": np.full((8, 5, 5), float(place))}
        data.pictures.append(Picture("landscape", model, "msp", arrays, {}))
    single = first_checkpoints(data)
    assert single.models == ["aloe-0", "oe-0"]
    assert [picture.model for picture in single.drawn("landscape")] == single.models
    assert "of aloe, aloe-0 stands for 3 checkpoints; of oe, oe-0" in words_on_checkpoints(data)
    alone = read_recipes(choose_folders([root / "aloe-1"], {}))
    assert first_checkpoints(alone) is alone
    assert words_on_checkpoints(alone) == ""


def test_a_mean_that_a_checkpoint_lacks_is_said(root, tmp_path):
    for seed, detectors in enumerate((("msp", "knn"), ("msp",))):
        results_of(0.5, detectors=detectors).write(tmp_path / f"x-{seed}")
    data = read_recipes(choose_folders([], {"x": f"{tmp_path}/x-*"}))
    assert incomplete_means(data) == ["x: no mean for knn, of which x-1 has no numbers."]
    assert headline(data).detectors == ["msp"]


def change_set(results: Results) -> None:
    results.rows = [
        replace(row, ood="lsun" if row.ood == "svhn" else row.ood) for row in results.rows
    ]


def change_attack(results: Results) -> None:
    results.rows = [replace(row, steps=20 * (row.attack != "none")) for row in results.rows]


def add_network(results: Results) -> None:
    results.rows += [replace(row, model="other") for row in results.rows]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_set, r"other sets \(only there: .*lsun .*missing there: .*svhn"),
        (change_attack, r"other attacks \(only there: pgd_16 \(Linf 16/255, 20 steps"),
        (add_network, r"expected one network in each folder, got net, other in .*x-1"),
    ],
)
def test_folders_that_cannot_be_joined_end_with_one_line(tmp_path, capsys, change, words):
    results_of(0.5).write(tmp_path / "x-0")
    results = results_of(0.5)
    change(results)
    results.intervals = []
    results.write(tmp_path / "x-1")
    assert cli.main(["report", "--recipes", f"x={tmp_path}/x-*"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: recipes.x: ")
    assert re.search(words, line)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipes", "aloe={root}/none-*"], "recipes.aloe: no folder with a results.json"),
        (["--recipes", "{root}/aloe-*"], "give each as NAME=FOLDERS"),
        (["--recipes", "=x"], "give each as NAME=FOLDERS"),
        (["{root}/oe-0", "--recipes", "a={root}/oe-*"], "is given twice (also in results)"),
        (["--recipes", "a={root}/oe-*", "b={root}/oe-1"], "is given twice (also in recipes.a)"),
        (["{root}/oe-0", "--recipes", "net={root}/aloe-*"], "is called so, too"),
        ([], "or --recipes"),
        (["{root}/oe-0", "--format", "latex", "--tensorboard", "true"], "needs --format html"),
    ],
)
def test_mistakes_end_with_one_line(root, capsys, arguments, words):
    given = [argument.format(root=root) for argument in arguments]
    assert cli.main(["report", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_folders_without_results_are_left_out_aloud(tmp_path, capsys):
    for seed in range(2):
        results_of(0.5).write(tmp_path / f"x-{seed}")
    (tmp_path / "x-2").mkdir()
    (tmp_path / "x-notes.txt").touch()
    assert cli.main(["report", "--recipes", f"x={tmp_path}/x-*"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"left out: {tmp_path / 'x-2'} has no results.json\n"
    assert (tmp_path / "x-0" / "report.html").is_file()


def test_recipes_are_read_from_texts():
    texts = ["a=x/*", "b = y", "a=z=1"]
    assert parse_recipes(texts) == {"a": ["x/*", "z=1"], "b": [" y"]}
    with pytest.raises(UserError, match="NAME=FOLDERS"):
        parse_recipes(["a="])


# Tables and figures of a paper


def check_latex(text: str) -> None:
    """Require balanced environments and braces, and as many cells in each line as columns."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    open_environments = []
    for line in lines:
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", line):
            if kind == "begin":
                open_environments.append(name)
            else:
                assert open_environments.pop() == name
    assert open_environments == []
    plain = re.sub(r"\\[{}%&#_$]", "", "\n".join(lines))
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[#]", "\n".join(lines))
    assert not re.search(r"(?<!\{)%", plain)
    (alignment,) = re.findall(r"\\begin\{tabular\}\{([lrc]+)\}", text)
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    for line in body.splitlines():
        if line.endswith(r"\\"):
            spans = list(map(int, re.findall(r"\\multicolumn\{(\d+)\}", line)))
            cells = line.replace(r"\&", "").count("&") + 1
            assert cells - len(spans) + sum(spans) == len(alignment)
    assert "\n".join(lines).isascii()  # but for comments


def test_every_table_is_latex_that_compiles(root, tmp_path, capsys):
    arguments = ["report", "--recipes", f"aloe={root}/aloe-*", f"oe_%={root}/oe-*"]
    output = ["--output", str(tmp_path / "paper"), "--format", "latex", "--figure-format", "pdf"]
    assert cli.main([*arguments, *output]) == 0
    files = sorted(path.name for path in (tmp_path / "paper").iterdir())
    assert f"wrote {len(files)} files into {tmp_path / 'paper'}" in capsys.readouterr().out
    sources = [name for name in files if name.endswith(".tex")]
    assert {"table-survival.tex", "table-accuracy.tex", "table-recipes.tex"} <= set(sources)
    assert any(name.startswith("table-attack-") for name in sources)
    assert "auroc-by-radius-linf.pdf" in files
    for name in sources:
        check_latex((tmp_path / "paper" / name).read_text())
    survival = (tmp_path / "paper" / "table-survival.tex").read_text()
    assert r"oe\_\%" in survival
    assert r"\multicolumn{3}{c}{far OOD: AUROC}" in survival
    assert r"0.840 $\pm$ 0.040 (pgd\_16)" in survival


@pytest.mark.parametrize("name", ["a_b", "50%", "x & y", "$\\frac{1}$", "#1", "{", "a^b~c", "<|>"])
def test_latex_takes_any_name(name):
    line = (name, "0.5")
    check_latex(as_latex(PlainTable(name, ("who", name), (line,), heads=(("", 1), (name, 1)))))


def test_csv_has_unrounded_numbers_and_intervals_and_markdown_their_texts(root):
    data = read_recipes(choose_folders([root / "aloe-1"], {}))
    texts = table_files(data, "csv")
    (line, *_) = csv.DictReader(io.StringIO(texts["table-survival.csv"]))
    assert float(line["far OOD: AUROC attacked"]) == 0.84
    assert line["far OOD: AUROC attacked: note"] == "0.790\N{EN DASH}0.890; pgd_16"
    text = table_files(data, "markdown")["table-survival.md"]
    assert "| net | msp | 0.950 | 0.840 (pgd\\_16) |" in text


# ROC curves


def test_roc_is_that_of_the_thresholds():
    draws = np.random.default_rng(0)
    inliers = np.round(draws.normal(1, 1, 300), 1)  # with ties
    outliers = np.round(draws.normal(0, 1, 200), 1)
    accepted = roc(inliers, outliers)
    for share, value in zip(GRID, accepted, strict=True):
        allowed = [
            (inliers >= threshold).mean()
            for threshold in [*np.unique(outliers), *np.unique(inliers), np.inf]
            if (outliers >= threshold).mean() <= share + 1e-12
        ]
        assert value == pytest.approx(max(allowed))
    assert accepted[-1] == 1


def test_recipes_have_mean_curves_with_deviations():
    curve = mean_roc([np.full(len(GRID), 0.4), np.full(len(GRID), 0.6)])
    assert curve.accepted == pytest.approx(0.5)
    assert curve.deviation == pytest.approx(0.2 / np.sqrt(2))
    assert mean_roc([np.ones(len(GRID))]).deviation is None


def test_warnings_of_seeds_are_said_once_with_their_ranges(root, tmp_path):
    texts = {
        0: ["net, msp: Square (AUROC 0.41) beats it (0.6)", "my_test: it is sorted"],
        1: ["net, msp: Square (AUROC 0.38) beats it (0.6)", "net, knn: no gradient"],
        2: ["net, msp: Square (AUROC 0.40) beats it (0.6)", "my_test: it is sorted"],
    }
    for seed, warnings in texts.items():
        results = results_of(0.5)
        results.warnings = warnings
        results.write(tmp_path / f"aloe-{seed}")
    data = read_recipes(choose_folders([], {"aloe": f"{tmp_path}/aloe-*"}))
    assert warnings_of(data) == [
        "aloe (3 of 3 checkpoints), msp: Square (AUROC 0.38 to 0.41) beats it (0.6)",
        "my_test: it is sorted",
        "aloe-1, knn: no gradient",
    ]
    first = headline(data)
    assert is_doubted(first, "aloe", "msp")
    assert is_doubted(data, "aloe-1", "knn")
    assert not is_doubted(data, "aloe-0", "knn")
    cells = [row[1] for row in tables.survival(first).rows]
    assert [(cell.text, cell.note) for cell in cells] == [
        ("msp", "sanity warning"),
        ("knn", "sanity warning"),
    ]
    assert warnings_of(joined(root)) == []


def test_findings_say_which_detector_is_better_over_the_seeds_and_by_how_much(tmp_path):
    for seed, (msp, knn) in enumerate([(0.8, 0.5), (0.7, 0.42), (0.75, 0.43)]):
        results = results_of(msp)
        for index, row in enumerate(results.rows):
            if (row.detector, row.attacked) == ("knn", "both"):
                results.rows[index] = replace(row, auroc=knn)
        results.warnings = ["net, msp: gradients of zero"]
        results.write(tmp_path / f"aloe-{seed}")
    data = read_recipes(choose_folders([], {"aloe": f"{tmp_path}/aloe-*"}))
    (sentence,) = detector_sentences(data)
    assert "detectors over 3 checkpoints: msp has the highest AUROC" in sentence
    assert (
        "knn \N{MINUS SIGN}0.300 (\N{MINUS SIGN}0.350 to \N{MINUS SIGN}0.250; p = 0.001)"
        in sentence
    )
    assert "but a sanity warning casts doubt on it." in sentence
