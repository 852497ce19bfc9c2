"""The networks that come with the package: hashes, outputs, accuracy, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from robust_ood import cli
from robust_ood.cli.zoo_command import verify
from robust_ood.data import load_set, to_float
from robust_ood.errors import UserError
from robust_ood.models import (
    load_network,
    load_weights,
    pretrained,
    read_card,
    read_checkpoint,
    rebuild,
    zoo,
    zoo_names,
)
from robust_ood.models.description import describe

NAMES = zoo_names()
ROOT = Path(__file__).parents[2]
MEGABYTES = 40
WITHOUT_OUTLIERS = (
    "ADV", "AutoEncoder", "ConfidenceGAN", "Flow", "GaussianNoise", "JEM", "SafeSpotAware", "Standard",
)  # fmt: skip
ONE = NAMES[0]


@pytest.fixture
def own_zoo(tmp_path, monkeypatch) -> Path:
    """A zoo of one network, to be damaged."""
    shutil.copytree(zoo.FOLDER / ONE, tmp_path / ONE)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    return tmp_path / ONE


def rewrite(card: Path, **changes: object) -> None:
    content = json.loads(card.read_text())
    content.update(changes)
    card.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_the_zoo_fits_into_a_wheel():
    sizes = [path.stat().st_size for path in zoo.FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) < MEGABYTES * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_what_its_card_says(name):
    assert "right" in verify(name)
    card = read_card(name)
    assert card["name"] == name
    assert card["recipe"].startswith("python train.py fit ")
    assert {"none", "both"} <= {row["attacked"] for row in card["detection"]}
    assert ("outliers" in card["data"]) == (card["method"] not in WITHOUT_OUTLIERS or "-oe" in name)
    alarms = [text for text in card["sanity"]["warnings"] if text.startswith(f"{name}, ")]
    assert card["sanity"]["verdict"] == ("alarms" if alarms else "no alarm")
    assert all(
        row["interval"][0] <= row["auroc"] <= row["interval"][1] for row in card["detection"]
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("digits-")])
def test_the_digits_networks_are_measured_alike(name):
    """So that their rows compare."""
    rows = {row["attacked"]: row for row in read_card(name)["detection"]}
    assert sorted(rows) == ["both", "in", "none", "out"]
    assert {row["group"] for row in rows.values()} == {"far"}
    assert {row["n_id"] for row in rows.values()} == {449}
    for attacked in ("both", "in", "out"):
        row = rows[attacked]
        attack = (row["attack"], row["norm"], row["radius"], row["steps"], row["restarts"])
        assert attack == ("pgd-16/255", "Linf", pytest.approx(16 / 255), 20, 2)
        assert rows["both"]["auroc"] <= row["auroc"] <= rows["none"]["auroc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_configs_and_networks_that_are_there(name):
    words = shlex.split(read_card(name)["recipe"])
    configs = [path for option, path in pairwise(words) if option == "-c"]
    assert configs
    assert [path for path in configs if not (ROOT / path).is_file()] == []
    starts = [path for option, path in pairwise(words) if option == "--init_from"]
    assert all(start.removeprefix("zoo:") in {*NAMES, "WEIGHTS"} for start in starts)


def test_each_method_with_a_recipe_of_the_digits_is_in_the_zoo():
    for path in (ROOT / "configs" / "experiments").glob("digits_*.yaml"):
        name = path.stem.replace("_", "-")
        if "-vit" not in name:  # the same methods on another network
            assert name in NAMES, f"train {path.name} and add it with benchmarks/build_zoo.py"


@pytest.mark.parametrize("name", NAMES)
def test_the_accuracy_of_a_digits_network_is_measured_again(name):
    card = read_card(name)
    if not str(card["data"]["test"]).startswith("digits") or card["accuracy"] is None:
        pytest.skip("its images are not part of the package, or it does not classify")
    data = card["data"]
    images = load_set(data["test"], ".", size=data.get("size"), channels=data.get("channels", 3))
    indices = torch.arange(len(images))
    assert len(images) == card["accuracy"]["n"]
    with torch.inference_mode():
        classes = pretrained(name)(to_float(images.read(indices))).argmax(1)
    right = (classes == images.read_labels(indices)).float().mean()
    # One image may fall on the other side on another machine.
    assert float(right) == pytest.approx(card["accuracy"]["clean"], abs=1.5 / len(images))


def test_a_zoo_network_stands_wherever_a_checkpoint_does():
    expected = pretrained(ONE).state_dict()
    description = describe(pretrained(ONE))
    ways = [
        load_network(f"zoo:{ONE}").state_dict(),
        load_network(Path(f"zoo:{ONE}")).state_dict(),
        read_checkpoint(f"zoo:{ONE}"),
        load_weights(rebuild(description), f"zoo:{ONE}").state_dict(),
    ]
    for state in ways:
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_an_unknown_name_is_refused_with_the_nearest():
    near = f"{ONE[:-1]}x"
    for load in (pretrained, read_card):
        with pytest.raises(UserError, match=f"^zoo: unknown name '{near}'; did you mean '{ONE}'"):
            load(near)
    with pytest.raises(UserError, match="unknown name"):
        load_network("zoo:../secret")


def test_damaged_weights_are_refused_in_one_line(own_zoo, capsys):
    weights = own_zoo / zoo.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for load in (pretrained, lambda name: read_checkpoint(f"zoo:{name}"), verify):
        with pytest.raises(UserError, match=f"the weights of {ONE} are damaged: expected sha256"):
            load(ONE)
    assert cli.main(["zoo", "verify", ONE]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "install the package again" in printed
    weights.unlink()
    with pytest.raises(UserError, match=f"the weights of {ONE} are missing"):
        pretrained(ONE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "no card of schema 1"),
        ({"sanity": ...}, "lacks sanity"),
        ({"probe": {"set": "noise/uniform", "n": 1, "size": 32, "channels": 3, "outputs": [[1e3] * 10]}},
         "other outputs"),
    ],
)  # fmt: skip
def test_a_card_that_is_not_right_is_refused(own_zoo, changes, words):
    rewrite(own_zoo / zoo.CARD, **changes)
    with pytest.raises(UserError, match=words):
        verify(ONE)


def test_the_commands_list_show_and_verify(own_zoo, capsys):
    assert cli.main(["zoo", "list"]) == 0
    assert f"zoo:{ONE}" in capsys.readouterr().out
    assert cli.main(["zoo", "show", ONE]) == 0
    shown = capsys.readouterr().out
    assert "recipe: python train.py fit" in shown
    assert "sha256" in shown
    assert cli.main(["zoo", "verify"]) == 0
    assert "hash right" in capsys.readouterr().out
    assert cli.main(["zoo", "show", "no-such"]) == 2
    assert capsys.readouterr().err.startswith("error: zoo: unknown name 'no-such'")
