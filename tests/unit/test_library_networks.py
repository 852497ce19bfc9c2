"""Networks by name: what they return, the size and range of their images, files of their weights."""

from __future__ import annotations

import copy
import json
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robust_ood as ro
from robust_ood import training
from robust_ood.attacks import PGD, lower_score, misclassify
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.models import (
    HuggingFace,
    Timm,
    describe,
    find_head,
    load_network,
    load_weights,
    outputs,
    rebuild,
    wrap,
)

timm = pytest.importorskip("timm")
K = 5
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
HF_VIT = {
    "model_type": "vit",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def seeded(make, *arguments, **settings) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments, **settings).eval()


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vit() -> Timm:
    """A tiny vision transformer of timm with class token; its head is not zero."""
    net = seeded(Timm, "vit_tiny_patch16_224", K, arguments=VIT)
    with torch.no_grad():
        net.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of Hugging Face in a folder, as its library writes it."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("hugging_face") / "vit"
    config = {name: value for name, value in HF_VIT.items() if name != "model_type"}
    model = seeded(
        transformers.ViTForImageClassification, transformers.ViTConfig(**config, num_labels=K)
    )
    with torch.no_grad():
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "do_normalize": True,
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.5, 0.25, 0.2],
                "size": {"height": 32, "width": 32},
            }
        )
    )
    return path


# --- what networks return


class Returning(nn.Module):
    """A classifier that returns its logits inside of something."""

    def __init__(self, form: str = "object") -> None:
        super().__init__()
        self.form = form
        self.features = nn.Conv2d(3, 6, 3, 2)
        self.head = nn.Linear(6, K)

    def forward(self, images):
        logits = self.head(self.features(images).relu().mean((2, 3)))
        wrapped = {
            "object": SimpleNamespace(logits=logits, hidden_states=None),
            "mapping": {"logits": logits, "loss": None},
            "tuple": (logits, None),
            "list": [logits],
            "plain": logits,
        }
        return wrapped[self.form]


