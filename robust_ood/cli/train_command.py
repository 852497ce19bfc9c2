"""`train.py`: LightningCLI over our methods and data, with one output folder for a run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import nn

from robust_ood.attacks.in_loop import completed
from robust_ood.callbacks import (
    Averaging,
    Checkpoints,
    Dashboard,
    Diverged,
    Guards,
    MetricsFile,
    RobustValidation,
    Stopped,
)
from robust_ood.callbacks.checkpoint_file import check_parts
from robust_ood.callbacks.checkpoints import checkpoints_in, recent
from robust_ood.cli.configs import with_includes
from robust_ood.cli.long_form import short_options, whole_attacks
from robust_ood.cli.messages import parse_arguments, user_errors
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import TracedParser
from robust_ood.cli.preconditions import check_classes, check_outliers, check_trainer
from robust_ood.cli.quiet import quiet
from robust_ood.cli.resume import (
    first_process,
    newest_checkpoint,
    refuse_changes,
    while_restoring,
)
from robust_ood.cli.run_lock import RunLock
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import load_weights, read_checkpoint
from robust_ood.texts import first_sentence, one_line
from robust_ood.training import Method
from robust_ood.writing import replace_file

COMMANDS = ("fit", "validate", "test")
_HOW_RESUMED = ("include", "ckpt_path", "replace", "resume_changed")
"""Settings that are no part of the experiment, and so not of the run's `config.yaml`."""


class Parser(TracedParser, LightningArgumentParser):
    """Reads `--data.train x.npz` as the name of a file of images, not of a config to include."""

    def add_class_arguments(self, *arguments: Any, **settings: Any) -> list[str]:
        """Add a class's arguments, none of which names a config."""
        settings["sub_configs"] = False
        added: list[str] = super().add_class_arguments(*arguments, **settings)
        return added


