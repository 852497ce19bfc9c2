"""What the terminal prints at the end of an evaluation: a page, or everything."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from robust_ood.evaluation import Accuracy, Results, Row, print_results
from robust_ood.evaluation.results import Failure
from robust_ood.evaluation.summaries import summarise

RADIUS = 16 / 255


def made_up(models: int, detectors: int, sets: int = 3) -> Results:
    """Make results under two attacks; the first detector of the first network is the best."""
    results = Results()
    for model in range(models):
        for detector in range(detectors):
            fall = 0.1 + 0.05 * model + 0.01 * detector
            for group in ("near", "far"):
                names = [f"{group}-{number}" for number in range(sets)]
                for attack, strength in (("none", 0), ("pgd", 1), ("suite", 2)):
                    for ood in (*names, group):
                        row = row_of(f"net-{model}", f"detector-{detector}", attack, ood, group)
                        auroc = 0.98 - fall * strength
                        results.rows.append(replace(row, auroc=auroc, fpr95=1 - auroc))
        for attack, accuracy in (("none", 0.9), ("pgd", 0.4), ("suite", 0.3)):
            accuracies = ("digits", attack, "Linf", RADIUS, 10, 1, 100, accuracy, 1.0)
            results.classification.append(Accuracy(f"net-{model}", *accuracies))
    return results


def row_of(model: str, detector: str, attack: str, ood: str, group: str) -> Row:
    attacked = "none" if attack == "none" else "both"
    deployed = (0.95, 0.1) if attack == "none" else (0.25, 0.5)
    budget = ("none", 0.0, 0, 0) if attack == "none" else ("Linf", RADIUS, 10, 1)
    images = ("digits", ood, group, 100, 100)
    rates = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, *deployed, 1.0, -2.5, "validation")
    return Row(model, detector, attack, attacked, *budget, *images, *rates)


def printed(results: Results, *, full: bool = False) -> str:
    text = io.StringIO()
    print_results(results, Console(file=text, width=80), full=full)
    return text.getvalue()


@pytest.mark.parametrize(("models", "detectors"), [(1, 1), (2, 3), (2, 12), (5, 20)])
def test_it_is_one_page_whatever_was_evaluated(models, detectors):
    results = made_up(models, detectors)
    results.warnings = [f"net-0, detector-{n}: the gradients are masked" for n in range(30)]
    results.failures = [Failure("net-0", "vim", "none", "fit", "singular")] * 9
    text = printed(results)
    lines = text.splitlines()
    assert len(lines) <= 62  # 40 and ten warnings and failures
    assert max(map(len, lines)) <= 80
    assert "25 more in results.json" in text
    results.warnings = []
    results.failures = []
    assert len(printed(results).splitlines()) <= 48
    if models * detectors > 3:
        assert len(printed(results, full=True).splitlines()) > 80


def test_the_page_says_what_an_engineer_needs_first():
    text = printed(made_up(2, 2))
    (first, *_) = [line for line in text.splitlines() if "detector-0" in line]
    assert first.split() == [
        "net-0", "detector-0", "near", ".980", ".780", ".020", ".220",  # AUROC and FPR95
        ".950", ".250", ".100", ".500",  # accepted at the threshold
    ]  # fmt: skip
    joined = " ".join(text.split())
    assert "at the threshold set on validation" in joined
    assert "suite (Linf 16/255, 10 steps, 1 restart)" in joined
    accuracy = text.partition("Classification accuracy")[2]
    assert re.search(r"net-0 +\.900 +\.300 +suite, Linf 16/255", accuracy)


def test_checkpoints_of_a_recipe_are_one_line_with_their_deviation():
    results = made_up(3, 1)
    recipes = {"aloe": ["net-0", "net-1"]}
    results.summary = summarise(results.rows, results.classification, recipes)
    lines = [line.split() for line in printed(results).splitlines()]
    (mean,) = [line for line in lines if line[:3] == ["aloe", "detector-0", "near"]]
    assert mean[3:5] == [".980", ".730"]
    spread = lines[lines.index(mean) + 1]
    assert spread[:5] == ["+-", "of", "2", ".000", ".071"]
    shown = {line[0] for line in lines if line}
    assert "net-2" in shown
    assert not shown & {"net-0", "net-1"}


def test_what_does_not_fit_is_counted_and_the_best_stays():
    text = printed(made_up(4, 20))
    assert "24 of 160 lines" in text
    assert "detector-0 " in text
    assert "detector-19" not in text


def test_without_attacks_the_page_has_the_clean_numbers():
    results = made_up(1, 1)
    results.rows = [row for row in results.rows if row.attack == "none"]
    results.classification = results.classification[:1]
    text = printed(results)
    assert ".980" in text
    assert "Worst attacks" not in text
