"""Weights from files: all or none, and never code."""

from __future__ import annotations

import os
import pickle
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models import (
    WideResNet,
    describe,
    export,
    load_network,
    load_weights,
    read_checkpoint,
    rebuild,
)


def fresh(seed: int = 1, classes: int = 5) -> WideResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WideResNet(10, 1, num_classes=classes)


@pytest.fixture
def stored() -> dict[str, Tensor]:
    return fresh(seed=0).state_dict()


def same(net: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def refused(net: nn.Module, weights: object, **more: object) -> str:
    """Return the message of the one-line refusal, after making sure that the network is as it
    was.
    """
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(net, weights, **more)
    assert same(net, before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "nest",
    [
        pytest.param(lambda state: state, id="plain"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 3}, id="state_dict"),
        pytest.param(lambda state: {"model": state}, id="model"),
        pytest.param(lambda state: {"net": state, "acc": 91.0, "epoch": 3}, id="net"),
        pytest.param(
            lambda state: {"model_state_dict": state, "optimizer": {"state": {}}},
            id="model_state_dict",
        ),
        pytest.param(lambda state: {"model": {"state_dict": state}}, id="nested twice"),
        pytest.param(
            lambda state: {
                "state_dict": {
                    f"model._orig_mod.module.{key}": value for key, value in state.items()
                }
            },
            id="another Lightning module, compiled, in parallel",
        ),
        pytest.param(
            lambda state: {f"module.{key}": value for key, value in state.items()},
            id="DataParallel",
        ),
        pytest.param(
            lambda state: {
                "state_dict": {"loss.weight": torch.ones(2)}
                | {f"net.{key}": value for key, value in state.items()},
                "pytorch-lightning_version": "2.6",
            },
            id="Lightning",
        ),
    ],
)
def test_every_usual_nesting_loads(tmp_path: Path, stored, nest):
    torch.save(nest(stored), tmp_path / "weights.pt")
    assert same(load_weights(fresh(), tmp_path / "weights.pt"), stored)


def test_safetensors_load(tmp_path: Path, stored):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(stored, tmp_path / "weights.safetensors")
    assert same(load_weights(fresh(), tmp_path / "weights.safetensors"), stored)


def test_key_map_renames(stored):
    foreign = {
        key.replace("head.", "fc.").replace("group", "block"): value
        for key, value in stored.items()
    }
    assert same(
        load_weights(fresh(), foreign, key_map={r"fc\.": "head.", r"block(\d)": r"group\1"}), stored
    )
    assert "fc.weight" in refused(fresh(), foreign, key_map={"block": "group"})
    assert "group" in refused(fresh(), foreign, key_map={r"\d": "", r"fc\.": "head."})


def test_weights_without_normalisation_and_counters_keep_those_of_the_network(stored):
    learned = {k: v for k, v in stored.items() if "normalize" not in k and "num_batches" not in k}
    net = WideResNet(10, 1, num_classes=5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    load_weights(net, learned)
    torch.testing.assert_close(net.normalize.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(net.conv1.weight, stored["conv1.weight"])


def test_other_shapes_are_refused(stored):
    message = refused(fresh(classes=7), stored)
    assert "another network than WideResNet" in message
    assert "head.weight" in message
    assert "2 names" in message


def test_missing_and_unexpected_keys_are_named(stored):
    missing = {key: value for key, value in stored.items() if key != "group2.0.conv1.weight"}
    assert "group2.0.conv1.weight" in refused(fresh(), missing)
    assert "group4.weight" in refused(fresh(), stored | {"group4.weight": torch.ones(1)})


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file(tmp_path: Path, stored, kept, zipped):
    path = tmp_path / "weights.pt"
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert str(path) in refused(fresh(), path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_bytes(tmp_path: Path):
    draws = random.Random(0)
    net, path = fresh(), tmp_path / "noise.pt"
    for length in (0, 1, 2, 8, 64, 512, 4096) * 10:
        path.write_bytes(draws.randbytes(length))
        assert str(path) in refused(net, path)


class Payload:
    """Runs a command when it is unpickled in the ordinary way."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, stored, form):
    path, trace = tmp_path / "evil.pt", tmp_path / "code-ran"
    content = {"state_dict": stored, "extra": Payload(f"touch {trace}")}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert str(path) in refused(fresh(), path)
    assert not trace.exists()
    if form == "bare pickle":  # the payload works: ordinary unpickling does run it
        pickle.loads(path.read_bytes())
        assert trace.exists()


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"lr": 0.1}}]
)
def test_file_without_weights(tmp_path: Path, content):
    torch.save(content, tmp_path / "empty.pt")
    assert "no weights" in refused(fresh(), tmp_path / "empty.pt")


def test_file_that_holds_no_mapping(tmp_path: Path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    assert "list" in refused(fresh(), tmp_path / "list.pt")


def test_missing_file_and_folder(tmp_path: Path):
    assert str(tmp_path / "absent.pt") in refused(fresh(), tmp_path / "absent.pt")
    assert f"{tmp_path} is a folder" in refused(fresh(), tmp_path)
    with pytest.raises(
        UserError, match="is a folder; accepted: a file, or the folder of an export"
    ):
        load_network(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"layers": 3}', '{"weights": "other.pt"}', b"\xff"]
)
def test_somebody_else_s_network_json_beside_a_checkpoint(tmp_path: Path, stored, content):
    torch.save(stored, tmp_path / "mine.pt")
    (tmp_path / "network.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    assert same(load_network(tmp_path / "mine.pt", fresh()), stored)


def test_safetensors_that_is_not_installed(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "a.safetensors").write_bytes(b"")
    for act in (read_checkpoint, lambda path: export(fresh(), path.parent, "safetensors")):
        with pytest.raises(UserError, match=r"pip install 'robust-ood\[safetensors\]'"):
            act(tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_leaves_no_half_of_an_export(tmp_path: Path, form, room):
    resource = pytest.importorskip("resource")
    if form == "safetensors":
        pytest.importorskip("safetensors")
    net, before = fresh(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # of bytes in a file
    try:
        with pytest.raises(UserError, match=r"^output: cannot write into .* \(File too large\)$"):
            export(net, tmp_path / "out", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "out").iterdir())


def test_damaged_safetensors(tmp_path: Path):
    pytest.importorskip("safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(UserError, match=r"bad\.safetensors"):
        read_checkpoint(tmp_path / "bad.safetensors")


def test_described_network_is_rebuilt_with_its_weights(tmp_path: Path):
    net = fresh(seed=0, classes=3)
    torch.save(
        {
            "network": describe(net),
            "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()},
        },
        tmp_path / "a",
    )
    loaded = load_network(tmp_path / "a")
    assert type(loaded) is WideResNet
    assert not loaded.training
    assert same(loaded, net.state_dict())
    assert same(load_network(str(tmp_path / "a")), net.state_dict())
    assert set(read_checkpoint(str(tmp_path / "a"))) == {"network", "state_dict"}


def test_description_of_unknown_networks_and_settings_is_refused():
    assert describe(nn.Linear(2, 2)) is None
    with pytest.raises(UserError, match=r"'os\.system'; known: AutoEncoder, ConvNet"):
        rebuild({"name": "os.system", "settings": {}})
    with pytest.raises(UserError, match="has no settings height"):
        rebuild({"name": "WideResNet", "settings": {"height": 2}})


def test_file_without_description_asks_for_the_network(tmp_path: Path, stored):
    torch.save(stored, tmp_path / "a.pt")
    with pytest.raises(UserError, match="does not say which network"):
        load_network(tmp_path / "a.pt")
    assert same(load_network(tmp_path / "a.pt", fresh()), stored)
