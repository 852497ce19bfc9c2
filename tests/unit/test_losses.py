"""Per-image losses against loops in Python floats, at saturation, and in half precision."""

from __future__ import annotations

import math

import pytest
import torch

from robust_ood import losses
from robust_ood.errors import UserError

LABELLED = [losses.cross_entropy, losses.log_odds, losses.margin, losses.difference_of_logits_ratio]
UNLABELLED = [losses.cross_entropy_to_uniform, losses.entropy]


def logits_of(count=20, classes=5, scale=3.0, dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    return (torch.randn(count, classes, generator=draws, dtype=torch.float64) * scale).to(dtype)


def labels_of(count=20, classes=5):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(1))


def probabilities(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def naive(loss, row, label):
    p = probabilities(row)
    others = [value for k, value in enumerate(row) if k != label]
    if loss is losses.cross_entropy:
        return -math.log(p[label])
    if loss is losses.cross_entropy_to_uniform:
        return -sum(math.log(value) / len(p) for value in p)
    if loss is losses.entropy:
        return -sum(value * math.log(value) for value in p)
    if loss is losses.log_odds:
        return math.log(p[label] / (1 - p[label]))
    if loss is losses.margin:
        return row[label] - max(others)
    ordered = sorted(row, reverse=True)
    return (row[label] - max(others)) / (ordered[0] - ordered[2])


def call(loss, logits, labels):
    return loss(logits, labels) if loss in LABELLED else loss(logits)


@pytest.mark.parametrize("loss", LABELLED + UNLABELLED, ids=lambda loss: loss.__name__)
def test_equals_a_naive_loop(loss):
    logits, labels = logits_of(), labels_of()
    expected = [
        naive(loss, row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        call(loss, logits, labels), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("loss", LABELLED + UNLABELLED, ids=lambda loss: loss.__name__)
def test_gradient_equals_finite_differences(loss):
    logits, labels = logits_of(6).requires_grad_(), labels_of(6)
    assert torch.autograd.gradcheck(lambda z: call(loss, z, labels), logits)


@pytest.mark.parametrize("loss", LABELLED + UNLABELLED, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_first(loss, dtype):
    logits, labels = logits_of(dtype=dtype), labels_of()
    values = call(loss, logits, labels)
    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values.double(), call(loss, logits.double(), labels), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("loss", LABELLED + UNLABELLED, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("gap", [20.0, 100.0, 1e4])
def test_value_and_gradient_are_finite_at_saturation(loss, gap):
    logits = torch.tensor([[gap, 0.0, 1.0, -gap], [-gap, gap, gap, 0.0]], requires_grad=True)
    values = call(loss, logits, torch.tensor([0, 3]))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("gap", [20.0, 1e3, 1e4])
def test_log_odds_stay_alive_where_the_probability_is_one(gap):
    logits = torch.tensor([[gap, 0.0, 1.0]], requires_grad=True)
    assert logits.softmax(1)[0, 0] == 1
    value = losses.log_odds(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.item() == pytest.approx(gap - math.log(1 + math.e), rel=1e-6)
    torch.testing.assert_close(
        gradient, torch.tensor([[1.0, -1 / (1 + math.e), -math.e / (1 + math.e)]])
    )


def test_uniform_logits_are_where_both_uniformity_losses_have_their_extremes():
    uniform = torch.full((1, 7), 2.5)
    assert losses.entropy(uniform).item() == pytest.approx(math.log(7))
    assert losses.cross_entropy_to_uniform(uniform).item() == pytest.approx(math.log(7))
    assert (losses.entropy(logits_of()) < math.log(5)).all()
    assert (losses.entropy(logits_of()) >= 0).all()
    assert (losses.cross_entropy_to_uniform(logits_of()) > math.log(5)).all()


def test_margin_is_negative_exactly_where_the_prediction_is_wrong():
    logits, labels = logits_of(200), labels_of(200)
    assert torch.equal(losses.margin(logits, labels) > 0, logits.argmax(1) == labels)
    assert torch.equal(
        losses.difference_of_logits_ratio(logits, labels) > 0, logits.argmax(1) == labels
    )


def test_dlr_ignores_shift_and_scale_and_needs_three_classes():
    logits, labels = logits_of(), labels_of()
    expected = losses.difference_of_logits_ratio(logits, labels)
    torch.testing.assert_close(losses.difference_of_logits_ratio(7 * logits - 3, labels), expected)
    with pytest.raises(UserError, match=r"at least 3 classes.*has 2.*margin"):
        losses.difference_of_logits_ratio(logits[:, :2], labels.clamp(max=1))
