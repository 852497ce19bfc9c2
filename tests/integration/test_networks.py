"""`evaluate.py --net ...`: networks of other people's code, by class path and by name, and exports
of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robust_ood import cli
from robust_ood.detectors import MSP
from robust_ood.errors import Notice
from robust_ood.metrics import ood_metrics
from robust_ood.models import (
    ThinResNet,
    Timm,
    Torchvision,
    WideResNet,
    describe,
    export,
    load_network,
    rebuild,
)

ROOT = Path(__file__).parents[2]
MODULE = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stage = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.classify = nn.Linear(12, classes)
        self.auxiliary = nn.Linear(12, 3)

    def forward(self, x):
        return self.classify(self.stage(self.stem(x)).mean((2, 3)))


class Loaded(Mine):
    pretrained = True

    def __init__(self):
        super().__init__()
        self.load_state_dict(torch.load("plain.pt", weights_only=True))


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return {"logits": self.conv(x).mean((2, 3))}


class Grey(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def build(classes: int = 4, **ignored):
    return Mine(classes)


def build_nothing():
    return 3
"""
NORMALISED = ["--net.mean", "[0.5, 0.4, 0.3]", "--net.std", "[0.2, 0.3, 0.4]"]
RATES = ("auroc", "aupr_in", "aupr_out", "fpr95", "detection_error")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A user's folder, the working directory, with a file of code and one of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "my_network.py").write_text(MODULE)
    import importlib

    importlib.invalidate_caches()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = importlib.import_module("my_network").Mine()
    torch.save(module.state_dict(), tmp_path / "plain.pt")
    yield tmp_path
    del sys.modules["my_network"]


QUICK = ["--attacks", "[]", "--intervals", "0", "--figures", "false", "--report", "false"]


def evaluated(grid: Path, *arguments: object) -> dict[str, Any]:
    """Run the real command without attacks, in a folder of its own, and return its results."""
    output = Path(f"out{len(list(Path().glob('out*')))}")
    given = ["-c", grid, "--output", output, *QUICK, *arguments]
    assert cli.evaluate([str(argument) for argument in given]) == 0
    return json.loads((output / "results.json").read_text())


def rows(results: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (row["detector"], row["ood"], *(row[rate] for rate in RATES)) for row in results["rows"]
    ]


def refused(capsys, grid: Path, *arguments: object) -> str:
    capsys.readouterr()
    given = ["-c", grid, "--output", "refused", *QUICK, *arguments]
    assert cli.evaluate([str(argument) for argument in given]) == 2
    said = capsys.readouterr().err.splitlines()
    (line,) = [
        line for line in said if not line.startswith("Downloading: ")
    ]  # which older PyTorch says here
    assert not Path("refused").exists()
    return line


@pytest.mark.parametrize("nest", ["plain", "module.", "state_dict", "model"])
def test_a_users_class_by_its_path(grid, arrays, place, capsys, nest):
    state = torch.load(place / "plain.pt", weights_only=True)
    if nest == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    torch.save({nest: state} if nest in ("state_dict", "model") else state, place / "given.pt")
    own = [
        "--net",
        "Wrapped",
        "--net.module",
        "my_network.Mine",
        *NORMALISED,
        "--checkpoint",
        "given.pt",
    ]
    results = evaluated(grid, *own)
    assert (
        "normalised images: head classify (12 to 4, found); feature layers stem, stage (found)"
        in " ".join(capsys.readouterr().out.split())
    )

    from my_network import Mine

    module = Mine().eval()
    module.load_state_dict(torch.load(place / "plain.pt", weights_only=True))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    scores = {}
    for name in ("test", "far"):
        images = (
            torch.from_numpy(np.load(arrays / f"{name}.npz")["images"]).permute(0, 3, 1, 2) / 255
        )
        with torch.no_grad():
            logits = module((images - mean) / std)
        scores[name] = logits.softmax(1).amax(1)
        if name == "test":
            right = (logits.argmax(1).numpy() == np.load(arrays / "test.npz")["labels"]).mean()
    wanted = ood_metrics(scores["test"], scores["far"], scores["test"])
    (row,) = [row for row in results["rows"] if row["ood"] == "far" and row["n_ood"] == 20]
    assert {rate: row[rate] for rate in RATES} == pytest.approx(
        {rate: wanted[rate] for rate in RATES}, abs=1e-6
    )
    assert results["classification"][0]["accuracy"] == pytest.approx(right)


