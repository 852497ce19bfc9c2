"""Files of weights as other people's training code leaves them."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import types
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_ood.errors import Notice, UserError
from robust_ood.models import (
    DenseNet,
    OutlierClass,
    ResNet18,
    ThinResNet,
    WideResNet,
    load_network,
    load_weights,
    read_checkpoint,
    wrap,
)
from robust_ood.randomness import generator

State = dict[str, Tensor]


def fresh(seed: int = 1) -> ThinResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ThinResNet(8, num_classes=5)


@pytest.fixture
def stored() -> State:
    return fresh(seed=0).state_dict()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def same(net: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def loaded(weights: object, **more: object) -> tuple[nn.Module, list[str]]:
    """Return a network with weights, and what was said of them."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Notice)
        net = load_weights(fresh(), weights, **more)
    return net, [str(warning.message) for warning in said if warning.category is Notice]


OTHER = {"criterion.weight": torch.ones(5), "accuracy.correct": torch.zeros(())}


@pytest.mark.parametrize(
    ("store", "left_out"),
    [
        pytest.param(lambda s: prefixed("module.", s) | {"n_averaged": torch.tensor(3)},
                     "1 entry is no weight of ThinResNet and left out (n_averaged)", id="AveragedModel"),
        pytest.param(lambda s: s | OTHER, "2 entries are", id="loss and metric beside"),
        pytest.param(lambda s: {"state_dict": prefixed("model.", s) | OTHER}, "2 entries are", id="Lightning"),
        pytest.param(lambda s: prefixed("backbone.", s), None, id="backbone"),
        pytest.param(lambda s: prefixed("network.", s) | OTHER, "2 entries are", id="network, others beside"),
        pytest.param(lambda s: {k.replace("layer2.", "layer2._orig_mod."): v for k, v in s.items()}, None,
                     id="a compiled part"),
        pytest.param(lambda s: {k.replace("layer2.", "layer2.module."): v for k, v in s.items()}, None,
                     id="a parallel part"),
        pytest.param(lambda s: {f"module.model._orig_mod.{k}": v for k, v in s.items()}, None, id="all of them"),
        pytest.param(lambda s: prefixed("1.", s) | {"0.mean": torch.zeros(3), "0.std": torch.ones(3)},
                     "(0.mean, 0.std)", id="Sequential that normalises"),
        pytest.param(lambda s: prefixed("module.model.", s) | prefixed("module.attacker.model.", s)
                     | {"module.normalizer.new_mean": torch.zeros(3)},
                     f"{1 + len(fresh().state_dict())} entries are", id="robustness"),
        pytest.param(lambda s: prefixed("a.b.c.d.", s), None, id="deep"),
        pytest.param(lambda s: prefixed("net.", s) | OTHER, None, id="ours"),
    ],
)  # fmt: skip
def test_weights_are_found_among_other_things(stored, store, left_out):
    net, said = loaded(store(stored))
    assert same(net, stored)
    assert (len(said) == 1 and left_out in said[0]) if left_out else said == []
    assert all("\n" not in line for line in said)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "1."])
