"""Universal perturbations: found on images that are not tested, the same for all that are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import robust_ood
from robust_ood import attacks, detectors
from robust_ood.attacks import Universal, attack_labels, attack_score
from robust_ood.callbacks import RobustValidation
from robust_ood.data import OODData
from robust_ood.detectors import Detector, Energy
from robust_ood.errors import UserError
from robust_ood.evaluation import FolderStore, Grid
from robust_ood.evaluation.scene import set_scene
from robust_ood.regions import L1, L2, Linf

SIZES = {"train": 24, "test": 8, "near": 6, "outliers": 20}


class Linear(Detector):
    """Scores `w . x`, whose best perturbation is the same for all images."""

    def __init__(self):
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(3, 6, 6, generator=source))

    def forward(self, images):
        return (self.weight * images).flatten(1).sum(1)


@pytest.fixture
def arrays(tmp_path):
    draws = np.random.default_rng(0)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for name, count in SIZES.items():
        images = draws.integers(60, 190, (count, 6, 6, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(count) % 4)
    return folder


def data_of(arrays, **changes):
    sets = {"train": "train.npz", "outliers": "outliers.npz"} | changes
    return OODData(root=arrays, test="test.npz", near=["near.npz"], num_classes=4, **sets)


def read(arrays, name):
    with np.load(arrays / f"{name}.npz") as file:
        return torch.from_numpy(file["images"]).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("region", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])
@pytest.mark.parametrize("direction", [1, -1])
def test_of_a_linear_score_it_is_the_best_step(arrays, region, direction):
    detector = Linear()
    images = read(arrays, "train")
    found = Universal(region, steps=60, batch_size=8).search(detector, images, direction)
    best = -direction * region.radius * region.steepest(detector.weight[None])
    torch.testing.assert_close(found[None], best, rtol=0, atol=2e-3)
    assert region.norm(found[None]) <= region.radius * (1 + 1e-5)


def test_it_is_the_same_for_all_images_and_moves_those_it_never_saw(make_net, arrays):
    net = make_net(dtype=torch.float32)
    detector = Energy(net)
    attack = attacks.build("universal", radius="16/255", steps=40)
    fitted = attack.fit(detector, read(arrays, "train"), read(arrays, "outliers"))
    again = attack.fit(detector, read(arrays, "train"), read(arrays, "outliers"))
    for direction, name in ((1, "test"), (-1, "near")):
        images = read(arrays, name)
        moved = attack_score(detector, images, fitted, direction)
        step = moved.images - images
        torch.testing.assert_close(step, step[:1].expand_as(step), rtol=0, atol=1e-5)
        assert step.abs().max() <= 16 / 255 + 1e-6
        with torch.no_grad():
            shift = direction * (moved.values - detector(images))
        assert shift.mean() < 0
        assert torch.equal(again.perturbations[direction], fitted.perturbations[direction])
    assert not torch.equal(fitted.perturbations[1], fitted.perturbations[-1])


def run(folder, net, data, against, scores=("energy", "msp"), **settings):
    grid = Grid(data, against, FolderStore(folder), chunk=4, **settings)
    grid.add("net", net, dict(detectors.build_all(list(scores), net)))
    grid.compute()
    return grid, grid.results()


def test_rows_are_those_of_the_plain_functions_and_are_computed_once(tmp_path, make_net, arrays):
    net = make_net(dtype=torch.float32)
    attack = attacks.build("universal", radius="16/255", steps=10)
    against = {
        "universal": attack,
        "levels": attacks.build("universal", radius="16/255", steps=10, quantise=True),
    }
    _, results = run(tmp_path / "a", net, data_of(arrays), against)
    assert not results.failures
    assert results.complete
    detector = Energy(net)
    fitted = attack.fit(detector, read(arrays, "train"), read(arrays, "outliers"))
    inliers = attack_score(detector, read(arrays, "test"), fitted, 1).images
    outliers = attack_score(detector, read(arrays, "near"), fitted, -1).images
    with torch.no_grad():
        expected = robust_ood.metrics.auroc(detector(inliers), detector(outliers))
    (row, _) = [
        row
        for row in results.rows
        if (row.detector, row.attack, row.attacked) == ("energy", "universal", "both")
    ]
    assert row.auroc == pytest.approx(expected, abs=1e-6)
    assert (row.norm, row.steps) == ("Linf", 10)
    # The classifier has no row under it.
    assert {record.attack for record in results.classification} == {"none"}
    again, repeated = run(tmp_path / "a", net, data_of(arrays), against)
    assert again.runner.computed == 0
    assert [row.auroc for row in repeated.rows] == [row.auroc for row in results.rows]


def test_images_that_are_tested_do_not_matter_and_those_fitted_on_do(tmp_path, make_net, arrays):
    net = make_net(dtype=torch.float32)
    against = {"universal": attacks.build("universal", radius="16/255", steps=5, images=8)}
    settings = {"scores": ["energy"], "sanity": False}
    run(tmp_path / "a", net, data_of(arrays), against, **settings)
    np.savez(
        arrays / "test.npz",
        images=np.full((8, 6, 6, 3), 90, np.uint8)
        + np.arange(8, dtype=np.uint8)[:, None, None, None],
        labels=np.arange(8) % 4,
    )
    grid, _ = run(tmp_path / "a", net, data_of(arrays), against, **settings)
    stages = [task.stage for task in grid.models[0].tasks]
    assert "universal" in stages
    kept = [task for task in grid.models[0].tasks if task.stage == "universal"]
    cells = [read_about(grid, task) for task in kept]
    assert all(about["stage"] == "universal" for about in cells)
    # Only what is tested was computed: test scores clean and attacked, and the accuracy.
    assert grid.runner.computed == 2 * 3


def read_about(grid, task):
    (key,) = task.keys.values()
    return grid.store.read(key).about


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": None}, "give data.train or data.validation"),
        ({"outliers": None}, "give data.outliers or data.validation_ood"),
    ],
)
def test_without_images_to_fit_on_it_is_refused_before_any_work(
    tmp_path, make_net, arrays, changes, message
):
    net = make_net(dtype=torch.float32)
    against = {"universal": attacks.build("universal", radius="8/255")}
    with pytest.raises(UserError, match=f"attacks.universal: .*{message}"):
        run(tmp_path / "a", net, data_of(arrays, **changes), against)
    assert not (tmp_path / "a").exists()


def test_one_that_is_no_better_than_noise_raises_an_alarm(tmp_path, make_net, arrays):
    class Misled(Energy):
        def surrogate(self, images):
            return -super().surrogate(images)

    net = make_net(dtype=torch.float32)
    against = {"universal": attacks.build("universal", radius="16/255", steps=10)}
    grid = Grid(data_of(arrays), against, FolderStore(tmp_path), sanity=False)
    grid.add("net", net, {"misled": Misled(net), "energy": Energy(net)})
    grid.compute()
    alarms = [line for line in grid.results().warnings if "no further than random noise" in line]
    assert alarms
    assert all(line.startswith("net, misled: the universal perturbation") for line in alarms)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.build("universal", steps=0), "steps: 0"),
        (lambda: attacks.build("universal", batch_size=0), "batch_size: 0"),
        (lambda: attacks.build("universal", images=0), "images: 0"),
        (lambda: attacks.build("universal", precision="float8"), "precision"),
        (lambda: attacks.build("universal", norm="L1", radius=12), "region: .*Linf or L2"),
        (lambda: Universal(L1(3.0)), "region: .*Linf or L2"),
        (
            lambda: attacks.build("universal", region={"name": "patch", "side": 3}),
            "region: .*Linf or L2",
        ),
        (
            lambda: RobustValidation(attacks=[{"name": "universal"}]),
            "robust_validation.attacks.universal: .*evaluations",
        ),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_what_is_not_fitted_says_so(make_net, arrays):
    net = make_net(dtype=torch.float32)
    attack = attacks.build("universal", radius="8/255")
    images = read(arrays, "test")
    with pytest.raises(UserError, match="universal: it has no perturbation yet; call its fit"):
        attack_score(Energy(net), images, attack, 1)
    with pytest.raises(UserError, match="universal: attacks detectors"):
        attack_labels(net, images, torch.zeros(8, dtype=torch.long), attack)
    with pytest.raises(UserError, match="images: none given"):
        attack.search(Energy(net), images[:0], 1)
    fitted = attack.fit(Energy(net), images, images)
    with pytest.raises(UserError, match="universal: found on images"):
        attack_score(Energy(net), images[..., :4], fitted, 1)
    assert set_scene(data_of(arrays), {"universal": attack}).attack is None
