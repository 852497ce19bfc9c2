"""Every config file runs through the real command, on the real embedded data or on tiny arrays
under its own names.

A new file is found by itself; a new folder of configs must say here how its files are run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from robust_ood import cli, detectors
from robust_ood.attacks import build_all
from robust_ood.cli import evaluate_command
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.models import each_radius
from robust_ood.detectors import REGISTRY
from robust_ood.evaluation.certificates import build_certificates
from robust_ood.models import Glow, WideResNet, describe
from robust_ood.reporting.papers.checkpoints import checklist, published_checkpoints

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = {
    "attacks",
    "base",
    "callbacks",
    "data",
    "evaluate",
    "experiments",
    "methods",
    "models",
    "papers",
    "published",
    "studies",
}
SMALL = [
    "--data.batch_size",
    "2",
    "--data.outlier_batch_size",
    "2",
    "--data.evaluation_batch_size",
    "4",
]
TRIAL = [
    "--robust_validation.limit",
    "2",
    "--trainer.fast_dev_run",
    "true",
    "--trainer.accelerator",
    "cpu",
    "--trainer.enable_progress_bar",
    "false",
]
FEW_COMPONENTS = [
    *("--model.init_args.components", "3"),
    *("--model.init_args.directions", "16"),
    *("--model.init_args.mixture_images", "60"),
]  # EM of the paper's hundred components in all directions takes most of a minute
RUNNABLE = 3_000_000  # parameters; larger networks are built without memory and not run


def files(folder: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((CONFIGS / folder).glob("*.yaml"))]


def file(folder: str, name: str) -> list[str]:
    return ["-c", str(CONFIGS / folder / f"{name}.yaml")]


def included(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of a config and of all that it includes."""
    content = yaml.safe_load(path.read_text())
    yield content
    for name in content.get("include", []):
        yield from included(path.parent / name)


def section(path: Path, name: str) -> dict[str, Any]:
    """Return a section of a config, with what it includes."""
    parts = [content.get(name, {}) for content in included(path)]
    return {key: value for part in reversed(parts) for key, value in part.items()}


def array_names(path: Path) -> set[str]:
    """Return the names of the array files that a config reads."""
    values = [value for content in included(path) for value in content.get("data", {}).values()]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return {name for name in names if isinstance(name, str) and name.endswith((".npz", ".npy"))}


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "arrays"
    folder.mkdir()
    return folder


def write_arrays(path: Path, folder: Path) -> list[str]:
    """Write tiny arrays under the names that a config reads, and return the option that points
    there.
    """
    draws = np.random.default_rng(0)
    for name in array_names(path):
        count = 60 if "train" in name else 12  # to fit on; KNN asks for 50
        images = draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / name, images=images, labels=np.arange(count) % 10)
    return ["--data.root", str(folder)]


def write_stand_ins(data: dict[str, Any], folder: Path) -> list[str]:
    """Write tiny arrays in the place of sets that would have to be downloaded, and return the
    options that take them.
    """
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (12, data["size"], data["size"], 3), dtype=np.uint8)
    for name in ("inliers", "outliers"):
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(12) % data["num_classes"])
    sets = [
        "--data.train",
        "inliers.npz",
        "--data.test",
        "inliers.npz",
        "--data.near",
        "[]",
        "--data.far",
        "[]",
    ]
    sets += ["--data.outliers", "outliers.npz"] if data["outliers"] else []
    return ["--data.root", str(folder), *sets]


def fit(*arguments: str) -> int:
    return cli.train(["fit", *arguments, *SMALL, *TRIAL])


