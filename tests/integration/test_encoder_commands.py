"""Each command of docs/papers.md that attacks an encoder runs, in short form on tiny images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_ood import cli
from robust_ood.evaluation.encoder_results import EncoderResults
from robust_ood.models import (
    Glow,
    SpatialTransformerNet,
    Torchvision,
    WideResNet,
    describe,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text()
SIZE = 64  # at 32 the last maps of the 224-pixel networks have one pixel, too few for E3
NETS = {
    "E1": lambda: Torchvision("resnet18"),
    "E2": lambda: Torchvision("resnet18", 4),
    "E3": lambda: Torchvision("resnet18", 2, norm="instance"),
    "E4": lambda: SpatialTransformerNet(),
    "E6": lambda: WideResNet(40, 2),
    "E7": lambda: flow(),
}
"""By command, the network whose checkpoint it reads; a small one by default."""
CLASSES = {"E1": 1000, "E2": 4, "E3": 2, "E4": 43}


def flow():
    """Return a flow that one batch has initialised."""
    net = Glow(SIZE, levels=2, steps=1, hidden=4)
    net.train()(torch.rand(4, 3, SIZE, SIZE))
    return net.eval()


def commands() -> list[tuple[str, str]]:
    """Return each command with the label of its block, continued lines joined."""
    found = []
    for label, block in re.findall(r"^```\n# (E\d+): (.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("robust-ood encoder-attack "):
                found.append((label, line))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Arrays, pictures and a list of images that stand for the paper's sets."""
    place = tmp_path_factory.mktemp("paper")
    draws = np.random.default_rng(0)
    for name in ("xray", "ct", "fundus", "one", "two"):
        pixels = draws.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{name}.png")
    (place / "imagenet").mkdir()
    for name in ("one", "two"):
        (place / f"{name}.png").rename(place / "imagenet" / f"{name}.png")
    (place / "list.txt").write_text("one.png 3\ntwo.png 7\n")
    return place


def checkpoint(label, folder):
    path = folder / f"{label}.ckpt"
    if not path.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = NETS.get(label, lambda: WideResNet(10, 1))()
        state = {f"net.{name}": value for name, value in net.state_dict().items()}
        torch.save({"state_dict": state, "network": describe(net)}, path)
    return str(path)


def stand_ins(label, folder):
    """Write arrays with the classes of the command's network, and return the options for them."""
    classes = CLASSES.get(label, 10)
    draws = np.random.default_rng(1)
    images = draws.integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(folder / f"{label}.npz", images=images, labels=np.arange(20) % classes)
    options = ["--data.near", "[]", "--data.far", "[]", "--data.size", str(SIZE)]
    for part in ("train", "validation", "test"):
        options += [f"--data.{part}", f"{label}.npz"]
    if label == "E1":  # whose test set is the list
        options = ["--data.size", str(SIZE)]
    return options


@pytest.mark.filterwarnings("ignore:Gram")
@pytest.mark.parametrize(
    ("label", "command"),
    [pytest.param(*one, id=f"{one[0]}-{n}") for n, one in enumerate(commands())],
)
def test_a_command_of_the_papers_page(label, command, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    given = checkpoint(label, folder)
    words = {
        r"\bROOT\b": str(folder),
        r"\bLIST\b": "list.txt",
        r"\bXRAY\b": "xray.png",
        r"\bCT\b": "ct.png",
        r"\bFUNDUS\b": "fundus.png",
        r"\bFILE1\b": given,
        r"\bDATA\b": "configs/data/digits.yaml",
        r"--net\.weights DEFAULT": f"--checkpoint {given}",
        r"--checkpoint \S+": f"--checkpoint {given}",
    }
    for word, value in words.items():
        command = re.sub(word, value, command)
    arguments = shlex.split(command)[2:]
    output = tmp_path / "out"
    short = ["--steps", "2", "--limit", "2", "--device", "cpu", "--output", str(output)]
    report = ["--report", str(label == "E3").lower()]
    code = cli.encoder_attack([*arguments, *stand_ins(label, folder), *short, *report])
    assert code == 0, capsys.readouterr().err
    results = EncoderResults.read(output)
    assert results.rows
    for row in results.rows:
        assert 0 <= row.auroc <= 1
        assert np.isfinite(row.mape_mean)
    if label == "E3":
        assert "Pairs" in (output / "report.html").read_text()


def test_the_commands_are_found():
    assert {label for label, _ in commands()} == {f"E{n}" for n in (*range(1, 10), 11)}
