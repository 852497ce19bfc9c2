"""The data of an experiment: in-distribution parts, auxiliary outliers and OOD test sets, as one
Lightning module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from robust_ood.data.augment import crop_and_flip
from robust_ood.data.loaders import EvaluationLoader, TrainingLoader, to_float
from robust_ood.data.named import MEMORY_LIMIT, load_set, origin, part_of
from robust_ood.data.reading import Batch, Reading
from robust_ood.data.sets import ImageSet
from robust_ood.data.spec import SetSpec
from robust_ood.errors import UserError
from robust_ood.randomness import generator

Group = Literal["near", "far"]
"""How foreign an OOD test set is: `near` shares the look of the in-distribution and not its
classes, `far` neither.
"""
Spec = str | SetSpec
F = TypeVar("F", bound=str)


class OODData(LightningDataModule):
    """In-distribution images, auxiliary outliers and OOD sets, each named as `load_set` reads it.

    Args:
        train: labelled in-distribution training images.
        validation: labelled images to validate on while training.
        test: labelled images that evaluations use.
        outliers: auxiliary outliers for training, or None.
        near: OOD test sets that resemble the in-distribution.
        far: OOD test sets that do not.
        validation_ood: OOD images for validation while training and for choosing hyper-parameters;
            never a test set.
        root: folder of the data.
        size: side of the images in pixels, for sets that state none of their own; None takes each
            as it is.
        num_classes: K; labels must be in 0..K-1.
        batch_size: inliers per training batch and process.
        outlier_batch_size: outliers per training batch and process; 0 trains without, and does not
            read them.
        evaluation_batch_size: images per batch where no parameter gradient is needed.
        augmentation: "crop_and_flip" or "none", for inliers and outliers alike.
        workers: processes that read images that are not in memory, to train, validate and fit
            detectors; evaluations read what they score without. Sets in memory are read faster
            without.
        memory_limit: bytes up to which a set of files is read into memory once.
        on_device: keep the training sets in the GPU's memory where both take less than a quarter of
            what is free.
        allow_overlap: let a set be both auxiliary outliers, or validation OOD, and OOD test.
        seed: seed of order and augmentation; the run's `seed_everything` where the command sets it.
    """

    def __init__(
        self,
        train: Spec | None = None,
        validation: Spec | None = None,
        test: Spec | None = None,
        outliers: Spec | None = None,
        near: list[Spec] | None = None,
        far: list[Spec] | None = None,
        validation_ood: list[Spec] | None = None,
        root: Path | str = "data",
        size: int | None = None,
        num_classes: int = 10,
        batch_size: int = 64,
        outlier_batch_size: int = 128,
        evaluation_batch_size: int = 256,
        augmentation: Literal["crop_and_flip", "none"] = "crop_and_flip",
        workers: int = 0,
        memory_limit: int = MEMORY_LIMIT,
        on_device: bool = True,
        allow_overlap: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for field, number in (
            ("batch_size", batch_size),
            ("evaluation_batch_size", evaluation_batch_size),
        ):
            if number < 1:
                raise UserError(f"data.{field}: {number} is not a number of images >= 1")
        for field, number in (("outlier_batch_size", outlier_batch_size), ("workers", workers)):
            if number < 0:
                raise UserError(f"data.{field}: {number} is negative")
        if size is not None and size < 1:
            raise UserError(f"data.size: {size} is not a number of pixels >= 1")
        self.names = {"train": train, "validation": validation, "test": test, "outliers": outliers}
        self.near, self.far, self.validation_ood = near or [], far or [], validation_ood or []
        self.root, self.size, self.num_classes = Path(root), size, num_classes
        self.batch_size, self.outlier_batch_size = batch_size, outlier_batch_size
        self.evaluation_batch_size, self.augmentation, self.seed = (
            evaluation_batch_size,
            augmentation,
            seed,
        )
        self.workers, self.memory_limit, self.on_device = workers, memory_limit, on_device
        self._loaded: dict[str, ImageSet] = {}
        self._training_loader: TrainingLoader | None = None
        self._resume: dict[str, int] | None = None
        if not allow_overlap:
            self._refuse_overlap()

    def inliers(self, part: Literal["train", "validation", "test"]) -> ImageSet:
        """Return a labelled part of the in-distribution set, checked against `num_classes`."""
        images = self._load(part, self.names[part])
        with _in_field(part):
            images.require_classes(self.num_classes)
        return images

    def outliers(self) -> ImageSet | None:
        """Return the auxiliary outliers, or None where the experiment has none."""
        if self.names["outliers"] is None:
            return None
        return self._like_inliers("outliers", self._load("outliers", self.names["outliers"]))

    def ood_sets(self) -> list[tuple[Group, ImageSet]]:
        """Return the OOD test sets with their group, near ones first."""
        groups: list[tuple[Group, list[Spec]]] = [("near", self.near), ("far", self.far)]
        return self._named_apart([(group, spec) for group, specs in groups for spec in specs])

    def validation_ood_sets(self) -> list[ImageSet]:
        """Return the OOD sets used while training."""
        return [
            images
            for _, images in self._named_apart(
                [("validation_ood", spec) for spec in self.validation_ood]
            )
        ]

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that a mistake shows before any work starts."""
        if stage == "fit":
            self.inliers("train")
            self._training_outliers()
            self.validation_ood_sets()
        if stage in ("fit", "validate") and self.names["validation"]:
            self.inliers("validation")
        if stage == "test":
            self.inliers("test")

    def train_dataloader(self) -> TrainingLoader:
        """Return the training loader of this process."""
        rank, world = self._place()
        self._training_loader = TrainingLoader(
            self.inliers("train"),
            self._training_outliers(),
            batch_size=self.batch_size,
            outlier_batch_size=self.outlier_batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            reading=self._reading(),
        )
        if self._resume is not None:
            self._training_loader.load_state_dict(self._resume)
            self._resume = None
        return self._training_loader

    def state_dict(self) -> dict[str, int]:
        """Return how far training has read, for checkpoints.

        The loader has that state as well, but Lightning restores it too late where the schedule has
        asked for the number of steps before, as a schedule per step does.
        """
        return {} if self._training_loader is None else self._training_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader go on from there."""
        self._resume = state_dict

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """Return the validation loader of this process; none where the experiment names no
        validation images.
        """
        return (
            self.evaluation_loader(self.inliers("validation")) if self.names["validation"] else []
        )

    def test_dataloader(self) -> EvaluationLoader:
        """Return the test loader of this process."""
        return self.evaluation_loader(self.inliers("test"))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn a batch into floats on its device, augmented while training."""
        images, outliers = batch.images, batch.outliers
        if (
            self.trainer is not None
            and self.trainer.training
            and self.augmentation == "crop_and_flip"
        ):
            images = self._augment(images, "augment inliers", batch)
            outliers = self._augment(outliers, "augment outliers", batch)
        return batch._replace(images=to_float(images), outliers=to_float(outliers))

    def _augment(self, images: Tensor, purpose: str, batch: Batch) -> Tensor:
        keys = (purpose, batch.epoch, batch.step, self._place()[0])
        return crop_and_flip(images, generator(self.seed, *keys))

    def evaluation_loader(self, images: ImageSet, limit: int | None = None) -> EvaluationLoader:
        """Return the loader of any set of this experiment, for this process.

        limit: use only so many images, always the same ones: drawn, because a set may be sorted by
        class.
        """
        if limit is not None and limit < len(images):
            drawn = torch.randperm(len(images), generator=generator(0, "robust validation"))[:limit]
            images = images.subset(drawn.sort().values.numpy())
        rank, world = self._place()
        workers = 0 if images.in_memory else self.workers
        return EvaluationLoader(
            images,
            batch_size=self.evaluation_batch_size,
            rank=rank,
            world=world,
            reading=Reading(workers, pin=self._device().type == "cuda"),
        )

    def _training_outliers(self) -> ImageSet | None:
        return self.outliers() if self.outlier_batch_size else None

    def _reading(self) -> Reading:
        """Return how training batches are read: on the device, by workers, or here."""
        sets = [
            images
            for images in (self.inliers("train"), self._training_outliers())
            if images is not None
        ]
        device, resident = self._device(), all(images.in_memory for images in sets)
        if resident and self.on_device and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(images.images.nbytes for images in sets) < free / 4:  # type: ignore[attr-defined]  # arrays, here
                return Reading(device=device)
        return Reading(0 if resident else self.workers, pin=device.type == "cuda")

    def _device(self) -> torch.device:
        return (
            self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        )

    def _place(self) -> tuple[int, int]:
        return (
            (self.trainer.global_rank, self.trainer.world_size)
            if self.trainer is not None
            else (0, 1)
        )

    def _load(self, field: str, spec: Spec | None) -> ImageSet:
        if spec is None:
            raise UserError(f"data.{field}: not given, and this command needs it")
        key = repr(spec)
        if key not in self._loaded:
            with _in_field(field):
                self._loaded[key] = load_set(spec, self.root, field, self.size, self.memory_limit)
        return self._loaded[key]

    def _named_apart(self, specs: Sequence[tuple[F, Spec]]) -> list[tuple[F, ImageSet]]:
        """Return OOD sets with their fields, refused where two have one name: results tell them
        apart by it alone.
        """
        found: list[tuple[F, ImageSet]] = []
        sources: dict[str, str] = {}
        for field, spec in specs:
            images, source = self._like_inliers(field, self._load(field, spec)), _source(spec)
            if images.name in sources:
                raise UserError(
                    f"data.{field}: {source} and {sources[images.name]} are both called {images.name!r} in results; "
                    f"accepted: a name of its own for each set, as in {{source: {source}, name: {images.name}-2}}"
                )
            sources[images.name] = source
            found.append((field, images))
        return found

    def _like_inliers(self, field: str, images: ImageSet) -> ImageSet:
        """Return a set, refused if its images have another size than the in-distribution's that is
        loaded.
        """
        for part in ("train", "test", "validation"):
            inliers = self._loaded.get(repr(self.names[part]))
            if inliers is not None and inliers.image_shape != images.image_shape:
                (height, width), (wanted_height, wanted_width) = (
                    images.image_shape,
                    inliers.image_shape,
                )
                raise UserError(
                    f"data.{field}: images of {images.name} are {height} x {width}, those of {inliers.name} "
                    f"{wanted_height} x {wanted_width}; data.size makes them equal"
                )
        return images

    def _refuse_overlap(self) -> None:
        """Refuse a set that a method is both trained or tuned on and tested on."""
        outliers = self.names["outliers"]
        seen = {} if outliers is None else {origin(outliers, self.root, "outliers"): "outliers"}
        tuned = {part_of(spec, self.root, "validation_ood") for spec in self.validation_ood}
        for group, specs in (("near", self.near), ("far", self.far)):
            for spec in specs:
                also_tuned = "validation_ood" if part_of(spec, self.root, group) in tuned else None
                field = seen.get(origin(spec, self.root, group), also_tuned)
                if field is not None:
                    raise UserError(
                        f"data.{group}: {_source(spec)} is also in data.{field}, so its test would be no test; "
                        "take another set, or force it with data.allow_overlap: true"
                    )


def _source(spec: Spec) -> str:
    return spec if isinstance(spec, str) else spec.source


@contextmanager
def _in_field(field: str) -> Iterator[None]:
    """Name the config field in what is wrong with its set, unless the message names one already."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("data."):
            raise
        raise UserError(f"data.{field}: {error}") from error