def parsed(capsys, *arguments: str) -> dict[str, Any]:
    """Return the settings that a training command would use."""
    capsys.readouterr()
    assert cli.train(["fit", *arguments, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def build_without_memory(spec: dict[str, Any]) -> torch.nn.Module:
    module, _, name = spec["class_path"].rpartition(".")
    settings = {}
    for key, value in spec.get("init_args", {}).items():
        inside = isinstance(value, dict) and "class_path" in value
        settings[key] = build_without_memory(value) if inside else value
    # A flow factorises its random weights, which needs their values.
    with torch.device("cpu" if name == "Glow" else "meta"):
        return getattr(import_module(module), name)(**settings)


def holds(settings: Any, wanted: Any) -> bool:
    """Return whether all that is wanted, at every level, is among the settings."""
    if not isinstance(wanted, dict):
        return bool(settings == wanted)
    return all(name in settings and holds(settings[name], value) for name, value in wanted.items())


def test_every_folder_of_configs_is_tested_here():
    assert {path.name for path in CONFIGS.iterdir()} == FOLDERS
    assert not [path for path in CONFIGS.rglob("*") if path.is_file() and path.suffix != ".yaml"]


@pytest.mark.parametrize("path", files("attacks"))
def test_encoder_attack(path, root, tmp_path):
    """Read by `robust-ood encoder-attack`; here for two steps on four digits."""
    asked = yaml.safe_load(path.read_text())
    names = [one if isinstance(one, str) else one["name"] for one in asked["detectors"]]
    missing = [name for name in names if name not in REGISTRY]
    if missing:
        pytest.skip(f"{path.stem}: detectors that are not registered: {', '.join(missing)}")
    net: torch.nn.Module = WideResNet(10, 1)
    if path.stem == "encoder_likelihood":
        net = Glow(levels=1, steps=1, hidden=4)
        net(torch.rand(4, 3, 32, 32))  # which initialises it
    checkpoint = tmp_path / "net.ckpt"
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "network": describe(net)}, checkpoint)
    data = file("data", "cifar10_arrays")
    arrays = write_arrays(Path(data[1]), root)
    short = ["--steps", "2", "--limit", "4", "--device", "cpu", "--report", "false"]
    output = ["--output", str(tmp_path / "out")]
    config = ["-c", str(path), "--checkpoint", str(checkpoint)]
    assert cli.encoder_attack([*data, *arrays, *config, *short, *output]) == 0
    found = json.loads((tmp_path / "out" / "encoder_attack.json").read_text())
    labels = {
        one if isinstance(one, str) else one.get("label", one["name"]) for one in asked["detectors"]
    }
    assert {row["detector"] for row in found["rows"]} == labels


@pytest.mark.parametrize("path", files("experiments"))
def test_experiment(path, root, tmp_path, capsys):
    assert yaml.safe_load(path.read_text())["experiment"] == path.stem
    settings = parsed(capsys, "-c", str(path))
    arrays = write_arrays(path, root) if array_names(path) else []
    if settings["data"]["train"] != "digits/train" and not arrays:
        arrays = write_stand_ins(settings["data"], root)
    size = sum(
        parameter.numel() for parameter in build_without_memory(settings["net"]).parameters()
    )
    if size > RUNNABLE:
        pytest.skip(f"{path.stem}: parsed and built, not run: {size:,} parameters")
    # A network of many layers is built above and runs, by itself, in test_model.
    shallow = ["--net.depth", "10"] if settings["net"]["class_path"].endswith(".DenseNet") else []
    assert fit("-c", str(path), *shallow, *arrays, "--output", str(tmp_path / "none")) == 0


WITH_OUTLIER_CLASS = {
    "class_path": "robust_ood.models.OutlierClass",
    "init_args": {
        "net": {
            "class_path": "robust_ood.models.WideResNet",
            "init_args": {"depth": 10, "width": 1},
        }
    },
}
WITH_DISCRIMINATOR = {**WITH_OUTLIER_CLASS, "class_path": "robust_ood.models.Discriminated"}
OF_OTHER_NETWORKS = {
    "flow": {
        "class_path": "robust_ood.models.Glow",
        "init_args": {"levels": 1, "steps": 1, "hidden": 4},
    },
    "autoencoder": {"class_path": "robust_ood.models.AutoEncoder"},
    "atd": WITH_DISCRIMINATOR,
    "ntom": WITH_OUTLIER_CLASS,
    "atom": WITH_OUTLIER_CLASS,
}
"""By method, a network that is no ordinary classifier."""


