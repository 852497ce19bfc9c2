"""The user's loggers: what they need, and how a resumed run goes on in the same run of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from pytorch_lightning.loggers import Logger

from robust_ood.errors import UserError


class Tracker(NamedTuple):
    """A logger of Lightning's that sends a run to a tracker.

    module, extra: what it imports, and the extra of this package that installs it. run_argument:
    the constructor's argument that names a run to go on with.
    """

    module: str
    extra: str
    run_argument: str


TRACKERS = {
    "WandbLogger": Tracker("wandb", "wandb", "id"),
    "MLFlowLogger": Tracker("mlflow", "mlflow", "run_id"),
    "CometLogger": Tracker("comet_ml", "comet", "experiment_key"),
}
"""Lightning's loggers that a resumed run goes on with, by the name of their class."""


def ready_loggers(setting: Any, checkpoint: Mapping[str, Any] | None) -> None:
    """Check that what the loggers need is installed, and name the tracker's run to go on with.

    Args:
        setting: `trainer.logger` as it was parsed; a logger gets the argument in place.
        checkpoint: what the run continues from.

    Raises:
        UserError: a logger's package is missing.
    """
    known: list[list[str]] = []
    if checkpoint is not None:
        known = list(checkpoint.get("tracked_runs", []))
    loggers = setting if isinstance(setting, list) else [setting]
    for logger in loggers:
        path = getattr(logger, "class_path", None)
        name = str(path).rpartition(".")[2]
        if path is None or name not in TRACKERS:
            continue
        tracker = TRACKERS[name]
        if find_spec(tracker.module) is None:
            raise UserError(
                f"trainer.logger: {name} needs the package {tracker.module}; install it with "
                f'pip install "robust-ood[{tracker.extra}]"'
            )
        run = _taken(known, name)
        if run is not None and _own_run(logger, tracker) is None:
            logger.init_args[tracker.run_argument] = run


def _taken(known: list[list[str]], name: str) -> str | None:
    """Return the first run of a kind of logger, which no other logger gets then."""
    for entry in known:
        if entry[0] == name:
            known.remove(entry)
            return entry[1]
    return None


def _own_run(logger: Any, tracker: Tracker) -> str | None:
    """Return the run that the user names for a logger; `version` is W&B's other word for it."""
    for argument in (tracker.run_argument, "version"):
        value = logger.init_args.get(argument)
        if value is not None:
            return str(value)
    return None


def user_loggers(setting: Any) -> list[Logger]:
    """Return the loggers of `trainer.logger`, beside which a run always has its own."""
    if setting is False:
        raise UserError(
            "trainer.logger: false is not accepted; metrics.csv and TensorBoard's curves are "
            "always written, because a resumed run continues them"
        )
    if setting is None or setting is True:
        return []
    if isinstance(setting, Logger):
        return [setting]
    return list(setting)
