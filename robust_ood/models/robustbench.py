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
from robust_ood.models.libraries import built, unknown_model
from robust_ood.models.wrap import Wrapped

_TENSORS_ALONE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class RobustBench(Wrapped):
    """A network of RobustBench's model zoo, by name, with its weights; needs the package
    robustbench.

    The library normalises inside its networks and downloads what `folder` does not have yet. It is
    made to read
    tensors alone: weights that hold anything else are refused.

    Args:
        name: as the leaderboard has it, such as "Carmon2019Unlabeled".
        dataset: what it was trained on.
        threat_model: the leaderboard that it is on.
        folder: where the weights are, or go: FOLDER/DATASET/THREAT_MODEL/NAME.pt, and for an
            ensemble NAME.pt_m0.pt, NAME.pt_m1.pt, ... A few networks are timm's or torchvision's,
            which have folders of their own.
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
        known, load_model = _library(dataset, threat_model)
        if not known:
            raise UserError(
                f"threat_model: RobustBench has no models for {dataset}, {threat_model}"
            )
        if name not in known:
            raise unknown_model(
                f"RobustBench's models for {dataset}, {threat_model}", name, list(known)
            )
        missing = [
            file
            for file in _files(Path(folder) / dataset / threat_model, name, known)
            if not file.is_file()
        ]
        with _tensors_alone():
            module = built(
                f"RobustBench's {name} for {dataset}, {threat_model}",
                lambda: load_model(
                    model_name=name,
                    model_dir=str(folder),
                    dataset=dataset,
                    threat_model=threat_model,
                ),
                f"; or get the weights by hand and put them at {', '.join(map(str, missing))}"
                if missing
                else "",
            )
        super().__init__(module, None, None, head, layers)
        self.pretrained = True


def _library(dataset: str, threat_model: str) -> tuple[Mapping[str, Any], Callable[..., nn.Module]]:
    """Return what the library knows of each model of a leaderboard, nothing if it has no such one,
    and its loader.
    """
    try:
        with _released_dependency():
            from robustbench.model_zoo import model_dicts
            from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
            from robustbench.utils import load_model
    except ImportError as error:
        raise UserError(
            f"net: RobustBench needs the package robustbench ({error}); pip install 'robust-ood[robustbench]'"
        ) from error
    return model_dicts[BenchmarkDataset(dataset)].get(ThreatModel(threat_model), {}), load_model


def _files(folder: Path, name: str, known: Mapping[str, Any]) -> list[Path]:
    """Return where the library keeps a model's weights; nowhere of its own where they are another
    library's.
    """
    ids = known[name].get("gdrive_id")
    if isinstance(ids, list):
        return [folder / f"{name}.pt_m{number}.pt" for number in range(len(ids))]
    return [folder / f"{name}.pt"] if ids else []


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Have `torch.load` refuse pickled code, whoever calls it; the library itself does not ask for
    that.
    """
    before = os.environ.get(_TENSORS_ALONE)
    os.environ[_TENSORS_ALONE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_TENSORS_ALONE)
        os.environ.update({} if before is None else {_TENSORS_ALONE: before})


@contextmanager
def _released_dependency() -> Iterator[None]:
    """Let the library be imported with what its release installs.

    robustbench 1.1.1 depends on `pyautoattack` and imports it as `autoattack`, the name of its
    unreleased form.
    """
    lent = {}
    if find_spec("pyautoattack") and not find_spec("autoattack"):
        import pyautoattack
        from pyautoattack import state

        lent = {"autoattack": pyautoattack, "autoattack.state": state}
    sys.modules.update(lent)
    try:
        yield
    finally:
        for name in lent:
            del sys.modules[name]