@pytest.mark.parametrize("path", files("methods"))
def test_method(path):
    net = file("models", "wrn_10_1")
    small = ["--hard_outliers.pool", "1", "--hard_outliers.skip", "0"]
    if path.stem in OF_OTHER_NETWORKS:
        net = ["--net", json.dumps(OF_OTHER_NETWORKS[path.stem])]
    assert (
        fit(
            *file("base", "digits"),
            *file("data", "digits"),
            *net,
            "-c",
            str(path),
            *(FEW_COMPONENTS if path.stem == "ccu" else []),
            *(small if path.stem in ("ntom", "atom") else []),
        )
        == 0
    )


@pytest.mark.parametrize("path", files("models"))
def test_model(path, root, capsys):
    data = file("data", "cifar10_arrays")
    arrays = write_arrays(Path(data[1]), root)
    rest = [*data, "-c", str(path), *file("methods", "oe"), *arrays]
    if path.stem == "spatial_transformer":  # of as many signs as GTSRB has
        rest += ["--net.num_classes", "10"]
    net = build_without_memory(parsed(capsys, *rest)["net"])
    size = sum(parameter.numel() for parameter in net.parameters())
    if size > RUNNABLE:
        pytest.skip(f"{path.stem}: parsed and built, not run: {size:,} parameters")
    assert fit(*rest) == 0


@pytest.mark.parametrize("path", files("data"))
def test_data(path, root, capsys):
    arrays = write_arrays(path, root)
    classes = str(section(path, "data")["num_classes"])
    rest = [
        "-c",
        str(path),
        *file("models", "wrn_10_1"),
        *file("methods", "oe"),
        "--net.num_classes",
        classes,
        *arrays,
    ]
    if array_names(path) or path.stem.startswith("digits"):
        assert fit(*rest) == 0
        return
    settings = parsed(capsys, *rest)["data"]
    assert settings["train"]
    assert settings["near"] or settings["far"]


@pytest.mark.parametrize("path", files("callbacks"))
def test_callback(path):
    assert fit(*file("experiments", "digits_standard"), "-c", str(path)) == 0


NO_CLASSIFIERS = {"digits_flow", "digits_autoencoder"}
OF_THE_ZOO = {"cifar10_aloe_resnet20"}  # its curve is part of what is known of the network


@pytest.mark.parametrize("path", files("experiments"))
def test_cheap_recipes_validate_robustly(path):
    settings = section(path, "robust_validation")
    if path.stem in OF_THE_ZOO:
        return
    if not path.stem.startswith("digits_") or path.stem in NO_CLASSIFIERS:
        assert not settings
        return
    assert settings["detectors"]
    assert settings["limit"] <= 50
    assert settings["every_n_epochs"] >= 4


def test_robust_validation_can_be_switched_off(capsys):
    off = ["--robust_validation.detectors", "null"]
    settings = parsed(capsys, *file("experiments", "digits_aloe"), *off)
    assert settings["robust_validation"]["detectors"] is None
    assert settings["checkpoints"]["monitor"] is None  # which would wait for its number


@pytest.mark.parametrize("path", files("data"))
def test_validation_sees_no_test_and_no_training_set(path):
    data = section(path, "data")
    others = [data["train"], *([data["outliers"]] if "outliers" in data else [])]
    others += [*data.get("near", []), *data.get("far", [])]
    assert not [name for name in data.get("validation_ood", []) if name in others]
    assert data.get("validation_ood") or not path.stem.startswith("digits")


