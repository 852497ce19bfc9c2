"""Shards of a thousand classes: two processes find what one finds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robust_ood import cli
from robust_ood.evaluation import Results
from robust_ood.models import ThinResNet

ROOT = Path(__file__).parents[2]


def write_thousand_classes(root: Path) -> None:
    """Write tar shards of 1,000 classes, the weights of a random network, and a config."""
    draws = np.random.default_rng(0)
    for shard, count in (("train-0", 1200), ("train-1", 800), ("validation-0", 20), ("test-0", 40)):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for number in range(count):
                image = io.BytesIO()
                pixels = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(image, "png")
                label = str(number % 1000).encode()
                for suffix, content in (("png", image.getvalue()), ("cls", label)):
                    member = tarfile.TarInfo(f"{number:05}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    torch.manual_seed(0)
    net = ThinResNet(num_classes=1000)
    torch.save(net.state_dict(), root / "net.pt")
    data = {
        "root": str(root), "train": "train-{0..1}.tar", "validation": "validation-0.tar",
        "test": "test-*.tar", "near": ["digits-0-7/held-out"], "far": [],
        "num_classes": 1000, "size": 8, "batch_size": 64, "outlier_batch_size": 0,
    }  # fmt: skip
    detectors = ["mahalanobis", {"name": "knn", "neighbours": 3}, {"name": "vim", "dimensions": 16}]
    attacks = [{"name": "pgd", "radius": "8/255", "steps": 2}]
    content = {"data": data, "detectors": detectors, "attacks": attacks}
    (root / "grid.yaml").write_text(json.dumps(content))


def rows(folder: Path) -> list[dict[str, object]]:
    """Return the rows of results, without what they cost."""
    content = json.loads((folder / "results.json").read_text())
    for row in content["rows"]:
        row.pop("seconds", None)
    return content["rows"]


def cells(folder: Path) -> set[str]:
    return {path.name for path in (folder / "store" / "cells").glob("[!.]*.npz")}


def test_two_processes_share_shards_of_a_thousand_classes(tmp_path):
    write_thousand_classes(tmp_path)
    command = [
        "-c",
        str(tmp_path / "grid.yaml"),
        "--limit",
        "40",
        "--chunk",
        "8",
        "--report",
        "false",
    ]
    command += ["--net", "ThinResNet", "--net.num_classes", "1000", "--sanity", "false"]
    command += ["--figures", "false", "--intervals", "false"]
    command += ["--checkpoint", str(tmp_path / "net.pt"), "--device", "cpu"]
    assert cli.evaluate([*command, "--output", str(tmp_path / "one")]) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "evaluate.py"]
    subprocess.run(
        [sys.executable, *launch, *command, "--output", str(tmp_path / "two")],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    assert {row["detector"] for row in rows(tmp_path / "one")} >= {"mahalanobis", "knn", "vim"}
    assert cells(tmp_path / "two") == cells(tmp_path / "one")
    assert Results.read(tmp_path / "two").complete
