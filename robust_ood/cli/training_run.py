"""What a training run does with its folder and its trainer when it begins and when it ends."""

from __future__ import annotations

import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from robust_ood.callbacks import MetricsFile
from robust_ood.callbacks.checkpoint_file import WriteError
from robust_ood.callbacks.checkpoints import checkpoints_in, recent
from robust_ood.callbacks.progress import progress_callbacks, why_stopped
from robust_ood.cli.interrupts import Launcher
from robust_ood.cli.messages import causes
from robust_ood.cli.peers import lost_peer
from robust_ood.cli.resume import first_process, while_restoring
from robust_ood.cli.train_checks import is_refused_by_lightning
from robust_ood.errors import UserError
from robust_ood.texts import first_sentence, one_line
from robust_ood.writing import replace_file

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a full disk, a used-up quota, and a limit of the shell's."""


def refuse_other_run(config: Any) -> None:
    """Raise `UserError` where the folder holds a run that this one would destroy."""
    if config.replace or config.trainer.fast_dev_run:
        return
    folder = config.output
    checkpoint = config.ckpt_path
    if checkpoint is not None and Path(checkpoint).resolve().parent == folder.resolve():
        return
    existing = checkpoints_in(folder)
    if not existing:
        return
    source: str | Path = existing[0]
    if any(path.exists() for path in recent(folder)):
        source = "last"
    names = ", ".join(path.name for path in existing[:3])
    raise UserError(
        f"output: {folder} holds a run ({names}); continue it with --ckpt_path {source}, choose "
        "another folder, or overwrite the existing run with --replace true"
    )


class Curves(TensorBoardLogger):
    """TensorBoard's curves; an error that ends the run is not hidden by closing their file."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is not written yet."""
        if status != "failed":
            super().finalize(status)
            return
        with suppress(OSError):  # of a full disk, which has ended the run already
            super().finalize(status)


def built_in_loggers(folder: Path, checkpoint: Mapping[str, Any] | None) -> list[Logger]:
    """Return the loggers that every run has.

    Args:
        folder: of the run.
        checkpoint: what the run continues from.
    """
    purge_step = None
    if checkpoint is not None:
        # What a killed run logged after its checkpoint is logged again.
        purge_step = int(checkpoint.get("global_step", 0))
    board = Curves(str(folder), name="", version="", purge_step=purge_step)
    return [board, MetricsFile(folder)]


def run_callbacks(chosen: Any, shows_progress: bool | None) -> list[Callback]:
    """Return the user's callbacks, and before them what shows how far the run is.

    Args:
        chosen: `trainer.callbacks`: one, several or None.
        shows_progress: `trainer.enable_progress_bar`.
    """
    callbacks: list[Callback] = []
    if isinstance(chosen, Callback):
        callbacks = [chosen]
    elif chosen is not None:
        callbacks = list(chosen)
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
            # At an epoch's end, the checkpoint of its last step is written already, without what
            # the callback counts; after a validation it is not.
            callback._check_on_train_epoch_end = not callback.monitor.startswith("val/")
    return [*progress_callbacks(callbacks, shows_progress), *callbacks]


def say_end(trainer: Trainer, folder: Path) -> None:
    """Say why a run ended early, where it did, and what it wrote."""
    reason = why_stopped(trainer)
    if reason is not None:
        print(reason)
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).exists():
            print(f"wrote {folder / name}")


class KeepConfig(Callback):
    """Writes the resolved configuration once training begins, and none after an early mistake."""

    def __init__(self, text: str) -> None:
        self.text = text

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `config.yaml`."""
        if trainer.is_global_zero:
            replace_file(Path(trainer.default_root_dir) / "config.yaml", self.text)


def execute(trainer: Trainer, run: Callable[..., Any], **settings: Any) -> None:
    """Call one of the trainer's methods.

    Raises:
        UserError: what the user can mend.
        PeerLost: another process of the run ended.
        KeyboardInterrupt: Ctrl-C where the run cannot wait for the end of a step.
    """
    folder = Path(trainer.default_root_dir)
    try:
        with quiet_curves():
            run(**settings)
    except UserError:
        raise
    except SystemExit as end:
        # Lightning's, which has ended the other processes; its exit code is that of a crash.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise
    except Exception as error:
        failed = _failed_write(error, folder)
        if failed is not None:
            raise failed from error
        lost = lost_peer(error, trainer)
        if lost is not None:
            raise lost from error
        if while_restoring(error):
            raise UserError(
                f"ckpt_path: {settings.get('ckpt_path')} cannot be continued "
                f"({type(error).__name__}: {first_sentence(error)})"
            ) from error
        if isinstance(error, MisconfigurationException) or is_refused_by_lightning(error):
            raise UserError(f"trainer: {one_line(str(error))}") from error
        raise


@contextmanager
def quiet_curves() -> Iterator[None]:
    """Keep TensorBoard's thread from printing what it raises.

    What it could not write is raised again in the main thread, at the next number that is logged.
    """
    original = threading.excepthook

    def hook(caught: threading.ExceptHookArgs) -> None:
        if type(caught.thread).__name__ != "_AsyncWriterThread":
            original(caught)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = original


def _failed_write(error: BaseException, folder: Path) -> Exception | None:
    """Return the first write that failed for want of room; None where none did.

    Lightning and loggers put other errors around it, and closing their files fails once more.
    """
    failed: OSError | None = None
    for cause in causes(error):
        if isinstance(cause, WriteError):
            return cause
        if not isinstance(cause, OSError) or cause.errno not in _NO_ROOM:
            continue
        # The innermost one came first; one within it that names no file is the system's own.
        if failed is None or failed.filename is None or cause.filename is not None:
            failed = cause
    if failed is None:
        return None
    name = failed.filename or folder
    if failed.filename is None and _is_of_tensorboard(failed):
        name = folder / "events.out.tfevents.*"
    return OSError(failed.errno, failed.strerror, str(name))


def _is_of_tensorboard(error: BaseException) -> bool:
    """Return whether TensorBoard's writer raised this, which does not say for which file."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).startswith("tensorboard."):
            return True
    return False


def what_is_kept(folder: Path) -> str:
    """Return what a run that ended early has left to continue from."""
    path = folder / "last.ckpt"
    if path.exists():
        return f"{path} is kept; continue with --ckpt_path last"
    return "it had written no checkpoint yet"


class Ended(Exception):  # noqa: N818  # a run may end so without an error
    """The run ended early, not through a mistake.

    code: the exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def end(message: str, code: int, launcher: Launcher) -> int:
    """Say how the run ended, if this is the process that says so, and return the exit code."""
    is_second = os.environ.get("LOCAL_RANK") == "1"
    if first_process() or (is_second and launcher.is_first_process and launcher.is_gone):
        print(message, file=sys.stderr)
        return code
    if code > 128:
        return 0  # the first process's code counts; a launcher takes another one for a crash
    return code
