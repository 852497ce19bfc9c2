"""Fingerprints: equal for equal things, different where a score could be."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_ood import L2, Linf, detectors
from robust_ood.attacks import PGD, apgd, standard
from robust_ood.data import ImageSet
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.form import ImageForm
from robust_ood.evaluation import fingerprints
from robust_ood.evaluation.fingerprints import content, fingerprint

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "gram": {"layers": "conv"},
    "rankfeat": {"layers": "conv"},
    "corp": {"random_features": 64},
    "mahalanobis-layers": {"layers": "conv"},
    "knn": {"neighbours": 2},
    "combood": {"neighbours": 2, "layers": "conv"},
}
NAMES = sorted(
    set(detectors.REGISTRY)
    - {
        "complexity",
        "deep-ensemble",
        "likelihood",
        "discriminator",
        "outlier-class",
        "reconstruction",
        "zero-shot",
        "neglabel",
    }
)


def test_networks(make_net):
    net, same, other = make_net(), make_net(), make_net(seed=1)
    assert fingerprint(net) == fingerprint(same) != fingerprint(other)
    assert fingerprint(same.train().to(memory_format=torch.channels_last)) == fingerprint(net)
    with torch.no_grad():
        same.head.bias[0] += 1e-6
    assert fingerprint(same) != fingerprint(net)
    same.head.bias.data.copy_(net.head.bias)
    assert fingerprint(same) == fingerprint(net)
    same.drop.p = 0.9
    assert fingerprint(same) != fingerprint(net)
    assert fingerprint(make_net(dtype=torch.float32)) != fingerprint(net)


@pytest.mark.parametrize("name", NAMES)
def test_detectors(name, trained):
    net, images, labels, _ = trained
    labels = torch.where(
        torch.arange(len(labels)) % 8 > 0, labels, (labels + 1) % 4
    )  # temperatures need mistakes
    build = partial(detectors.build, name, **SETTINGS.get(name, {}))
    first, second = build(net), build(net)
    fresh = fingerprint(first)
    assert fresh == fingerprint(second)
    if first.fitted:
        with torch.no_grad():
            first(images[:2])  # leaves no trace
        assert fingerprint(first) == fresh
        return
    first.fit([(images, labels)])
    fitted = fingerprint(first)
    assert fitted != fresh
    with torch.no_grad():
        first(images[:2])
    assert fingerprint(first) == fitted
    second.load_state_dict(first.state_dict())
    assert fingerprint(second) == fitted


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("odin", {"temperature": 10.0}),
        ("odin", {"magnitude": 0.1}),
        ("pro-msp", {"steps": 4}),
        ("pro-msp", {"step_size": 0.1}),
        ("pro", {"score": "energy"}),
        ("gen", {"gamma": 0.5}),
        ("energy", {"temperature": 2.0}),
        ("safe-spot", {"radius": 0.1}),
        ("react", {"percentile": 80}),
        ("knn", {"neighbours": 3}),
    ],
)
def test_every_setting_counts(name, settings, make_net):
    net = make_net()
    assert fingerprint(detectors.build(name, net, **settings)) != fingerprint(
        detectors.build(name, net)
    )


PLAIN = PGD(Linf(8 / 255))
ATTACKS = {
    "plain": PLAIN,
    **{f"{k}={v}": replace(PLAIN, **{k: v}) for k, v in {
        "steps": 11, "step_size": 0.1, "restarts": 2, "random_start": False, "objective": "msp", "loss": "margin",
        "keep": "last", "noise": 0.1, "noise_draws": 2, "seed": 1, "region": Linf(7 / 255)}.items()},
    "norm": PGD(L2(8 / 255), step_size=PLAIN.step_size),
    "apgd": apgd(Linf(8 / 255)),
    "suite": standard(8 / 255),
    "smaller suite": standard(7 / 255),
}  # fmt: skip


def test_attacks():
    marks = {name: fingerprint(attack) for name, attack in ATTACKS.items()}
    assert len(set(marks.values())) == len(marks)
    assert fingerprint(standard("8/255")) == marks["suite"]


def test_functions_by_what_they_hold():
    def scaled(factor):
        return lambda value: value * factor

    assert fingerprint(scaled(2)) == fingerprint(scaled(2)) != fingerprint(scaled(3))
    assert fingerprint(partial(max, 1)) != fingerprint(partial(max, 2))
    assert fingerprint("a".join) != fingerprint("b".join)
    assert fingerprint(torch.relu) != fingerprint(torch.sigmoid)


def test_functions_by_what_they_compute():
    twice, thrice = (lambda x: x * 2.0), (lambda x: x * 3.0)
    assert fingerprint(twice) != fingerprint(thrice)
    assert fingerprint(lambda x: torch.relu(x)) != fingerprint(lambda x: torch.sigmoid(x))
    edited = [{}, {}]
    for names, factor in zip(edited, (2, 3), strict=True):
        exec(f"def scaled(x, *, by={factor}):\n    return x * by + {factor}", names)
    assert fingerprint(edited[0]["scaled"]) != fingerprint(edited[1]["scaled"])


def test_numbers_of_numpy_are_their_values():
    assert fingerprint(np.int64(5)) == fingerprint(5) != fingerprint(np.int64(50))
    assert fingerprint({"gamma": np.float32(0.5)}) != fingerprint({"gamma": np.float32(5)})


def test_a_thing_that_contains_itself_ends():
    loop: list[object] = [1]
    loop.append(loop)
    assert len(fingerprint(loop)) == 32


SCRIPT = """
import sys, torch
sys.path.insert(0, "tests")
from robust_ood import detectors, models
from robust_ood.attacks import standard
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.versions import code_version
torch.manual_seed(0)
net = models.WideResNet(10, 1, 4)
known = lambda name: name in {"near", "far", "id", "outliers", "validation"}
net.activation = torch.relu  # a builtin, whose text holds an address
things = (detectors.build("pro-gen", net), standard(0.1), known, net)
print(*map(fingerprint, things), code_version())
"""


def test_other_processes_agree():
    """Also where sets have another order, as they do in each process."""
    found = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1] != ""


def test_classes_of_users_whose_modules_are_named_like_ours_are_known_by_their_source(monkeypatch):
    text = "class Net:\n    size = 1\n"
    for module in ("abcnet", "typing_net", "torch_net"):
        marks = []
        for source in (text, text.replace("1", "2")):
            kind = type("Net", (), {"__module__": module})
            monkeypatch.setattr(fingerprints, "_text", lambda _, source=source: source)
            marks.append(fingerprint(kind))
        assert marks[0] != marks[1]


def test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    images = ImageSet("a", pixels.copy())
    whole = content(images, 0, 5)
    assert whole == content(ImageSet("b", pixels), 0, 5)  # the name is not the content
    assert whole not in (content(images, 0, 4), content(images, 1, 6))
    images.images[7] ^= 1
    assert content(images, 0, 5) == whole
    images.images[4, 0, 0, 0] ^= 1
    assert content(images, 0, 5) != whole


def test_image_files_by_their_bytes(tmp_path):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    sets = {size: ImageSet("files", ImageFiles(paths, ImageForm(size), "files")) for size in (4, 8)}
    before = content(sets[8], 0, 3)
    assert before == content(sets[8], 0, 3) != content(sets[4], 0, 3)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(paths[1])
    assert content(sets[8], 0, 3) != before


def test_functions_by_their_source_which_no_version_of_python_changes(monkeypatch):
    def scaled(value):
        """Scales."""
        return value * 2.0

    before = fingerprint(scaled)
    alone = lambda value: value * 2.0  # noqa: E731
    lambdas = fingerprint(alone)
    monkeypatch.setattr(fingerprints, "_computed", None)  # another version's bytecode
    assert fingerprint(scaled) == before
    assert fingerprint(alone) == lambdas
    with pytest.raises(TypeError):  # where two share a line, only the bytecode tells them apart
        fingerprint((lambda x: x, lambda x: 2 * x))


def test_two_lambdas_of_different_text_differ_and_of_the_same_text_do_not():
    first = lambda x: x + 1.0  # noqa: E731
    second = lambda x: x + 2.0  # noqa: E731
    assert fingerprints._function(first)[1] != fingerprints._function(second)[1]
    listed = [
        lambda x: x + 1.0,
        lambda x: x + 1.0,  # a comment
    ]
    assert fingerprint(listed[0]) == fingerprint(listed[1])