ATTACK = PGD(ro.Linf(8 / 255), steps=2)
USES = {
    "msp": lambda net: ro.detectors.MSP(net)(images()),
    "energy published": lambda net: ro.detectors.Energy(net).published(images()),
    "odin": lambda net: ro.detectors.ODIN(net)(images()),
    "gradient norm": lambda net: ro.detectors.GradientNorm(net)(images()),
    "react features": lambda net: outputs(net, images()).features,
    "deep ensemble": lambda net: ro.detectors.DeepEnsemble([net, net], sizes=[24, None])(images()),
    "safe spot": lambda net: ro.detectors.SafeSpot(net, attack_steps=2, steps=2)(images()),
    "attacked score": lambda net: lower_score(ro.detectors.MSP(net), images(), ATTACK),
    "attacked class": lambda net: misclassify(net, images(), torch.arange(4), ATTACK),
    "head": lambda net: find_head(net).weight,
    "training loss": lambda net: training.ADV(net, ATTACK).attacked(
        Batch(images(), torch.arange(4), images()[:0], torch.arange(4), 0, 0)
    )[0],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", ["object", "mapping", "tuple", "list"])
def test_logits_inside_of_something_are_found_wherever_a_network_is_given(use, form):
    expected = seeded(Returning, "plain")
    net = seeded(Returning, form)
    net.load_state_dict(expected.state_dict())
    given = USES[use](net)
    assert torch.equal(given, USES[use](expected))


# --- size and range


def test_a_size_that_the_network_refuses_is_one_line_with_the_size_it_takes(vit, folder):
    theirs = HuggingFace(str(folder))
    for net in (vit, vit.module, theirs, theirs.module):
        with pytest.raises(
            UserError, match=r"takes 32 x 32 images, these are 40 x 40; set data.size: 32"
        ):
            ro.detectors.MSP(net)(images(2, 40))
        with pytest.raises(UserError, match=r"takes 32 x 32 images, these are 40 x 40"):
            ro.models.count_classes(net, (3, 40, 40))


@pytest.mark.parametrize("size", [8, 40, 32])
def test_a_network_can_resize_its_images(vit, size):
    """As `Resized` does; the pixels outside stay the data's, and so do attacks."""
    x = images(2, size)
    resizing = wrap(
        vit.module,
        vit.normalize.mean.flatten().tolist(),
        vit.normalize.std.flatten().tolist(),
        size=32,
    )
    expected = ro.detectors.Resized(vit, 32)(x)
    torch.testing.assert_close(resizing(x), expected)
    attacked = lower_score(ro.detectors.MSP(resizing), x, ATTACK)
    assert attacked.shape == x.shape
    assert (attacked - x).abs().max() <= ATTACK.region.radius + 1e-6


def test_a_size_is_kept_in_descriptions_and_checked():
    net = Timm("resnet10t", 4, size=48)
    again = rebuild(json.loads(json.dumps(describe(net))))
    assert again.size == 48
    with pytest.raises(UserError, match=r"^size: expected a number of pixels >= 1, got 0"):
        wrap(nn.Linear(2, 2), size=0)


def test_the_range_of_images_is_the_librarys_and_can_be_set(folder):
    """Fort's text has images in [-1, 1], as AugReg's weights want; his notebook feeds [0, 1]."""
    stated = seeded(Timm, "vit_tiny_patch16_224.augreg_in21k", K, arguments=VIT)
    assert stated.normalize.mean.flatten().tolist() == [0.5] * 3
    assert stated.normalize.std.flatten().tolist() == [0.5] * 3
    published = seeded(
        Timm,
        "vit_tiny_patch16_224.augreg_in21k",
        K,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        arguments=VIT,
    )
    x = images()
    with torch.no_grad():
        published.head.weight.normal_()
        stated.load_state_dict(
            published.state_dict()
            | {
                name: value
                for name, value in stated.state_dict().items()
                if name.startswith("normalize.")
            }
        )
    torch.testing.assert_close(published(x), published.module(x))
    torch.testing.assert_close(stated(x), published.module(2 * x - 1))
    theirs = HuggingFace(str(folder))
    assert theirs.normalize.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert theirs.normalize.std.flatten().tolist() == pytest.approx([0.5, 0.25, 0.2])
    own = HuggingFace(str(folder), **HALF)
    assert own.normalize.mean.flatten().tolist() == [0.5] * 3


# --- Hugging Face


def test_hugging_face_from_a_folder(folder):
    transformers = pytest.importorskip("transformers")
    net = HuggingFace(str(folder))
    assert net.pretrained
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    x = images()
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    std = torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
    torch.testing.assert_close(net.eval()(x), theirs(pixel_values=(x - mean) / std).logits)
    again = rebuild(json.loads(json.dumps(describe(net))))
    assert not again.pretrained
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in net.state_dict().items()
    }
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.eval()(x), net(x))
    with_new_head = HuggingFace(str(folder), 3)
    assert with_new_head(x).shape == (4, 3)
    assert not with_new_head.pretrained  # an evaluation would refuse it
    first = "module.vit.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(with_new_head.state_dict()[first], net.state_dict()[first])
    assert not HuggingFace(str(folder), pretrained=False).pretrained


