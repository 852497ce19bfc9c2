"""Every table as LaTeX: names with letters that LaTeX reads as commands, in all tables at once."""

from __future__ import annotations

import re
import shutil
import subprocess
from argparse import Namespace

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from robust_ood.cli.compare_command import _matrix, _ranking, _tables
from robust_ood.evaluation import Accuracy, Results, Row
from robust_ood.evaluation.results import Wins
from robust_ood.reporting import study_tables
from robust_ood.reporting.formats import PlainTable, as_latex
from robust_ood.reporting.recipes import choose_folders, read_recipes
from robust_ood.reporting.reference import AgainstReference, reference_table
from robust_ood.reporting.reference import Standing as ToReference
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.significance import ATTACKED, Comparison, Standing
from robust_ood.reporting.study_tables import budget_table
from robust_ood.reporting.table_files import table_files

NASTY = "[a_b] 50% & #1 {x} ~^ \\y $z$ <|> \N{PLUS-MINUS SIGN} \N{GREEK SMALL LETTER PI} * "
DETECTOR = f"*{NASTY}, layer_4.relu_2, at a hundred and twenty-eight neighbours of each class"
ATTACK = f"pgd_{NASTY}"
OOD = f"places_365 & {NASTY}"
TITLES = {"survival", "accuracy", "accuracy-on-shifted-inliers", "recipes", "metrics", "attack"}


def results_of(auroc: float) -> Results:
    """Make results of one network whose names hold everything."""
    results = Results(environment={"command": "evaluate"})
    for label, side in (("none", "none"), (ATTACK, "both")):
        budget = ("none", 0.0, 0, 0) if label == "none" else ("Linf", 16 / 255, 10, 1)
        for ood in (OOD, "far"):
            rates = (auroc, 0.5, 0.5, 1 - auroc, 0.5, 0.5, 0.95, 0.1, 1.0, -2.0, "val")
            images = ("digits_%", ood, "far", 50, 40)
            results.rows.append(Row("net", DETECTOR, label, side, *budget, *images, *rates))
        shared = (label, *budget, 50, auroc, 1.0)
        results.classification.append(Accuracy("net", "digits_%", *shared))
        results.shifted_classification.append(Accuracy("net", f"fog_3 & {NASTY}", *shared))
    wins = {"fgsm_1": 20, f"pgd & {NASTY}": 30}
    results.members.append(Wins("net", DETECTOR, ATTACK, OOD, "far", 50, wins))
    return results


def compared_tables(data: ReportData) -> list[PlainTable]:
    """Return the tables of tests: between detectors, and against a reference."""
    names = (f"[A_1] & {NASTY}, {DETECTOR}", "B%, msp")
    ranked = []
    against = []
    for name in names:
        ranked.append(Standing(name, 0.8, 0.7, 0.9, 0.1, 0.01, 1, 0, is_best=name == names[0]))
        verdict = "better" if name == names[0] else ""
        against.append(ToReference(name, 2, 0.8, 0.1, 0.1, 0.05, 0.2, 0.01, verdict))
    setting = (ATTACK, "both", "far", (OOD, "far"))
    ranking = Comparison(*setting, 50, 0.95, tuple(ranked), {names: True, names[::-1]: False})
    comparison = AgainstReference(DETECTOR, *setting, "B%", 0.95, tuple(against))
    standings = dict(zip(names, against, strict=True))
    means = dict.fromkeys(ATTACKED, standings)
    study = study_tables._table(comparison, means)
    return [_ranking(data, ranking), _matrix(ranking), reference_table(comparison), study]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, str]:
    """All tables of a report, of a comparison and of a study, by their names."""
    root = tmp_path_factory.mktemp("results")
    for method, aurocs in {"a": (0.8, 0.84), "b": (0.1, 0.2)}.items():
        for seed, auroc in enumerate(aurocs):
            results_of(auroc).write(root / f"{method}-{seed}")
    recipes = {f"[A_1] & {NASTY}": f"{root}/a-*", "B%": f"{root}/b-*"}
    data = read_recipes(choose_folders([], recipes))
    texts = table_files(data, "latex")
    tables = [budget_table(data, {"B%": ("1,000", "2")})]
    tables += _tables(data, Namespace(reference=None, attacked="both", level=0.95, matrix=True))
    tables += compared_tables(data)
    for number, table in enumerate(tables):
        texts[f"table-compared-{number}.tex"] = as_latex(table)
    return texts


def cells_of(line: str) -> list[str]:
    return re.split(r"(?<!\\)&", line.removesuffix(r"\\"))


KNOWN = re.compile(
    r"\\textbackslash\{\}|\\text(asciitilde|asciicircum|less|greater|bar)\{\}|\\ldots\{\}"
    r"|\\[&%$#_{}]|\$(-|\\(pm|rightarrow|times|le|ge|infty|cdot|[A-Za-z]+))\$|\{[\[\]*]\}"
)


def test_all_tables_are_there(texts):
    names = {name.removeprefix("table-").removesuffix(".tex") for name in texts}
    missing = {title for title in TITLES if not any(name.startswith(title) for name in names)}
    assert not missing
    assert sum(name.startswith("compared") for name in names) >= 4


def test_names_are_escaped_in_every_cell_of_every_table(texts):
    for name, text in texts.items():
        body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
        (alignment,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
        for line in body.strip().splitlines():
            assert line.strip(), name  # an empty line is a paragraph
            if re.fullmatch(r"\\midrule|(\\cmidrule\(lr\)\{\d+-\d+\} ?)+", line):
                continue
            assert line.endswith(r"\\"), (name, line)
            plain = re.sub(r"\\multicolumn\{\d+\}\{c\}\{(.*?)\}(?= &| \\\\)", r"\1", line)
            plain = re.sub(r"\\textbf\{(.*?)\}(?= &| \\\\)", r"\1", plain)
            cells = cells_of(plain)
            if "multicolumn" not in line:
                assert len(cells) == len(alignment), (name, line)
            for cell in cells:
                left = KNOWN.sub("", cell)
                assert not re.search(r"[\\&%$#_{}~^\[\]*<>|]|[^\x00-\u017f]", left), (name, cell)
        comments = [line for line in text.splitlines() if not line.startswith("%")]
        assert comments[0] == r"\begin{table}", name


def test_labels_are_plain_and_differ(texts):
    labels = [re.findall(r"\\label\{tab:(.*?)\}", text)[0] for text in texts.values()]
    assert all(re.fullmatch(r"[a-z0-9-]+", label) for label in labels)
    report = [label for label in labels if not label.startswith("compared")]
    assert report
    one = as_latex(PlainTable("\u8868", ("a",), (("x",),), legend="two\nlines"))
    assert r"\label{tab:table}" in one
    assert "% two lines" in one


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_all_tables_compile(texts, tmp_path):
    packages = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}"
    lines = [packages, r"\extrafloats{100}", r"\begin{document}"]
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        lines.append(rf"\input{{{name}}}\clearpage")
    (tmp_path / "paper.tex").write_text("\n".join([*lines, r"\end{document}"]))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
