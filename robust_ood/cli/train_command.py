"""`train.py`: LightningCLI over our methods and data, with one output folder for a run."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from torch import nn

from robust_ood.attacks.in_loop import completed
from robust_ood.callbacks import (
    Averaging,
    Checkpoints,
    Dashboard,
    Diverged,
    EpochLines,
    Guards,
    HardOutliers,
    RobustValidation,
    Stopped,
)
from robust_ood.callbacks.checkpoint_file import WriteError, check_parts
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.configs import with_includes
from robust_ood.cli.interrupts import stopped_without_launcher
from robust_ood.cli.loggers import ready_loggers, tracker_errors, user_loggers
from robust_ood.cli.long_form import short_options, whole_attacks
from robust_ood.cli.messages import user_errors
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import TracedParser
from robust_ood.cli.peers import PeerLost, SignsOfLife, watch_children
from robust_ood.cli.preconditions import check_classes, check_outliers, check_trainer
from robust_ood.cli.processes import check_processes
from robust_ood.cli.quiet import quiet
from robust_ood.cli.resume import newest_checkpoint, refuse_changes
from robust_ood.cli.run_lock import RunLock
from robust_ood.cli.train_checks import (
    check_settings,
    is_refused_by_lightning,
    refuse_following,
    run_seed,
)
from robust_ood.cli.training_run import (
    Ended,
    KeepConfig,
    built_in_loggers,
    end,
    execute,
    refuse_other_run,
    run_callbacks,
    say_end,
    what_is_kept,
)
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import load_weights, read_checkpoint
from robust_ood.texts import one_line
from robust_ood.training import Method

COMMANDS = ("fit", "validate", "test")
_HOW_RESUMED = ("include", "ckpt_path", "replace", "resume_changed")
"""Settings that are no part of the experiment, and so not of the run's `config.yaml`."""


class Parser(TracedParser, LightningArgumentParser):  # type: ignore[misc]  # any arguments
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
        parser.add_lightning_class_args(HardOutliers, "hard_outliers")
        parser.add_lightning_class_args(Averaging, "averaging")
        parser.add_lightning_class_args(Dashboard, "dashboard")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.link_arguments("net", "model.init_args.net")
        parser.link_arguments("seed_everything", "model.init_args.seed", run_seed)
        parser.link_arguments("seed_everything", "data.seed", run_seed)

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
        check_settings(config)
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
            refuse_other_run(config)
            ready_loggers(config.trainer.logger, self.checkpoint)

    def instantiate_classes(self) -> None:
        """Build data, network, method and trainer."""
        with user_errors(dict(self.config[self.subcommand].items())), tracker_errors():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run folder's loggers and checkpoints, and the user's."""
        config = self._get(self.config_init, "trainer")
        folder = Path(self._get(self.config_init, "output"))
        chosen_loggers = user_loggers(config["logger"])
        self.old_curves = list(folder.glob("events.out.tfevents.*"))
        loggers: list[Logger] = []
        if self.subcommand == "fit" and not config["fast_dev_run"]:
            loggers = [*built_in_loggers(folder, self.checkpoint), *chosen_loggers]
        if self.subcommand == "fit":
            callbacks = run_callbacks(config["callbacks"], config["enable_progress_bar"])
            kwargs["callbacks"] = callbacks
            if any(isinstance(callback, EpochLines) for callback in callbacks):
                kwargs["enable_progress_bar"] = False  # Lightning would add its own beside them
        try:
            trainer: Trainer = super().instantiate_trainer(
                default_root_dir=str(folder), logger=loggers or False, **kwargs
            )
        except (MisconfigurationException, ValueError, ImportError, TypeError) as error:
            if isinstance(error, TypeError) and not is_refused_by_lightning(error):
                raise
            raise UserError(f"trainer: {one_line(str(error))}") from error
        watch_children(trainer)
        return trainer

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
            self._begin_from(Path(self.config.fit.init_from))
        self._configure_callbacks(settings)
        folder = Path(self.trainer.default_root_dir)
        self.made_folder = not folder.exists()
        if not self._trial:
            self.lock.acquire(folder)
            refuse_other_run(self.config.fit)  # one that began there at the same time

    def _begin_from(self, path: Path) -> None:
        try:
            self.model.begin_from(path)
        except UserError as error:
            name, colon, rest = str(error).partition(":")
            if name != "checkpoint":
                raise
            raise UserError(f"init_from{colon}{rest}") from error

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
            with tracker_errors():
                execute(self.trainer, self.trainer.fit, **{**settings, "weights_only": True})
        except UserError as error:
            tells = isinstance(error, Diverged | WriteError)  # its metrics show how far it came
            if self.made_folder and not tells and not list(folder.glob("*.ckpt")):
                # Every process removes it, and the message must survive that.
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except PeerLost as lost:
            raise Ended(f"error: {lost}; {what_is_kept(folder)}", lost.code) from lost
        except KeyboardInterrupt as interrupt:
            code = 128 + signal.SIGINT
            raise Ended(f"stopped at once; {what_is_kept(folder)}", code) from interrupt
        if self.trainer.is_global_zero and not self._trial:
            say_end(self.trainer, folder)

    def validate(self, **settings: Any) -> None:
        """Validate the loaded weights."""
        execute(self.trainer, self.trainer.validate, **{**settings, "ckpt_path": None})

    def test(self, **settings: Any) -> None:
        """Test the loaded weights."""
        execute(self.trainer, self.trainer.test, **{**settings, "ckpt_path": None})

    @property
    def _trial(self) -> bool:
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]  # no type in Lightning

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
            callbacks.append(SignsOfLife())

    def _load_weights(self, split: Any) -> None:
        check_classes(self.model.net, self.datamodule, split)
        if self.checkpoint is None:
            raise UserError(
                "ckpt_path: not given; expected a checkpoint, or 'last' for that of the run folder"
            )
        load_weights(self.model.net, self.checkpoint, source=self.config[self.subcommand].ckpt_path)


def run(arguments: Sequence[str]) -> int:
    """Run `fit`, `validate` or `test` and return the exit code."""
    quiet()
    check_processes()
    register_types()
    with stopped_without_launcher() as launcher:
        try:
            _run(arguments)
        except Stopped as stop:
            return end(f"{stop}; continue with --ckpt_path last", 128 + stop.signum, launcher)
        except Ended as early:
            return end(str(early), early.code, launcher)
        except PeerLost as lost:
            return end(f"error: {lost}", lost.code, launcher)
    return 0


def _run(arguments: Sequence[str]) -> None:
    given = with_includes(arguments)
    refuse_following(given)
    # A shortened --config would be read without what its file includes.
    strict = {"exit_on_error": False, "allow_abbrev": False}
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
        args=whole_attacks(short_options(given)),
    )
