"""The metrics against scikit-learn, a definition written as a double loop, and examples worked out
by hand.
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from robust_ood import metrics
from robust_ood.metrics import OODMetrics, bootstrap_intervals, ood_metrics


def sklearn_metrics(id_scores, ood_scores):
    """All six metrics from scikit-learn, in float64, each with its positive class spelt out."""
    scores = np.concatenate([id_scores.double().numpy(), ood_scores.double().numpy()])
    is_id = np.concatenate([np.ones(len(id_scores)), np.zeros(len(ood_scores))])
    # By default roc_curve drops thresholds on straight stretches, among them the first to reach 95
    # %.
    fpr, tpr, _ = roc_curve(is_id, scores, drop_intermediate=False)
    fpr_ood, tpr_ood, _ = roc_curve(1 - is_id, -scores, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(is_id, scores),
        "aupr_in": average_precision_score(is_id, scores),
        "aupr_out": average_precision_score(1 - is_id, -scores),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "fpr95_ood_positive": fpr_ood[np.argmax(tpr_ood >= 0.95)],
        "detection_error": np.min((1 - tpr + fpr) / 2),
    }


def normal(number, shift=0.0, seed=0, dtype=torch.float32):
    return (torch.randn(number, generator=torch.Generator().manual_seed(seed)) + shift).to(dtype)


def log_probabilities(number, seed):
    return -(10 ** (6 * normal(number, seed=seed).double()))


CASES = {
    "random": (normal(501, 1.0), normal(733, seed=1)),
    "perfect": (normal(50, 100.0), normal(60, seed=1)),
    "inverted": (normal(50, -100.0), normal(60, seed=1)),
    "tied": (normal(400, 0.5).round(), normal(300, seed=1).round()),
    "mostly tied": (normal(400, 3.0).clamp(max=1.0), normal(300, seed=1).clamp(max=1.0)),
    "constant": (torch.full((7,), 2.0), torch.full((5,), 2.0)),
    "one constant": (torch.full((40,), 0.1), normal(60)),
    "1 vs 1 won": (torch.tensor([1.0]), torch.tensor([0.0])),
    "1 vs 1 lost": (torch.tensor([0.0]), torch.tensor([1.0])),
    "1 vs 1 tied": (torch.tensor([0.0]), torch.tensor([0.0])),
    "1 vs 2": (torch.tensor([0.5]), torch.tensor([0.0, 1.0])),
    "20 vs 20, exactly 95 %": (torch.arange(20.0), torch.arange(20.0) - 0.5),
    "unbalanced": (normal(10_000, 1.0), normal(3, seed=1)),
    "unbalanced the other way": (normal(3, 1.0), normal(10_000, seed=1)),
    "huge": (normal(300, 0.3) * 5e37, normal(300, seed=1) * 5e37),
    "huge float64": (normal(300, 0.3).double() * 1e304, normal(300, seed=1).double() * 1e304),
    "tiny": (normal(300, 0.5) * 1e-44, normal(300, seed=1) * 1e-44),  # denormal
    "unbounded": (log_probabilities(300, 0), log_probabilities(300, 1)),
    "near 1": (1 - normal(300).abs() * 1e-7, 1 - normal(300, seed=1).abs() * 2e-7),
    "signed zeros": (torch.tensor([0.0, -0.0, 1.0, -1.0]), torch.tensor([-0.0, 0.0, -0.0])),
    "float16": (normal(900, 1.0, dtype=torch.float16), normal(800, seed=1, dtype=torch.float16)),
    "bfloat16": (normal(900, 1.0, dtype=torch.bfloat16), normal(800, seed=1, dtype=torch.bfloat16)),
    "float64": (normal(900, 1.0, dtype=torch.float64), normal(800, seed=1, dtype=torch.float64)),
    "float64 that float32 would tie": (
        1 + torch.arange(50.0).double() * 2e-16,
        1 + torch.arange(40.0).double() * 2e-16,
    ),
    "mixed": (normal(900, 1.0, dtype=torch.bfloat16), normal(800, seed=1, dtype=torch.float64)),
    "float16 and bfloat16": (
        normal(900, 1.0, dtype=torch.float16),
        normal(800, seed=1, dtype=torch.bfloat16),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_all_metrics_equal_scikit_learn(case):
    assert ood_metrics(*CASES[case]) == pytest.approx(sklearn_metrics(*CASES[case]), abs=1e-12)


@pytest.mark.parametrize("case", ["random", "tied", "1 vs 2"])
def test_each_function_gives_its_key(case):
    for name, value in ood_metrics(*CASES[case]).items():
        assert getattr(metrics, name)(*CASES[case]) == value


@pytest.mark.parametrize(
    "case", ["random", "tied", "constant", "1 vs 1 lost", "signed zeros", "mixed"]
)
def test_auroc_is_the_share_of_pairs_won(case):
    id_scores, ood_scores = (scores.tolist() for scores in CASES[case])
    won = sum((i > o) + 0.5 * (i == o) for i in id_scores for o in ood_scores)
    assert metrics.auroc(*CASES[case]) == won / (len(id_scores) * len(ood_scores))


@pytest.mark.parametrize("tpr", [0.01, 0.5, 0.8, 0.95, 0.999, 1.0, 1])
@pytest.mark.parametrize("case", ["random", "tied", "1 vs 2", "20 vs 20, exactly 95 %"])
def test_fpr_at_any_tpr_by_trying_every_threshold(case, tpr):
    id_scores, ood_scores = CASES[case]
    allowed = [t for t in id_scores if (id_scores >= t).double().mean() >= tpr]
    assert metrics.fpr_at_tpr(id_scores, ood_scores, tpr) == float(
        (ood_scores >= max(allowed)).double().mean()
    )


def test_counts_beyond_int32_and_float32():
    id_scores = torch.ones(300_001)
    ood_scores = torch.cat(
        [torch.ones(100_001), torch.zeros(200_000)]
    )  # 9 * 10^10 pairs, a third of them tied
    assert metrics.auroc(id_scores, ood_scores) == (100_001 / 2 + 200_000) / 300_001
    assert metrics.fpr95(id_scores, ood_scores) == 100_001 / 300_001


def test_the_two_fpr95_conventions_by_hand():
    id_scores = torch.arange(1.0, 21.0)  # 1 .. 20
    ood_scores = torch.tensor(
        [0.5] * 36 + [4.5] * 3 + [30.0]
    )  # 90 % below all ID, 7.5 % above four, 2.5 % above all
    # 19 of 20 ID (95 %) are accepted from 2 on; of 40 OOD, 4.5 (three times) and 30 are above.
    assert metrics.fpr95(id_scores, ood_scores) == 4 / 40
    # 38 of 40 OOD (95 %) must be rejected: with 4.5, since 0.5 gives only 36; of 20 ID, 1 .. 4 go
    # with it.
    assert metrics.fpr95_ood_positive(id_scores, ood_scores) == 4 / 20
    # Rejecting 0.5 alone loses no ID and keeps 4 of 40 OOD.
    assert metrics.detection_error(id_scores, ood_scores) == 0.05


def test_the_first_tpr_counts_not_the_nearest():
    id_scores = torch.tensor(
        [5.0] * 94 + [1.0] * 6
    )  # TPR is 0.94 at 5, nearest to 0.95, and 1.0 at 1
    ood_scores = torch.tensor([6.0, 2.0, 2.0, 0.0])
    assert metrics.fpr95(id_scores, ood_scores) == 0.75


def test_average_precision_by_hand():
    id_scores, ood_scores = torch.tensor([4.0, 2.0]), torch.tensor([3.0, 1.0])
    assert metrics.aupr_in(id_scores, ood_scores) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.aupr_out(id_scores, ood_scores) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.aupr_in(id_scores, torch.tensor([3.0, 3.0])) == pytest.approx(
        0.5 * 1 + 0.5 * 2 / 4
    )


def test_deployed_rates_by_hand():
    clean = torch.arange(1.0, 21.0)
    assert metrics.deployed_threshold(clean) == 2.0  # accepts 19 of 20
    assert metrics.deployed_threshold(clean, tpr=0.951) == 1.0
    assert metrics.deployed_threshold(clean, tpr=0.05) == 20.0
    attacked, outliers = clean - 2.5, torch.tensor([0.0, 2.0, 3.0])
    values = ood_metrics(attacked, outliers, clean_id_scores=clean)
    assert values["tpr_deployed"] == 16 / 20  # -1.5 .. 1.5 fall below 2
    assert values["fpr_deployed"] == 2 / 3
    assert values == ood_metrics(attacked, outliers) | metrics.deployed_rates(
        2.0, attacked, outliers
    )


def test_a_threshold_is_not_rounded_to_the_type_of_the_scores():
    id_scores = torch.tensor([1.0, 1.5])
    rates = metrics.deployed_rates(1.000000001, id_scores, id_scores.bfloat16())
    assert rates == {"tpr_deployed": 0.5, "fpr_deployed": 0.5}


@pytest.mark.parametrize("case", CASES)
def test_the_torchmetrics_class_equals_the_pure_function(case):
    id_scores, ood_scores = CASES[case]
    pooled = OODMetrics()
    with torch.inference_mode():
        for part in id_scores.split(97):
            pooled.update(part, True)
        for part in ood_scores.split(89):
            pooled.update(part, torch.zeros(len(part), dtype=torch.bool))
    assert {name: value.item() for name, value in pooled.compute().items()} == ood_metrics(
        id_scores, ood_scores
    )


def test_bootstrap_equals_resampling_the_scores_themselves():
    id_scores, ood_scores = normal(60, 1.0).mul(4).round(), normal(50, seed=1).mul(4).round()
    rng = np.random.default_rng(0)
    values = []
    for _ in range(4000):
        resampled_id, resampled_ood = (
            rng.choice(id_scores.numpy(), 60),
            rng.choice(ood_scores.numpy(), 50),
        )
        won = (resampled_id[:, None] > resampled_ood) + 0.5 * (
            resampled_id[:, None] == resampled_ood
        )  # (60, 50)
        accepted = resampled_ood >= np.sort(resampled_id)[3]  # 57 of 60 are 95 %
        values.append((won.mean(), accepted.mean()))
    expected = np.quantile(np.array(values), [0.05, 0.95], axis=0)  # (2 ends, 2 metrics)
    intervals = bootstrap_intervals(
        id_scores, ood_scores, torch.Generator().manual_seed(0), samples=4000, level=0.9
    )
    assert intervals["auroc"] == pytest.approx(expected[:, 0], abs=0.01)
    assert intervals["fpr95"] == pytest.approx(
        expected[:, 1], abs=0.04
    )  # fpr95 moves in steps of 0.02 and more


def test_bootstrap_auroc_has_the_width_of_the_normal_approximation():
    # Hanley and McNeil 1982, through the variance of the placement values (DeLong 1988).
    id_scores, ood_scores = normal(2000, 1.0), normal(1500, seed=1)
    wins = (id_scores[:, None] > ood_scores).double()  # (N, M)
    error = (wins.mean(1).var() / 2000 + wins.mean(0).var() / 1500).sqrt().item()
    low, high = bootstrap_intervals(id_scores, ood_scores, torch.Generator().manual_seed(0))[
        "auroc"
    ]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert low < metrics.auroc(id_scores, ood_scores) < high