def test_parts_are_found_or_named_and_serve_the_detectors_that_need_them(grid, place, capsys):
    detectors = [
        "--detectors",
        "[mahalanobis-layers, react, {name: mahalanobis, layers: all, label: all}]",
    ]
    plain = ["--checkpoint", "plain.pt", *detectors]
    found = evaluated(grid, "--net", "my_network.Mine", *plain)
    assert "Mine, fed pixels: head classify (12 to 4, found)" in " ".join(
        capsys.readouterr().out.split()
    )
    wrapped = ["--net", "Wrapped", "--net.module", "my_network.Mine", "--net.head", "classify"]
    named = evaluated(grid, *wrapped, "--net.layers", "[stem, stage]", *plain)
    assert "(12 to 4, given); feature layers stem, stage (given)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert rows(found) == rows(named)


def test_a_class_that_loads_its_own_weights_needs_no_file(grid, place):
    results = evaluated(grid, "--net", "my_network.Loaded")
    assert rows(results) == rows(
        evaluated(grid, "--net", "my_network.Mine", "--checkpoint", "plain.pt")
    )
    assert results["rows"][0]["model"] == "Loaded"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--net my_network.Mine", "checkpoint: not given, and the weights of Mine would be random"),
        ("", "checkpoint: not given, and neither is a network"),
        ("--net my_network.Mien --checkpoint plain.pt", "net: cannot import 'my_network.Mien' (module 'my_"),
        ("--net my_netwrk.Mine --checkpoint plain.pt", "net: cannot import 'my_netwrk.Mine' (No module"),
        ("--net Wrapped --net.module no.Mine --checkpoint plain.pt", "net.module: cannot import 'no.Mine'"),
        ("--net my_network.Mine --net.clases 3 --checkpoint plain.pt", "net.clases: unknown setting; did you mean"),
        ("--net my_network.Mine --net.classes 3 --checkpoint plain.pt", "checkpoint: plain.pt holds another network"),
        ("--net my_network.Headless --checkpoint plain.pt", "checkpoint: plain.pt holds another network"),
        ("--net my_network.Mine --checkpoint plain.pt --key_map openood", "key_map: unknown name 'openood'; did you"),
        ("--net Wrapped --net.module my_network.Mine --net.head clasify --checkpoint plain.pt",
         "net.head: unknown name 'clasify'; did you mean 'classify'"),
        ("--net Wrapped --net.module my_network.Mine --net.layers [stam] --checkpoint plain.pt", "unknown name 'stam'"),
        ("--net Wrapped --net.module my_network.Mine --net.mean [0,0,0] --checkpoint plain.pt", "mean and std: one is"),
        ("--net Torchvision --net.name resnet81", "net.name: unknown name 'resnet81' in torchvision; the nearest are"),
    ],
)  # fmt: skip
def test_mistakes(capsys, grid, place, arguments, said):
    line = refused(capsys, grid, *arguments.split())
    assert line.startswith(f"error: {said}") or said.startswith("unknown")
    assert said in line


def saved(name: str) -> list[str]:
    """Write the random weights of a network of the module, and return how to load them."""
    import my_network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(getattr(my_network, name)().state_dict(), f"{name}.pt")
    return ["--net", f"my_network.{name}", "--checkpoint", f"{name}.pt"]


def test_a_pooled_convolution_is_a_head(capsys, grid, place):
    results = evaluated(grid, *saved("Headless"), "--detectors", "[energy, react, knn]")
    assert "head conv (3 to 4, averaged over pixels, found)" in capsys.readouterr().out
    assert {row["detector"] for row in results["rows"]} == {"energy", "react", "knn"}


