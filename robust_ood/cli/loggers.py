"""The user's loggers: what they need, and how a resumed run goes on in the same run of theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from pytorch_lightning.loggers import Logger

from robust_ood.cli.messages import causes
from robust_ood.errors import UserError
from robust_ood.texts import one_line


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
        if name == "CometLogger":
            _keep_offline(logger.init_args, checkpoint)
        run = _taken(known, name)
        if run is not None and _own_run(logger, tracker) is None:
            logger.init_args[tracker.run_argument] = run


def _keep_offline(arguments: Any, checkpoint: Mapping[str, Any] | None) -> None:
    """Have Comet write an experiment to disk where `online` is false.

    Lightning's logger disables the experiment then, so that nothing at all is written; Comet's own
    variables do what was asked for. Comet names an experiment's archive by its key and by Python's
    random numbers, which the seed makes equal: a resumed run's goes to a folder of its own, or it
    would replace the one before.

    arguments: of the constructor; changed in place.
    """
    if arguments.get("online") is False:
        arguments["online"] = None
        os.environ["COMET_START_ONLINE"] = "0"
    if os.environ.get("COMET_START_ONLINE") == "0" and checkpoint is not None:
        folder = os.environ.get("COMET_OFFLINE_DIRECTORY", ".cometml-runs")
        step = checkpoint.get("global_step", 0)
        os.environ["COMET_OFFLINE_DIRECTORY"] = os.path.join(folder, f"from-step-{step}")


@contextmanager
def tracker_errors() -> Iterator[None]:
    """Turn what a tracker refuses, such as a missing key, into one line that names the logger.

    Trackers raise exceptions of their own, which have no common class; which logger was at work is
    seen in the traceback. A user's own logger keeps its traceback: what it raises may be a bug.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for cause in causes(error):
            name = _logger_at_work(cause)
            if name is not None:
                words = one_line(str(cause)) or type(cause).__name__
                raise UserError(f"trainer.logger: {name}: {words}") from error
        raise


def _logger_at_work(error: BaseException) -> str | None:
    """Return the class of the tracker's logger that was called when something was raised."""
    trace = error.__traceback__
    while trace is not None:
        subject = type(trace.tb_frame.f_locals.get("self"))
        if issubclass(subject, Logger) and subject.__name__ in TRACKERS:
            return subject.__name__
        trace = trace.tb_next
    return None


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