@pytest.mark.parametrize("path", files("base"))
def test_base(path, capsys):
    base = parsed(capsys, *file("experiments", "digits_aloe"), "-c", str(path))
    assert holds(base, yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", files("evaluate"))
def test_evaluation(path, root, tmp_path, capsys):
    net = WideResNet(10, 1)
    checkpoint = tmp_path / "net.ckpt"
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "network": describe(net)}, checkpoint)
    arguments = [
        "-c",
        str(path),
        "--checkpoint",
        str(checkpoint),
        "--output",
        str(tmp_path / "out"),
    ]
    quick = [
        "--limit",
        "2",
        "--device",
        "cpu",
        "--sanity",
        "false",
        "--figures",
        "false",
        "--report",
        "false",
    ]
    asked = yaml.safe_load(path.read_text())
    attacks = next(content["attacks"] for content in included(path) if "attacks" in content)
    assert build_all(each_radius(attacks))
    short = [
        {**one, "steps": 2} | ({"restarts": 1} if "restarts" in one else {}) for one in attacks
    ]
    quick += ["--attacks", json.dumps(short)]
    assert cli.evaluate([*arguments, *quick, *write_arrays(path, root)]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    sets = [name for content in included(path) for name in content.get("data", {}).get("far", [])]
    assert sets
    wanted = [
        d if isinstance(d, str) else d.get("label", d["name"]) for d in asked.get("detectors", [])
    ]
    assert set(wanted) <= {row["detector"] for row in found["rows"]}
    assert {row["attacked"] for row in found["rows"]} == {"none", "in", "out", "both"}


@pytest.mark.parametrize("path", files("published"))
def test_published(path):
    """The network of each can be built, without its memory, and its detectors read it."""
    config = parse_arguments(evaluate_command.parser(), ["-c", str(path)])
    assert config.published == path.stem
    net = build_without_memory(without_files(config.as_dict()["net"]))
    assert detectors.build_all(config.detectors, net)
    assert build_all(each_radius(config.attacks))
    assert len(build_certificates(config.certificates)) == len(config.certificates)


def without_files(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a network's settings with those of networks that files give in their places."""
    arguments = {}
    for key, value in spec.get("init_args", {}).items():
        arguments[key] = without_files(value) if isinstance(value, dict) else value
    if spec["class_path"].endswith("load_network"):
        return arguments["net"]
    return {"class_path": spec["class_path"], "init_args": arguments}


def test_every_published_claim_has_a_config():
    stems = {path.stem for path in (CONFIGS / "published").iterdir()}
    assert stems == set(published_checkpoints())
    used = {name for claim in published_checkpoints().values() for name in claim.failures}
    assert used <= set(checklist())


METHODS = ["standard", "oe", "aloe"]
MODELS = ["wrn_10_1", "resnet20"]
DATA = ["digits", "digits_near"]


@pytest.mark.parametrize(("data", "model", "method"), list(product(DATA, MODELS, METHODS)))
def test_data_models_and_methods_compose_in_any_order(capsys, data, model, method):
    """What one file sets, the others leave alone."""
    parts = {
        "data": file("data", data),
        "net": file("models", model),
        "model": file("methods", method),
    }
    settings = parsed(capsys, *parts["data"], *parts["net"], *parts["model"])
    assert settings == parsed(capsys, *parts["model"], *parts["net"], *parts["data"])
    own = yaml.safe_load(Path(parts["data"][1]).read_text())["data"]
    assert {name: settings["data"][name] for name in own} == own
    assert (
        settings["net"]["class_path"]
        == yaml.safe_load(Path(parts["net"][1]).read_text())["net"]["class_path"]
    )
    assert settings["model"]["class_path"].lower().endswith(f".{method}")


def test_options_win_over_files_and_files_over_what_they_include(capsys, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        f"include: [{CONFIGS}/experiments/digits_oe.yaml]\ndata: {{batch_size: 7, outlier_batch_size: 9}}\n"
    )
    settings = parsed(capsys, "-c", str(own), "--data.batch_size", "5")
    assert (settings["data"]["batch_size"], settings["data"]["outlier_batch_size"]) == (5, 9)
    assert settings["data"]["train"] == "digits/train"
