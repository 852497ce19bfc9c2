"""Flags and gradient modes are put back, whatever happens inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_ood.modes import differentiating, evaluating, mode, ordinary


def mixed():
    net = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    )
    net.train()
    net[1].eval()
    net[2][1].eval()
    return net


def flags(*nets):
    return [part.training for net in nets for part in net.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_every_submodules_own_flag_comes_back(training):
    first, second = mixed(), mixed().eval()
    before = flags(first, second)
    assert len(set(before)) == 2
    with mode(first, second, training=training):
        assert set(flags(first, second)) == {training}
    assert flags(first, second) == before


def test_flags_come_back_after_an_error():
    net = mixed()
    before = flags(net)
    with pytest.raises(RuntimeError, match=r"size mismatch|shapes cannot"), evaluating(net):
        net(torch.ones(2, 3))
    assert flags(net) == before


def test_blocks_nest_and_a_shared_module_keeps_its_flag():
    net = mixed()
    outer = nn.ModuleList([net, net[2]])
    before = flags(outer)
    with evaluating(outer, net):
        with mode(net, training=True):
            assert all(flags(net))
        assert not any(flags(net))
    assert flags(outer) == before


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_differentiating_allows_gradients_and_ends(around):
    with around():
        outside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with differentiating():
            leaf = torch.ones(2, requires_grad=True)
            (gradient,) = torch.autograd.grad((leaf**3).sum(), leaf)
        assert gradient.tolist() == [3, 3]
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == outside


def test_ordinary_tensors_are_accepted_by_autograd():
    weight = torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        made = torch.arange(2.0)
        converted_inside = ordinary(made)
    for tensor in (ordinary(made), converted_inside):
        assert not tensor.is_inference()
        assert torch.equal(tensor, torch.arange(2.0))
        (gradient,) = torch.autograd.grad((weight * tensor).sum(), weight)
        assert gradient.tolist() == [0, 1]


def test_ordinary_copies_only_where_it_must():
    tensor = torch.ones(2, requires_grad=True)
    assert ordinary(tensor).data_ptr() == tensor.data_ptr()
    assert not ordinary(tensor).requires_grad
    with torch.inference_mode():
        assert ordinary(tensor).data_ptr() == tensor.data_ptr()
        assert not ordinary(tensor).is_inference()
