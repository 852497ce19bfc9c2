"""Pictures against naive loops, and how they are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robust_ood.attacks import PGD, LowResolution, attack_score
from robust_ood.data import OODData
from robust_ood.detectors import MSP, PRO, Detector, Energy, Mean, Standardize
from robust_ood.errors import UserError
from robust_ood.evaluation import pictures
from robust_ood.evaluation import scene as scenes
from robust_ood.evaluation.curves import ScoreTrace, curve, trace
from robust_ood.evaluation.kinds import pictures_of
from robust_ood.evaluation.picture_settings import CurveSettings, TransferSettings
from robust_ood.evaluation.pictures import Picture, read_pictures, write_picture
from robust_ood.evaluation.scene import Scene, Side
from robust_ood.evaluation.transfer import transfer
from robust_ood.regions import L2, Linf


@pytest.fixture(scope="module")
def scene(trained) -> Scene:
    _, inliers, _, outliers = trained
    many = [Side("in", inliers[:10], ("patterns",)), Side("far", outliers[:9], ("noise",))]
    shown = [Side("in", inliers[:2], ("patterns",) * 2), Side("far", outliers[:3], ("noise",) * 3)]
    return Scene(many, shown, PGD(Linf(16 / 255), steps=3, restarts=1), "pgd", 4)


@pytest.fixture(scope="module")
def detector(trained) -> Detector:
    return PRO(MSP(trained[0]), steps=2, step_size=0.01)


def test_shift_is_the_change_of_the_true_score_after_one_sign_step_down(detector, scene):
    arrays, about = scenes.shift(detector, scene)
    assert about["sets"] == {"in": "patterns", "far": "noise"}
    for row, size in enumerate(arrays["sizes"]):
        for side in scene.many:
            for place, image in enumerate(side.images):
                leaf = image[None].clone().requires_grad_()
                (gradient,) = torch.autograd.grad(detector.surrogate(leaf).sum(), leaf)
                with torch.no_grad():
                    wanted = detector(image[None] - size * gradient.sign()) - detector(image[None])
                assert arrays[side.name][row, place] == pytest.approx(wanted.item(), abs=1e-5)
    assert np.median(arrays["in"][1]) < 0


def test_curves_begin_at_the_clean_scores_and_reach_twice_the_radius(detector, scene):
    arrays, about = scenes.curves(detector, scene)
    sizes = [0.0, 1 / 255]
    traces = [
        ScoreTrace(*(torch.from_numpy(arrays[f"{side}_{name}"]) for name in ScoreTrace._fields))
        for side in ("in", "far")
    ]
    before, after = curve(*traces, sizes).aurocs
    assert about["loss_of_auroc"] == {"far": (before, after, after - before)}
    for side, sign in (("in", 1), ("far", -1)):
        images = next(one.images for one in scene.many if one.name == side)
        with torch.no_grad():
            clean = detector(images)
        assert arrays[f"{side}_scores"].shape == (11, len(images))
        assert arrays[f"{side}_scores"][0] == pytest.approx(clean.numpy(), abs=1e-5)
        assert arrays[f"{side}_linf"].max() == pytest.approx(32 / 255, abs=1e-6)
        assert (sign * (arrays[f"{side}_scores"][-1] - arrays[f"{side}_scores"][0])).mean() < 0


def test_landscape_is_the_score_on_a_plane_through_the_image(detector, scene):
    arrays, about = scenes.landscape(detector, scene)
    offsets, scores = arrays["offsets"], arrays["scores"]
    assert about["groups"] == ["in", "in", "far", "far", "far"]
    assert scores.shape == (5, 13, 13)
    images = torch.cat([side.images for side in scene.shown])
    with torch.no_grad():
        assert scores[:, 6, 6] == pytest.approx(detector(images).numpy(), abs=1e-5)
    assert offsets[-1] == -offsets[0] == pytest.approx(32 / 255)
    # The same directions for every image, u along columns and v along rows.
    u, v = (
        torch.randn(images[0].shape, generator=scenes.generator(0, "landscape", axis))
        for axis in range(2)
    )
    u, v = (noise / noise.square().mean().sqrt() for noise in (u, v))
    moved = (images[3] + offsets[2] * u + offsets[11] * v).clamp(0, 1)
    with torch.no_grad():
        assert scores[3, 11, 2] == pytest.approx(detector(moved[None]).item(), abs=1e-5)


def test_strips_show_what_the_attack_finds(detector, scene):
    arrays, about = scenes.strips(detector, scene)
    assert (about["attack"], about["radius"]) == ("pgd", 16 / 255)
    lost = attack_score(detector, scene.shown[0].images, scene.attack, 1)
    assert arrays["after"][:2] == pytest.approx(lost.values.numpy(), abs=1e-5)
    assert (arrays["after"][:2] <= arrays["before"][:2]).all()
    assert (arrays["after"][2:] >= arrays["before"][2:]).all()
    difference = np.abs(arrays["attacked"].astype(int) - arrays["clean"])
    assert arrays["clean"].shape == (5, 8, 8, 3)
    assert 0 < difference.max() <= 17  # one level of rounding
    pixels = scene.shown[0].images[1].permute(1, 2, 0).numpy() * 255
    assert np.abs(arrays["clean"][1] - pixels).max() <= 0.5


def test_errors_are_the_images_that_the_score_misplaces_most(detector, scene):
    arrays, about = scenes.errors(detector, scene)
    start = 0
    for side in scene.many:
        with torch.no_grad():
            scores = detector(side.images)
        count = min(scenes.SHOWN, len(scores))
        worst = scores.sort(descending=side.name != "in").values[:count]
        chosen = arrays["scores"][start : start + count]
        assert chosen == pytest.approx(worst.numpy(), abs=1e-5)
        assert about["groups"][start : start + count] == [side.name] * count
        assert about["sets"][start : start + count] == [side.sets[0]] * count
        pixels = torch.from_numpy(arrays["clean"][start : start + count]).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            assert detector(pixels) == pytest.approx(worst, abs=0.05)
        start += count
    assert start == len(arrays["scores"]) == len(arrays["clean"])


class _Blind(Detector):
    def forward(self, images):
        return (images.flatten(1).mean(1) > 0.5).float()


def test_what_cannot_be_drawn_says_why_and_the_rest_goes_on(scene):
    found = {
        one.kind: one
        for one in pictures.draw(
            "tiny", {"blind": _Blind()}, scene, pictures_of(["shift", "landscape"])
        )
    }
    assert "carry no gradient" in found["shift"].about["failed"]
    assert found["shift"].arrays == {}
    assert found["landscape"].arrays["scores"].shape == (5, 13, 13)


def test_only_what_is_missing_or_changed_is_drawn(trained, scene, tmp_path):
    def draw(size: float, kinds: list[str], where: Scene = scene) -> int:
        detector = PRO(MSP(trained[0]), steps=1, step_size=size)
        requests = pictures_of(kinds)
        return pictures.draw_into(tmp_path, "tiny", {"pro": detector}, where, requests)

    assert draw(0.01, ["shift"]) == 1
    assert draw(0.01, ["shift"]) == 0
    assert draw(0.01, ["shift", "landscape"]) == 1
    assert draw(0.02, ["shift", "landscape"]) == 2
    fewer = scene._replace(many=[side._replace(images=side.images[:5]) for side in scene.many])
    assert draw(0.02, ["shift"], fewer) == 1
    assert [picture.kind for picture in read_pictures(tmp_path)] == [
        "shift"
    ]  # the landscape was of other images
    assert draw(0.01, [], fewer) == 0
    assert (
        read_pictures(tmp_path) == []
    )  # nor does a picture of another detector stay beside new numbers


def test_pictures_are_kept_under_names_that_differ(tmp_path):
    for number, name in enumerate(("pro gen", "pro-gen", "PRO/gen")):
        arrays = {"sizes": np.array([number]), "in": np.zeros((1, 2))}
        path = write_picture(
            tmp_path,
            Picture("shift", "a/b", name, arrays, {"sets": {"in": "digits"}}, f"key{number}"),
        )
        assert path.parent == tmp_path / "figures"
    found = {picture.detector: picture for picture in read_pictures(tmp_path)}
    assert {name: int(picture.arrays["sizes"][0]) for name, picture in found.items()} == {
        "pro gen": 0, "pro-gen": 1, "PRO/gen": 2}  # fmt: skip
    assert found["pro-gen"].key == "key1"
    assert found["pro-gen"].about == {"sets": {"in": "digits"}}


def test_the_scene_takes_the_first_images_of_each_group_and_the_largest_radius(tmp_path):
    draws = np.random.default_rng(0)
    for name in ("test", "near", "far", "other"):
        images = draws.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(6) % 2)
    data = OODData(
        test="test.npz",
        near=["near.npz"],
        far=["far.npz", "other.npz"],
        root=tmp_path,
        num_classes=2,
    )
    attacks = {str(radius): PGD(Linf(radius)) for radius in (0.1, 0.3, 0.2)}
    data.setup("test")
    scene = scenes.set_scene(data, attacks, limit=5)
    assert scene.label == "0.3"
    assert [(side.name, len(side.images), side.sets) for side in scene.many] == [
        ("in", 5, ("test",)), ("near", 5, ("near",)), ("far", 5, ("far",))]  # fmt: skip
    assert [(side.name, side.sets) for side in scene.shown] == [
        ("in", ("test",) * 4), ("near", ("near", "near")), ("far", ("far", "other"))]  # fmt: skip
    stored = np.load(tmp_path / "near.npz")["images"][1]
    assert scene.shown[1].images[1].permute(1, 2, 0).mul(
        255
    ).round().byte().numpy() == pytest.approx(stored)
    assert scenes.set_scene(data, {}).region == Linf(8 / 255)


def test_kinds_are_all_none_or_those_named():
    def kinds(figures):
        return [request.kind for request in pictures_of(figures)]

    assert kinds(True) == ["shift", "curves", "landscape", "strips", "errors", "transfer"]
    assert kinds(False) == []
    assert kinds(["curves", "shift", "curves"]) == ["curves", "shift"]
    with pytest.raises(UserError, match=r"figures: unknown name 'strip'; did you mean 'strips'"):
        pictures_of(["strip"])


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ([{"name": "shift", "images": 3}], r"figures\.shift\.images: no such setting"),
        ([{"name": "curves", "step": 3}], r"figures\.curves\.step: no such setting; did you mean"),
        ([{"name": "curves", "steps": 0}], r"figures\.curves\.steps: expected .* >= 1, got 0"),
        ([{"name": "curves", "step_size": -1}], r"figures\.curves\.step_size: expected .* > 0"),
        ([{"name": "curves", "inliers": 9}], r"figures\.curves\.inliers: .* attacked: outliers"),
        ([{"name": "curves", "norm": "L2", "size": 4}], r"figures\.curves\.size: .* in L2 grows"),
        ([{"name": "curves", "attacked": "in"}], r"figures\.curves\.attacked: expected one of"),
        (["curves", {"name": "curves", "steps": 3}], r"figures: 'curves' is given twice"),
        ([{"name": "transfer", "images": 0}], r"figures\.transfer\.images: expected .* >= 1"),
    ],
)
def test_settings_of_pictures_are_checked_before_any_work(figures, message):
    with pytest.raises(UserError, match=f"^{message}"):
        pictures_of(figures)


def test_curves_of_outliers_alone_leave_the_inliers_and_take_more_of_them(detector, scene):
    settings = CurveSettings(
        images=5, inliers=8, steps=3, step_size=0.01, norm="Linf", attacked="outliers"
    )
    arrays, about = scenes.curves(detector, scene, settings)
    assert arrays["in_scores"].shape == (1, 8)
    assert arrays["far_scores"].shape == (4, 5)
    assert arrays["far_linf"][-1].max() == pytest.approx(0.03, abs=1e-6)
    with torch.no_grad():
        clean = detector(scene.many[0].images[:8])
    run = ScoreTrace(*(torch.from_numpy(arrays[f"far_{name}"]) for name in ScoreTrace._fields))
    before, after = curve(clean, run, [0.0, 1 / 255]).aurocs
    assert about["loss_of_auroc"]["far"] == pytest.approx((before, after, after - before))
    assert (about["attacked"], about["steps"]) == ("outliers", 3)


def test_curves_at_a_low_resolution_are_those_of_small_images(detector, scene):
    settings = CurveSettings(images=4, steps=2, step_size=0.02, size=2)
    arrays, _ = scenes.curves(detector, scene, settings)
    side = scene.many[1]
    small = LowResolution(PGD(Linf(0.04), steps=2, step_size=0.02, random_start=False), 2)
    view, images = small.at_low_resolution(detector, side.images[:4])
    assert images.shape == (4, 3, 2, 2)
    expected = trace(view, images, small.attack, -1)
    assert arrays["far_scores"] == pytest.approx(expected.scores.numpy(), abs=1e-6)
    assert arrays["far_l2"].max() <= 0.04 * np.sqrt(3 * 2 * 2) + 1e-6


def test_norms_other_than_the_attack_s_need_a_size():
    region = Linf(4 / 255)
    assert CurveSettings(norm="L2", radius=0.5).reach(region) == L2(0.5)
    assert CurveSettings().reach(region) == Linf(8 / 255)
    with pytest.raises(UserError, match="norm: L2 needs a radius or a step_size"):
        CurveSettings(norm="L2").reach(region)


@pytest.fixture(scope="module")
def ensemble(trained, scene):
    mean = Mean(
        [Standardize(MSP(trained[0])), Standardize(Energy(trained[0]))], labels=["msp", "energy"]
    )
    return mean.fit([(scene.many[0].images, torch.zeros(10, dtype=torch.int64))])


def test_transfer_scores_attacks_through_each_member_on_all(ensemble, scene):
    arrays, about = transfer(ensemble, scene, TransferSettings(images=6))
    assert about["members"] == ["msp", "energy"]
    assert about["attack"] == "pgd"
    scorers = [*ensemble.inside, ensemble]
    for side in scene.many:
        images = side.images[:6]
        scores = arrays[f"{side.name}_scores"]
        assert scores.shape == (4, 3, 6)
        sources = [images]
        for scorer in scorers:
            moved = [
                attack_score(scorer, batch, scene.attack, side.direction).images
                for batch in images.split(scene.batch_size)
            ]
            sources.append(torch.cat(moved))
        for row, source in enumerate(sources):
            for column, target in enumerate(scorers):
                with torch.no_grad():
                    wanted = target(source)
                assert scores[row, column] == pytest.approx(wanted.numpy(), abs=1e-4)
    arrays, _ = transfer(ensemble, scene, TransferSettings(images=6, attacked="outliers"))
    assert (arrays["in_scores"] == arrays["in_scores"][:1]).all()


def test_only_ensembles_have_transfers(trained, ensemble, scene):
    subjects = {"mean": ensemble, "msp": MSP(trained[0]), "one": Mean([MSP(trained[0])])}
    drawn = pictures.draw("tiny", subjects, scene, pictures_of(["transfer"]))
    assert [picture.detector for picture in drawn] == ["mean"]


def test_pictures_with_settings_are_kept_and_drawn_again_where_these_change(
    trained, scene, tmp_path
):
    def draw(*figures) -> int:
        requests = pictures_of(figures)
        return pictures.draw_into(tmp_path, "tiny", {"msp": MSP(trained[0])}, scene, requests)

    def curves(**settings):
        return {"name": "curves", "steps": 2, **settings}

    assert draw(curves()) == 1
    assert draw(curves()) == 0
    assert draw(curves(images=3)) == 1  # in place of the one before
    assert draw(curves(images=3), curves(label="small", size=4)) == 1
    assert draw(curves(images=3), curves(label="small", size=4)) == 0
    assert draw("shift") == 1  # the others stay
    kept = [(picture.kind, picture.subject) for picture in read_pictures(tmp_path)]
    assert sorted(kept) == [("curves", "msp"), ("curves", "msp, small"), ("shift", "msp")]
    assert pictures.images_needed(tmp_path, pictures_of([curves(images=99)])) == 99
    assert draw("curves") == 1
