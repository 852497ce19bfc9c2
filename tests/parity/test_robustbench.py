"""RobustBench's own package: its models by name, with random weights where it looks for them, and
what it refuses.

The library pins old versions of others, so that `make robustbench-test` gives it an environment of
its own.
"""

from __future__ import annotations

import json
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_ood import cli
from robust_ood.metrics import ood_metrics
from robust_ood.models.robustbench import RobustBench, _released_dependency

if "robustbench" not in {
    found.name for found in distributions()
}:  # torchattacks holds an old copy of its modules
    pytest.skip("robustbench is not installed; make robustbench-test", allow_module_level=True)

# A plain network, one whose file nests its weights under "last", and one on another leaderboard
# with another head.
MODELS = [("Wong2020Fast", "cifar10", "Linf"), ("Kireev2021Effectiveness_RLAT", "cifar10", "corruptions"),
          ("Rice2020Overfitting", "cifar100", "Linf")]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working folder, with images and a config; whoever asks for another host is refused."""
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    draws = np.random.default_rng(0)
    for name in ("test", "far"):
        images = draws.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(6))
    Path("grid.yaml").write_text(
        "data: {root: ., test: test.npz, far: [far.npz], num_classes: 10}\n"
    )
    return tmp_path


def own(name: str, dataset: str, threat_model: str) -> list[str]:
    named = f"--net RobustBench --net.name {name} --net.dataset {dataset} --net.threat_model {threat_model}"
    return [*named.split(), "--net.folder", "zoo"]


def evaluate(*arguments: str) -> int:
    settings = (
        "--output out --detectors [msp] --attacks [] --intervals 0 --figures false --report false"
    )
    return cli.evaluate(["-c", "grid.yaml", *settings.split(), *arguments])


def store(name: str, dataset: str, threat_model: str) -> Path:
    """Write random weights as the model's authors published theirs, where the library looks for
    them.
    """
    with _released_dependency():
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = model_dicts[BenchmarkDataset(dataset)][ThreatModel(threat_model)][name]["model"]()
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    path = Path("zoo") / dataset / threat_model / f"{name}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"last": state} if name.startswith("Kireev") else {"state_dict": state}, path)
    return path


@pytest.mark.parametrize(("name", "dataset", "threat_model"), MODELS)
def test_the_command_gives_the_librarys_own_scores(place, name, dataset, threat_model):
    store(name, dataset, threat_model)
    assert (
        evaluate(
            *own(name, dataset, threat_model), "--data.num_classes", dataset.removeprefix("cifar")
        )
        == 0
    )
    results = json.loads(Path("out/results.json").read_text())

    from robustbench.utils import load_model

    theirs = load_model(name, "zoo", dataset, threat_model)
    images = [
        torch.from_numpy(np.load(f"{part}.npz")["images"]).permute(0, 3, 1, 2) / 255
        for part in ("test", "far")
    ]
    with torch.no_grad():
        logits = [theirs(part) for part in images]
        assert torch.equal(
            RobustBench(name, dataset, threat_model, "zoo").eval()(images[0]), logits[0]
        )
    scores = [part.softmax(1).amax(1) for part in logits]
    wanted = ood_metrics(*scores, scores[0])
    row = next(row for row in results["rows"] if row["ood"] == "far")
    assert row["auroc"] == pytest.approx(wanted["auroc"], abs=1e-6)
    assert (
        results["classification"][0]["accuracy"]
        == (logits[0].argmax(1) == torch.arange(6)).float().mean().item()
    )


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert evaluate(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not Path("out").exists()
    return line


def test_a_refused_download_ends_with_one_line_and_the_place_of_the_file(capsys, place):
    line = refused(capsys, *own(*MODELS[0]))
    assert line.startswith(
        "error: net: cannot build RobustBench's Wong2020Fast for cifar10, Linf ("
    )
    assert (
        "; or download the weights by hand and put them at zoo/cifar10/Linf/Wong2020Fast.pt" in line
    )
    line = refused(
        capsys, *own("Debenedetti2022Light_XCiT-S12", "cifar10", "Linf")
    )  # timm's, with timm's own folder
    assert "cannot build RobustBench's Debenedetti2022Light_XCiT-S12" in line
    assert "by hand" not in line


def test_names_that_it_does_not_have(capsys, place):
    line = refused(capsys, *own("Wong2020Fats", "cifar10", "Linf"))
    assert line.startswith(
        "error: net.name: unknown name 'Wong2020Fats' in RobustBench's models for cifar10, Linf; "
    )
    assert "Wong2020Fast" in line
    line = refused(capsys, *own("Wong2020Fast", "cifar100", "L2"))
    assert line == "error: net.threat_model: RobustBench has no models for cifar100, L2"


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_weights_that_hold_code_are_refused_and_not_run(capsys, place):
    path = store(*MODELS[0])
    torch.save({"state_dict": Bomb()}, path)
    assert "UnpicklingError" in refused(capsys, *own(*MODELS[0]))
    assert not Path("exploded").exists()