def test_a_wrapped_network_finds_them_too(stored, prefix):
    net = wrap(fresh(), mean=(0.5,) * 3, std=(0.5,) * 3)
    load_weights(net, prefixed(prefix, stored))
    assert same(net.module, stored)
    again = wrap(fresh(), mean=(0.4,) * 3, std=(0.4,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)  # nothing is left out, the normalisation included
        load_weights(again, prefixed(prefix, net.state_dict()))
    assert same(again, net.state_dict())


@pytest.mark.parametrize(
    ("net", "larger"),
    [
        (lambda: WideResNet(10, 1), lambda: WideResNet(16, 1)),
        (lambda: ThinResNet(8), lambda: ThinResNet(20)),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
         lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_of_a_deeper_network_of_the_kind_are_refused(net, larger, prefix):
    with pytest.raises(UserError, match=r"holds another network .* in the file only"):
        load_weights(net(), prefixed(prefix, larger().state_dict()))


def test_missing_and_misshapen_weights_are_named_with_their_shapes(stored):
    del stored["layer2.0.conv1.weight"]
    with pytest.raises(UserError, match=r"layer2\.0\.conv1\.weight: \(32, 16, 3, 3\), not in the"):
        load_weights(fresh(), prefixed("backbone.", stored) | OTHER)
    with pytest.raises(UserError, match=r"head\.weight: \(7, 64\) in the file, \(5, 64\) expected"):
        load_weights(fresh(), ThinResNet(8, num_classes=7).state_dict())


def test_two_networks_in_a_file_are_told_apart_by_a_key_map(stored):
    other = fresh(seed=2).state_dict()
    content = prefixed("student.", stored) | prefixed("teacher.", other)
    with pytest.raises(UserError, match=r"holds two networks .* 'student\.' and 'teacher\.'"):
        load_weights(fresh(), content)
    assert same(loaded(content, key_map={r"teacher\.": ""})[0], other)
    assert same(loaded(prefixed("student.", stored) | prefixed("teacher.", stored))[0], stored)


# Averages
# ------------------------------------------------------------------------------------------------

AVERAGED = {
    "timm": lambda s, ema: {"state_dict": s, "state_dict_ema": ema, "epoch": 3},
    "model_ema": lambda s, ema: {"model": s, "model_ema": {"module": ema, "decay": 0.99}},
    "prefix": lambda s, ema: {"state_dict": prefixed("model.", s) | prefixed("model_ema.", ema)},
    "swa": lambda s, ema: {
        "model_state_dict": s, "swa_state_dict": prefixed("module.", ema) | {"n_averaged": torch.ones(1)}
    },
}  # fmt: skip


@pytest.mark.parametrize("form", AVERAGED)
def test_an_average_is_chosen_by_a_setting_and_never_silently(stored, form):
    average = fresh(seed=2).state_dict()
    content = AVERAGED[form](stored, average)
    plain, said = loaded(content)
    assert same(plain, stored)
    assert len(said) == 1
    assert "averaged true" in said[0] or form == "prefix"
    assert same(loaded(content, averaged=True)[0], average)


def test_an_average_alone_is_taken_and_said(stored):
    net, said = loaded({"state_dict_ema": stored, "epoch": 3})
    assert same(net, stored)
    assert "holds only averaged weights (state_dict_ema)" in said[0]


def test_no_average_where_one_is_wanted(stored):
    with pytest.raises(UserError, match=r"^averaged: the mapping holds no averaged weights"):
        load_weights(fresh(), {"state_dict": stored}, averaged=True)


def test_the_file_of_an_average(tmp_path: Path, stored):
    average = fresh(seed=2).state_dict()
    torch.save({"state_dict": stored, "state_dict_ema": average}, tmp_path / "a.pt")
    assert same(load_network(tmp_path / "a.pt", fresh(), averaged=True), average)


# Plain values beside the weights
# ------------------------------------------------------------------------------------------------

HARMLESS = {
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("runs/a"), nested=argparse.Namespace()),
    "simple": types.SimpleNamespace(lr=0.1),
    "path": pathlib.Path("/runs/a"),
    "float64": np.float64(0.91),
    "float32": np.float32(0.91),
    "int64": np.int64(3),
    "bool": np.bool_(True),
    "dtype": np.dtype("float32"),
    "array": np.arange(6).reshape(2, 3),
    "ordered": OrderedDict(lr=0.1),
    "date": datetime.datetime(2020, 1, 2),
    "set": {1, 2},
    "type": float,
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_beside_the_weights_are_read(tmp_path: Path, stored, kind, zipped):
    path = tmp_path / "a.pt"
    torch.save(
        {"state_dict": stored, "args": HARMLESS[kind]},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert same(load_weights(fresh(), path), stored)
    if kind in ("namespace", "simple", "float64", "path"):
        read = read_checkpoint(path)["args"]
        assert str(read) == str(HARMLESS[kind]) or kind == "namespace"


class Settings:
    """A class of somebody's training code."""


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Settings(), f"{__name__}.Settings"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (print, "print"),
        (defaultdict(list, a=[1]), "collections.defaultdict"),
    ],
)
def test_other_things_are_refused_by_name(tmp_path: Path, stored, thing, name):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": stored, "args": thing}, path)
    with pytest.raises(UserError, match=rf"holds a \S*{name}, which is neither .* state_dict") as e:
        load_weights(fresh(), path)
    assert "\n" not in str(e.value)


def test_reading_a_file_leaves_torchs_own_list_as_it_was(tmp_path: Path, stored):
    torch.save({"state_dict": stored, "args": HARMLESS["namespace"]}, tmp_path / "a.pt")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before


# Names that a terminal would obey
# ------------------------------------------------------------------------------------------------

ESCAPES = "\x1b[31mred\x1b]0;title\x07\r\nline"


def test_keys_reach_no_screen_as_they_are(tmp_path: Path, stored):
    torch.save({ESCAPES: torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(UserError) as refused:
        load_weights(fresh(), tmp_path / "a.pt")
    _, said = loaded(stored | {ESCAPES: torch.ones(2)})
    for text in (str(refused.value), *said):
        assert text.isprintable()
        assert "\\x1b[31mred" in text


def test_the_command_line_of_a_description_is_printable(tmp_path: Path, stored):
    content = {"network": {"name": ESCAPES, "settings": {}}, "state_dict": stored}
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError) as refused:
        load_network(tmp_path / "a.pt")
    assert str(refused.value).isprintable()


def test_weights_for_networks_of_ours_under_other_names_beside_other_things():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = ResNet18(num_classes=5)
    theirs = {key.replace("head.", "fc."): value for key, value in ours.state_dict().items()}
    net = ResNet18(num_classes=5)
    with pytest.warns(Notice, match="criterion.weight"):
        load_weights(net, {"state_dict": prefixed("model.", theirs) | OTHER})
    assert same(net, ours.state_dict())


def their_densenet(classes: int) -> State:
    """Return random weights of a small DenseNet-BC under the names of ALOE's and ATOM's code."""
    ours = unsettled_densenet(classes)
    theirs = {}
    for key, value in ours.state_dict().items():
        if key.startswith("normalize."):
            continue
        key = re.sub(r"^block(\d)\.(\d+)\.", r"block\1.layer.\2.", key)
        key = re.sub(r"^transition(\d)\.(bn|conv)\.", r"trans\1.\g<2>1.", key)
        theirs[re.sub(r"^head\.", "fc.", re.sub(r"^bn\.", "bn1.", key))] = value
    return theirs


def unsettled_densenet(classes: int) -> nn.Module:
    """Return a DenseNet whose every number is drawn, so that none may be lost unnoticed."""
    net = DenseNet(depth=10, growth=4, num_classes=classes)
    draws = generator(7, classes)
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not name.startswith("normalize."):
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
    return net.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_head_of_outliers_is_cut_before_its_last_row(prefix):
    """ATOM's, NTOM's and ROWL's files: one layer of K + 1 outputs."""
    theirs = their_densenet(6)
    assert {"fc.weight", "bn1.weight", "trans1.conv1.weight", "block1.layer.0.conv1.weight"} <= set(
        theirs
    )
    net = OutlierClass(DenseNet(depth=10, growth=4, num_classes=5)).eval()
    load_weights(net, {"epoch": 100, "state_dict": prefixed(prefix, theirs)})
    images = torch.rand(2, 3, 32, 32, generator=generator(3))
    torch.testing.assert_close(net.joint_logits(images), unsettled_densenet(6)(images))
    again = OutlierClass(DenseNet(depth=10, growth=4, num_classes=5)).eval()
    load_weights(again, net.state_dict())  # our own files hold both layers
    assert same(again, net.state_dict())


def test_weights_that_do_not_fit_leave_a_network_with_outliers_as_it_was():
    theirs = their_densenet(6)
    del theirs["bn1.weight"]
    net = OutlierClass(DenseNet(depth=10, growth=4, num_classes=5))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match="holds another network than DenseNet"):
        load_weights(net, theirs)
    assert same(net, before)


def test_kuangliu_s_resnet18_is_read():
    ours = ResNet18(num_classes=3)
    theirs = {
        key.replace("head.", "linear."): value
        for key, value in ours.state_dict().items()
        if not key.startswith("normalize.")
    }
    assert same(load_weights(ResNet18(num_classes=3), theirs), ours.state_dict())
