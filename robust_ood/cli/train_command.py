"""`train.py`: LightningCLI over our methods and data, with one output folder for everything a run
writes.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
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
from robust_ood.callbacks.checkpoints import checkpoints_in, recent
from robust_ood.cli.checks import check_classes, check_resumable, check_trainer
from robust_ood.cli.configs import with_includes
from robust_ood.cli.long_form import short_options
from robust_ood.cli.messages import parse, user_errors
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import TracedParser
from robust_ood.cli.quiet import quiet
from robust_ood.cli.resume import first_process, newest_checkpoint, refuse_changes
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import load_weights, read_checkpoint
from robust_ood.texts import one_line
from robust_ood.training import Method
from robust_ood.writing import replace_file

COMMANDS = ("fit", "validate", "test")


class Parser(TracedParser, LightningArgumentParser):
    """Takes the name of a file for what it is: `--data.train x.npz` names data, and is no config to
    be read.
    """

    def add_class_arguments(self, *arguments: Any, **settings: Any) -> list[str]:
        """Add a class's arguments, without Lightning's wish to read a config wherever a value names
        a file.
        """
        added: list[str] = super().add_class_arguments(
            *arguments, **{**settings, "sub_configs": False}
        )
        return added


class TrainingCLI(LightningCLI):
    """Adds `--net`, `--experiment` and `--output`, and gives the one seed to everything that
    draws.
    """

    def init_parser(self, **settings: Any) -> LightningArgumentParser:
        """Return the parser of one of the commands."""
        parser = Parser(**settings)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="YAML file; several compose"
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
            "--init_from", type=Path | None, default=None, help="fine-tune: begin with its weights"
        )
        parser.add_argument(
            "--replace", type=bool, default=False, help="begin anew in a folder that holds a run"
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
        """Parse the given arguments, and say what is wrong with them in one line."""
        self.config = parse(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Skip Lightning's reading of hyper-parameters: ours are the config's, and a bad file gets
        our own message.
        """

    def before_instantiate_classes(self) -> None:
        """Settle the output folder and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        config.output = Path(config.output or Path("runs") / config.experiment)
        if config.ckpt_path == "last":
            config.ckpt_path = str(newest_checkpoint(config.output))
        self.checkpoint = (
            None if config.ckpt_path is None else read_checkpoint(Path(config.ckpt_path))
        )
        if self.subcommand == "fit":
            check_writable(config.output)
            goes_on = (
                config.ckpt_path is not None
                and Path(config.ckpt_path).resolve().parent == config.output.resolve()
            )
            if not goes_on and not config.replace and not config.trainer.fast_dev_run:
                _refuse_run_in(config.output)

    def instantiate_classes(self) -> None:
        """Build data, network, method and trainer."""
        with user_errors(dict(self.config[self.subcommand].items())):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run folder's loggers and checkpoints."""
        config = self._get(self.config_init, "trainer")
        folder = Path(self._get(self.config_init, "output"))
        logging_wanted = self.subcommand == "fit" and not config["fast_dev_run"]
        # What a killed run logged after its checkpoint is logged again.
        purged = None if self.checkpoint is None else int(self.checkpoint.get("global_step", 0))
        self.old_curves = list(folder.glob("events.out.tfevents.*"))
        loggers = [
            TensorBoardLogger(str(folder), name="", version="", purge_step=purged),
            MetricsFile(folder),
        ]
        try:
            return super().instantiate_trainer(
                default_root_dir=str(folder), logger=loggers if logging_wanted else False, **kwargs
            )
        except (MisconfigurationException, ValueError, ImportError) as error:
            raise UserError(f"trainer: {one_line(str(error))}") from error

    def before_fit(self) -> None:
        """Find what cannot work before anything is written, then keep the resolved
        configuration.
        """
        check_trainer(self.trainer, self.config.fit.trainer)
        if not self.model.needs_outliers:
            self.datamodule.outlier_batch_size = 0  # what nobody reads is not loaded either
        elif self.datamodule.names["outliers"] is None:
            raise UserError(
                f"data.outliers: not given, and {type(self.model).__name__} trains with outliers"
            )
        elif not self.datamodule.outlier_batch_size:
            raise UserError(
                f"data.outlier_batch_size: is 0, and {type(self.model).__name__} trains with outliers"
            )
        self.datamodule.setup("fit")
        self.datamodule.train_dataloader()
        check_classes(self.model.net, self.datamodule, "train")
        if self.config.fit.init_from is not None and self.checkpoint is None:
            load_weights(self.model.net, Path(self.config.fit.init_from))
        settings = yaml.safe_load(
            self.parser.dump(self.config, skip_link_targets=False, skip_none=False)
        )["fit"]
        settings["model"] = completed(settings["model"])
        if self.checkpoint is not None:
            check_resumable(self.checkpoint, self.config.fit.ckpt_path, self.model.net)
            if not self.config.fit.resume_changed:
                refuse_changes(self.checkpoint.get("config") or settings, settings)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (Checkpoints, Dashboard)):
                callback.config = settings
            if isinstance(callback, Checkpoints):
                callback.replaced = self.old_curves
        self.made_folder = not Path(self.trainer.default_root_dir).exists()
        if not self._trial:
            # Resolved: what the files include is in it already, and how it was resumed is not part
            # of the experiment.
            left_out = ("include", "ckpt_path", "replace", "resume_changed")
            kept = {name: value for name, value in settings.items() if name not in left_out}
            self.trainer.callbacks.append(KeepConfig(yaml.safe_dump(kept, sort_keys=False)))  # type: ignore[attr-defined]

    def before_validate(self) -> None:
        """Load the checkpoint's weights, all of them or none."""
        self._load_weights("validation")

    def before_test(self) -> None:
        """Load the checkpoint's weights, all of them or none."""
        self._load_weights("test")

    def fit(self, **settings: Any) -> None:
        """Train; a run that a user's mistake ends before its first checkpoint leaves no folder
        behind.
        """
        folder = Path(self.trainer.default_root_dir)
        try:
            self._guard(self.trainer.fit, **{**settings, "weights_only": True})
        except UserError as error:
            diverged = isinstance(error, Diverged)  # its metrics show how
            if self.made_folder and not diverged and not list(folder.glob("*.ckpt")):
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # every process does, and the message must survive it
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
            if isinstance(error, MisconfigurationException) or _refused_by_lightning(error):
                raise UserError(f"trainer: {one_line(str(error))}") from error
            raise

    @property
    def _trial(self) -> bool:
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by Lightning's debugging connector

    def _load_weights(self, part: Any) -> None:
        check_classes(self.model.net, self.datamodule, part)
        if self.checkpoint is None:
            raise UserError(
                "ckpt_path: not given; a checkpoint to read is wanted, or 'last' for the run folder's own"
            )
        load_weights(self.model.net, self.checkpoint, source=self.config[self.subcommand].ckpt_path)

    made_folder = False


