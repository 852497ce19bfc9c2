"""Zero-shot scores and the networks behind them: formulas, real (tiny, random) CLIPs, mistakes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust_ood import Linf, cli, detectors, models
from robust_ood.attacks import PGD, lower_score, raise_score
from robust_ood.errors import UserError
from robust_ood.metrics import auroc
from robust_ood.models import CLIP, ImageText, WordFeatures, read_words, text_features

ROOT = Path(__file__).parents[2]
IN, OUT = ("cat", "dog", "fish"), ("car", "ship")


def words(width=5, out=OUT, seed=0):
    rows = torch.randn(len(IN) + len(OUT), width, generator=torch.Generator().manual_seed(seed))
    return WordFeatures(rows[: len(IN)], rows[len(IN) :][: len(out)], 20.0, IN, out)


class Tower(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3 * 6 * 6, width, generator=draws))

    def forward(self, images):
        return (images.flatten(1) - 0.5) @ self.weight


@pytest.fixture
def images():
    return torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(2))


def cosines(images, known):
    embeddings = F.normalize(Tower()(images), dim=1).detach()
    return embeddings @ known.in_features.T, embeddings @ known.out_features.T


def test_groups_of_out_words_are_averaged_and_left_over_words_are_in_none(images):
    known = words()
    detector = detectors.build("neglabel", Tower(), words=known, groups=2)
    inside, outside = cosines(images, known)
    shares = []  # of the in-words and of the out-words, in each group
    for column in outside.T:  # two words, one a group
        softmax = (100 * torch.cat([inside, column[:, None]], dim=1).double()).softmax(1)
        shares.append(torch.stack([softmax[:, :3].sum(1), softmax[:, 3]]))
    inner, outer = torch.stack(shares).mean(0)
    assert torch.allclose(detector.published(images).double(), inner, atol=1e-5)
    expected = inner.log() - outer.log()
    assert torch.allclose(detector(images).double(), expected, rtol=1e-3, atol=1e-3)
    draws = torch.Generator().manual_seed(0)
    many = WordFeatures(
        torch.randn(2, 5, generator=draws), torch.randn(11, 5, generator=draws), 1.0, ("a", "b"), tuple("cdefghijklm"),
    )  # fmt: skip
    assert detectors.build("neglabel", Tower(), words=many, groups=3).out_features.shape == (9, 5)
    lost = lower_score(detector, images, PGD(Linf(0.1), steps=5))
    assert detector(lost).mean() < detector(images).mean()


@pytest.mark.parametrize("percentile", [0.0, 60.0, 100.0])
def test_negative_words_are_the_farthest_by_a_naive_loop(percentile):
    draws = torch.Generator().manual_seed(3)
    names = tuple(f"word {number}" for number in range(20))
    known = WordFeatures(
        torch.randn(4, 6, generator=draws), torch.randn(20, 6, generator=draws), 1.0, ("a", "b", "c", "d"), names,
    )  # fmt: skip
    nearness = {}
    for name, row in zip(names, known.out_features.numpy().astype(np.float64), strict=True):
        values = [row @ other for other in known.in_features.numpy().astype(np.float64)]
        nearness[name] = np.percentile(values, percentile)
    mined = known.with_negative_words(share=0.25, percentile=percentile)
    assert mined.out_words == tuple(sorted(names, key=nearness.get)[:5])
    assert mined.in_words == known.in_words
    rows = [names.index(name) for name in mined.out_words]
    assert torch.allclose(mined.out_features, known.out_features[rows])


def test_each_rule_is_its_formula(images):
    known = words()
    inside, outside = cosines(images, known)

    def score(rule, of=known, **settings):
        detector = detectors.ZeroShot(Tower(), of, rule=rule, **settings)
        return detector(images).detach(), detector.published(images).detach()

    difference = 20 * (inside.amax(1) - outside.amax(1))  # Fort Eq. 6-7
    assert all(torch.allclose(value, difference, atol=1e-4) for value in score("difference"))
    assert torch.allclose(score("max")[0], 20 * inside.amax(1), atol=1e-4)
    share = (20 * torch.cat([inside, outside], 1)).double().softmax(1)[:, :3].sum(1)
    value, published = score("softmax")
    assert torch.allclose(published.double(), share, atol=1e-5)
    assert torch.allclose(value.double(), torch.logit(share), atol=1e-3)
    alone = words(out=())
    value, published = score("softmax", alone, scale=1.0)  # MCM at temperature 1
    assert torch.allclose(published, inside.softmax(1).amax(1), atol=1e-5)
    assert value.argsort().tolist() == published.argsort().tolist()


def test_the_scale_does_not_change_how_the_difference_orders_images(images):
    scores = []
    for scale in (1.0, 14.7, 100.0):
        detector = detectors.ZeroShot(Tower(), words(), scale=scale)
        scores.append(detector(images).detach() / scale)
    assert torch.allclose(scores[0], scores[1], atol=1e-5)
    assert torch.allclose(scores[0], scores[2], atol=1e-5)


def test_the_attack_reaches_the_closed_form_for_a_linear_encoder(images):
    """The embeddings (w.x, 1) have cosines (w.x a + b) / sqrt((w.x)^2 + 1) with a word (a, b).

    With the in-word (1, 0) and the out-word (-1, 0) the score is 2 w.x / sqrt((w.x)^2 + 1), which
    increases in w.x: the best point of the Linf ball is x + r sign(w).
    """
    weight = torch.randn(3 * 6 * 6, generator=torch.Generator().manual_seed(3)) / 10

    def encode(x):
        value = x.flatten(1) @ weight
        return torch.stack([value, torch.ones_like(value)], 1)

    known = WordFeatures(
        torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]), 1.0, ("in",), ("out",)
    )
    detector = detectors.ZeroShot(encode, known)
    inner = 0.2 + 0.6 * images  # so that no pixel leaves [0, 1]
    radius = 8 / 255
    attacked = detector(raise_score(detector, inner, PGD(Linf(radius), steps=20)))
    value = inner.flatten(1) @ weight + radius * weight.abs().sum()
    assert torch.allclose(attacked, 2 * value / (value**2 + 1).sqrt(), atol=1e-4)


def test_a_head_of_text_features_is_a_classifier_for_all_detectors(images):
    known = words()
    net = ImageText(Tower(), known)
    inside, _ = cosines(images, known)
    assert torch.allclose(net(images), 20 * inside, atol=1e-4)
    out = models.outputs(net, images)
    assert torch.allclose(out.features.norm(dim=1), torch.ones(7), atol=1e-5)
    assert torch.allclose(models.find_head(net).weight, 20 * known.in_features, atol=1e-5)
    labels = torch.arange(60) % 3
    many = torch.rand(60, 3, 6, 6, generator=torch.Generator().manual_seed(4))
    loader = list(zip(many.split(20), labels.split(20), strict=True))
    for name in ("msp", "energy", "vim", "knn", "react", "mahalanobis", "gradnorm"):
        settings = {"knn": {"neighbours": 3}, "vim": {"dimensions": 2}}.get(name, {})
        detector = detectors.build(name, net, **settings).fit(loader)
        assert detector(images).isfinite().all()


def test_preprocessing_is_inside_and_the_radius_is_in_pixels(images):
    net = ImageText(Tower(), words(), size=6, mean=(0.4,) * 3, std=(0.3,) * 3)
    large = F.interpolate(images, 24, mode="bilinear")
    resized = F.interpolate(large, (6, 6), mode="bicubic", antialias=True)
    expected = F.normalize(Tower()((resized - 0.4) / 0.3), dim=1)
    assert torch.allclose(net.encode(large), expected, atol=1e-5)
    detector = detectors.ZeroShot(net)
    attacked = lower_score(detector, large, PGD(Linf(2 / 255), steps=3))
    assert attacked.shape == large.shape
    assert (attacked - large).abs().max() <= 2 / 255 + 1e-6
    assert (detector(attacked) < detector(large)).all()


# --- towers of the libraries


class Letters:
    """A tokenizer of letters, in the form that a library's tokenizer has."""

    def __init__(self, library, length=12):
        self.library, self.length = library, length

    def __call__(self, texts, **_):
        rows = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            letters = [ord(letter) % 40 + 1 for letter in text[-self.length + 1 :]]
            row[: len(letters)] = torch.tensor(letters)
            row[len(letters)] = 49  # the end, which is the largest
        if self.library == "open_clip":
            return rows
        return {"input_ids": rows, "attention_mask": (rows > 0).long()}


