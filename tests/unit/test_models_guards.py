"""Mistakes that would otherwise pass unnoticed, or end in a traceback or a half-loaded network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models import (
    DenseNet,
    Normalize,
    ResNet18,
    WideResNet,
    load_weights,
    outputs,
    rebuild,
    wrap,
)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pooled(nn.Module):
    """Pools and classifies; subclasses differ in what they do with the head."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 1)
        self.module = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.module(self.net(images)).mean((2, 3)))


class Auxiliary(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(4, 7)

    def forward(self, images: Tensor) -> Tensor:
        self.auxiliary(self.net(images).mean((2, 3)))
        return super().forward(images)


class Unused(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).mean((2, 3)) @ self.fc.weight.T


class Tokens(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.net(images).flatten(2).transpose(1, 2)).mean(1)


class Mapping(Pooled):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(images)}


@pytest.mark.parametrize("kind", [Auxiliary, Tokens])
def test_the_layer_whose_output_is_the_logits_is_the_head(images, kind):
    net = kind()
    result = outputs(net, images)
    assert result.head is net.fc
    torch.testing.assert_close(net.fc(result.features), result.logits)


def test_a_head_that_is_never_called_is_missed_where_it_is_read(images):
    net = Unused()
    result = outputs(net, images)
    torch.testing.assert_close(result.logits, net(images))
    for part in ("head", "features"):
        with pytest.raises(UserError, match=r"^head: Unused has no linear head"):
            getattr(result, part)


class Ambiguous(Pooled):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(images)
        return logits, logits[:, :2]


def test_logits_are_taken_out_of_a_mapping(images):
    net = Mapping()
    assert outputs(net, images).head is net.fc
    assert outputs(wrap(net), images).head is net.fc


def test_several_tensors_that_may_be_logits_are_refused(images):
    net = Ambiguous()
    with pytest.raises(UserError, match=r"^net: returns several tensors, of shapes") as caught:
        outputs(net, images)
    assert "\n" not in str(caught.value)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_naming_the_head_resolves_it(images):
    assert outputs(wrap(Auxiliary(), head="fc"), images).logits.shape == (2, 5)


def test_maps_are_taken_before_a_later_module_changes_them_in_place(images):
    net = Pooled()
    assert torch.equal(outputs(net, images, ("net",)).maps["net"], net.net(images))


def test_compiled_network_gives_the_same(images):
    net = Pooled()
    compiled = torch.compile(net, backend="eager")
    compiled(images)
    torch.testing.assert_close(
        outputs(compiled, images, ("net",)).features, outputs(net, images).features
    )


@pytest.mark.parametrize(
    "given", [torch.rand(2, 1, 8, 8), torch.rand(3, 8, 8), torch.zeros(2, 3, 8, 8).byte()]
)
def test_images_that_are_none_are_refused(given):
    with pytest.raises(UserError, match=r"images: expected float images \(N, 3, H, W\)"):
        WideResNet(10, 1)(given)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,) * 3, (1.0,)), ((), ()), ((0.0,), (0.0,)), ((float("nan"),), (1.0,))]
)
def test_impossible_normalisation(mean, std):
    with pytest.raises(UserError, match=r"mean and std|mean: expected a list, each a number"):
        Normalize(mean, std)


def test_normalisation_by_whole_numbers_takes_the_weights_of_one_by_fractions():
    whole, fractions = Normalize((0, 0, 0), (1, 1, 1)), Normalize((0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
    assert whole.mean.dtype == whole.std.dtype == torch.float32
    load_weights(whole, fractions.state_dict())
    assert torch.equal(whole.mean, fractions.mean)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WideResNet(10, width=0), "width: expected a number >= 1, got 0"),
        (lambda: WideResNet(10, num_classes=0), "num_classes: expected a number >= 1, got 0"),
        (lambda: WideResNet(10, dropout=1.5), r"dropout: expected a number in \[0, 1\), got 1.5"),
        (lambda: DenseNet(10, growth=0), "growth: expected a number >= 1, got 0"),
        (
            lambda: DenseNet(10, growth=1, reduction=0.1),
            "reduction: 0.1 leaves none of the 3 channels",
        ),
        (lambda: ResNet18(num_classes=-1), "num_classes: expected a number >= 1, got -1"),
        (lambda: wrap(3), "module: expected a torch.nn.Module or a function, got 3"),
        (lambda: wrap(Pooled(), head="fcc"), "head: unknown name 'fcc'"),
    ],
)
def test_impossible_settings(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_transitions_drop_out_as_in_the_reference_network():
    net = DenseNet(10, 4, dropout=0.5).transition1.train()
    maps = torch.rand(4, net.bn.num_features, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(net(maps), net(maps))


@pytest.mark.parametrize(
    "spoil", [lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t.to(torch.int64)]
)
def test_weights_that_cannot_be_copied_change_nothing(spoil):
    net, state = WideResNet(10, 1), dict(WideResNet(10, 1).state_dict())
    state["head.bias"] = spoil(state["head.bias"])  # the last weight to be copied
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"head\.bias"):
        load_weights(net, state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "net.", "module.", "_orig_mod.", "net._orig_mod."])
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(Pooled, id="parts called net and module"),
        pytest.param(lambda: wrap(Pooled()), id="wrapped"),
        pytest.param(lambda: wrap(Pooled(), (0.5,) * 3, (0.2,) * 3), id="wrapped and normalised"),
        pytest.param(lambda: WideResNet(10, 1), id="ours"),
    ],
)
def test_every_network_gets_back_what_it_saved(build, prefix):
    saved, net = build(), build()
    load_weights(
        net, {"state_dict": {prefix + key: value for key, value in saved.state_dict().items()}}
    )
    assert all(
        torch.equal(value, saved.state_dict()[key]) for key, value in net.state_dict().items()
    )


def test_path_may_be_text(tmp_path: Path):
    saved = WideResNet(10, 1)
    torch.save(saved.state_dict(), tmp_path / "a.pt")
    assert torch.equal(
        load_weights(WideResNet(10, 1), str(tmp_path / "a.pt")).head.weight, saved.head.weight
    )


@pytest.mark.parametrize(
    "description",
    [
        [1],
        {"name": [1]},
        {"name": "WideResNet", "settings": 3},
        {"name": "WideResNet", "settings": {"depth": "x"}},
    ],
)
def test_malformed_description_is_refused(description):
    with pytest.raises(UserError, match="checkpoint: "):
        rebuild(description)
