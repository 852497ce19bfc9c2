"""The data of an experiment as one Lightning module: in-distribution parts, auxiliary outliers and
OOD test sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from typing_extensions import Unpack

from robust_ood.data.class_names import bind_labels, bind_shifted, class_names_of
from robust_ood.data.fields import (
    DeprecatedReadingOptions,
    check_form,
    evaluated_only,
    naming_field,
    other_form,
    read_one,
    read_root,
    read_several,
    require_batch,
    require_count,
    with_deprecated,
)
from robust_ood.data.loaders import EvaluationLoader, TrainingLoader
from robust_ood.data.named import load_set, source_of
from robust_ood.data.outlier_mixture import (
    OutlierMixture,
    OutlierSources,
    mixed,
    read_outliers,
    specs_of,
)
from robust_ood.data.reading import Batch, Reading, ReadingOptions
from robust_ood.data.sets import ImageSet
from robust_ood.data.shared_sets import (
    pixel_digests,
    refuse_inliers,
    refuse_shared_sets,
    warn_of_missing_tests,
)
from robust_ood.data.sources.form import Channels
from robust_ood.data.sources.spec import SetSource, SetSpec
from robust_ood.data.transforms import Augmentation, as_float
from robust_ood.errors import UserError
from robust_ood.randomness import generator

Group = Literal["near", "far"]
"""How foreign an OOD set is: `near` shares the look of the in-distribution, `far` does not."""
_DEFAULT_READING = ReadingOptions()


class OODData(LightningDataModule):
    """In-distribution images, auxiliary outliers and OOD sets, each written as `load_set` reads it.

    Args:
        train: labelled in-distribution training images.
        validation: labelled images to validate on while training.
        test: labelled images that evaluations use.
        outliers: auxiliary outliers for training, or None; of several sources as `[{set: ...,
            weight: ...}, ...]`. Weights are > 0 and count in proportion to one another: 3 and 1
            mean three outliers of the first set for each of the second.
        near: OOD test sets that resemble the in-distribution.
        far: OOD test sets that do not.
        validation_ood: OOD images for validation while training and for choosing hyper-parameters;
            never a test set.
        root: folder of the data; it may begin with `~`.
        size: side of the images in pixels, for sets that state none of their own; None leaves
            images unchanged.
        num_classes: K; labels must be in 0..K-1. With 1, sets need no labels.
        batch_size: inliers per training batch and process.
        outlier_batch_size: outliers per training batch and process; 0 trains without outliers, and
            does not read them.
        evaluation_batch_size: images per batch where no parameter gradient is needed.
        augmentation: of training images, inliers and outliers alike: "crop_and_flip", "none", or a
            list of torchvision's transforms by name, of classes of your own by import path, of
            "mixup" or "cutmix", which mix inliers alone, and of "label_smoothing".
        seed: seed of order and augmentation; the commands set it to the run's `seed_everything`.
        allow_overlap: let an OOD test also be auxiliary outliers, validation OOD or an inlier set.
        reading: workers, memory limit and device; the batches do not depend on them.
        channels: 1 for grey images `(N, 1, H, W)`, 3 for RGB, for sets that state none themselves.
        shifted: inliers of another look, such as corrupted ones (full-spectrum OOD detection).
    """

    def __init__(  # noqa: PLR0913  # each argument is a key of configs
        self,
        train: SetSource | None = None,
        validation: SetSource | None = None,
        test: SetSource | None = None,
        outliers: OutlierSources | None = None,
        near: list[SetSource] | None = None,
        far: list[SetSource] | None = None,
        validation_ood: list[SetSource] | None = None,
        root: str | Path = "data",  # in this order, so that an empty text is not the path "."
        size: int | None = None,
        num_classes: int = 10,
        batch_size: int = 64,
        outlier_batch_size: int = 128,
        evaluation_batch_size: int = 256,
        augmentation: str | list[str | dict[str, Any]] = "crop_and_flip",
        seed: int = 0,
        allow_overlap: bool = False,
        reading: ReadingOptions = _DEFAULT_READING,
        channels: Channels = 3,
        shifted: list[SetSource] | None = None,
        **deprecated: Unpack[DeprecatedReadingOptions],
    ) -> None:
        super().__init__()
        require_batch("data.batch_size", batch_size)
        require_batch("data.outlier_batch_size", outlier_batch_size, 0)
        require_batch("data.evaluation_batch_size", evaluation_batch_size)
        require_count("data.num_classes", num_classes, 1)
        check_form(size, channels)
        self.names = {
            "train": read_one("train", train),
            "validation": read_one("validation", validation),
            "test": read_one("test", test),
        }
        self.auxiliary = read_outliers("data.outliers", outliers)
        self.near = read_several("near", near)
        self.far = read_several("far", far)
        self.validation_ood = read_several("validation_ood", validation_ood)
        self.shifted = read_several("shifted", shifted)
        self.root = read_root(root)
        self.size = size
        self.channels = channels
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.outlier_batch_size = outlier_batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.augmentation = augmentation
        self._augmentation = Augmentation(augmentation, num_classes)
        self.seed = seed
        self.reading = with_deprecated(reading, deprecated)
        self.allow_overlap = allow_overlap
        self._loaded: dict[str, ImageSet] = {}
        self._digests: dict[str, frozenset[bytes]] = {}
        self._compared: set[str] = set()
        self._training_loader: TrainingLoader | None = None
        self._augmented_by_workers = False
        self._resume: dict[str, int] | None = None
        if not allow_overlap:
            tests = {"near": self.near, "far": self.far}
            inliers = {part: self.names[part] for part in ("train", "validation", "test")}
            refuse_shared_sets(
                tests, specs_of(self.auxiliary), self.validation_ood, inliers, self.root
            )

    def inliers(self, part: Literal["train", "validation", "test"]) -> ImageSet:
        """Return a labelled part of the in-distribution set, checked against `num_classes`."""
        images = self._load(part, self.names[part])
        if images.labels is None and self.num_classes == 1:
            # What models images alone, such as a flow, needs no labels.
            images = replace(images, labels=np.zeros(len(images), np.int64))
        with naming_field(part):
            images = self._bound_to_training(part, images)
            images.require_classes(self.num_classes)
        return images

    def outliers(self) -> ImageSet | None:
        """Return the auxiliary outliers, or None where the experiment has none."""
        spec = self.auxiliary
        if spec is None:
            return None
        if isinstance(spec, OutlierMixture):
            images = self._mixed(spec)
        else:
            images = self._load("outliers", spec)
        self._require_size_of_inliers("outliers", images)
        return images

    def ood_sets(self) -> list[tuple[Group, ImageSet]]:
        """Return the OOD test sets with their group, near ones first."""
        groups: dict[Group, list[str | SetSpec]] = {"near": self.near, "far": self.far}
        sources: dict[str, str] = {}
        sets: list[tuple[Group, ImageSet]] = []
        for group, specs in groups.items():
            for spec in specs:
                sets.append((group, self._load_ood(group, spec, sources)))
        return sets

    def validation_ood_sets(self) -> list[ImageSet]:
        """Return the OOD sets used while training."""
        sources: dict[str, str] = {}
        return [self._load_ood("validation_ood", spec, sources) for spec in self.validation_ood]

    def shifted_sets(self) -> list[ImageSet]:
        """Return the inliers of other looks, which evaluations of the full spectrum accept, too."""
        sources: dict[str, str] = {}
        train = self.names["train"]
        names = () if train is None else class_names_of(train, self.root)
        sets = [self._load_apart("shifted", spec, sources) for spec in self.shifted]
        return [bind_shifted(images, names, self.num_classes) for images in sets]

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that mistakes show before any work starts."""
        if stage == "fit":
            self.inliers("train")
            self._training_outliers()
            self.validation_ood_sets()
            tests = {"near": self.near, "far": self.far}
            warn_of_missing_tests({**tests, "shifted": self.shifted}, self.root)
        if stage in ("fit", "validate") and self.names["validation"]:
            self.inliers("validation")
        if stage == "test":
            self.inliers("test")

    def train_dataloader(self) -> TrainingLoader:
        """Return the training loader of this process."""
        rank, world = self._rank_and_world()
        reading = self._training_reading()
        # On the CPU, training would wait for the augmentation. A GPU is faster than the workers.
        self._augmented_by_workers = reading.workers > 0 and self._device().type == "cpu"
        self._training_loader = TrainingLoader(
            self.inliers("train"),
            self._training_outliers(),
            batch_size=self.batch_size,
            outlier_batch_size=self.outlier_batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            reading=reading,
            augment=self._augmenting() if self._augmented_by_workers else None,
        )
        if self._resume is not None:
            self._training_loader.load_state_dict(self._resume)
            self._resume = None
        return self._training_loader

    def state_dict(self) -> dict[str, int]:
        """Return how far training has read, for checkpoints.

        The loader has that state too, but Lightning restores it too late if a schedule has asked
        for the number of steps before, as a schedule per step does.
        """
        if self._training_loader is None:
            return {}
        return self._training_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next training loader continue from there."""
        self._resume = state_dict

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """Return the validation loader of this process, or none without validation images."""
        if not self.names["validation"]:
            return []
        return self.evaluation_loader(self.inliers("validation"))

    def test_dataloader(self) -> EvaluationLoader:
        """Return the test loader of this process."""
        return self.evaluation_loader(self.inliers("test"))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return a batch as floats on its device, augmented while training."""
        training = self.trainer is not None and self.trainer.training
        if training and not self._augmented_by_workers:
            batch = self._augmenting()(batch)
        batch = batch._replace(images=as_float(batch.images), outliers=as_float(batch.outliers))
        if training and self._augmentation.mixes:
            keys = (batch.epoch, batch.step, self._rank_and_world()[0])
            images, labels = self._augmentation.mixed(batch.images, batch.labels, self.seed, *keys)
            batch = batch._replace(images=images, labels=labels)
        return batch

    def evaluation_loader(self, images: ImageSet, limit: int | None = None) -> EvaluationLoader:
        """Return a loader of any set of this experiment, for this process.

        limit: use only this many images, always the same ones. They are drawn, because a set may be
        sorted by class.
        """
        if limit is not None:
            require_count("limit", limit, 1)
        if limit is not None and limit < len(images):
            source = generator(0, "robust validation")
            drawn = torch.randperm(len(images), generator=source)[:limit]
            images = images.subset(drawn.sort().values.numpy())
        rank, world = self._rank_and_world()
        workers = 0 if images.in_memory else self.reading.workers
        return EvaluationLoader(
            images,
            batch_size=self.evaluation_batch_size,
            rank=rank,
            world=world,
            reading=Reading(workers, pin=self._device().type == "cuda"),
        )

    def _augmenting(self) -> Callable[[Batch], Batch]:
        """Return what augments a batch of this process."""
        return partial(self._augmentation.augmented, seed=self.seed, rank=self._rank_and_world()[0])

    def _training_outliers(self) -> ImageSet | None:
        return self.outliers() if self.outlier_batch_size else None

    def _training_reading(self) -> Reading:
        """Return how training batches are read: from the device's memory, by workers, or here."""
        sets = [self.inliers("train")]
        outliers = self._training_outliers()
        if outliers is not None:
            sets.append(outliers)
        device = self._device()
        on_gpu = device.type == "cuda"
        if not all(images.in_memory for images in sets):
            return Reading(self.reading.workers, pin=on_gpu)
        if on_gpu and self.reading.on_device:
            free, _ = torch.cuda.mem_get_info(device)
            size = sum(images.images.nbytes for images in sets)  # type: ignore[attr-defined]  # arrays, here
            if size < free / 4:
                return Reading(device=device)
        return Reading(pin=on_gpu)

    def _device(self) -> torch.device:
        if self.trainer is None:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _load(self, field: str, spec: str | SetSpec | None) -> ImageSet:
        if spec is None:
            raise UserError(f"data.{field}: not given, and this command needs it")
        key = repr(spec)
        if key not in self._loaded:
            limit = self.reading.memory_limit
            with naming_field(field):
                self._loaded[key] = load_set(
                    spec, self.root, field, self.size, limit, self.channels
                )
        return evaluated_only(field, self._loaded[key])

    def _mixed(self, mixture: OutlierMixture) -> ImageSet:
        key = repr(mixture)
        if key not in self._loaded:
            parts = []
            for place, spec in enumerate(mixture.sets):
                parts.append(self._load(f"outliers[{place}].set", spec))
            self._loaded[key] = mixed(parts, mixture.weights)
        return self._loaded[key]

    def _bound_to_training(self, part: str, images: ImageSet) -> ImageSet:
        """Return a part whose labels are those of the training set's classes of the same names."""
        train = self.names["train"]
        if part == "train" or train is None:
            return images
        key = f"{part} bound to classes"
        if key not in self._loaded:
            self._loaded[key] = bind_labels(images, class_names_of(train, self.root))
        return self._loaded[key]

    def _load_ood(self, field: str, spec: str | SetSpec, sources: dict[str, str]) -> ImageSet:
        """Return an OOD set, which shares no images with the in-distribution."""
        images = self._load_apart(field, spec, sources)
        # Once: a part that is loaded later may not stop what has already been computed.
        if not self.allow_overlap and repr(spec) not in self._compared:
            refuse_inliers(field, images, self._inlier_digests())
            self._compared.add(repr(spec))
        return images

    def _load_apart(self, field: str, spec: str | SetSpec, sources: dict[str, str]) -> ImageSet:
        """Return a set; refuse a second one of the same name: results tell sets apart by names.

        sources: the sources of earlier sets, by name; this set's is added.
        """
        images = self._load(field, spec)
        self._require_size_of_inliers(field, images)
        source = source_of(spec)
        if images.name in sources:
            raise UserError(
                f"data.{field}: {source} and {sources[images.name]} are both called "
                f"{images.name!r} in results; accepted: different names for all sets, as in "
                f"{{source: {source}, name: {images.name}-2}}"
            )
        sources[images.name] = source
        return images

    def _inlier_digests(self) -> dict[str, frozenset[bytes]]:
        """Return digests of the in-distribution parts that are loaded; each part is read once."""
        for part in ("train", "validation", "test"):
            images = self._loaded.get(repr(self.names[part]))
            if images is not None and part not in self._digests:
                self._digests[part] = pixel_digests(images)
        return self._digests

    def _require_size_of_inliers(self, field: str, images: ImageSet) -> None:
        """Refuse a set whose images differ from the in-distribution's that are loaded."""
        for part in ("train", "test", "validation"):
            inliers = self._loaded.get(repr(self.names[part]))
            if inliers is not None and inliers.input_shape != images.input_shape:
                raise other_form(field, images, inliers)
