"""What holds for the metrics whatever the scores are, and what they refuse."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from robust_ood import metrics
from robust_ood.errors import UserError
from robust_ood.metrics import AUROC, FPR95, OODMetrics, bootstrap_intervals, ood_metrics, rates
from robust_ood.randomness import generator

FUNCTIONS = [
    metrics.auroc,
    metrics.aupr_in,
    metrics.aupr_out,
    metrics.fpr_at_tpr,
    metrics.fpr95,
    metrics.fpr95_ood_positive,
    metrics.detection_error,
    ood_metrics,
]


def scores(elements=None, max_size=60):
    elements = (
        st.floats(allow_nan=False, allow_infinity=False, width=32) if elements is None else elements
    )
    return st.lists(elements, min_size=1, max_size=max_size).map(
        lambda values: torch.tensor(values).float()
    )


LEVELS = scores(st.integers(-8, 8))  # few distinct values: many ties


@given(st.one_of(LEVELS, scores()), st.one_of(LEVELS, scores()))
def test_bounds(id_scores, ood_scores):
    values = ood_metrics(id_scores, ood_scores, clean_id_scores=id_scores)
    assert all(0 <= value <= 1 for value in values.values())
    assert values["aupr_in"] > 0
    assert values["aupr_out"] > 0
    assert values["detection_error"] <= 0.5
    # The threshold of fpr95 is one of those that detection_error may choose, and its FNR is at most
    # 5 %.
    assert (
        values["detection_error"]
        <= (0.05 + min(values["fpr95"], values["fpr95_ood_positive"])) / 2 + 1e-12
    )
    assert values["tpr_deployed"] >= 0.95
    assert values["fpr_deployed"] == values["fpr95"]  # deployed on the clean scores themselves


@given(LEVELS, LEVELS)
def test_only_the_order_counts(id_scores, ood_scores):
    expected = ood_metrics(id_scores, ood_scores)
    for increasing in (
        torch.exp,
        torch.atan,
        lambda x: 1e37 * x,
        lambda x: x.double() ** 3 * 1e300,
        lambda x: x - 100,
    ):
        assert ood_metrics(increasing(id_scores), increasing(ood_scores)) == expected


@given(LEVELS, LEVELS, st.randoms(use_true_random=False))
def test_the_order_of_the_scores_does_not_count(id_scores, ood_scores, random):
    shuffled = [x[random.sample(range(len(x)), len(x))] for x in (id_scores, ood_scores)]
    assert ood_metrics(*shuffled) == ood_metrics(id_scores, ood_scores)


@given(LEVELS, LEVELS)
def test_exchanging_the_classes_and_negating_the_scores_exchanges_the_conventions(
    id_scores, ood_scores
):
    values, mirrored = ood_metrics(id_scores, ood_scores), ood_metrics(-ood_scores, -id_scores)
    assert mirrored["aupr_in"] == values["aupr_out"]
    assert mirrored["aupr_out"] == values["aupr_in"]
    assert mirrored["fpr95"] == values["fpr95_ood_positive"]
    assert mirrored["fpr95_ood_positive"] == values["fpr95"]
    assert mirrored["auroc"] == values["auroc"]
    assert mirrored["detection_error"] == values["detection_error"]


@given(LEVELS, LEVELS)
def test_exchanging_the_classes_alone_gives_the_other_side_of_one_half(id_scores, ood_scores):
    assert metrics.auroc(ood_scores, id_scores) == pytest.approx(
        1 - metrics.auroc(id_scores, ood_scores), abs=1e-15
    )


@given(LEVELS, LEVELS, st.integers(2, 4))
def test_repeating_all_scores_changes_nothing(id_scores, ood_scores, times):
    repeated = ood_metrics(id_scores.repeat(times), ood_scores.repeat(times))
    assert repeated == pytest.approx(ood_metrics(id_scores, ood_scores), abs=1e-15)


@given(LEVELS, LEVELS, st.data())
def test_raising_an_ood_score_never_helps(id_scores, ood_scores, data):
    raised = ood_scores.clone()
    raised[data.draw(st.integers(0, len(ood_scores) - 1))] += data.draw(st.integers(1, 5))
    before, after = (
        ood_metrics(id_scores, ood_scores, id_scores),
        ood_metrics(id_scores, raised, id_scores),
    )
    for lower_is_better in ("fpr95", "fpr95_ood_positive", "detection_error", "fpr_deployed"):
        assert after[lower_is_better] >= before[lower_is_better]
    assert after["auroc"] <= before["auroc"]


@given(LEVELS, st.floats(0.01, 1))
def test_the_deployed_threshold_is_the_highest_that_accepts_the_share(clean, tpr):
    threshold = metrics.deployed_threshold(clean, tpr)
    assert (clean >= threshold).double().mean() >= tpr
    assert (clean > threshold).double().mean() < tpr


@given(
    LEVELS,
    LEVELS,
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_batches_do_not_count(id_scores, ood_scores, sizes, random):
    together = torch.cat([id_scores, ood_scores])
    inside = torch.arange(len(together)) < len(id_scores)
    order = random.sample(range(len(together)), len(together))
    pooled = OODMetrics()
    while order:
        size = sizes[len(order) % len(sizes)]
        batch, order = order[:size], order[size:]
        pooled.update(together[batch], inside[batch])
    assert {name: value.item() for name, value in pooled.compute().items()} == ood_metrics(
        id_scores, ood_scores
    )


@given(LEVELS, LEVELS)
@settings(max_examples=30, deadline=None)
def test_bootstrap_is_a_function_of_the_generator_and_of_the_order_statistics(
    id_scores, ood_scores
):
    def intervals(seed, *given_scores, level=0.95):
        return bootstrap_intervals(
            *given_scores, generator(seed, "bootstrap"), samples=40, level=level
        )

    same = intervals(0, id_scores, ood_scores)
    assert intervals(0, id_scores.flip(0), ood_scores.exp().sort().values.log().round()) == same
    narrow = intervals(0, id_scores, ood_scores, level=0.5)
    for name, (low, high) in same.items():
        assert 0 <= low <= narrow[name][0] <= narrow[name][1] <= high <= 1


def test_bootstrap_draws_anew_with_another_seed_and_in_every_chunk(monkeypatch):
    id_scores, ood_scores = torch.randn(
        2, 300, generator=torch.Generator().manual_seed(0)
    ) + torch.tensor([[1.0], [0.0]])
    first = bootstrap_intervals(id_scores, ood_scores, generator(0, "bootstrap"), samples=400)
    assert (
        bootstrap_intervals(id_scores, ood_scores, generator(1, "bootstrap"), samples=400) != first
    )
    monkeypatch.setattr("robust_ood.metrics.intervals._CHUNK", 1)  # one resample at a time
    chunked = bootstrap_intervals(id_scores, ood_scores, generator(0, "bootstrap"), samples=400)
    assert chunked["auroc"] == pytest.approx(first["auroc"], abs=0.01)
    assert chunked["auroc"][0] < chunked["auroc"][1]


def test_one_resample_gives_one_point():
    (low, high), _ = bootstrap_intervals(
        torch.randn(9), torch.randn(8), generator(0), samples=1
    ).values()
    assert low == high


def test_scores_may_carry_gradients_and_nothing_is_written_to_them():
    id_scores = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    ood_scores = torch.tensor([2.0, -0.0])
    assert ood_metrics(id_scores, ood_scores, id_scores)["auroc"] == 0.75
    assert id_scores.tolist() == [3.0, 1.0, 2.0]
    assert torch.signbit(ood_scores).tolist() == [False, True]


def test_single_value_metrics_share_the_state_in_a_collection():
    collection = MetricCollection([OODMetrics(), AUROC(), FPR95()])
    for in_distribution in (True, False, True, False):
        collection.update(torch.randn(30) + in_distribution, in_distribution)
    values = collection.compute()
    assert len(collection.compute_groups) == 1
    assert values["AUROC"] == values["auroc"]
    assert values["FPR95"] == values["fpr95"]
    collection.reset()
    with (
        pytest.raises(UserError, match="id_scores"),
        pytest.warns(UserWarning, match="before the ``update``"),
    ):
        collection.compute()


def test_a_monitored_metric_knows_its_direction():
    assert AUROC.higher_is_better is True
    assert FPR95.higher_is_better is False
    assert OODMetrics.higher_is_better is None


def test_the_example_in_the_documentation_runs():
    assert doctest.testmod(rates) == (0, 2)


GOOD = torch.tensor([0.0, 1.0])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.tensor([0.0, float("nan")]), "nan at index 1; accepted: finite"),
        (torch.tensor([float("-inf"), 0.0]), "-inf at index 0; accepted: finite"),
        (torch.tensor([]), r"shape \(0,\)"),
        (torch.zeros(2, 1), r"shape \(2, 1\)"),
        (torch.tensor(1.0), r"shape \(\)"),
        (torch.tensor([1, 2]), "torch.int64; accepted: a tensor of floats"),
        (torch.tensor([True]), "torch.bool"),
        ([0.0, 1.0], "list"),
    ],
)
def test_bad_scores_are_named(function, bad, says):
    with pytest.raises(UserError, match=f"^id_scores: .*{says}"):
        function(bad, GOOD)
    with pytest.raises(UserError, match=f"^ood_scores: .*{says}"):
        function(GOOD, bad)


@pytest.mark.parametrize("tpr", [0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(tpr):
    with pytest.raises(UserError, match=f"^tpr: .*{tpr}"):
        metrics.fpr_at_tpr(GOOD, GOOD, tpr)
    with pytest.raises(UserError, match=f"^tpr: .*{tpr}"):
        metrics.deployed_threshold(GOOD, tpr)


def test_other_bad_arguments_are_named():
    with pytest.raises(UserError, match=r"^clean_id_scores: nan"):
        ood_metrics(GOOD, GOOD, clean_id_scores=torch.tensor([float("nan")]))
    with pytest.raises(UserError, match=r"^threshold: .*nan"):
        metrics.deployed_rates(float("nan"), GOOD, GOOD)
    with pytest.raises(UserError, match=r"^samples: 0"):
        bootstrap_intervals(GOOD, GOOD, generator(0), samples=0)
    with pytest.raises(UserError, match=r"^level: 1"):
        bootstrap_intervals(GOOD, GOOD, generator(0), level=1)
    with pytest.raises(UserError, match=r"^id_scores: nan"):
        bootstrap_intervals(GOOD * float("nan"), GOOD, generator(0))


def test_bad_updates_are_named_and_leave_the_state_alone():
    pooled = OODMetrics()
    for bad in (torch.zeros(2, 1), torch.tensor([1, 2])):
        with pytest.raises(UserError, match=r"^scores: "):
            pooled.update(bad, True)
    for bad in (torch.tensor([1, 0]), torch.tensor([True]), 1, torch.tensor([[True, False]])):
        with pytest.raises(UserError, match=r"^in_distribution: "):
            pooled.update(GOOD, bad)
    pooled.update(GOOD, True)
    with pytest.raises(UserError, match=r"^ood_scores: shape \(0,\)"):
        pooled.compute()
    pooled.update(GOOD, torch.tensor(False))
    assert pooled.compute()["auroc"] == 0.5
