"""The data of an experiment: in-distribution parts, auxiliary outliers and OOD test sets, as one Lightning module."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pytorch_lightning import LightningDataModule
from torch import Tensor

from robust_ood.data.augment import crop_and_flip
from robust_ood.data.catalogue import load_set
from robust_ood.data.loaders import Batch, EvaluationLoader, TrainingLoader, to_float
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError
from robust_ood.randomness import generator

Group = Literal["near", "far"]


class OODData(LightningDataModule):
    """In-distribution images, auxiliary outliers and OOD sets, each named as `load_set` reads it.

    Args:
        train: labelled in-distribution training images.
        validation: labelled images to validate on while training.
        test: labelled images that evaluations use.
        outliers: auxiliary outliers for training, or None.
        near: OOD test sets that resemble the in-distribution.
        far: OOD test sets that do not.
        validation_ood: OOD images for validation while training and for choosing hyper-parameters; never a test set.
        root: folder of the array files.
        num_classes: K; labels must be in 0..K-1.
        batch_size: inliers per training batch and process.
        outlier_batch_size: outliers per training batch and process.
        evaluation_batch_size: images per batch where no parameter gradient is needed.
        augmentation: "crop_and_flip" or "none", for inliers and outliers alike.
        seed: seed of order and augmentation; the run's `seed_everything` where the command sets it.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        outliers: str | None = None,
        near: list[str] | None = None,
        far: list[str] | None = None,
        validation_ood: list[str] | None = None,
        root: Path | str = "data",
        num_classes: int = 10,
        batch_size: int = 64,
        outlier_batch_size: int = 128,
        evaluation_batch_size: int = 256,
        augmentation: Literal["crop_and_flip", "none"] = "crop_and_flip",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for field, size in (("batch_size", batch_size), ("evaluation_batch_size", evaluation_batch_size)):
            if size < 1:
                raise UserError(f"data.{field}: {size} is not a number of images >= 1")
        if outlier_batch_size < 0:
            raise UserError(f"data.outlier_batch_size: {outlier_batch_size} is negative")
        self.names = {"train": train, "validation": validation, "test": test, "outliers": outliers}
        self.near, self.far, self.validation_ood = near or [], far or [], validation_ood or []
        self.root, self.num_classes = Path(root), num_classes
        self.batch_size, self.outlier_batch_size = batch_size, outlier_batch_size
        self.evaluation_batch_size, self.augmentation, self.seed = evaluation_batch_size, augmentation, seed
        self._loaded: dict[str, ImageSet] = {}

    def inliers(self, part: Literal["train", "validation", "test"]) -> ImageSet:
        """Return a labelled part of the in-distribution set, checked against `num_classes`."""
        images = self._load(part, self.names[part])
        images.require_classes(self.num_classes)
        return images

    def outliers(self) -> ImageSet | None:
        """Return the auxiliary outliers, or None where the experiment has none."""
        return self._load("outliers", self.names["outliers"]) if self.names["outliers"] else None

    def ood_sets(self) -> list[tuple[Group, ImageSet]]:
        """Return the OOD test sets with their group, near ones first."""
        groups: list[tuple[Group, list[str]]] = [("near", self.near), ("far", self.far)]
        return [(group, self._load(group, spec)) for group, specs in groups for spec in specs]

    def validation_ood_sets(self) -> list[ImageSet]:
        """Return the OOD sets used while training."""
        return [self._load("validation_ood", spec) for spec in self.validation_ood]

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that a mistake shows before any work starts."""
        if stage == "fit":
            self.inliers("train")
            self.outliers()
            self.validation_ood_sets()
        if stage in ("fit", "validate") and self.names["validation"]:
            self.inliers("validation")
        if stage == "test":
            self.inliers("test")

    def train_dataloader(self) -> TrainingLoader:
        """Return the training loader of this process."""
        rank, world = self._place()
        return TrainingLoader(
            self.inliers("train"),
            self.outliers(),
            batch_size=self.batch_size,
            outlier_batch_size=self.outlier_batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
        )

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """Return the validation loader of this process; none where the experiment names no validation images."""
        return self._evaluation_loader("validation") if self.names["validation"] else []

    def test_dataloader(self) -> EvaluationLoader:
        """Return the test loader of this process."""
        return self._evaluation_loader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn a batch into floats on its device, augmented while training."""
        images, outliers = batch.images, batch.outliers
        if self.trainer is not None and self.trainer.training and self.augmentation == "crop_and_flip":
            images = self._augment(images, "augment inliers", batch)
            outliers = self._augment(outliers, "augment outliers", batch)
        return batch._replace(images=to_float(images), outliers=to_float(outliers))

    def _augment(self, images: Tensor, purpose: str, batch: Batch) -> Tensor:
        keys = (purpose, batch.epoch, batch.step, self._place()[0])
        return crop_and_flip(images, generator(self.seed, *keys, device=images.device))

    def _evaluation_loader(self, part: Literal["validation", "test"]) -> EvaluationLoader:
        rank, world = self._place()
        return EvaluationLoader(self.inliers(part), batch_size=self.evaluation_batch_size, rank=rank, world=world)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _load(self, field: str, spec: str | None) -> ImageSet:
        if spec is None:
            raise UserError(f"data.{field}: not given, and this command needs it")
        if spec not in self._loaded:
            self._loaded[spec] = load_set(spec, self.root, field)
        return self._loaded[spec]