class TrainingCLI(LightningCLI):
    """Parses, checks, builds and runs `fit`, `validate` or `test`; Lightning calls the steps."""

    made_folder = False
    """Whether this run made its folder, so that it may remove it again."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.lock = RunLock()
        try:
            super().__init__(*arguments, **settings)
        finally:
            self.lock.release()

    # Parse
    # ------------------------------------------------------------------------------------------

    def init_parser(self, **settings: Any) -> LightningArgumentParser:
        """Return the parser of one of the commands."""
        parser = Parser(**settings)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="YAML file; later ones override"
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our arguments and links."""
        parser.add_argument(
            "--include", type=list[str], default=[], help="config files that this one builds on"
        )
        parser.add_argument("--experiment", type=str, default="experiment", help="name of the run")
        parser.add_argument(
            "--output", type=Path | None, default=None, help="run folder (default: runs/EXPERIMENT)"
        )
        parser.add_subclass_arguments(
            nn.Module,
            "net",
            required=True,
            instantiate=False,
            help="classifier, images in [0, 1] to logits",
        )
        parser.add_argument(
            "--init_from", type=Path | None, default=None, help="fine-tune these weights"
        )
        parser.add_argument(
            "--replace", type=bool, default=False, help="overwrite the existing run"
        )
        parser.add_argument(
            "--resume_changed", type=bool, default=False, help="resume though settings differ"
        )
        parser.add_lightning_class_args(RobustValidation, "robust_validation")
        parser.add_lightning_class_args(Guards, "guards")
        parser.add_lightning_class_args(Averaging, "averaging")
        parser.add_lightning_class_args(Dashboard, "dashboard")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.link_arguments("net", "model.init_args.net")
        parser.link_arguments("seed_everything", "model.init_args.seed", _seed)
        parser.link_arguments("seed_everything", "data.seed", _seed)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer training, validation and test."""
        skip = {
            "model",
            "dataloaders",
            "datamodule",
            "train_dataloaders",
            "val_dataloaders",
            "weights_only",
        }
        return dict.fromkeys(COMMANDS, skip)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; a mistake becomes a `UserError` of one line."""
        self.config = parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: hyper-parameters are in the config, not in the checkpoint."""

    # Check and build
    # ------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Find the output folder and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        config.output = Path(config.output or Path("runs") / config.experiment)
        if self.subcommand == "fit":
            check_writable(config.output)
            if config.output.is_dir() and not config.trainer.fast_dev_run:
                self.lock.acquire(config.output)  # before its checkpoints are looked at
        if config.ckpt_path == "last":
            config.ckpt_path = str(newest_checkpoint(config.output))
        self.checkpoint = None
        if config.ckpt_path is not None:
            self.checkpoint = read_checkpoint(Path(config.ckpt_path))
            if self.subcommand == "fit":
                check_parts(self.checkpoint, config.ckpt_path)
        if self.subcommand == "fit":
            _refuse_other_run(config)

    def instantiate_classes(self) -> None:
        """Build data, network, method and trainer."""
        with user_errors(dict(self.config[self.subcommand].items())):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run folder's loggers and checkpoints, and the user's."""
        config = self._get(self.config_init, "trainer")
        folder = Path(self._get(self.config_init, "output"))
        user_loggers = _user_loggers(config["logger"])
        self.old_curves = list(folder.glob("events.out.tfevents.*"))
        loggers: list[Logger] = []
        if self.subcommand == "fit" and not config["fast_dev_run"]:
            loggers = [*self._loggers(folder), *user_loggers]
        try:
            return super().instantiate_trainer(
                default_root_dir=str(folder), logger=loggers or False, **kwargs
            )
        except (MisconfigurationException, ValueError, ImportError) as error:
            raise UserError(f"trainer: {one_line(str(error))}") from error

    def before_fit(self) -> None:
        """Find mistakes before anything is written, then give the run its settings."""
        check_trainer(self.trainer, self.config.fit.trainer)
        check_outliers(self.model, self.datamodule)
        if not self.model.needs_outliers:
            self.datamodule.outlier_batch_size = 0  # loading what no loss reads takes time
        self.datamodule.setup("fit")
        self.datamodule.train_dataloader()
        check_classes(self.model.net, self.datamodule, "train")
        settings = self._resolved_settings()
        if self.checkpoint is not None:
            self._check_checkpoint(self.checkpoint, settings)
        elif self.config.fit.init_from is not None:
            self.model.begin_from(Path(self.config.fit.init_from))
        self._configure_callbacks(settings)
        folder = Path(self.trainer.default_root_dir)
        self.made_folder = not folder.exists()
        if not self._trial:
            self.lock.acquire(folder)
            _refuse_other_run(self.config.fit)  # one that began there at the same time

    def before_validate(self) -> None:
        """Load the checkpoint's weights, all of them or none."""
        self._load_weights("validation")

    def before_test(self) -> None:
        """Load the checkpoint's weights, all of them or none."""
        self._load_weights("test")

    # Run
    # ------------------------------------------------------------------------------------------

    def fit(self, **settings: Any) -> None:
        """Train; a run that a mistake ends before its first checkpoint leaves no folder behind."""
        folder = Path(self.trainer.default_root_dir)
        try:
            self._guard(self.trainer.fit, **{**settings, "weights_only": True})
        except UserError as error:
            diverged = isinstance(error, Diverged)  # its metrics show how
            if self.made_folder and not diverged and not list(folder.glob("*.ckpt")):
                # Every process removes it, and the message must survive that.
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.trainer.is_global_zero and (folder / "last.ckpt").exists() and not self._trial:
            print(f"wrote {folder / 'last.ckpt'}")

    def validate(self, **settings: Any) -> None:
        """Validate the loaded weights."""
        self._guard(self.trainer.validate, **{**settings, "ckpt_path": None})

    def test(self, **settings: Any) -> None:
        """Test the loaded weights."""
        self._guard(self.trainer.test, **{**settings, "ckpt_path": None})

    @staticmethod
    def _guard(run: Callable[..., Any], **settings: Any) -> None:
        try:
            run(**settings)
        except UserError:
            raise
        except Exception as error:
            if while_restoring(error):
                raise UserError(
                    f"ckpt_path: {settings.get('ckpt_path')} cannot be continued "
                    f"({type(error).__name__}: {first_sentence(error)})"
                ) from error
            if isinstance(error, MisconfigurationException) or _refused_by_lightning(error):
                raise UserError(f"trainer: {one_line(str(error))}") from error
            raise

    @property
    def _trial(self) -> bool:
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]  # no type in Lightning

    def _loggers(self, folder: Path) -> list[Logger]:
        """Return the loggers that every run has."""
        purge_step = None
        if self.checkpoint is not None:
            # What a killed run logged after its checkpoint is logged again.
            purge_step = int(self.checkpoint.get("global_step", 0))
        board = TensorBoardLogger(str(folder), name="", version="", purge_step=purge_step)
        return [board, MetricsFile(folder)]

    def _resolved_settings(self) -> dict[str, Any]:
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False)
        settings: dict[str, Any] = yaml.safe_load(text)["fit"]
        settings["model"] = completed(settings["model"])
        return settings

    def _check_checkpoint(self, checkpoint: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that this run cannot continue from."""
        load_weights(self.model.net, checkpoint, source=self.config.fit.ckpt_path)
        if not self.config.fit.resume_changed:
            refuse_changes(checkpoint.get("config") or settings, settings)

    def _configure_callbacks(self, settings: dict[str, Any]) -> None:
        """Give the run's settings to the callbacks that write them."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Checkpoints | Dashboard):
                callback.config = settings
            if isinstance(callback, Checkpoints):
                callback.replaced = self.old_curves
        if not self._trial:
            kept = {name: value for name, value in settings.items() if name not in _HOW_RESUMED}
            callbacks.append(KeepConfig(yaml.safe_dump(kept, sort_keys=False)))

    def _load_weights(self, split: Any) -> None:
        check_classes(self.model.net, self.datamodule, split)
        if self.checkpoint is None:
            raise UserError(
                "ckpt_path: not given; expected a checkpoint, or 'last' for that of the run folder"
            )
        load_weights(self.model.net, self.checkpoint, source=self.config[self.subcommand].ckpt_path)


def _refuse_other_run(config: Any) -> None:
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


def _user_loggers(setting: Any) -> list[Logger]:
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


class KeepConfig(Callback):
    """Writes the resolved configuration once training begins, and none after an early mistake."""

    def __init__(self, text: str) -> None:
        self.text = text

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `config.yaml`."""
        if trainer.is_global_zero:
            replace_file(Path(trainer.default_root_dir) / "config.yaml", self.text)


def _seed(value: bool | int) -> int:
    """Return the seed of all random draws, which has to be one that NumPy accepts, too."""
    if isinstance(value, bool) or not 0 <= value < 2**32:
        raise UserError(
            f"seed_everything: {value} is not a seed; expected a whole number from 0 to {2**32 - 1}"
        )
    return value


def _refused_by_lightning(error: Exception) -> bool:
    """Return whether Lightning itself raised this, about its settings, not code that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return name.startswith(("pytorch_lightning.", "lightning_fabric."))


def run(arguments: Sequence[str]) -> int:
    """Run `fit`, `validate` or `test` and return the exit code."""
    quiet()
    register_types()
    # A shortened --config would be read without what its file includes.
    strict = {"exit_on_error": False, "allow_abbrev": False}
    try:
        TrainingCLI(
            Method,
            OODData,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "use_distributed_sampler": False,  # our loaders shard themselves
                "enable_model_summary": False,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
            },
            parser_kwargs={**strict, **dict.fromkeys(COMMANDS, strict)},
            args=whole_attacks(short_options(with_includes(arguments))),
        )
    except Stopped as stop:
        if not first_process():
            # The first process speaks for all; its launcher takes another code for a crash.
            return 0
        print(f"{stop}; continue with --ckpt_path last", file=sys.stderr)
        return 128 + stop.signum
    return 0
