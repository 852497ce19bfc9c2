"""Covariate-shifted inliers: pooled with the inliers in rows of their own, attacked as inliers."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from robust_ood.attacks import PGD
from robust_ood.data import OODData
from robust_ood.detectors import MSP, Energy
from robust_ood.errors import UserError
from robust_ood.evaluation import FolderStore, Grid, Results, print_results
from robust_ood.metrics import auroc, deployed_threshold
from robust_ood.regions import Linf
from robust_ood.reporting import write_report
from robust_ood.reporting.report_data import read_folders
from robust_ood.reporting.roc_gallery import roc_figures
from robust_ood.reporting.shifted import shifted_accuracies
from robust_ood.reporting.significance import comparisons
from robust_ood.reporting.table_files import table_files

SIZES = {"test": 10, "near": 6, "far": 7, "far2": 4, "fog": 5, "snow": 3, "validation": 8}
ATTACK = PGD(Linf(16 / 255), steps=2)


@pytest.fixture
def arrays(tmp_path):
    draws = np.random.default_rng(0)
    for name, count in {"train": 20, **SIZES}.items():
        images = draws.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        labels = {} if name == "fog" else {"labels": np.arange(count) % 4}
        np.savez(tmp_path / f"{name}.npz", images=images, **labels)
    return tmp_path


def data_of(folder, **changes):
    names = {
        "train": "train.npz", "test": "test.npz", "validation": "validation.npz",
        "near": ["near.npz"], "far": ["far.npz", "far2.npz"], "shifted": ["fog.npz", "snow.npz"],
    } | changes  # fmt: skip
    return OODData(root=folder, num_classes=4, evaluation_batch_size=4, **names)


@pytest.fixture
def evaluated(arrays, make_net):
    """An evaluation of two detectors in a folder."""
    net = make_net(dtype=torch.float32)
    folder = arrays / "results"
    grid = Grid(data_of(arrays), {"pgd": ATTACK}, FolderStore(folder), chunk=4)
    grid.add("net", net, {"msp": MSP(net), "energy": Energy(net)})
    grid.compute()
    results = grid.results()
    results.write(folder)
    return folder


def scores_of(folder, attack, detector="msp"):
    data = read_folders([folder])
    return {sets.images: sets.values for sets in data.scores("net", detector, attack)}


def find(results, **fields):
    (row,) = [r for r in results.rows if all(getattr(r, n) == v for n, v in fields.items())]
    return row


@pytest.mark.parametrize("attacked", ["none", "in", "out", "both"])
def test_rows_of_the_full_spectrum_pool_all_inliers(evaluated, attacked):
    results = Results.read(evaluated)
    attack = "none" if attacked == "none" else "pgd"
    inliers = scores_of(evaluated, attack if attacked in ("in", "both") else "none")
    outliers = scores_of(evaluated, attack if attacked in ("out", "both") else "none")
    pooled = np.concatenate([inliers[name] for name in ("test", "fog", "snow")])
    fields = {"detector": "msp", "attacked": attacked, "attack": attack}
    for group, sets in {"near": ["near"], "far": ["far", "far2"]}.items():
        values = []
        for name in sets:
            row = find(results, ood=name, group=f"full-{group}", **fields)
            values.append(auroc(torch.from_numpy(pooled), torch.from_numpy(outliers[name])))
            assert row.auroc == pytest.approx(values[-1])
            assert row.id == "test + fog + snow"
            assert (row.n_id, row.n_ood) == (18, SIZES[name])
            accepted = (pooled >= row.threshold).mean()
            assert row.tpr_deployed == pytest.approx(accepted)
            alone = [r for r in results.rows if (r.ood, r.group) == (name, group)]
            assert {r.n_id for r in alone} == {10}
        mean = find(results, ood=f"full-{group}", group=f"full-{group}", **fields)
        assert mean.auroc == pytest.approx(np.mean(values))


def test_shifted_inliers_are_attacked_as_inliers(evaluated):
    clean = scores_of(evaluated, "none")
    attacked = scores_of(evaluated, "pgd")
    for name in ("test", "fog", "snow"):
        assert (attacked[name] <= clean[name]).all()
        assert (attacked[name] < clean[name]).any()
    assert (attacked["far"] >= clean["far"]).all()


def test_the_threshold_stays_that_of_clean_validation_images(evaluated):
    results = Results.read(evaluated)
    expected = deployed_threshold(torch.from_numpy(scores_of(evaluated, "none")["validation"]))
    assert {row.threshold for row in results.rows if row.detector == "msp"} == {expected}
    assert all(interval.tpr_deployed is not None for interval in results.intervals)


def test_a_threshold_of_the_tested_images_has_no_interval(arrays, make_net):
    net = make_net(dtype=torch.float32)
    grid = Grid(data_of(arrays, validation=None), {}, FolderStore(arrays / "results"))
    grid.add("net", net, {"msp": MSP(net)})
    grid.compute()
    assert {interval.tpr_deployed for interval in grid.results().intervals} == {None}


def test_reports_and_comparisons_show_both_spectra(evaluated, capsys):
    data = read_folders([evaluated])
    assert data.groups == ["near", "far", "full-near", "full-far"]
    groups = {}
    for comparison in comparisons(data, "both", 0.95):
        groups[comparison.group] = comparison
    assert list(groups) == data.groups
    page = write_report([evaluated], evaluated / "report.html").read_text(encoding="utf-8")
    assert "full-near OOD: AUROC" in page
    assert "shifted inliers" in page
    assert "full-far" in "".join(figure.name + figure.alt for figure in roc_figures(data))
    print_results(Results.read(evaluated))
    assert "full-near" in capsys.readouterr().out


def test_without_shifted_inliers_nothing_is_added(arrays, make_net):
    net = make_net(dtype=torch.float32)
    grid = Grid(data_of(arrays, shifted=None), {}, FolderStore(arrays / "results"))
    grid.add("net", net, {"msp": MSP(net)})
    grid.compute()
    assert {row.group for row in grid.results().rows} == {"near", "far"}


def test_certificates_leave_shifted_inliers_out(arrays, make_net):
    from robust_ood.evaluation.certificates import build_certificates

    net = make_net(dtype=torch.float32)
    noise = {"name": "smoothing", "sigma": 0.25, "radius": [0.1], "draws": 40}
    certificates = build_certificates([noise])
    store = FolderStore(arrays / "results")
    grid = Grid(data_of(arrays), {}, store, certificates=certificates)
    grid.add("net", net, {"msp": MSP(net)})
    grid.compute()
    rows = grid.results().rows
    smoothed = {row.group for row in rows if row.detector != "msp"}
    assert smoothed == {"near", "far"}
    assert {row.group for row in rows if row.detector == "msp"} > smoothed


def test_two_shifted_sets_of_one_name_are_refused(arrays):
    data = data_of(arrays, shifted=["fog.npz", {"source": "snow.npz", "name": "fog"}])
    with pytest.raises(UserError, match=r"data\.shifted: .* both called 'fog'"):
        data.shifted_sets()


def test_labelled_shifted_inliers_have_accuracies_beside_the_test_sets(evaluated, make_net):
    results = Results.read(evaluated)
    assert [(row.id, row.attack) for row in results.classification] == [
        ("test", "none"),
        ("test", "pgd"),
    ]
    shifted = results.shifted_classification  # fog has no labels
    assert [(row.id, row.attack, row.n) for row in shifted] == [
        ("snow", "none", 3),
        ("snow", "pgd", 3),
    ]
    net = make_net(dtype=torch.float32).eval()
    images = data_of(evaluated.parent).shifted_sets()[1]
    pixels = images.read(torch.arange(3)) / 255
    right = net(pixels).argmax(1) == images.read_labels(torch.arange(3))
    assert shifted[0].accuracy == pytest.approx(right.double().mean().item())
    assert shifted[1].accuracy <= shifted[0].accuracy
    assert (shifted[1].norm, shifted[1].radius) == ("Linf", 16 / 255)


def test_shifted_accuracies_are_in_report_csv_and_terminal(evaluated, capsys):
    (row, _) = Results.read(evaluated).shifted_classification
    page = write_report([evaluated], evaluated / "report.html").read_text()
    assert "Accuracy on shifted inliers" in page
    texts = table_files(read_folders([evaluated]), "csv")
    lines = list(csv.DictReader(io.StringIO(texts["table-accuracy-on-shifted-inliers.csv"])))
    assert [line["Images"] for line in lines] == ["test", "snow"]
    assert float(lines[1]["clean"]) == row.accuracy
    for full in (False, True):
        print_results(Results.read(evaluated), full=full)
        assert "shifted inliers" in capsys.readouterr().out


def test_shifted_accuracies_of_seeds_are_a_mean(evaluated):
    one = read_folders([evaluated])
    other = [replace(row, model="net 2", accuracy=1.0) for row in one.results.classification]
    shifted = [
        replace(row, model="net 2", accuracy=1.0) for row in one.results.shifted_classification
    ]
    first = one.results.shifted_classification[0].accuracy
    one.results.classification += other
    one.results.shifted_classification += shifted
    one.recipes["recipe"] = ["net", "net 2"]
    table = shifted_accuracies(one)
    assert [[cell.text for cell in row[:2]] for row in table.rows] == [
        ["recipe", "test"],
        ["recipe", "snow"],
    ]
    assert table.rows[1][2].value == pytest.approx((first + 1) / 2)
    assert "\N{PLUS-MINUS SIGN}" in table.rows[1][2].text


def test_labels_of_other_classes_give_a_warning_and_no_accuracy(arrays):
    images = np.zeros((2, 6, 6, 3), np.uint8)
    np.savez(arrays / "snow.npz", images=images, labels=np.array([0, 7]))
    with pytest.warns(UserWarning, match=r"data\.shifted: snow: labels reach 7.*no accuracy"):
        fog, snow = data_of(arrays).shifted_sets()
    assert fog.labels is None
    assert snow.labels is None


def test_class_names_bind_the_labels_of_shifted_inliers(arrays):
    names = np.array(["a", "b", "c", "d"])
    for name, classes in (("train", names), ("snow", names[::-1])):
        content = dict(np.load(arrays / f"{name}.npz"))
        np.savez(arrays / f"{name}.npz", **content, class_names=classes)
    _, snow = data_of(arrays).shifted_sets()
    assert snow.labels.tolist() == [3, 2, 1]
