"""What commands that measure a network share: settings, data, finished cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from torch import nn

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.configs import with_includes
from robust_ood.cli.evaluate_checks import choose_device
from robust_ood.cli.messages import user_errors
from robust_ood.cli.networks import add_network_arguments, find_parts, load, name_of
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.preconditions import check_classes
from robust_ood.cli.types import register_types
from robust_ood.data import ImageSet, OODData
from robust_ood.data.reading import Batch
from robust_ood.errors import UserError
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.store import Arrays, Cell, FolderStore
from robust_ood.evaluation.versions import code_version

Options = Mapping[str, tuple[Any, Any, str]]

_SHARED: Options = {
    "include": (list[str], [], "config files that this one builds on"),
    "output": (Path, Path("measured"), "folder of the results and of all that is computed"),
    "name": (str | None, None, "the network's name (default: checkpoint's folder)"),
    "limit": (int | None, None, "use only so many images of each set"),
    "device": (str, "auto", "auto, cpu, cuda or cuda:N"),
}


@dataclass(frozen=True)
class Subject:
    """A network, its name, its data, and what has been computed of it in the output folder."""

    config: Any
    net: nn.Module
    name: str
    data: OODData
    device: torch.device
    store: FolderStore

    @property
    def test(self) -> ImageSet:
        """The in-distribution test images."""
        return self.data.inliers("test")

    def batches(self, images: ImageSet) -> Iterator[Batch]:
        """Yield the first `limit` images of a set in batches on the device."""
        for batch in self.data.evaluation_loader(images, self.config.limit):
            yield batch._replace(
                images=_as_float(batch.images).to(self.device),
                labels=batch.labels.to(self.device),
            )

    def kept(self, what: Sequence[Any], compute: Callable[[], Arrays]) -> Arrays:
        """Return arrays that are computed once: by the network and what else determines them."""
        key = fingerprint([code_version(), fingerprint(self.net), *map(fingerprint, what)])
        with self.store.claim(key, "a batch", wait=True):
            cell = self.store.read(key)
            if cell is not None:
                return cell.arrays
            arrays = compute()
            self.store.write(key, Cell(arrays))
        return arrays


def _as_float(images: torch.Tensor) -> torch.Tensor:
    """Return images in [0, 1], which a loader may give as bytes."""
    if images.is_floating_point():
        return images
    return images.float() / 255


def measuring_parser(name: str, description: str, options: Options) -> CommandParser:
    """Return a parser with a network, data, and the given options."""
    register_types()
    parser = CommandParser(prog=f"robust-ood {name}", description=description)
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="YAML file; several compose"
    )
    add_network_arguments(parser)
    for option, (kind, default, words) in {**_SHARED, **options}.items():
        parser.add_argument(f"--{option}", type=kind, default=default, help=words)
    parser.add_class_arguments(OODData, "data")
    return parser


def read_config(parser: CommandParser, arguments: Sequence[str]) -> Any:
    """Return the settings, checked as far as these commands share them."""
    config = parse_arguments(parser, with_includes(arguments))
    if config.limit is not None and config.limit < 1:
        raise UserError(f"limit: expected a number of images >= 1, got {config.limit}")
    return config


def build_subject(parser: CommandParser, config: Any) -> Subject:
    """Return network and data.

    Raises: `UserError` for what does not fit together.
    """
    device = choose_device(config.device)
    check_writable(config.output)
    with user_errors(dict(config.items())):
        # Parts that registries read are no classes of the parser.
        given = config.clone()
        if "detectors" in given:
            given["detectors"] = []
        built = parser.instantiate(given)
    data: OODData = built.data
    data.setup("test")
    net = load(config.checkpoint, built.get("net"), config.key_map, averaged=config.averaged)
    net, _ = find_parts(net, data.inliers("test").input_shape)
    check_classes(net, data, "test")
    name = config.name or name_of(config.checkpoint, net)
    net.to(device).eval()
    return Subject(config, net, name, data, device, FolderStore(config.output))