def test_the_range_of_other_preprocessing(folder, tmp_path):
    """Scaled to [-1, 1] and normalised again (EfficientNet's), or in the order blue, green, red."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    written = tmp_path / "preprocessor_config.json"
    scaled = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
    written.write_text(json.dumps({"image_processor_type": "EfficientNetImageProcessor", **scaled}))
    net = HuggingFace(str(tmp_path))
    torch.testing.assert_close(net.normalize(images()), 2 * images() - 1)
    written.write_text(json.dumps({"image_processor_type": "MobileViTImageProcessor"}))
    with pytest.raises(UserError, match=r"in the order blue, green, red"):
        HuggingFace(str(tmp_path))
    written.unlink()
    with pytest.raises(UserError, match=r"^mean: not known for .*preprocessor_config"):
        HuggingFace(str(tmp_path))
    assert HuggingFace(str(tmp_path), **HALF).pretrained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "no/such-model-anywhere"}, r"cannot build transformers' no/such-model-anywhere .*give its folder"),
        ({"name": "x", "config": {}}, r"^config: expected a model_type, got None"),
        ({"name": "x", "config": {"model_type": "vit", "auto_map": {"a": "b"}}}, r"^config: auto_map is not accepted"),
        ({"name": "x", "config": {"model_type": "timm_wrapper"}}, r"^config: .*--net Timm"),
        ({"name": "x", "config": {"model_type": "no-such"}, **HALF}, r"cannot build transformers' x"),
        ({"name": "x", "config": {"model_type": "bert"}, **HALF}, r"cannot build transformers' x"),
        ({"name": "x", "mean": (0.5, 0.5, 0.5)}, r"^mean and std: one is given without the other"),
        ({"name": "x", "num_classes": 1}, r"^num_classes: expected a whole number >= 2"),
    ],
)  # fmt: skip
def test_bad_settings_of_hugging_face_are_one_line(monkeypatch, settings, message):
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as refused:
        HuggingFace(**settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("library", "extra", "build"),
    [
        ("transformers", "huggingface", lambda: HuggingFace("google/vit-base-patch16-224")),
        ("timm", "timm", lambda: Timm("resnet18")),
    ],
)
def test_a_missing_library_names_its_extra(monkeypatch, library, extra, build):
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"pip install 'robust-ood\[{extra}\]'") as refused:
        build()
    assert "\n" not in str(refused.value)


def test_a_description_of_hugging_face_downloads_nothing(folder):
    described = describe(HuggingFace(str(folder)))
    assert described is not None
    without = {name: value for name, value in described["settings"].items() if name != "config"}
    with pytest.raises(UserError, match="malformed"):
        rebuild({"name": "HuggingFace", "settings": without})
    with pytest.raises(UserError, match="has no settings folder"):
        rebuild({"name": "HuggingFace", "settings": {**described["settings"], "folder": "x"}})


def test_a_model_without_a_head_is_not_ready(folder, tmp_path):
    """Such as those of ImageNet-21k: the library makes the head, at random."""
    transformers = pytest.importorskip("transformers")
    transformers.ViTForImageClassification.from_pretrained(folder).vit.save_pretrained(tmp_path)
    assert not HuggingFace(str(tmp_path), K, **HALF).pretrained


def test_a_timm_model_with_a_new_head_is_not_ready(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **rest: create(name, **rest))
    assert Timm("resnet10t.c3_in1k", pretrained=True).pretrained
    assert Timm("resnet10t.c3_in1k", 1000, pretrained=True).pretrained
    assert not Timm("resnet10t.c3_in1k", 10, pretrained=True).pretrained


def test_scores_do_not_depend_on_where_a_model_lies(folder, tmp_path):
    copied = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, copied)
    assert fingerprint(HuggingFace(str(folder))) == fingerprint(HuggingFace(str(copied)))
    assert fingerprint(HuggingFace(str(folder))) != fingerprint(HuggingFace(str(copied), size=40))


# --- features of transformers


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_features_are_pooled_as_the_network_does(pooling):
    net = seeded(Timm, "vit_tiny_patch16_224", K, arguments={**VIT, "global_pool": pooling})
    x = images()
    tokens = net.module.forward_features(net.normalize(x))
    expected = tokens[:, 0] if pooling == "token" else net.module.fc_norm(tokens[:, 1:].mean(1))
    torch.testing.assert_close(outputs(net, x).features, expected)


# --- memory and precision


def small_torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=K)


@pytest.mark.parametrize("library", ["timm", "hugging face", "torchvision"])
@pytest.mark.parametrize("mode", [True, False])
def test_checkpointed_gradients_are_the_same(library, mode, folder):
    """In eval mode too, where attacks are; transformers' own switch does nothing there."""
    make = {
        "timm": lambda **given: Timm(
            "vit_tiny_patch16_224", K, arguments={**VIT, "drop_rate": 0.1}, **given
        ),
        "hugging face": lambda **given: HuggingFace(str(folder), **given),
        "torchvision": lambda **given: wrap(small_torchvision(), **given),
    }[library]
    plain = seeded(make)
    net = seeded(make, checkpointed=True)
    assert list(net.state_dict()) == list(plain.state_dict())
    net.load_state_dict(plain.state_dict())
    found = []
    for each in (plain, net):
        each.train(mode)
        x = images(2).requires_grad_()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            loss = each(x).logsumexp(1).sum()
            weights = [parameter for parameter in each.parameters() if parameter.requires_grad]
            found.append(torch.autograd.grad(loss, [x, *weights], allow_unused=True))
    for first, second in zip(*found, strict=True):
        assert first is second is None or torch.allclose(first, second, atol=1e-6)
    copy.deepcopy(net)
    assert find_head(net).weight is net.head.weight


def test_checkpointed_blocks_are_computed_twice(vit):
    net = wrap(copy.deepcopy(vit.module), checkpointed=True)
    calls = []
    net.module.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    net(images().requires_grad_()).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("module", [nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "resnet18"])
def test_what_cannot_be_computed_twice_is_refused(module):
    if module == "resnet18":
        module = timm.create_model("resnet18", num_classes=2)
    with pytest.raises(UserError, match=r"^checkpointed: .* cannot compute blocks twice"):
        wrap(module, checkpointed=True)


