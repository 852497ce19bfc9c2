"""`train.py`: LightningCLI over our methods and data, with one output folder for everything a run writes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from robust_ood.callbacks import Checkpoints
from robust_ood.cli.configs import with_includes
from robust_ood.cli.output import writable_folder
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import read_checkpoint
from robust_ood.training import Method


class TrainingCLI(LightningCLI):
    """Adds `--net`, `--experiment` and `--output`, and gives the one seed to everything that draws."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our arguments and links."""
        parser.add_argument("--include", type=list[str], default=[], help="config files that this one builds on")
        parser.add_argument("--experiment", type=str, default="experiment", help="name of the run")
        parser.add_argument("--output", type=Path | None, default=None, help="run folder (default: runs/EXPERIMENT)")
        parser.add_subclass_arguments(
            nn.Module, "net", required=True, instantiate=False, help="classifier, images in [0, 1] to logits"
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.link_arguments("net", "model.init_args.net")
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer training, validation and test."""
        skip = {"model", "dataloaders", "datamodule", "train_dataloaders", "val_dataloaders", "weights_only"}
        return {"fit": skip, "validate": skip, "test": skip}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the given arguments, without Lightning's warning that the process has arguments of its own."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Skip Lightning's reading of hyper-parameters: ours are the config's, and a bad file gets our own message."""

    def before_instantiate_classes(self) -> None:
        """Settle the output folder and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        config.output = Path(config.output or Path("runs") / config.experiment)
        if config.ckpt_path == "last":
            config.ckpt_path = str(config.output / "last.ckpt")
        if config.ckpt_path is not None:
            read_checkpoint(Path(config.ckpt_path))
        if self.subcommand == "fit":
            writable_folder(config.output)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run folder's loggers and checkpoints."""
        config = self._get(self.config_init, "trainer")
        folder = Path(self._get(self.config_init, "output"))
        logging_wanted = self.subcommand == "fit" and not config["fast_dev_run"]
        loggers = [TensorBoardLogger(str(folder), name="", version=""), CSVLogger(str(folder), name="", version="")]
        return super().instantiate_trainer(
            default_root_dir=str(folder), logger=loggers if logging_wanted else False, **kwargs
        )

    def before_fit(self) -> None:
        """Keep the resolved configuration beside what it produces."""
        self.datamodule.setup("fit")
        _check_classes(self.model, self.datamodule)
        if not self.trainer.fast_dev_run and self.trainer.is_global_zero:
            self._dump_config()
            folder = Path(self.trainer.default_root_dir)
            (folder / "config.yaml").write_text(yaml.safe_dump(self.config_dump, sort_keys=False))


def _check_classes(method: Method, data: OODData) -> None:
    """Refuse a network that gives another number of logits than the data has classes, before training starts."""
    from robust_ood.models import count_classes

    classes = count_classes(method.net, data.inliers("train").image_shape)
    if classes != data.num_classes:
        raise UserError(f"net: gives {classes} logits, but data.num_classes is {data.num_classes}")


def run(arguments: Sequence[str]) -> int:
    """Run `fit`, `validate` or `test` and return the exit code."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    register_types()
    TrainingCLI(
        Method,
        OODData,
        subclass_mode_model=True,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={
            "use_distributed_sampler": False,  # our loaders shard themselves
            "enable_checkpointing": False,  # our Checkpoints callback does it
            "enable_model_summary": False,
            "log_every_n_steps": 10,
            "num_sanity_val_steps": 0,
        },
        parser_kwargs={
            "exit_on_error": False,
            **{name: {"exit_on_error": False} for name in ("fit", "validate", "test")},
        },
        args=with_includes(arguments),
    )
    return 0
