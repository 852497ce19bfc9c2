"""The papers' numbers: how they agree with each other, and which results they are compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robust_ood.detectors.registry import REGISTRY
from robust_ood.evaluation import Accuracy, Results, Row

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from robust_ood import reporting
from robust_ood.reporting.papers.comparison import comparisons
from robust_ood.reporting.papers.published import content, published_results, recognised
from robust_ood.reporting.report_data import read_folders

RATES = {"auroc", "accuracy", "fpr95", "fpr95_ood_positive", "detection_error"}
MISPRINTED = [
    ("-9.05", "-19.05")
]  # Fort, Table 3, last row: as printed, and by the columns before it


def tables_of(paper: str) -> set[int]:
    return {result.table for result in published_results() if result.paper == paper}


def test_every_table_that_has_numbers_is_there_with_all_its_rows():
    assert tables_of("ALOE") == {1, 2, 3, 4}
    assert tables_of("PRO") == {1, 2}
    assert tables_of("Fort") == {1, 2, 3, 4, 5}
    assert tables_of("OOD attack") == {1, 2, 3, 4, 5, 6, 7, 8}
    assert tables_of("safe spots") == {1, 2, 3}  # the text of Table 4 has no numbers
    rows = [
        (t["paper"], t["table"], t["id"], len(t["rows"]))
        for t in content()["tables"]
        if t["paper"] in ("ALOE", "PRO")
    ]
    assert rows == [
        *(("ALOE", 1, name, 9) for name in ("GTSRB", "CIFAR-10", "CIFAR-100")),
        *(("ALOE", 2, name, 9) for name in ("CIFAR-10", "CIFAR-100")),
        *(("ALOE", 3, name, 9) for name in ("GTSRB", "CIFAR-10")),
        *(("ALOE", 4, name, 5) for name in ("GTSRB", "CIFAR-10", "CIFAR-100")),
        ("PRO", 1, "CIFAR-10", 26),
        ("PRO", 2, "CIFAR-100", 30),
    ]


def test_rates_are_fractions_and_no_setting_of_a_table_is_duplicated():
    for result in published_results():
        assert all(
            0 <= value <= 1 for name, value in result.values.items() if name != "loss of AUROC"
        ), result
        assert (result.key.detector == "") == all(
            name.startswith("accuracy") for name in result.values
        )
        assert (
            (result.key.attacked == "none")
            == (result.key.norm == "none")
            == (result.key.radius == 0)
        )
    named = [
        (*result[:3], *result.values)
        for result in published_results()
        if result.paper in ("ALOE", "PRO")
    ]
    assert len(named) == len(set(named))


def test_the_minimum_over_thresholds_is_not_above_the_error_at_one_of_them():
    """ALOE: the detection error is at most the mean of the two errors where 95 % of the inliers are
    accepted.
    """
    rows = [result.values for result in published_results() if "detection_error" in result.values]
    assert len(rows) == 27 * 2 + 18 * 3
    assert all(row["detection_error"] <= (0.05 + row["fpr95"]) / 2 + 1e-4 for row in rows)


def test_what_the_aloe_paper_says_of_its_tables_in_words():
    rows = {
        (result.table, *result.key[:5]): result.values
        for result in published_results()
        if result.paper == "ALOE" and result.table != 3
    }
    assert rows[1, "OE", "odin", "CIFAR-10", "far", "none"]["fpr95"] == pytest.approx(0.0417)
    assert rows[1, "OE", "odin", "CIFAR-10", "far", "both"]["fpr95"] == pytest.approx(0.9902)
    assert rows[1, "OE", "odin", "CIFAR-10", "far", "both"]["auroc"] == pytest.approx(0.3429)
    assert rows[1, "ALOE", "odin", "CIFAR-10", "far", "both"]["auroc"] == pytest.approx(0.9269)
    accuracy = [
        rows[4, net, "", "CIFAR-100", "", "none"]["accuracy"] for net in ("Standard", "ALOE")
    ]
    assert accuracy[0] - accuracy[1] == pytest.approx(0.0364)


@pytest.mark.parametrize("metric", ["fpr95_ood_positive", "auroc"])
def test_the_averages_that_the_pro_paper_prints_are_those_of_its_columns(metric):
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for result in published_results():
        if (result.paper, result.table) == ("PRO", 1):
            rows.setdefault((result.key.network, result.key.detector), {})[result.key.ood] = (
                result.values[metric]
            )
    assert len(rows) == 26
    for row in rows.values():
        average = row.pop("all six")
        assert len(row) == 6
        assert sum(row.values()) / 6 == pytest.approx(
            average, abs=1.1e-4
        )  # printed with two decimals of a percent


def test_the_losses_that_fort_prints_are_those_of_his_columns():
    found = [result for result in published_results() if result.paper == "Fort"]
    clean = {
        (result.table, *result.key[:4]): result.values["auroc"]
        for result in found
        if result.key.attacked == "none"
    }
    losses = []
    for result in found:
        if result.key.attacked == "out":
            loss = result.values["auroc"] - clean[(result.table, *result.key[:4])]
            losses.append((f"{100 * result.values['loss of AUROC']:.2f}", f"{100 * loss:.2f}"))
    assert len(losses) == 3 + 6 + 4 + 2
    assert [(as_printed, loss) for as_printed, loss in losses if as_printed != loss] == MISPRINTED


def test_attacks_lower_the_accuracies_that_the_papers_print():
    pairs: dict[tuple[object, ...], dict[str, dict[str, float]]] = {}
    for result in published_results():
        if not result.key.detector:
            key = (result.paper, result.table, *result.key[:3])
            pairs.setdefault(key, {})[result.key.attacked] = result.values
    assert len(pairs) > 20
    for sides in pairs.values():
        assert all(sides["in"][name] <= clean for name, clean in sides["none"].items())


def test_detectors_are_called_as_in_the_registry():
    beyond = {result.key.detector for result in published_results()} - set(REGISTRY) - {""}
    assert {name.split()[0] for name in beyond} <= {
        "odin",
        "mahalanobis-layers",
        "zero-shot",
        "neglabel",
        "log",
        "minus",
    }


@pytest.mark.parametrize(
    ("name", "kind", "paper"),
    [
        ("cifar10_test", "sets", "CIFAR-10"),
        ("cifar10/test", "sets", "CIFAR-10"),
        ("cifar100.npz", "sets", "CIFAR-100"),
        ("tinyimagenet_val", "sets", "TinyImageNet"),
        ("cifar1", "sets", ""),
        ("ALOE", "networks", "ALOE"),
        ("ALOE-2", "networks", "ALOE"),
        ("cifar10_aloe_densenet", "networks", "ALOE"),
        ("ADV (second)", "networks", "ADV"),
        ("S-FGSM+ADV", "networks", ""),
        ("cifar10_s-fgsm+adv-linf", "networks", "S-FGSM+ADV Linf"),
        ("advanced", "networks", ""),
    ],
)
def test_names_are_recognised_by_whole_words(name, kind, paper):
    assert recognised(name, kind) == paper


def make_results(
    model: str = "ALOE", inliers: str = "cifar10_test", radius: float = 1 / 255
) -> Results:
    """Make results of a network with MSP on one near and two far sets, with their means."""
    rates = [0.75, 0.5, 0.5, 0.25, 0.375, 0.125, 0.95, 0.25]
    results = Results(environment={"checks": True})
    for attack, attacked, budget in (
        ("none", "none", ("none", 0.0, 0, 0)),
        ("pgd", "both", ("Linf", radius, 20, 1)),
    ):
        for ood, group in (
            ("cifar100_test", "near"),
            ("near", "near"),
            ("svhn", "far"),
            ("dots", "far"),
            ("far", "far"),
        ):
            results.rows.append(
                Row(
                    model,
                    "msp",
                    attack,
                    attacked,
                    *budget,
                    inliers,
                    ood,
                    group,
                    50,
                    40,
                    *rates,
                    1.0,
                )
            )
    for attack, budget in (("none", ("none", 0.0, 0, 0)), ("pgd", ("Linf", radius, 20, 1))):
        results.classification.append(Accuracy(model, inliers, attack, *budget, 50, 0.875, 1.0))
    return results


def compared(tmp_path, results: Results) -> dict[str, list[list[str]]]:
    results.write(tmp_path)
    return {
        result.title: [[c.text for c in row] for row in result.table.rows]
        for result in comparisons(read_folders([tmp_path]))
    }


def test_printed_numbers_are_shown_beside_the_measured_ones(tmp_path):
    found = compared(tmp_path, make_results())
    assert list(found) == ["ALOE paper, Table 1", "ALOE paper, Table 4"]
    clean = ["ALOE", "msp", "mean of far", "clean"]
    attacked = ["ALOE", "msp", "mean of far", "pgd"]
    minus = "\N{MINUS SIGN}"
    assert found["ALOE paper, Table 1"] == [
        [*clean, "0.983", "0.750", f"{minus}0.233", "0.055", "0.250", "0.051", "0.125"],
        [*attacked, "0.913", "0.750", f"{minus}0.163", "0.540", "0.250", "0.142", "0.125"],
    ]
    assert found["ALOE paper, Table 4"] == [
        ["ALOE", "classifier", "", "clean", "0.939", "0.875", f"{minus}0.064"],
        ["ALOE", "classifier", "", "pgd", "0.840", "0.875", "+0.035"],
    ]


def test_other_sets_networks_and_radii_have_no_number_beside_them(tmp_path):
    for number, other in enumerate(({"model": "mine"}, {"inliers": "digits/test"})):
        assert compared(tmp_path / str(number), make_results(**other)) == {}
    wider = compared(tmp_path / "wider", make_results(radius=2 / 255))
    assert [row[3] for row in wider["ALOE paper, Table 1"]] == ["clean"]
    assert [row[3] for row in wider["ALOE paper, Table 3"]] == ["pgd"]
    assert [row[4] for row in wider["ALOE paper, Table 3"]] == ["0.833"]
    one_side = make_results()
    one_side.rows = [
        replace(row, attacked="in") if row.attacked == "both" else row for row in one_side.rows
    ]
    assert [row[3] for row in compared(tmp_path / "side", one_side)["ALOE paper, Table 1"]] == [
        "clean"
    ]


def test_a_single_set_and_the_other_convention_of_fpr95(tmp_path):
    found = compared(tmp_path, make_results("Standard"))["PRO paper, Table 1"]
    assert [row[2] for row in found] == ["cifar100_test", "svhn"]
    assert found[0][4:] == ["0.872", "0.750", "\N{MINUS SIGN}0.122", "0.531", "0.375"]


def test_what_differs_is_said(tmp_path):
    make_results().write(tmp_path)
    first = comparisons(read_folders([tmp_path]))[0]
    text = " ".join(first.words)
    assert "DenseNet-BC" in text
    assert "Here: 50 in-distribution images" in text
    assert "far is over svhn, dots here, over SVHN, Textures, Places365, LSUN (crop)" in text
    assert "20 steps here, 10 in the paper" in text


def test_the_page_has_the_section_only_where_something_corresponds(tmp_path):
    make_results().write(tmp_path / "paper")
    make_results("mine").write(tmp_path / "mine")
    title = 'id="published-title"'
    assert title in reporting.write_report([tmp_path / "paper"]).read_text()
    assert title not in reporting.write_report([tmp_path / "mine"]).read_text()
