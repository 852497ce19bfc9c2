"""What the scripts share: networks, arrays, and results that are not computed twice."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.data import load_set, to_float
from robust_ood.models import ThinResNet, load_network, load_weights
from robust_ood.writing import replace_file

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # what the ResNet-20's weights were trained with
NEAR, FAR = ("cifar100_test", "tinyimagenet_val"), ("svhn_test", "dtd10", "miniplaces_test")


def parser(doc: str | None, *, limit: int, output: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that the scripts have in common."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--weights", type=Path, help="weights of the CIFAR-10 ResNet-20")
    made.add_argument("--root", type=Path, required=True, help="folder of the arrays")
    made.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where finished parts are kept; the same command continues",
    )
    made.add_argument("--output", type=Path, default=Path(output), help="Markdown page to write")
    made.add_argument("--limit", type=int, default=limit, help="images of each set")
    made.add_argument("--device", default="cpu")
    return made


def resnet20(weights: Path) -> nn.Module:
    """Return the CIFAR-10 ResNet-20 with the given weights."""
    return load_weights(
        ThinResNet(mean=MEAN, std=STD), weights, key_map={"linear.": "head."}
    ).eval()


def networks(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Return the networks of `--weights` and of each `--checkpoint NAME=PATH`, on `--device`."""
    found = {"ResNet-20": resnet20(options.weights)} if options.weights else {}
    for given in getattr(options, "checkpoint", None) or []:
        name, _, path = given.partition("=")
        found[name] = load_network(Path(path)).eval()
    if not found:
        raise SystemExit("--weights: no network given")
    return {
        name: net.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, net in found.items()
    }


def images_of(
    spec: str, root: Path, limit: int, device: str = "cpu", first: int = 0
) -> tuple[Tensor, Tensor]:
    """Return `limit` images `(N, 3, 32, 32)` in [0, 1] and labels `(N,)`, from `first` on."""
    chosen = load_set(spec, root)
    indices = torch.arange(first, min(first + limit, len(chosen)))
    images = to_float(chosen.read(indices)).contiguous(memory_format=torch.channels_last)
    return images.to(device), chosen.read_labels(indices).to(device)


class Parts:
    """The parts of a measurement, each kept in a folder once it is done.

    Args:
        folder: where; parts made under other settings are refused.
        settings: what the parts depend on.
        total: how many parts there will be, for the time left.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], total: int) -> None:
        self.folder, self.total = folder, total
        self.seen, self.made, self.begin = 0, 0, time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(settings)):
            raise SystemExit(
                f"--folder: {folder} holds parts made under other settings; give another or "
                "delete it"
            )
        replace_file(path, json.dumps(settings, indent=1))

    def kept(self, name: str) -> dict[str, Any] | None:
        """Return the part of that name, or None where it is not done."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        part: dict[str, Any] = json.loads(path.read_text())
        return part

    def __call__(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the part of that name, with the `seconds` it took; `make` computes it."""
        self.seen += 1
        kept = self.kept(name)
        if kept is not None:
            return kept
        begin = time.perf_counter()
        part = make()
        part["seconds"] = time.perf_counter() - begin
        replace_file(self.folder / f"{name}.json", json.dumps(part))
        self.made += 1
        left = (time.perf_counter() - self.begin) / self.made * (self.total - self.seen)
        print(
            f"[{self.seen}/{self.total}] {name}: {part['seconds']:.0f} s, about {left / 60:.0f} "
            "min left",
            flush=True,
        )
        return part
