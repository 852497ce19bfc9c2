"""The page on adding a method is true: its class computes TRADES, and trains by the real command
under its class path.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from robust_ood import Linf, cli
from robust_ood.attacks import PGD
from robust_ood.data import Batch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text()


def block(language: str) -> str:
    """Return the page's only code block of a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture
def trades(tmp_path, monkeypatch):
    """The module trades.py of the page, importable by its name."""
    path = tmp_path / "trades.py"
    path.write_text(block("python"))
    spec = importlib.util.spec_from_file_location("trades", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "trades", module)
    spec.loader.exec_module(module)
    return module


def test_the_pages_class_computes_trades(trades, make_net, make_images):
    """Against Zhang et al.'s objective written out, with one step from a given start."""
    net = make_net()
    net.drop.p = 0.0
    images, labels = make_images(5), torch.tensor([0, 1, 2, 3, 0])
    attack = PGD(Linf(0.1), steps=1, step_size=0.05)
    method = trades.TRADES(net, attack, beta=2.0)
    batch = Batch(images, labels, images[:0], torch.arange(5), 0, 0)
    start = attack.region.sample(images, method.draws("attack inliers", batch)).requires_grad_()
    clean = net(images).softmax(1).detach()
    (clean * (clean.log() - net(start).softmax(1).log())).sum().backward()
    attacked = (
        (start + 0.05 * start.grad.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1).detach()
    )
    statistics = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, second = net.train()(torch.cat([images, attacked])).softmax(1).split(5)
    net.load_state_dict(statistics)
    expected = (
        F.nll_loss(first.log(), labels) + 2 * (first * (first.log() - second.log())).sum(1).mean()
    )
    torch.testing.assert_close(method.objective(batch), expected)


def test_the_pages_config_trains(trades, experiment, tmp_path):
    config = tmp_path / "trades.yaml"
    config.write_text(block("yaml"))
    text = experiment.read_text()
    own = tmp_path / "tiny.yaml"
    own.write_text(re.sub(r", [^,\]]*/methods/aloe\.yaml", "", text))
    run = tmp_path / "run"
    arguments = [
        "fit",
        "-c",
        str(own),
        "-c",
        str(config),
        "--trainer.max_steps",
        "2",
        "--output",
        str(run),
    ]
    assert cli.train(arguments) == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["method"] == "TRADES"
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    for row in rows:
        terms = float(row["train/inlier_loss"]) + 6 * float(row["train/divergence"])
        assert float(row["train/loss"]) == pytest.approx(terms, rel=1e-5)
    assert len(rows) == 2


def test_the_pages_setting_is_checked(trades, experiment, tmp_path, capsys):
    config = tmp_path / "trades.yaml"
    config.write_text(block("yaml").replace("beta: 6.0", "beta: -1"))
    assert (
        cli.train(
            ["fit", "-c", str(experiment), "-c", str(config), "--output", str(tmp_path / "run")]
        )
        == 2
    )
    assert capsys.readouterr().err.startswith("error: model.beta: -1")
