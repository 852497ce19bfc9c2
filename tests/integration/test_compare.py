"""`robust-ood compare`: the tests behind its tables, its formats, and what it refuses."""

from __future__ import annotations

import csv
from shutil import copytree

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind, ttest_rel
from torch import nn

from robust_ood import evaluate
from robust_ood.attacks import PGD
from robust_ood.cli import main
from robust_ood.data import OODData
from robust_ood.detectors import MSP, Energy, MaxLogit
from robust_ood.evaluation import Results
from robust_ood.evaluation.summaries import summarise
from robust_ood.metrics import delong_test, holm
from robust_ood.regions import Linf
from robust_ood.reporting.formats import PlainTable, as_latex, as_markdown
from robust_ood.reporting.report_data import read_folders
from robust_ood.reporting.significance import (
    _detectors_over_seeds,
    comparisons,
    detectors_over_seeds,
    over_seeds,
)


class Brightness(nn.Module):
    """Two logits from the mean pixel, of a strength and with a noise fixed by a seed."""

    def __init__(self, strength: float, seed: int) -> None:
        super().__init__()
        self.head = nn.Linear(108, 2)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(2, 108, generator=draws))
            self.head.weight[0] += strength
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two recipes of three networks each, in one folder; the first recipe sees brightness."""
    root = tmp_path_factory.mktemp("compare")
    draws = np.random.default_rng(0)
    for name, low, count in (("test", 90, 60), ("far", 60, 50), ("more", 50, 40)):
        pixels = draws.integers(low, 200, (count, 6, 6, 3), dtype=np.uint8)
        np.savez(root / f"{name}.npz", images=pixels, labels=np.arange(count) % 2)
    data = OODData(root=root, num_classes=2, test="test.npz", far=["far.npz", "more.npz"])
    found = Results()
    recipes = {"bright": [], "blind": []}
    for recipe, strength in (("bright", 0.3), ("blind", 0.0)):
        for seed in range(3):
            name = f"{recipe}-{seed}"
            net = Brightness(strength, seed)
            detectors = {"msp": MSP(net), "energy": Energy(net), "twin": MaxLogit(net)}
            results = evaluate(
                net, detectors=detectors, attacks={"pgd": PGD(Linf(1 / 255), steps=2)}, data=data,
                model=name, sanity=False, folder=root / name,
            )  # fmt: skip
            results.write(root / name)
            recipes[recipe].append(name)
            found.extend(results)
    found.summary = summarise(found.rows, found.classification, recipes)
    joined = root / "joined"
    found.write(joined)
    return root


def test_the_tests_are_those_of_the_scores(folders):
    data = read_folders([folders / "bright-0"])
    comparison = next(iter(comparisons(data, "none", 0.95)))
    assert comparison.group == "far"
    assert comparison.sets == ("far", "more")

    def scores(detector):
        found = data.scores("bright-0", detector, "none")
        return [torch.from_numpy(part.values) for part in found]

    names = [standing.name.split(", ")[1] for standing in comparison.standings]
    p_values = []
    for other in names[1:]:
        best_id, *best_ood = scores(names[0])
        other_id, *other_ood = scores(other)
        p_values.append(delong_test([best_id, other_id], [best_ood, other_ood]).p_value)
    assert [standing.p_value for standing in comparison.standings[1:]] == holm(p_values)
    aurocs = {row.detector: row.auroc for row in data.means if row.attacked == "none"}
    for standing in comparison.standings:
        assert standing.auroc == pytest.approx(aurocs[standing.name.split(", ")[1]], abs=1e-12)
        assert standing.low <= standing.auroc <= standing.high
    best = comparison.standings[0]
    assert best.is_best
    assert (best.difference, best.p_value) == (0, 1)
    for standing in comparison.standings:
        assert standing.is_best == (standing.p_value >= 0.05)


def test_who_is_better_is_seen_and_who_is_equal_is_not_told_apart(folders, capsys):
    chosen = [str(folders / "bright-0"), str(folders / "blind-0")]
    assert main(["compare", *chosen, "--attacked", "none", "--matrix", "true"]) == 0
    text = capsys.readouterr().out
    comparison = next(
        iter(
            comparisons(
                read_folders([*map(folders.__truediv__, ("bright-0", "blind-0"))]), "none", 0.95
            )
        )
    )
    assert comparison.significant["bright-0, energy", "blind-0, energy"]
    assert not comparison.significant["blind-0, energy", "bright-0, energy"]
    assert "* bright-0, energy" in text
    assert "  blind-0, energy" in text
    assert (
        "Who beats whom (> better, < worse, = not told apart): far OOD (far, more), clean" in text
    )


def test_recipes_are_compared_over_their_checkpoints(folders, capsys):
    assert main(["compare", str(folders / "joined"), "--attacked", "none"]) == 0
    text = capsys.readouterr().out
    assert "* bright" in text
    assert "Over checkpoints: energy, far OOD, clean" in text
    data = read_folders([folders / "joined"])
    standings = over_seeds(data, "none", 0.95)["none", "far", "energy"]
    aurocs = {}
    for row in data.means:
        if row.detector == "energy" and row.attacked == "none":
            aurocs.setdefault(row.model.split("-")[0], []).append(row.auroc)
    assert [standing.name for standing in standings] == ["bright", "blind"]
    expected = ttest_ind(aurocs["bright"], aurocs["blind"], equal_var=False).pvalue
    assert standings[1].p_value == pytest.approx(expected)
    assert standings[0].checkpoints == 3


def test_detectors_of_one_recipe_are_compared_in_pairs_over_its_checkpoints(folders, capsys):
    recipe = f"bright={folders}/bright-*"
    assert main(["compare", "--recipes", recipe, "--attacked", "both"]) == 0
    text = capsys.readouterr().out
    title = "Over checkpoints: detectors of bright, far OOD, both sides attacked, each under its"
    assert text.startswith(title)
    data = read_folders([folders / "joined"])
    standings = detectors_over_seeds(data, "both", 0.95)["bright", "far"]
    aurocs = {}
    for row in data.means:
        if row.model.startswith("bright") and row.attacked == "both":
            aurocs.setdefault(row.detector, []).append(row.auroc)
    means = [np.mean(aurocs[standing.name]) for standing in standings]
    assert means == sorted(means, reverse=True)
    best = aurocs[standings[0].name]
    p_values = []
    for standing in standings[1:]:
        test = ttest_rel(aurocs[standing.name], best)
        p_values.append(test.pvalue)
        low, high = test.confidence_interval(0.95)
        assert (standing.low, standing.high) == pytest.approx((low, high))
        assert standing.difference == pytest.approx(np.mean(aurocs[standing.name]) - np.mean(best))
    assert [standing.p_value for standing in standings[1:]] == pytest.approx(holm(p_values))
    assert all(standing.checkpoints == 3 for standing in standings)


def test_detectors_that_score_alike_are_not_told_apart():
    alike = {"msp": [0.5, 0.6], "twin": [0.5, 0.6], "above": [0.625, 0.725]}
    first, *others = _detectors_over_seeds(alike, 0.95)
    assert first.name == "above"
    assert [standing.is_best for standing in others] == [False, False]
    first, twin = _detectors_over_seeds({"msp": [0.5, 0.6], "twin": [0.5, 0.6]}, 0.95)
    assert twin.is_best
    assert twin.p_value == 1


def test_a_detector_with_a_sanity_warning_is_marked_where_it_was_attacked(
    folders, tmp_path, capsys
):
    for seed in range(2):
        results = Results.read(folders / f"bright-{seed}")
        results.warnings = [f"bright-{seed}, energy: {90 + seed}% of its gradients are zero"]
        copytree(folders / f"bright-{seed}", tmp_path / f"b-{seed}")
        results.write(tmp_path / f"b-{seed}")
    recipe = f"b={tmp_path}/b-*"
    assert main(["compare", "--recipes", recipe]) == 0
    text = capsys.readouterr().out
    assert "energy (sanity warning)  " in text
    assert "b-0, energy (sanity warning)  " in text
    assert "msp (sanity" not in text
    assert "`robust-ood report` says which signs there are" in text
    assert main(["compare", "--recipes", recipe, "--detectors", "msp", "twin"]) == 0
    text = capsys.readouterr().out
    assert "energy" not in text
    assert "b-0, msp " in text
    assert main(["compare", "--recipes", recipe, "--attacked", "none"]) == 0
    assert "sanity" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["markdown", "latex", "csv"])
def test_tables_for_papers_and_spreadsheets(folders, tmp_path, kind):
    output = tmp_path / "table"
    chosen = [str(folders / "bright-0"), str(folders / "blind-0")]
    arguments = ["--attacked", "both", "--format", kind, "--output", str(output)]
    assert main(["compare", *chosen, *arguments]) == 0
    text = output.read_text()
    if kind == "csv":
        (header, *lines) = list(csv.reader(text.splitlines()))
        assert header[0] == "table"
        assert len(lines) == 6
        assert {len(line) for line in lines} == {len(header)}
    if kind == "latex":
        assert text.count(r"\begin{") == text.count(r"\end{")
        assert r"\textbf{bright-0, " in text
        assert {line.count("&") for line in text.splitlines() if line.endswith(r"\\")} == {5}
    if kind == "markdown":
        assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {7}


def test_names_are_no_markup():
    table = PlainTable("50 % of $x_1$", ("a|b", "c&d"), (("[x](y)", "#1"),), frozenset({0}))
    assert r"50 \% of \$x\_1\$" in as_latex(table)
    assert r"c\&d" in as_latex(table)
    assert r"\textbf{\#1}" in as_latex(table)
    assert r"a\|b" in as_markdown(table)
    assert r"**\[x\](y)**" in as_markdown(table)


def test_mistakes_are_one_line(folders, capsys, tmp_path):
    one = str(folders / "bright-0")
    for arguments, words in (
        ([one, "--level", "1.5"], "level: 1.5; accepted: a share in (0, 1)"),
        ([str(tmp_path / "none")], "is no folder"),
        ([one, "--format", "word"], "format"),
        ([one, "--detectors", "enrgy"], "detectors: unknown name 'enrgy'; did you mean 'energy'?"),
        ([one, "--attacked", "left"], "attacked"),
    ):
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
