"""Attacked images as files, read again, and scored by other detectors and networks."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
import torch

import robust_ood
from robust_ood import attacks, detectors
from robust_ood.attacks import PGD, Quantised, Suite, attack_score
from robust_ood.data import OODData, load_set
from robust_ood.data.overlap import overlap
from robust_ood.data.preview import contact_sheet
from robust_ood.detectors import MSP, Energy
from robust_ood.errors import UserError
from robust_ood.evaluation import FolderStore, Grid, Store
from robust_ood.evaluation.tasks import ScoreTask
from robust_ood.metrics import auroc
from robust_ood.names import file_name
from robust_ood.regions import L2, Linf

SIZES = {"test": 10, "near": 6, "far": 7}
RADIUS = 16 / 255
PGD_ATTACK = PGD(Linf(RADIUS), steps=2)
EIGHT_BIT = Quantised(PGD_ATTACK)


@pytest.fixture
def arrays(tmp_path):
    draws = np.random.default_rng(0)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, count in SIZES.items():
        images = draws.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        labels = {"labels": np.arange(count) % 4} if name == "test" else {}
        np.savez(folder / f"{name}.npz", images=images, **labels)
    return folder


def data_of(root, **changes):
    sets = {"test": "test.npz", "near": ["near.npz"], "far": ["far.npz"]} | changes
    return OODData(root=root, num_classes=4, evaluation_batch_size=4, **sets)


@pytest.fixture
def net(make_net):
    return make_net(dtype=torch.float32)


def evaluated(folder, nets, data, against, scores=("msp", "energy"), **settings):
    """Return a grid of several networks that has been computed, and its results."""
    store = FolderStore(folder) if folder else Store()
    grid = Grid(data, against, store, sanity=False, chunk=4, **settings)
    for name, net in nets.items():
        grid.add(name, net, dict(detectors.build_all(list(scores), net)))
    grid.compute()
    if folder:
        grid.write_attacked(folder)
    return grid, grid.results()


def saved_path(folder, model, detector, attack, images):
    return folder / "attacked" / model / detector / file_name(attack) / images


def rows_by(results, **fields):
    return [
        row
        for row in results.rows
        if all(getattr(row, name) == value for name, value in fields.items())
    ]


@pytest.mark.parametrize(
    ("label", "attack"),
    [
        ("pgd", PGD_ATTACK),
        ("pgd-16/255", EIGHT_BIT),
        ("L2", attacks.build("apgd", norm="L2", radius=0.5, steps=3)),
        ("transferred", attacks.build("transfer-msp", radius="16/255", steps=2)),
        ("suite", Suite({"fgsm": attacks.build("fgsm", radius="16/255"), "pgd": PGD_ATTACK})),
    ],
)
def test_saved_arrays_score_what_the_attack_scored(tmp_path, arrays, net, label, attack):
    folder = tmp_path / "results"
    _, results = evaluated(
        folder, {"net": net}, data_of(arrays), {label: attack}, save_attacked="npz"
    )
    for detector in ("msp", "energy"):
        place = saved_path(folder, "net", detector, label, "")
        again = data_of(
            place, test=str(place / "test.npz"), near=[str(place / "near.npz")], far=["far.npz"]
        )
        _, repeated = evaluated(None, {"net": net}, again, {}, scores=[detector])
        both = rows_by(results, detector=detector, attacked="both", attack=label)
        for before, after in zip(both, repeated.rows, strict=True):
            assert before.ood == after.ood
            assert before.auroc == after.auroc
            assert before.fpr95 == after.fpr95
        for name, count in SIZES.items():
            with np.load(place / f"{name}.npz") as file:
                saved = {key: file[key] for key in file.files}
            assert saved["images"].dtype == np.float32
            assert saved["images"].shape == (count, 6, 6, 3)
            assert saved["images"].min() >= 0
            assert saved["images"].max() <= 1
            assert saved["indices"].tolist() == list(range(count))
            assert (saved["labels"] == (np.arange(count) % 4 if name == "test" else -1)).all()
            assert str(saved["attack"]) == label
            assert str(saved["detector"]) == detector
            assert str(saved["norm"]) == attack.settings()["norm"]
            assert float(saved["radius"]) == attack.settings()["radius"]
            with np.load(arrays / f"{name}.npz") as file:
                clean = torch.from_numpy(file["images"]).permute(0, 3, 1, 2) / 255
            moved = torch.from_numpy(saved["images"]).permute(0, 3, 1, 2)
            subject = {"msp": MSP, "energy": Energy}[detector](net)
            with torch.no_grad():
                torch.testing.assert_close(subject(clean).numpy(), saved["scores_clean"])
                torch.testing.assert_close(subject(moved).numpy(), saved["scores_attacked"])
            region = {"Linf": Linf, "L2": L2}[str(saved["norm"])](float(saved["radius"]))
            assert (region.norm(moved - clean) <= region.radius * (1 + 1e-5)).all()


def test_png_of_a_quantised_attack_keep_the_score(tmp_path, arrays, net):
    folder = tmp_path / "results"
    _, results = evaluated(
        folder, {"net": net}, data_of(arrays), {"pgd": EIGHT_BIT}, save_attacked="png"
    )
    place = saved_path(folder, "net", "energy", "pgd", "")
    again = data_of(place, test="test.txt", near=["near.txt"], far=["far.txt"], size=6)
    assert again.inliers("test").labels.tolist() == [index % 4 for index in range(10)]
    _, repeated = evaluated(None, {"net": net}, again, {}, scores=["energy"])
    both = rows_by(results, detector="energy", attacked="both")
    assert [row.auroc for row in both] == [row.auroc for row in repeated.rows]
    rows = list(csv.DictReader((place / "near.csv").read_text().splitlines()))
    read = load_set(str(place / "near.txt"), tmp_path, size=6).read(torch.arange(6)) / 255
    with torch.no_grad():
        scores = Energy(net)(read.float())
    torch.testing.assert_close(torch.tensor([float(row["score_attacked"]) for row in rows]), scores)
    assert [row["file"] for row in rows] == [f"near/{index:08d}.png" for index in range(6)]
    assert json.loads((place / "near.json").read_text())["direction"] == -1


@pytest.mark.parametrize("form", ["npz", "png"])
def test_what_is_saved_is_not_written_again_and_follows_the_limit(
    tmp_path, arrays, net, form, monkeypatch
):
    folder = tmp_path / "results"
    settings = {"save_attacked": form}
    arguments = ({"net": net}, data_of(arrays), {"pgd": EIGHT_BIT})
    evaluated(folder, *arguments, limit=4)  # without images: these are attacked again
    evaluated(folder, *arguments, **settings)
    files = {path: path.stat().st_mtime_ns for path in folder.joinpath("attacked").rglob("*.*")}
    grid, _ = evaluated(folder, *arguments, **settings)
    assert grid.runner.computed == 0
    assert files == {path: path.stat().st_mtime_ns for path in files}
    grid, _ = evaluated(folder, *arguments, limit=4, **settings)
    assert grid.runner.computed == 0
    place = saved_path(folder, "net", "msp", "pgd", "")
    if form == "npz":
        assert len(np.load(place / "test.npz")["images"]) == 4
    else:
        assert len(os.listdir(place / "test")) == 4


def test_an_interrupted_run_continues(tmp_path, arrays, net, monkeypatch):
    whole = tmp_path / "whole"
    data = data_of(arrays)
    arguments = ({"net": net}, data, {"pgd": PGD_ATTACK})
    evaluated(whole, *arguments, save_attacked="npz")
    folder = tmp_path / "results"
    run = ScoreTask.run
    calls = []

    def stopping(task, labels):
        calls.append(task.title)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return run(task, labels)

    monkeypatch.setattr(ScoreTask, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluated(folder, *arguments, save_attacked="npz")
    grid, results = evaluated(folder, *arguments, save_attacked="npz")
    assert results.complete
    assert 0 < grid.runner.computed < 30
    for path in whole.joinpath("attacked").rglob("*.npz"):
        other = folder / path.relative_to(whole)
        with np.load(path) as first, np.load(other) as second:
            assert first.files == second.files
            for name in first.files:
                np.testing.assert_array_equal(first[name], second[name])


def test_a_damaged_chunk_of_images_is_computed_again(tmp_path, arrays, net):
    folder = tmp_path / "results"
    arguments = ({"net": net}, data_of(arrays), {"pgd": PGD_ATTACK})
    grid, _ = evaluated(folder, *arguments, save_attacked="npz")
    task = next(task for task in grid.models[0].tasks if getattr(task, "keeps_images", False))
    path = folder / "store" / "cells" / f"{task.images_key('msp')}.npz"
    path.write_bytes(path.read_bytes()[:-40])
    again, results = evaluated(folder, *arguments, save_attacked="npz")
    assert again.runner.computed == 1
    assert any("computed again" in line for line in results.warnings)


def test_transfer_rows_are_those_of_the_plain_functions(make_net, arrays):
    nets = {"a": make_net(0, dtype=torch.float32), "b": make_net(1, dtype=torch.float32)}
    _, results = evaluated(
        None, nets, data_of(arrays), {"pgd": PGD_ATTACK}, transfer=["a/energy", "b"]
    )
    assert not results.failures
    subjects = {}
    for name, net in nets.items():
        subjects[f"{name}/msp"] = MSP(net)
        subjects[f"{name}/energy"] = Energy(net)
    images = {}
    for name in SIZES:
        with np.load(arrays / f"{name}.npz") as file:
            images[name] = torch.from_numpy(file["images"]).permute(0, 3, 1, 2) / 255
    found = 0
    for source in ("a/energy", "b/msp", "b/energy"):
        moved = {}
        for name, clean in images.items():
            direction = 1 if name == "test" else -1
            attacked = attack_score(subjects[source], clean, PGD_ATTACK, direction)
            moved[name] = attacked.images
        for target, subject in subjects.items():
            model, detector = target.split("/")
            rows = rows_by(results, model=model, detector=detector, attack=f"pgd from {source}")
            if target == source:
                assert rows == []
                continue
            assert len(rows) == 12  # two sets and their groups, three sides
            for row in rows:
                if row.ood not in images:
                    continue
                inliers = (moved if row.attacked in ("in", "both") else images)["test"]
                outliers = (moved if row.attacked in ("out", "both") else images)[row.ood]
                with torch.no_grad():
                    expected = auroc(subject(inliers), subject(outliers))
                assert row.auroc == pytest.approx(expected, abs=1e-6)
                assert (row.norm, row.radius, row.steps) == ("Linf", PGD_ATTACK.region.radius, 2)
                found += 1
    assert found == 3 * 3 * 12  # the sets are called as their groups


def test_transfer_attacks_nothing_twice(tmp_path, make_net, arrays, monkeypatch):
    nets = {name: make_net(seed, dtype=torch.float32) for seed, name in enumerate("ab")}
    attacked = []
    run = ScoreTask.run

    def counting(task, labels):
        if task.perturbation is not None:
            attacked.append(task.title)
        return run(task, labels)

    monkeypatch.setattr(ScoreTask, "run", counting)
    arguments = (nets, data_of(arrays), {"pgd": PGD_ATTACK})
    settings = {"scores": ["msp"], "transfer": "all"}
    _, results = evaluated(tmp_path, *arguments, **settings)
    assert len(attacked) == len(set(attacked))
    labels = {row.attack for row in results.rows}
    assert len(labels) == 2 + 2
    grid, again = evaluated(tmp_path, *arguments, **settings)
    assert grid.runner.computed == 0
    assert [row.auroc for row in again.rows] == [row.auroc for row in results.rows]


def test_a_source_that_fails_costs_its_transfers_alone(make_net, arrays):
    class Broken(Energy):
        def surrogate(self, images):
            raise RuntimeError("no gradient here")

    nets = {"a": make_net(0, dtype=torch.float32), "b": make_net(1, dtype=torch.float32)}
    grid = Grid(data_of(arrays), {"pgd": PGD_ATTACK}, Store(), sanity=False, transfer="all")
    grid.add("a", nets["a"], {"broken": Broken(nets["a"])})
    grid.add("b", nets["b"], {"msp": MSP(nets["b"])})
    grid.compute()
    results = grid.results()
    assert results.complete
    assert {(failure.model, failure.stage) for failure in results.failures} == {
        ("a", "score"),
        ("b", "transfer"),
    }
    assert "a/broken gave no images attacked by pgd" in str(results.failures)
    assert rows_by(results, model="a", attack="pgd from b/msp")
    assert not rows_by(results, model="b", attack="pgd from a/broken")


def test_a_source_that_cannot_be_fitted_costs_its_transfers_alone(make_net, arrays):
    net = make_net(0, dtype=torch.float32)
    data = data_of(arrays, train="test.npz", allow_overlap=True)
    unfit = detectors.build("knn", net, neighbours=1000)  # of 10 images
    settings = {"sanity": False, "transfer": ["a/unfit", "a/msp"]}
    grid = Grid(data, {"pgd": PGD_ATTACK}, Store(), **settings)
    grid.add("a", net, {"unfit": unfit, "msp": MSP(net), "energy": Energy(net)})
    grid.compute()
    results = grid.results()
    assert {failure.stage for failure in results.failures} == {"fit"}
    assert rows_by(results, detector="energy", attack="pgd from a/msp")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_attacked": "jpg"}, "save_attacked: expected .*npz.*png.*jpg"),
        ({"save_attacked": "png"}, "save_attacked: png keeps 8 bits.*quantise: true"),
        ({"save_attacked": "npz"}, "save_attacked: needs the folder"),
        ({"save_attacked": "npz", "attacks": {}}, "save_attacked: no attacks are given"),
        ({"transfer": "model/mps"}, "transfer: .*'model/mps'; did you mean 'model/msp'"),
        ({"transfer": ["all"], "attacks": {}}, "transfer: no attacks"),
        ({"transfer": [3]}, "transfer: expected a string or a list"),
        ({"transfer": [" "]}, "transfer: expected all, or a list of networks"),
        ({"transfer": "all", "scores": ["msp"]}, "transfer: the evaluation has one detector"),
    ],
)
def test_mistakes_are_one_line(arrays, net, settings, message):
    settings = {"attacks": {"pgd": PGD_ATTACK}, "scores": ["msp", "energy"]} | settings
    scores = dict(detectors.build_all(settings.pop("scores"), net))
    with pytest.raises(UserError, match=message) as raised:
        robust_ood.evaluate(net, detectors=scores, data=data_of(arrays), sanity=False, **settings)
    assert "\n" not in str(raised.value)


def attacked_file(path, images, **arrays):
    np.savez(path, images=images, attack="mine", **arrays)
    return str(path)


def test_images_that_other_tools_attacked_are_read_the_same_way(tmp_path, arrays, net):
    images = np.random.default_rng(1).random((5, 6, 6, 3))
    path = attacked_file(tmp_path / "others.npz", images)
    _, results = evaluated(None, {"net": net}, data_of(arrays, far=[path]), {"pgd": PGD_ATTACK})
    assert len(rows_by(results, ood="others")) == 2 * 4
    read = load_set(path, tmp_path)
    assert read.is_float
    subset = read.subset(np.array([3, 1]))
    torch.testing.assert_close(
        subset.read(torch.arange(2)), torch.from_numpy(images[[3, 1]]).float().permute(0, 3, 1, 2)
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"size": 8}, "taken as they are, 3 channels of 6 x 6"),
        ({"channels": 1}, "taken as they are, 3 channels of 6 x 6"),
        ({"corruption": "fog"}, "corruption: .*attacked images as floats"),
        ({"values": 1.5}, "attacked images as floats in \\[0, 1\\], got values in 0..1.5"),
        ({"values": np.nan}, "NaN"),
        ({"attack": np.array(["a", "b"])}, "attack: expected one text"),
        ({"attack": ""}, "attack: expected one text"),
    ],
)
def test_attacked_images_are_not_changed_when_they_are_read(tmp_path, spec, message):
    images = np.zeros((2, 6, 6, 3), np.float32)
    images[0, 0, 0, 0] = spec.pop("values", 0)
    path = tmp_path / "others.npz"
    np.savez(path, images=images, attack=spec.pop("attack", "mine"))
    with pytest.raises(UserError, match=message):
        load_set({"source": str(path), **spec}, tmp_path)


@pytest.mark.parametrize("part", ["train", "validation", "outliers"])
def test_only_evaluations_read_attacked_floats(tmp_path, arrays, part):
    images = np.zeros((4, 6, 6, 3), np.float32)
    path = attacked_file(tmp_path / "others.npz", images, labels=np.arange(4))
    data = data_of(arrays, **{part: path})
    with pytest.raises(UserError, match=f"data.{part}: others holds attacked images"):
        data.outliers() if part == "outliers" else data.inliers(part)


def test_attacked_floats_are_shown_and_compared_as_8_bits(tmp_path):
    levels = np.random.default_rng(2).integers(0, 256, (5, 40, 40, 3))
    floats = (levels + np.random.default_rng(3).uniform(-0.4, 0.4, levels.shape)).clip(0, 255) / 255
    attacked = load_set(attacked_file(tmp_path / "others.npz", floats), tmp_path)
    np.savez(tmp_path / "clean.npz", images=levels.astype(np.uint8))
    clean = load_set("clean.npz", tmp_path)
    shown = np.asarray(contact_sheet(attacked))
    np.testing.assert_array_equal(shown[30:], np.asarray(contact_sheet(clean))[30:])
    found = overlap(attacked, clean)
    assert found.exact.tolist() == [[index, index] for index in range(5)]