def test_an_attack_in_bfloat16_does_what_one_in_float32_does(vit):
    """Gradients in bfloat16, true scores in float32: on a transformer as on a convolution."""
    reached = {}
    detector = ro.detectors.Energy(vit)
    x = images(16)
    for precision in ("float32", "bfloat16"):
        attack = PGD(ro.Linf(8 / 255), steps=10, precision=precision)
        moved = lower_score(detector, x, attack)
        assert (moved - x).abs().max() <= 8 / 255 + 1e-6
        reached[precision] = detector(moved)
    gain = (detector(x) - reached["float32"]).mean()
    assert gain > 0
    assert (reached["bfloat16"] - reached["float32"]).mean() < 0.1 * gain


# --- files of the vision transformers' authors


def jax_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a transformer's weights under the names and in the layout of AugReg's files."""
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    width = state["cls_token"].shape[-1]
    heads = module.blocks[0].attn.num_heads
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for number in range(len(module.blocks)):
        theirs = f"Transformer/encoderblock_{number}"
        ours = f"blocks.{number}"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}/{name}/scale"] = state[f"{ours}.{norm}.weight"]
            arrays[f"{theirs}/{name}/bias"] = state[f"{ours}.{norm}.bias"]
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weights = np.split(state[f"{ours}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}.attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        out = state[f"{ours}.attn.proj.weight"]
        arrays[f"{attention}/out/kernel"] = out.T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for layer in (0, 1):
            dense = f"{theirs}/MlpBlock_3/Dense_{layer}"
            arrays[f"{dense}/kernel"] = state[f"{ours}.mlp.fc{layer + 1}.weight"].T
            arrays[f"{dense}/bias"] = state[f"{ours}.mlp.fc{layer + 1}.bias"]
    return arrays


@pytest.fixture
def augreg(vit, tmp_path):
    path = tmp_path / "Ti_8-digits-lr_0.01.npz"
    np.savez(path, **jax_arrays(vit.module))
    return path


def tiny(classes: int = K, **arguments) -> Timm:
    return Timm("vit_tiny_patch16_224", classes, arguments={**VIT, **arguments})


def test_files_of_jax_arrays_load_through_timm(vit, augreg):
    net = load_network(augreg, tiny())
    torch.testing.assert_close(net(images()), vit(images()))
    with pytest.raises(UserError, match=r"^net: .* does not say which network it holds"):
        load_network(augreg)
    with pytest.raises(UserError, match=r"takes neither a key map nor an average"):
        load_network(augreg, tiny(), averaged=True)
    larger = load_network(augreg, tiny(img_size=48))  # position embeddings are interpolated
    assert larger(images(2, 48)).shape == (2, K)
    method = training.Standard(tiny(3))
    before = method.net.head.weight.clone()
    with pytest.warns(UserWarning, match="its head is of other classes; head begins anew"):
        method.begin_from(augreg)
    assert torch.equal(method.net.head.weight, before)
    assert torch.equal(method.net.module.cls_token, vit.module.cls_token)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (
            lambda: tiny(3),
            None,
            r"does not hold 2 of the weights .*head.weight.*set net.num_classes",
        ),
        (lambda: tiny(depth=3), None, r"holds another network than VisionTransformer"),
        (lambda: tiny(embed_dim=16), None, r"holds another network than VisionTransformer"),
        (lambda: Timm("resnet10t", K), None, r"holds JAX weights .*take --net Timm"),
        (tiny, b"nothing", r"is damaged or no .npz file|holds another network"),
    ],
)
def test_jax_arrays_of_another_network_are_refused_and_leave_it_as_it_was(
    augreg, make, change, message
):
    net = seeded(make)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if change is not None:
        augreg.write_bytes(change)
    with pytest.raises(UserError, match=message) as refused:
        load_network(augreg, net)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "make", [lambda k: Timm("resnet10t", k), lambda k: ro.models.ConvNet(num_classes=k), tiny]
)
def test_fine_tuning_keeps_a_head_of_its_own_number_of_classes(make, tmp_path):
    """An ordinary load refuses other classes; `begin_from` begins with a new head, and says so."""
    given, net = seeded(make, 7), seeded(make, 4)
    path = tmp_path / "given.pt"
    torch.save(given.state_dict(), path)
    with pytest.raises(UserError, match="holds another network"):
        load_weights(net, path)
    own = find_head(net).weight.clone()
    with pytest.warns(UserWarning, match=r"its head gives 7 classes, and that of the network 4"):
        training.Standard(net).begin_from(path)
    assert torch.equal(find_head(net).weight, own)
    for name, value in net.state_dict().items():
        expected = given.state_dict()[name]
        assert value.shape != expected.shape or torch.equal(value, expected)