def _refuse_run_in(folder: Path) -> None:
    """Raise `UserError` where a folder holds the checkpoints of a run, which a new one would
    replace.
    """
    there = checkpoints_in(folder)
    if there:
        source = "last" if any(path.exists() for path in recent(folder)) else there[0]
        raise UserError(
            f"output: {folder} holds a run ({', '.join(path.name for path in there[:3])}); "
            f"go on with it by --ckpt_path {source}, take another folder, or begin anew with --replace true"
        )


class KeepConfig(Callback):
    """Writes the resolved configuration once training begins: a mistake found before leaves an
    older run's alone.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `config.yaml`."""
        if trainer.is_global_zero:
            replace_file(Path(trainer.default_root_dir) / "config.yaml", self.text)


def _seed(value: bool | int) -> int:
    """Return the seed of the parts. Lightning's own also takes a truth value, and NumPy has the
    last word on others.
    """
    if isinstance(value, bool) or not 0 <= value < 2**32:
        raise UserError(
            f"seed_everything: {value} is not a seed; accepted: a whole number from 0 to {2**32 - 1}"
        )
    return value


def _refused_by_lightning(error: Exception) -> bool:
    """Return whether Lightning itself raised this, about its own settings, and not something that
    it called.
    """
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
            args=short_options(with_includes(arguments)),
        )
    except Stopped as stop:
        if not first_process():
            return 0  # the first process speaks for all, and its launcher takes any other code for a crash
        print(f"{stop}; continue with --ckpt_path last", file=sys.stderr)
        return 128 + stop.signum
    return 0
