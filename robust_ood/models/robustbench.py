"""Networks of RobustBench's model zoo by name, behind our contract."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from torch import nn

from robust_ood.errors import UserError
from robust_ood.models.libraries import build_module, unknown_model
from robust_ood.models.wrap import Wrapped

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class RobustBench(Wrapped):
    """A network of RobustBench's model zoo with its weights, by name; needs that package.

    The library normalises inside its networks and downloads what `folder` does not have yet. Its
    weights are read as tensors only: files that hold anything else are refused.

    Args:
        name: as on the leaderboard, such as "Carmon2019Unlabeled".
        dataset: what it was trained on.
        threat_model: its leaderboard.
        folder: folder of the weights: FOLDER/DATASET/THREAT_MODEL/NAME.pt, and for an ensemble
            NAME.pt_m0.pt, NAME.pt_m1.pt, ... A few networks are timm's or torchvision's, which
            have folders of their own.
        head, layers: as in `Wrapped`.

    Raises:
        UserError: no such package or model, a download that fails.
    """

    def __init__(
        self,
        name: str,
        dataset: Literal["cifar10", "cifar100", "imagenet"] = "cifar10",
        threat_model: Literal["Linf", "L2", "corruptions"] = "Linf",
        folder: Path | str = "models",
        head: str | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        models, load_model = _leaderboard(dataset, threat_model)
        if not models:
            raise UserError(
                f"threat_model: RobustBench has no models for {dataset}, {threat_model}"
            )
        if name not in models:
            library = f"RobustBench's models for {dataset}, {threat_model}"
            raise unknown_model(library, name, list(models))
        files = _files(Path(folder) / dataset / threat_model, name, models)
        missing = [str(file) for file in files if not file.is_file()]
        advice = ""
        if missing:
            advice = f"; or download the weights by hand and put them at {', '.join(missing)}"
        with _tensors_only():
            module = build_module(
                f"RobustBench's {name} for {dataset}, {threat_model}",
                lambda: load_model(
                    model_name=name,
                    model_dir=str(folder),
                    dataset=dataset,
                    threat_model=threat_model,
                ),
                advice,
            )
        super().__init__(module, None, None, head, layers)
        self.pretrained = True


def _leaderboard(
    dataset: str, threat_model: str
) -> tuple[Mapping[str, Any], Callable[..., nn.Module]]:
    """Return the library's models of a leaderboard by name, and its loader."""
    try:
        with _released_dependency():
            from robustbench.model_zoo import model_dicts
            from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
            from robustbench.utils import load_model
    except ImportError as error:
        raise UserError(
            f"net: RobustBench needs the package robustbench ({error}); "
            "pip install 'robust-ood[robustbench]'"
        ) from error
    return model_dicts[BenchmarkDataset(dataset)].get(ThreatModel(threat_model), {}), load_model


def _files(folder: Path, name: str, models: Mapping[str, Any]) -> list[Path]:
    """Return the files of a model's weights; none where they are in another library's folder."""
    ids = models[name].get("gdrive_id")
    if isinstance(ids, list):
        return [folder / f"{name}.pt_m{number}.pt" for number in range(len(ids))]
    if ids:
        return [folder / f"{name}.pt"]
    return []


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Have `torch.load` refuse pickled code, which the library itself does not ask for."""
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        os.environ.pop(_WEIGHTS_ONLY)
        if before is not None:
            os.environ[_WEIGHTS_ONLY] = before


@contextmanager
def _released_dependency() -> Iterator[None]:
    """Let the library be imported with what its release installs.

    robustbench 1.1.1 depends on `pyautoattack` and imports it as `autoattack`, the name of its
    unreleased form.
    """
    aliases = {}
    if find_spec("pyautoattack") and not find_spec("autoattack"):
        import pyautoattack
        from pyautoattack import state

        aliases = {"autoattack": pyautoattack, "autoattack.state": state}
    sys.modules.update(aliases)
    try:
        yield
    finally:
        for name in aliases:
            del sys.modules[name]