def test_a_network_without_a_head_has_the_scores_of_its_logits(capsys, grid, place):
    names = ["msp", "energy", "entropy", "gen", "odin", "pro-gen", "kl-matching"]
    results = evaluated(grid, *saved("Bare"), "--detectors", json.dumps(names))
    assert "no linear head, scores of the logits alone work" in capsys.readouterr().out
    assert {row["detector"] for row in results["rows"]} == set(names)
    assert not results["failures"]
    for name, needed in (("vim", "a linear head"), ("knn", "penultimate features")):
        line = refused(capsys, grid, *saved("Bare"), "--detectors", f"[{name}]")
        assert line.startswith(f"error: detectors.{name}.net: ")
        assert f"needs {needed}; Bare has no linear head" in line


def test_a_network_of_another_number_of_channels_is_one_line(capsys, grid, place):
    line = refused(capsys, grid, *saved("Grey"))
    assert line == "error: net: Grey takes 1 channel, the images have 3; set data.channels: 1"


def test_nan_weights_are_refused(capsys, grid, place):
    state = torch.load("plain.pt", weights_only=True)
    state["stem.weight"][0] = torch.nan
    torch.save(state, "nan.pt")
    line = refused(capsys, grid, "--net", "my_network.Mine", "--checkpoint", "nan.pt")
    assert line.startswith("error: net: Mine gives NaN for random images")
    assert line.endswith("stem.weight first")


def test_keys_of_a_file_reach_no_screen_as_they_are(capsys, grid, place):
    state = torch.load("plain.pt", weights_only=True)
    torch.save({f"\x1b[31m{key}\x07": value for key, value in state.items()}, "red.pt")
    line = refused(capsys, grid, "--net", "my_network.Mine", "--checkpoint", "red.pt")
    assert line.isprintable()
    assert r"in the network: \x1b[31mstem.weight\x07" in line


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_function_that_builds_a_network(capsys, grid, place, wrapped):
    expected = rows(evaluated(grid, "--net", "my_network.Mine", "--checkpoint", "plain.pt"))
    net, own = ["--net", "my_network.build"], "net"
    if wrapped:
        net, own = ["--net", "Wrapped", "--net.module", "my_network.build"], "net.module"
    given = [*net, "--checkpoint", "plain.pt"]
    assert rows(evaluated(grid, *given)) == expected
    assert rows(evaluated(grid, *given, f"--{own}.classes", 4)) == expected
    line = refused(capsys, grid, *given, f"--{own}.classes", "x")
    assert line == f"error: {own}.classes: expected a whole number, got 'x'"
    line = refused(capsys, grid, *given, f"--{own}.classes", 3)
    assert line.startswith("error: checkpoint: plain.pt holds another network than Mine")
    nothing = [part.replace("build", "build_nothing") for part in given]
    assert refused(capsys, grid, *nothing).startswith(
        f"error: {own.rpartition('.')[2]}: expected a torch.nn.Module"
    )


