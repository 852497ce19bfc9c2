"""What a report says of deploying: detector, threshold, shares of rejected and accepted images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from robust_ood.evaluation import Results, Row
from robust_ood.evaluation.results import Interval

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from robust_ood import reporting
from robust_ood.reporting import summary
from robust_ood.reporting.decisions import decision_sentences
from robust_ood.reporting.recipes import choose_folders, headline, read_recipes

PGD = "pgd_8"
CLEAN = ("none", 0.0, 0, 0)
ATTACKED = ("Linf", 8 / 255, 10, 1)

# By detector: AUROC, share of inliers accepted, share of OOD accepted, with both sides attacked.
RATES = {"msp": (0.9, 0.7, 0.4), "knn": (0.6, 0.9, 0.95)}


def results_of(
    rates: Mapping[str, tuple[float, float, float]] = RATES,
    *,
    threshold: float | None = 0.25,
    threshold_set: str | None = "held_out",
) -> Results:
    """Make results of one network on a near and a far set, clean and attacked.

    Far OOD is accepted half as often as near OOD.
    """
    results = Results(environment={"command": "evaluate"})
    for detector, (auroc, inliers, outliers) in rates.items():
        attacked = (PGD, "both", ATTACKED, auroc, inliers, outliers)
        for label, side, budget, *values in (("none", "none", CLEAN, 0.97, 0.94, 0.2), attacked):
            for group, part in (("near", 1.0), ("far", 0.5)):
                shares = (values[1], part * values[2])
                for ood in (f"{group}_set", group):
                    images = ("digits", ood, group, 50, 40)
                    row = Row(
                        "net", detector, label, side, *budget, *images,
                        values[0], 0.5, 0.5, 0.5, 0.5, 0.5, *shares,
                        1.0, threshold, threshold_set,
                    )  # fmt: skip
                    results.rows.append(row)
    return results


def sentences_of(results: Results, folder: Path) -> list[str]:
    results.write(folder)
    return list(decision_sentences(read_recipes(choose_folders([folder], {}))))


def test_a_network_has_a_detector_a_threshold_and_the_rejected_shares(tmp_path):
    (text,) = sentences_of(results_of(), tmp_path)
    assert text == (
        "net: msp, threshold 0.25 (accepts 95 % of held_out). Of the inliers it rejects 6.0 % "
        "clean and 30.0 % attacked; of near OOD it accepts 20.0 % clean and 40.0 % attacked, of "
        "far OOD 10.0 % clean and 20.0 % attacked. Attacked are both sides, by pgd_8."
    )


def test_shares_have_their_intervals_turned_round_where_rejected(tmp_path):
    results = results_of({"msp": RATES["msp"]})
    for row in results.rows:
        names = (row.model, row.detector, row.attack, row.attacked, row.id, row.ood, row.group)
        bounds = ((0.0, 1.0), (0.0, 1.0))
        rates = ((row.tpr_deployed - 0.1, 1.0), (0.1, 0.5))
        results.intervals.append(Interval(*names, 0.95, *bounds, *rates))
    (text,) = sentences_of(results, tmp_path)
    assert "it rejects 6.0 % (0.0 to 16.0) clean and 30.0 % (0.0 to 40.0) attacked" in text
    assert "clean and 40.0 % (10.0 to 50.0) attacked, of far OOD" in text


def test_a_recipe_has_the_thresholds_of_its_checkpoints_and_deviations(tmp_path):
    for seed, threshold in enumerate((0.2, 0.3, 0.25)):
        rates = {"msp": (0.9, 0.7 + 0.1 * seed, 0.4)}
        results_of(rates, threshold=threshold).write(tmp_path / f"aloe-{seed}")
    first = headline(read_recipes(choose_folders([], {"aloe": f"{tmp_path}/aloe-*"})))
    (text,) = decision_sentences(first)
    assert text.startswith(
        "aloe: msp, thresholds 0.2 to 0.3 (each accepts 95 % of held_out). Of the "
        "inliers it rejects 6.0 % ± 0.0 % clean and 20.0 % ± 10.0 % attacked;"
    )
    assert "msp (thresholds 0.2 to 0.3) 94.0 %" in " ".join(summary.sentences(first))


def test_a_recipe_of_one_threshold_says_it_once(tmp_path):
    for seed in range(2):
        results_of().write(tmp_path / f"aloe-{seed}")
    first = headline(read_recipes(choose_folders([], {"aloe": f"{tmp_path}/aloe-*"})))
    (text,) = decision_sentences(first)
    assert text.startswith("aloe: msp, threshold 0.25 (each accepts 95 % of held_out).")


def test_a_doubted_detector_stands_back(tmp_path):
    results = results_of()
    results.warnings = ["net, msp: gradients of zero"]
    (text,) = sentences_of(results, tmp_path / "one")
    assert text.startswith("net: knn, threshold 0.25")
    assert "msp has a higher AUROC, but a sanity warning casts doubt on it." in text
    results.warnings.append("net, knn: gradients of zero")
    (text,) = sentences_of(results, tmp_path / "all")
    assert text.startswith("net: msp, ")
    assert "casts doubt on it, as on every detector of this network" in text


def test_a_detector_that_lets_ood_in_as_readily_as_inliers_is_not_recommended(tmp_path):
    (text,) = sentences_of(results_of({"knn": RATES["knn"]}), tmp_path)
    assert "Do not rely on it under this attack" in text
    (text,) = sentences_of(results_of({"msp": RATES["msp"]}), tmp_path / "good")
    assert "rely" not in text


def test_a_detector_that_errs_less_at_its_threshold_is_named(tmp_path):
    rates = {"msp": (0.9, 0.5, 0.4), "knn": (0.85, 0.8, 0.3)}
    (text,) = sentences_of(results_of(rates), tmp_path)
    assert text.endswith(
        "At its own threshold, knn errs less under attack: it rejects 20.0 % of the inliers and "
        "accepts 30.0 % of OOD."
    )


@pytest.mark.parametrize(
    ("inliers", "outliers"), [(0.505, 0.4), (0.5, 0.6)], ids=["by half a percent", "a coin"]
)
def test_what_errs_hardly_less_is_not_named(tmp_path, inliers, outliers):
    attacked = 0.4 if outliers < inliers else 0.9
    rates = {"msp": (0.9, 0.5, attacked), "knn": (0.85, inliers, outliers)}
    (text,) = sentences_of(results_of(rates), tmp_path)
    assert "knn" not in text


def test_a_threshold_of_the_tested_images_says_what_to_do(tmp_path):
    (text,) = sentences_of(results_of(threshold_set="digits"), tmp_path)
    assert "95 % of digits, the tested images themselves: set it on others, with data.val" in text


def test_without_attack_or_threshold_nothing_is_recommended(tmp_path):
    assert sentences_of(results_of(threshold=None, threshold_set=None), tmp_path / "old") == []
    results = results_of()
    results.rows = [row for row in results.rows if row.attacked == "none"]
    assert sentences_of(results, tmp_path / "clean") == []
    page = reporting.write_report([tmp_path / "clean"], tmp_path / "page.html")
    assert "What to deploy" not in page.read_text()


def test_full_spectrum_groups_do_not_count_beside_the_others(tmp_path):
    results = results_of()
    for row in list(results.rows):
        if row.group == "near":
            ood = row.ood.replace("near", "full-near")
            results.rows.append(replace(row, ood=ood, group="full-near", tpr_deployed=0.0))
    (text,) = sentences_of(results, tmp_path)
    assert "clean and 30.0 % attacked; of near OOD" in text
    assert "full-near" not in text


def test_decisions_are_the_first_thing_of_the_findings(tmp_path):
    results_of().write(tmp_path / "one")
    text = reporting.write_report([tmp_path / "one"], tmp_path / "page.html").read_text()
    findings = text.partition('id="findings-title"')[2]
    assert findings.index("What to deploy") < findings.index("net: msp, threshold 0.25")
    assert findings.index("net: msp, threshold 0.25") < findings.index("were scored on")
