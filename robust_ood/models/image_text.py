"""Classifiers made of an image tower and text features, such as CLIP's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.libraries import build_module, unknown_model
from robust_ood.models.normalize import Normalize
from robust_ood.models.words import WordFeatures, embedding_of, read_words
from robust_ood.models.wrap import Network, as_network

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_NEEDED = "net: {} needs the package {}; pip install 'robust-ood[clip]'"


class ImageText(nn.Module):
    """A classifier whose head is text features: logits are scaled cosines of image and word.

    Source: Radford et al. 2021 (CLIP); the logits CLIP(x, w) of Fort Eq. 6-7. It is an ordinary
    classifier of the in-words, with penultimate features (unit embeddings) and a linear head, so
    accuracy and all detectors work. `detectors.ZeroShot` also reads the out-words.

    Images stay pixels in [0, 1] outside: resizing and normalising are the first layers, so that
    attacks measure their radius in pixels.

    Args:
        encoder: images to embeddings `(N, D)`: a module or a function, or a model of open_clip or
            a CLIP of transformers, whose image tower is taken. float16 weights become float32,
            because their gradients would be zero.
        words: text features, or the file of them.
        size: height and width that the encoder takes, by antialiased bicubic resizing; None for
            the images' own.
        mean, std: normalisation in pixel fractions; None where the encoder takes pixels.

    Raises:
        UserError: text features of another width than the embeddings, or a resolution that the
            encoder refuses.
    """

    pretrained = True
    """Its weights are the encoder's."""

    @typed
    def __init__(
        self,
        encoder: Network,
        words: WordFeatures | Path | str,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise UserError(f"size: expected a number of pixels >= 1, got {size}")
        if (mean is None) != (std is None):
            raise UserError("mean and std: one is given without the other")
        if not isinstance(words, WordFeatures):
            words = read_words(words)
        self.words = words
        self.size = size
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.encoder = image_tower(as_network(encoder, "encoder")).float()
        self.head = nn.Linear(words.in_features.shape[1], len(words.in_words), bias=False)
        self.head.weight = nn.Parameter(words.logit_scale * words.in_features, requires_grad=False)

    def encode(self, images: Tensor) -> Tensor:
        """Return unit embeddings `(N, D)` of images `(N, C, H, W)` in [0, 1]."""
        if self.size is not None and tuple(images.shape[-2:]) != (self.size, self.size):
            size = (self.size, self.size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return unit_embeddings(self.encoder, self.normalize(images), self.head.in_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the in-words, `(N, K)`."""
        logits: Tensor = self.head(self.encode(images))
        return logits


def unit_embeddings(encoder: nn.Module, images: Tensor, width: int) -> Tensor:
    """Return an encoder's embeddings `(N, D)`, each of length 1, in float32 or wider.

    Raises: `UserError` for embeddings of another width than the text features have, and for images
        that the encoder refuses.
    """
    try:
        embeddings = embedding_of(encoder(images))
    except (AssertionError, ValueError, RuntimeError) as error:
        others = (UserError, torch.cuda.OutOfMemoryError)
        if isinstance(error, others) or "size" not in str(error):
            raise
        sides = f"{images.shape[-2]} x {images.shape[-1]}"
        raise UserError(
            f"size: the encoder refuses images of {sides} pixels ({str(error).splitlines()[0]}); "
            "give as size what it takes, and images are resized first"
        ) from error
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise UserError(
            f"words: the text features have width {width}, the encoder gives "
            f"{tuple(embeddings.shape)}; they are of another model"
        )
    return F.normalize(losses.wide(embeddings), dim=1)


def image_tower(model: nn.Module) -> nn.Module:
    """Return the image tower of a model of open_clip or transformers; others as they are."""
    if hasattr(model, "encode_image") or hasattr(model, "get_image_features"):
        return ImageTower(model)
    return model


class ImageTower(nn.Module):
    """The image tower of an image-text model, without the text tower.

    Args:
        model: a model of open_clip, or a CLIP of transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projection: nn.Module = nn.Identity()
        self.library = "open_clip"
        if hasattr(model, "encode_image"):
            self.visual = model.visual
        else:
            self.library = "transformers"
            self.visual = model.vision_model
            self.projection = model.visual_projection

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings `(N, D)` of normalised images `(N, C, H, W)`."""
        if self.library == "open_clip":
            embeddings: Tensor = self.visual(images)
            return embeddings
        pooled = embedding_of(self.visual(pixel_values=images))
        projected: Tensor = self.projection(pooled)
        return projected


class CLIP(ImageText):
    """An image-text model of open_clip or transformers by name, with a file of text features.

    Args:
        name: of open_clip, such as "ViT-B-16" (OpenAI's weights need "ViT-B-16-quickgelu"); of
            transformers, a name or a folder, such as "openai/clip-vit-base-patch16".
        words: the file that `robust-ood text-features` wrote with the same model.
        weights: of open_clip, a tag such as "openai" that it downloads, or a file; None for random
            ones. transformers' names bring their own.
        library: "open_clip" or "transformers".

    Raises:
        UserError: a missing package (the line names the extra), an unknown name, a download that
            fails, or text features of another width.
    """

    def __init__(
        self,
        name: str,
        words: Path | str,
        weights: str | None = None,
        library: Literal["open_clip", "transformers"] = "open_clip",
    ) -> None:
        model, _, settings = load_image_text(name, weights, library)
        super().__init__(model, words, **settings)
        self.pretrained = weights is not None or library == "transformers"


def load_image_text(
    name: str, weights: str | None, library: str
) -> tuple[nn.Module, Any, Mapping[str, Any]]:
    """Return a model, its tokenizer, and the settings `size`, `mean` and `std` of its images."""
    if library == "open_clip":
        return _from_open_clip(name, weights)
    if library == "transformers":
        if weights is not None:
            raise UserError("weights: transformers' names bring their own; give them as name")
        return _from_transformers(name)
    raise UserError(f"library: expected 'open_clip' or 'transformers', got {library!r}")


def _from_open_clip(name: str, weights: str | None) -> tuple[nn.Module, Any, Mapping[str, Any]]:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(_NEEDED.format("CLIP", "open_clip_torch")) from error
    names = open_clip.list_models()
    if name not in names:
        raise unknown_model("open_clip", name, names)
    if weights is not None and not Path(weights).exists():
        _require_tag(name, weights, open_clip.list_pretrained_tags_by_model(name))
    model = build_module(
        f"open_clip's {name}",
        lambda: open_clip.create_model(name, pretrained=weights, precision="fp32"),
        "; or download weights by hand and give the file as weights" if weights else "",
    )
    visual: Any = model.visual
    size = visual.image_size
    if isinstance(size, (tuple, list)):
        size = size[0]
    mean = getattr(visual, "image_mean", None) or CLIP_MEAN
    std = getattr(visual, "image_std", None) or CLIP_STD
    return model, open_clip.get_tokenizer(name), {"size": int(size), "mean": mean, "std": std}


def _require_tag(name: str, weights: str, tags: Sequence[str]) -> None:
    """Raise `UserError` for weights that open_clip does not know; it prints a page of them."""
    if weights.lower().replace("-", "_") not in tags:  # as open_clip itself reads a tag
        known = ", ".join(tags) or "none"
        raise UserError(
            f"weights: {weights!r} is no file and none of open_clip's weights for {name}: {known}"
        )


def _from_transformers(name: str) -> tuple[nn.Module, Any, Mapping[str, Any]]:
    try:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    except ImportError as error:
        raise UserError(_NEEDED.format("CLIP", "transformers")) from error
    model = build_module(
        f"transformers' {name}", lambda: CLIPModel.from_pretrained(name, dtype=torch.float32)
    )
    config: Any = model.config
    settings: dict[str, Any] = {"size": int(config.vision_config.image_size)}
    settings["mean"] = CLIP_MEAN
    settings["std"] = CLIP_STD
    try:
        load: Any = AutoImageProcessor.from_pretrained
        processor = load(name)
        settings["mean"] = tuple(processor.image_mean)
        settings["std"] = tuple(processor.image_std)
    except (OSError, ValueError, ImportError):  # a folder without its preprocessing: CLIP's own
        pass
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError):  # an evaluation needs none
        tokenizer = None
    return model, tokenizer, settings