def test_an_average_is_chosen_by_a_setting(capsys, grid, place):
    state = torch.load("plain.pt", weights_only=True)
    average = {key: value * 2 for key, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": average}, "both.pt")
    torch.save(average, "average.pt")
    net = ["--net", "my_network.Mine", "--checkpoint"]
    plain = rows(evaluated(grid, *net, "plain.pt"))
    doubled = rows(evaluated(grid, *net, "average.pt"))
    assert plain != doubled
    capsys.readouterr()
    with pytest.warns(Notice, match=r"also holds averaged weights \(state_dict_ema\)"):
        assert rows(evaluated(grid, *net, "both.pt")) == plain
    assert rows(evaluated(grid, *net, "both.pt", "--averaged", "true")) == doubled
    assert refused(capsys, grid, *net, "plain.pt", "--averaged", "true").startswith(
        "error: averaged: plain.pt holds no averaged weights"
    )


def test_the_script_finds_a_class_in_the_working_folder(grid, place):
    command = [
        sys.executable,
        ROOT / "evaluate.py",
        "-c",
        grid,
        "--net",
        "my_network.Mine",
        "--checkpoint",
        "plain.pt",
    ]
    done = subprocess.run(
        [*command, *QUICK], cwd=place, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("net: Mine, fed pixels: head classify")
    assert (place / "results" / "results.json").exists()


# By name
# --------------------------------------------------------------------------------------------------------------


def test_torchvision_by_name(grid, place):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Torchvision("resnet18", 4)
    torch.save({"model": net.module.state_dict()}, "theirs.pt")
    named = ["--net", "Torchvision", "--net.name", "resnet18", "--net.num_classes", 4]
    results = evaluated(grid, *named, "--checkpoint", "theirs.pt")
    mean, std = "[0.485, 0.456, 0.406]", "[0.229, 0.224, 0.225]"
    by_path = ["--net", "Wrapped", "--net.module", "torchvision.models.resnet18"]
    by_path += ["--net.module.num_classes", 4, "--net.mean", mean, "--net.std", std]
    assert rows(results) == rows(evaluated(grid, *by_path, "--checkpoint", "theirs.pt"))
    assert rows(results) != rows(
        evaluated(grid, *named, "--net.mean", "[0, 0, 0]", "--checkpoint", "theirs.pt")
    )


def test_timm_by_name(capsys, grid, place):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("resnet10t", num_classes=4)
    torch.save(net.state_dict(), "theirs.pt")
    own = [
        "--net",
        "Timm",
        "--net.name",
        "resnet10t",
        "--net.num_classes",
        4,
        "--checkpoint",
        "theirs.pt",
    ]
    results = evaluated(grid, *own, "--name", "timm")
    assert "head fc (" in capsys.readouterr().out
    assert {row["model"] for row in results["rows"]} == {"timm"}
    ours = Timm("resnet10t", 4)
    assert ours.normalize.mean.flatten().tolist() == pytest.approx(net.pretrained_cfg["mean"])
    for name in ("resnet10x", "local-dir:/tmp"):
        other = [name if argument == "resnet10t" else argument for argument in own]
        assert refused(capsys, grid, *other).startswith(
            f"error: net.name: unknown name '{name}' in timm; "
        )


def test_hugging_face_from_a_folder(capsys, grid, place):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=20, patch_size=5, num_labels=4,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("theirs")
    named = ["--net", "HuggingFace", "--net.name", "./theirs"]
    unknown = refused(capsys, grid, *named)
    assert "mean: not known for ./theirs, nor std (no preprocessor_config.json" in unknown
    whole = [*named, *NORMALISED]
    assert "takes 20 x 20 images, these are" in refused(capsys, grid, *whole)
    capsys.readouterr()
    assert evaluated(grid, *whole, "--net.size", 20)["rows"]
    printed = capsys.readouterr().out
    assert (
        "net: ViTForImageClassification, fed normalised images: head classifier (16 to 4" in printed
    )
    other = refused(capsys, grid, *whole, "--net.num_classes", 3, "--net.size", 20)
    assert other.startswith("error: checkpoint: not given, and the weights of HuggingFace would be")


@pytest.mark.parametrize("library", ["timm", "robustbench"])
def test_a_library_that_is_not_there(capsys, monkeypatch, grid, place, library):
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    net = {"timm": "Timm", "robustbench": "RobustBench"}[library]
    line = refused(capsys, grid, "--net", net, "--net.name", "some", "--checkpoint", "plain.pt")
    assert line.startswith(f"error: net: {net} needs the package {library}")
    assert f"pip install 'robust-ood[{library}]'" in line


ZOO = {
    "eval": "from autoattack import AutoAttack\nfrom autoattack.state import EvaluationState\n",
    "model_zoo/enums": """
from enum import Enum

BenchmarkDataset = Enum("BenchmarkDataset", {"one": "cifar10", "two": "cifar100", "three": "imagenet"})
ThreatModel = Enum("ThreatModel", {"Linf": "Linf", "L2": "L2", "corruptions": "corruptions"})
""",
    "model_zoo/__init__": """
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

several = {"gdrive_id": ["1", "2"]}
model_dicts = {
    BenchmarkDataset.one: {ThreatModel.L2: {"Some2026": {"gdrive_id": "1"}, "Deck2026": several, "Timm2026": {}}},
    BenchmarkDataset.two: {},
}
""",
    "utils": """
from pathlib import Path

import torch
from my_network import Mine


def load_model(model_name, model_dir="./models", dataset="cifar10", threat_model="Linf"):
    path = Path(model_dir) / dataset / threat_model / f"{model_name}.pt"
    if not path.is_file():
        raise ConnectionError("Max retries exceeded with url: /uc?id=1")
    model = Mine()
    model.load_state_dict(torch.load(path, weights_only=False))  # what a bare call meant before torch 2.6
    return model
""",
    "__init__": "from robustbench import eval\n",
}


@pytest.fixture
def zoo(place, monkeypatch):
    """A stand-in for the package robustbench; `tests/parity/test_robustbench.py` is for the package
    itself.

    As the release does, it imports `autoattack`, while what is installed with it is called
    `pyautoattack`.
    """
    packages = {f"robustbench/{name}": text for name, text in ZOO.items()}
    packages |= {
        "pyautoattack/__init__": "class AutoAttack: ...",
        "pyautoattack/state": "class EvaluationState: ...",
    }
    for name, text in packages.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.py").write_text(text)
    for name in [
        name
        for name in sys.modules
        if name.split(".")[0] in ("robustbench", "pyautoattack", "autoattack")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(place))
    yield ["--net", "RobustBench", "--net.threat_model", "L2", "--net.folder", "zoo", "--net.name"]
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("robustbench", "pyautoattack")
    ]:
        del sys.modules[name]


def test_robustbench_by_name_and_its_download_refused(capsys, grid, place, zoo):
    line = refused(capsys, grid, *zoo, "Some2026")
    assert line.startswith(
        "error: net: cannot build RobustBench's Some2026 for cifar10, L2 (ConnectionError: Max"
    )
    assert line.endswith(
        "; or download the weights by hand and put them at zoo/cifar10/L2/Some2026.pt"
    )
    line = refused(capsys, grid, *zoo, "Deck2026")
    assert "Deck2026.pt_m0.pt, zoo/cifar10/L2/Deck2026.pt_m1.pt" in line
    assert "by hand" not in refused(capsys, grid, *zoo, "Timm2026")
    (place / "zoo/cifar10/L2").mkdir(parents=True)
    shutil.copy("plain.pt", "zoo/cifar10/L2/Some2026.pt")
    found = rows(evaluated(grid, *zoo, "Some2026"))
    assert found == rows(evaluated(grid, "--net", "my_network.Mine", "--checkpoint", "plain.pt"))
    assert "autoattack" not in sys.modules


def test_what_robustbench_does_not_have(capsys, grid, zoo):
    line = refused(capsys, grid, *zoo, "Some2025")
    assert line.startswith(
        "error: net.name: unknown name 'Some2025' in RobustBench's models for cifar10, L2; the nea"
    )
    line = refused(capsys, grid, *zoo, "Some2026", "--net.dataset", "cifar100")
    assert line == "error: net.threat_model: RobustBench has no models for cifar100, L2"


def test_robustbenchs_weights_run_no_code(capsys, monkeypatch, grid, place, zoo):
    class Bomb:
        def __reduce__(self):
            return (open, ("exploded", "w"))

    (place / "zoo/cifar10/L2").mkdir(parents=True)
    torch.save({"stem.weight": Bomb()}, "zoo/cifar10/L2/Some2026.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    assert "UnpicklingError" in refused(capsys, grid, *zoo, "Some2026")
    assert not (place / "exploded").exists()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


def test_torchvisions_download_refused(capsys, monkeypatch, grid, place):
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(place))
    line = refused(
        capsys,
        grid,
        "--net",
        "Torchvision",
        "--net.name",
        "squeezenet1_1",
        "--net.weights",
        "DEFAULT",
    )
    assert line.startswith(
        "error: net: cannot build torchvision's squeezenet1_1 (OSError: connection refused); or "
    )
    assert line.endswith("give them as --checkpoint, without net.weights")


def test_timms_download_refused_says_it_once(grid, place):
    """In a process of its own: the library reads at its import how much to say, and it tries ten
    times.
    """
    pytest.importorskip("timm")
    nowhere = {
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HF_HOME": str(place),
    }
    command = [
        sys.executable,
        ROOT / "evaluate.py",
        "-c",
        grid,
        "--net",
        "Timm",
        "--net.name",
        "resnet18",
        *QUICK,
    ]
    impatient = "import time; time.sleep = lambda seconds: None\n"  # between two tries
    (place / "sitecustomize.py").write_text(impatient)
    done = subprocess.run(
        [*command, "--net.pretrained", "true"],
        cwd=place, capture_output=True, text=True, check=False, env={**os.environ, **nowhere, "PYTHONPATH": str(place)},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: net: cannot build timm's resnet18 (")
    assert line.endswith(
        "; or download weights by hand and give them as --checkpoint, without net.pretrained"
    )


# One file, two networks
# -----------------------------------------------------------------------------------------------


def test_resnet20_weights_as_a_users_class_and_as_ours(grid, place):
    """What `benchmarks/resnet20_both_ways.py` does with the public weights, on random ones stored
    as those are.
    """
    shutil.copy(ROOT / "benchmarks" / "their_resnet20.py", place)
    from their_resnet20 import ResNet20

    draws = torch.Generator().manual_seed(0)
    state = ResNet20(4).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
        elif value.is_floating_point():
            value.add_(torch.randn(value.shape, generator=draws) * 0.1)
    torch.save(
        {
            "state_dict": {
                f"module.{key}": v for key, v in state.items() if "num_batches" not in key
            }
        },
        "r20.th",
    )
    detectors = ["--detectors", "[msp, energy, mahalanobis-layers, odin]", "--checkpoint", "r20.th"]
    theirs = [
        "--net",
        "Wrapped",
        "--net.module",
        "their_resnet20.ResNet20",
        "--net.module.num_classes",
        4,
    ]
    ours = ["--net", "ThinResNet", "--net.num_classes", 4]
    first = evaluated(grid, *theirs, *NORMALISED, *detectors)
    second = evaluated(grid, *ours, *NORMALISED, *detectors)
    assert first["classification"][0]["accuracy"] == second["classification"][0]["accuracy"]
    for one, other in zip(rows(first), rows(second), strict=True):
        assert one[:2] == other[:2]
        assert one[2:] == pytest.approx(other[2:], abs=1e-9)

    for key_map in ("resnet20", '{"linear\\\\.": "head."}'):
        assert rows(evaluated(grid, *ours, *NORMALISED, *detectors, "--key_map", key_map)) == rows(
            second
        )

    images = torch.rand(8, 3, 16, 16, generator=draws)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    from robust_ood.models import wrap

    nets = (
        load_network("r20.th", wrap(ResNet20(4), mean, std)),
        load_network("r20.th", ThinResNet(20, 4, mean, std)),
    )
    with torch.no_grad():
        assert torch.equal(MSP(nets[0])(images), MSP(nets[1])(images))


# Exports
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_an_export_evaluates_as_the_run_does(grid, trained_run, place, form):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    last = str(trained_run / "last.ckpt")
    assert cli.main(["export", "--checkpoint", last, "--output", "exported", "--format", form]) == 0
    about = json.loads((place / "exported" / "network.json").read_text())
    assert about["schema"] == 1
    assert (about["architecture"], about["num_classes"]) == ("WideResNet", 4)
    assert about["settings"] == {
        "depth": 10,
        "width": 1,
        "dropout": 0.0,
        "norm": "batch",
        "activation": "relu",
    }
    assert len(about["mean"]) == len(about["std"]) == 3
    assert (about["training"]["method"], about["training"]["settings"]["outlier_weight"]) == (
        "ALOE",
        0.5,
    )
    run = rows(evaluated(grid, "--checkpoint", last))
    file = Path("exported") / f"weights.{form}"
    for path in ("exported", "exported/network.json", file):
        assert rows(evaluated(grid, "--checkpoint", path)) == run
    shutil.move(file, "alone" + file.suffix)  # plain weights, for anybody
    own = [
        "--net",
        "robust_ood.models.WideResNet",
        "--net.depth",
        10,
        "--net.width",
        1,
        "--net.num_classes",
        4,
    ]
    assert rows(evaluated(grid, *own, "--checkpoint", "alone" + file.suffix)) == run
    assert (
        cli.main(
            ["export", "--checkpoint", "alone" + file.suffix, *map(str, own), "--output", "again"]
        )
        == 0
    )
    assert rows(evaluated(grid, "--checkpoint", "again")) == run


def test_exported_weights_are_plain(trained_run, place):
    export(load_network(trained_run / "last.ckpt"), "exported", training={"method": "ALOE"})
    state = torch.load("exported/weights.pt", weights_only=True)
    net = WideResNet(10, 1, 4)
    assert set(state) == set(net.state_dict())
    net.load_state_dict(state)
    assert [path.name for path in sorted(Path("exported").iterdir())] == [
        "network.json",
        "weights.pt",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "../plain.pt"}, "expected weights beside it"),
        ({"weights": "gone.pt"}, "no such file: exported/gone.pt"),
        (
            {"architecture": "os.system"},
            "describes a network 'os.system'; known: AutoEncoder, ConvNet",
        ),
        ({"num_classes": 7}, "another network than WideResNet"),
        ({"settings": {"depth": 11}}, "6n + 4"),
        ({"settings": {"height": 1}}, "WideResNet has no settings height"),
        ({"schema": 2}, "has schema 2; this version reads 1"),
        (None, "is not readable JSON"),
    ],
)
def test_bad_exports(capsys, grid, trained_run, place, change, said):
    export(load_network(trained_run / "last.ckpt"), "exported")
    path = Path("exported/network.json")
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    line = refused(capsys, grid, "--checkpoint", "exported")
    assert line.startswith(("error: checkpoint: ", "error: depth: "))
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--checkpoint", "plain.pt", "--net", "my_network.Mine"],
            "net: Mine is not one of this project's networks",
        ),
        (["--checkpoint", "plain.pt"], "net: plain.pt does not say which network it holds"),
        ([], "checkpoint: not given"),
        (
            ["--checkpoint", "plain.pt", "--format", "onnx"],
            "format: expected one of pt, safetensors, got 'onnx'",
        ),
        (
            ["--checkpoint", "plain.pt", "--formt", "pt"],
            "formt: unknown setting; did you mean 'format'",
        ),
    ],
)
def test_mistakes_of_export(capsys, place, arguments, said):
    assert cli.main(["export", "--output", "exported", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert not (place / "exported").exists()


@pytest.mark.parametrize(
    "build", [lambda: Torchvision("shufflenet_v2_x0_5", 4), lambda: Timm("resnet10t", 4)]
)
def test_networks_of_libraries_are_rebuilt_from_their_description(build):
    pytest.importorskip("timm")
    net = build()
    again = rebuild(json.loads(json.dumps(describe(net))))
    assert type(again) is type(net)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    assert torch.equal(again.normalize.mean, net.normalize.mean)


def test_timms_own_arguments(place):
    pytest.importorskip("timm")
    net = Timm("resnet10t", 4, arguments={"in_chans": 1, "drop_rate": 0.1})
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    again = rebuild(json.loads(json.dumps(describe(net))))
    assert again.settings == net.settings
    for name, value in (
        ("checkpoint_path", "x.pt"), ("cache_dir", "x"), ("pretrained_cfg", {}), ("num_classes", 3),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^arguments: {name}"):
            Timm("resnet10t", 4, arguments={name: value})
    with pytest.raises(ValueError, match=r"cannot build timm's resnet10t .*in_chanz"):
        Timm("resnet10t", 4, arguments={"in_chanz": 1})


def test_a_description_does_not_download():
    for settings in (
        {"name": "resnet18", "weights": "DEFAULT"},
        {"name": "resnet10t", "pretrained": True},
    ):
        with pytest.raises(ValueError, match=r"has no settings (weights|pretrained)"):
            rebuild(
                {"name": "Torchvision" if "weights" in settings else "Timm", "settings": settings}
            )
