"""Each command of Fort's section of docs/papers.md runs, in short form on the digits."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import two_towers
from robust_ood import cli
from robust_ood.evaluation import Results
from robust_ood.evaluation.pictures import read_pictures
from robust_ood.models import Timm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text()
SECTION = PAGE.split("\n## Fort\n")[1].split("\n## ")[0]
SIZE = 32  # pixels, to which the data resizes the digits' eight
CLASSES = 8
SMALL = {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}


def small_vit() -> Timm:
    return Timm("vit_tiny_patch16_224", CLASSES, arguments=SMALL)


def commands() -> dict[str, str]:
    """Return the evaluation of each block by its label, continued lines joined."""
    found = {}
    for label, block in re.findall(r"^```\n# (F\d+): (.*?)^```", SECTION, re.DOTALL | re.MULTILINE):
        text = block.replace("\\\n", " ")
        found[label] = text[text.index("python evaluate.py") :]
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small ViT trained on the digits, another one, and two towers with their words."""
    folder = tmp_path_factory.mktemp("fort")
    images, labels = two_towers.images_of("digits-0-7/train")
    with torch.random.fork_rng(devices=[]):
        for name, steps in (("vit", 120), ("other", 30)):
            torch.manual_seed(0)
            net = small_vit()
            optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
            for _ in range(steps):
                batch = torch.randint(len(images), (64,))
                logits = net(images[batch])
                loss = torch.nn.functional.cross_entropy(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            torch.save(net.state_dict(), folder / f"{name}.pt")
    two_towers.write(two_towers.train(steps=150), folder)
    return folder


def in_short(command: str, weights: Path) -> list[str]:
    """Return the arguments of a command, with small networks, digits, few images and few steps."""
    arguments = ", ".join(f"{name}: {value}" for name, value in SMALL.items())
    towers = f"benchmarks.two_towers.DigitTowers, init_args: {{words: {weights}/words.npz}}"
    replacements = {
        r"-c configs/data/cifar100\.yaml --data\.root ROOT": "-c configs/data/digits_near.yaml",
        r"\[cifar10\]": "[digits-0-7/held-out]",
        r"\[svhn\]": "[photographs/test]",
        r"--data\.size \d+": "",
        r"size: 32,": "size: 8,",
        r"--net\.name vit_large_patch16_\d+ --net\.num_classes 100": "--net.name vit_tiny_patch16_224 "
        f"--net.num_classes {CLASSES} --net.arguments '{{{arguments}}}'",
        r"name: vit_large_r50_s32_224, num_classes: 100": "name: vit_tiny_patch16_224, "
        f"num_classes: {CLASSES}, arguments: {{{arguments}}}",
        r"--checkpoint VIT\d+": f"--checkpoint {weights}/vit.pt",
        r"R50_L32": f"{weights}/other.pt",
        r"--net CLIP .*?WORDS\.npz": "--net benchmarks.two_towers.DigitTowers "
        f"--net.words {weights}/words.npz --checkpoint {weights}/tower.pt",
        r"class_path: CLIP,\s*init_args: {.*?}": f"class_path: {towers}",
        r"(DigitTowers, init_args: {[^}]*}})": rf"\1, checkpoint: {weights}/tower.pt",
        r"inliers: 1000": "inliers: 24",
        r"--limit \d+": "--limit 24",
        r"images: \d+": "images: 12",
        r"steps: 30": "steps: 3",
        r"step_size: 0\.000\d": "step_size: 0.02",
    }
    for pattern, replacement in replacements.items():
        command = re.sub(pattern, replacement, command, flags=re.DOTALL)
    return shlex.split(command)[2:]


@pytest.mark.parametrize("label", commands())
def test_a_command_of_the_papers_page(label, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = in_short(commands()[label], weights)
    output = tmp_path / "out"
    short = ["--device", "cpu", "--sanity", "false", "--output", str(output)]
    assert cli.evaluate([*arguments, *short]) == 0, capsys.readouterr().err
    page = (output / "report.html").read_text()
    pictures = read_pictures(output)
    assert pictures
    assert [picture.about.get("failed") for picture in pictures] == [None] * len(pictures)
    quoted = []
    for row in re.findall(rf"^\| .*command {label}\b.*$", SECTION, re.MULTILINE):
        quoted += re.findall(r'"([^"]+)"', row)
    for words in quoted:
        assert words in page, words
    if label in ("F1", "F8"):
        assert "Attacked images" in page
    else:
        check(label, pictures, Results.read(output).rows, page)


def check(label, pictures, rows, page):
    """Check what a command with curves has drawn and scored."""
    if label == "F5":
        assert {one.detector for one in pictures if one.kind == "transfer"} == {
            "ensemble mahalanobis", "ensemble relative"}  # fmt: skip
        assert "Attacks on members of ensembles" in page
    for picture in pictures:
        if picture.kind != "curves":
            continue
        assert picture.arrays["in_scores"].shape == (1, 12 if label == "F5" else 24)
        for before, after, change in picture.about["loss_of_auroc"].values():
            assert change == pytest.approx(after - before)
            assert after <= before + 0.05
    if label == "F2":
        assert min(row.auroc for row in rows) > 0.6  # trained
    if label == "F4":
        assert {row.detector for row in rows} == {
            "msp", "mahalanobis", "relative-mahalanobis", "zero-shot"}  # fmt: skip
    if label == "F6":
        small, full = (picture.arrays["near_l2"][-1] for picture in by_label(pictures))
        assert np.median(small) < np.median(full)  # norms of 8 x 8 pixels, and of 32 x 32


def by_label(pictures):
    """Return the curves of mahalanobis at the low resolution, then at the full one."""
    chosen = {one.label: one for one in pictures if one.detector == "mahalanobis"}
    return [chosen["32 px"], chosen["384 px"]]


def test_the_commands_are_found():
    assert list(commands()) == [f"F{number}" for number in range(1, 9)]