def tiny(library):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if library == "open_clip":
            open_clip = pytest.importorskip("open_clip")
            vision = {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
            text = {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
            return open_clip.CLIP(8, vision, text).eval()
        transformers = pytest.importorskip("transformers")
        size = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        text = {**size, "vocab_size": 50, "max_position_embeddings": 12, "eos_token_id": 49}
        vision = {**size, "image_size": 16, "patch_size": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        return transformers.CLIPModel(config).eval()


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_random_clip_of_a_library_gives_its_own_logits(library):
    model = tiny(library)
    tokenizer = Letters(library)
    sentences = ("a {}", "the {} of it")
    inside = text_features(model, tokenizer, IN, sentences)
    alone = [text_features(model, tokenizer, IN, [sentence]) for sentence in sentences]
    assert torch.allclose(inside, F.normalize(alone[0] + alone[1], dim=1), atol=1e-5)
    fish = text_features(model, tokenizer, ["aquarium_fish"])
    assert torch.equal(fish, text_features(model, tokenizer, ["aquarium fish"]))
    known = WordFeatures(alone[0], text_features(model, tokenizer, OUT, ["a {}"]), 10.0, IN, OUT)
    net = ImageText(model, known, size=16)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if library == "open_clip":
            expected = (
                F.normalize(model.encode_image(images), dim=1)
                @ F.normalize(model.encode_text(tokenizer([f"a {word}" for word in IN])), dim=1).T
            )
        else:
            tokens = tokenizer([f"a {word}" for word in IN])
            output = model(pixel_values=images, **tokens)
            expected = output.image_embeds @ output.text_embeds.T
        assert torch.allclose(net(images), 10 * expected, atol=1e-4)
    assert not any("text" in name for name, _ in net.named_parameters())
    detector = detectors.ZeroShot(net)
    attacked = raise_score(detector, images, PGD(Linf(8 / 255), steps=3))
    assert (detector(attacked) > detector(images)).all()


def test_a_folder_of_transformers_is_a_network_by_name(tmp_path):
    tiny("transformers").save_pretrained(tmp_path / "clip")
    known = words(8)
    known.save(tmp_path / "words.npz")
    net = CLIP(str(tmp_path / "clip"), tmp_path / "words.npz", library="transformers")
    assert net.size == 16
    assert net.normalize.mean.flatten().tolist() == pytest.approx(
        (0.4815, 0.4578, 0.4082), abs=1e-4
    )
    assert net.pretrained
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_half_precision_weights_become_float32(images):
    net = ImageText(Tower().half(), words())
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}


# --- files and mistakes


def test_a_file_gives_back_what_was_saved(tmp_path):
    known = words()
    again = read_words(known.save(tmp_path / "words.npz"))
    assert torch.allclose(again.in_features, known.in_features)
    assert torch.allclose(again.out_features, known.out_features)
    assert (again.in_words, again.out_words, again.templates) == (IN, OUT, known.templates)
    assert again.logit_scale == 20.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: WordFeatures(torch.ones(1, 2), torch.ones(1, 2), 1.0, ("cat",), ("Cat",)), "out_words: 'Cat' is in both lists"),
        (lambda: WordFeatures(torch.ones(2, 2), torch.ones(0, 2), 1.0, ("a_b", "a b")), "in_words: 'a b' is twice"),
        (lambda: WordFeatures(torch.ones(0, 2), torch.ones(0, 2), 1.0, ()), "in_words: none given"),
        (lambda: WordFeatures(torch.ones(3, 2), torch.ones(0, 2), 1.0, ("a",)), "in_features: expected (1, D)"),
        (lambda: WordFeatures(torch.ones(1, 2), torch.ones(1, 3), 1.0, ("a",), ("b",)), "out_features: expected 2 columns"),
        (lambda: WordFeatures(torch.ones(1, 2), torch.ones(0, 2), 0.0, ("a",)), "logit_scale: expected a number > 0"),
        (lambda: detectors.ZeroShot(Tower(4), words())(torch.rand(1, 3, 6, 6)), "words: the text features have width 5"),
        (lambda: detectors.ZeroShot(ImageText(Tower(), words()), words(4)), "words: the text features have width 4, the encoder gives 5"),
        (lambda: detectors.ZeroShot(Tower()), "words: not given"),
        (lambda: detectors.ZeroShot(Tower(), words(out=())), "rule: 'difference' needs out-words"),
        (lambda: detectors.ZeroShot(Tower(), words(), scale=0.0), "scale: expected a number > 0"),
        (lambda: words(out=()).with_negative_words(), "out_words: none given"),
        (lambda: words().with_negative_words(share=0.0), "share: expected a number in (0, 1], got 0.0"),
        (lambda: words().with_negative_words(percentile=101.0), "percentile: expected a number in"),
        (lambda: detectors.build("neglabel", Tower(), words=words()), "groups: expected at most the number of out-words (2), got 100"),
        (lambda: detectors.ZeroShot(Tower(), words(), groups=2), "groups: expected 1 with the rule 'difference'"),
        (lambda: detectors.ZeroShot(Tower(), words(), rule="softmax", groups=0), "groups: expected a whole number >= 1"),
        (lambda: read_words("nowhere.npz"), "words: nowhere.npz is no file"),
        (lambda: read_words(Path(__file__)), "is not a file of text features"),
        (lambda: text_features(Tower(), Letters("open_clip"), IN), "model: Tower has no text tower"),
        (lambda: text_features(tiny("open_clip"), Letters("open_clip"), IN, ["no word"]), "templates: expected one {}"),
        (lambda: ImageText(tiny("open_clip"), words(8))(torch.rand(1, 3, 32, 32)), "size: the encoder refuses images of 32"),
        (lambda: ImageText(tiny("transformers"), words(8))(torch.rand(1, 3, 20, 20)), "size: the encoder refuses images of 20"),
        (lambda: (pytest.importorskip("open_clip"), CLIP("ViT-B-1000", "words.npz")), "unknown name 'ViT-B-1000' in open_clip; the nearest"),
        (lambda: (pytest.importorskip("open_clip"), CLIP("ViT-B-32", "words.npz", weights="mine.pt")), "weights: 'mine.pt' is no file and none of open_clip's weights for ViT-B-32: openai, "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_field(wrong, said):
    with pytest.raises(UserError) as error:
        wrong()
    assert said in str(error.value)


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_a_missing_package_names_the_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"pip install 'robust-ood\[clip\]'"):
        CLIP("any", "words.npz", library=library)


def test_the_command_writes_text_features(tmp_path, monkeypatch, capsys):
    from robust_ood.cli import text_features_command

    monkeypatch.setattr(
        text_features_command,
        "load_image_text",
        lambda name, weights, library: (tiny(library), Letters(library), {}),
    )
    (tmp_path / "in.txt").write_text("cat\n\naquarium_fish\n")
    path = tmp_path / "words.npz"
    given = [
        "text-features",
        "--name",
        "tiny",
        "--weights",
        "mine",
        "--in_words",
        str(tmp_path / "in.txt"),
    ]
    assert cli.main([*given, "--out_words", "[car, ship]", "--output", str(path)]) == 0
    assert "2 in-words, 2 out-words, width 8" in capsys.readouterr().out
    saved = read_words(path)
    assert saved.in_words == ("cat", "aquarium_fish")
    assert saved.model == "open_clip tiny mine"
    assert cli.main([*given, "--out_words", "[cat]", "--output", str(path)]) == 2
    assert capsys.readouterr().err == (
        "error: out_words: 'cat' is in both lists; each word belongs to one list, once\n"
    )
    assert read_words(path).in_words == saved.in_words
    assert cli.main([*given[:3], *given[5:], "--output", str(path)]) == 2
    assert "weights: not given" in capsys.readouterr().err


def test_templates_are_checked_before_anything_is_downloaded(tmp_path, monkeypatch, capsys):
    from robust_ood.cli import text_features_command

    monkeypatch.setattr(text_features_command, "load_image_text", None)
    given = ["text-features", "--name", "ViT-B-32", "--weights", "openai", "--in_words", "[cat]"]
    wrong = ["--templates", "[a photo]", "--output", str(tmp_path / "words.npz")]
    assert cli.main([*given, *wrong]) == 2
    assert capsys.readouterr().err == (
        "error: templates: expected one {} for the word, got 'a photo'\n"
    )


# --- the two towers


@pytest.fixture(scope="module")
def two_towers():
    spec = importlib.util.spec_from_file_location("two_towers", ROOT / "benchmarks/two_towers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["two_towers"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["two_towers"]


def test_two_towers_on_the_digits_are_near_1_clean_and_collapse_under_attack(two_towers):
    net = two_towers.train()
    inliers = two_towers.images_of("digits-0-7/test")[0][:80]
    outliers = two_towers.images_of("digits-0-7/held-out")[0][:80]
    difference, alone = detectors.ZeroShot(net), detectors.ZeroShot(net, rule="max")
    with torch.no_grad():
        clean = auroc(difference(inliers), difference(outliers))
        assert clean > 0.98
        assert clean >= auroc(alone(inliers), alone(outliers))
    one_side, both = two_towers.attacked(difference, inliers, outliers, 32 / 255)
    assert both < one_side < 0.9
    assert both < 0.3


def test_the_command_evaluates_two_towers(two_towers, tmp_path, capsys):
    two_towers.write(two_towers.train(steps=20), tmp_path)
    given = ["-c", str(ROOT / "configs/data/digits_near.yaml"), "--data.far", "[]", "--limit", "6"]
    given += ["--net", "two_towers.DigitTowers", "--net.words", str(tmp_path / "words.npz")]
    given += ["--checkpoint", str(tmp_path / "tower.pt"), "--output", str(tmp_path / "results")]
    given += ["--attacks", "[{name: pgd, radius: 32/255, steps: 2}]", "--sanity", "false"]
    given += ["--figures", "[curves]", "--report", "false"]
    assert cli.main(["evaluate", *given, "--detectors", "[zero-shot, msp]"]) == 0, (
        capsys.readouterr()
    )
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert {row["detector"] for row in rows} >= {"zero-shot", "msp"}
    assert list((tmp_path / "results" / "figures").glob("curves-*zero-shot*.npz"))
