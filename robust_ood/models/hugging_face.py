"""Image classifiers of Hugging Face by name, behind our contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError, notify
from robust_ood.models.libraries import build_module, named_settings
from robust_ood.models.wrap import Wrapped
from robust_ood.texts import shown

_BY_HAND = "; or download the model by hand and give its folder as name"
_OF_A_HEAD = 2
"""Tensors of a linear head: weight and bias."""


class HuggingFace(Wrapped):
    """An image classifier of Hugging Face, by name or from a folder; needs package transformers.

    It is what `AutoModelForImageClassification` makes; code that comes with a model is not run. Its
    logits are taken out of the object that it returns. Transformers without a library head, such as
    ViT, give the class token as features; the head's input counts in all of them.

    Args:
        name: a model of huggingface.co, such as "google/vit-base-patch16-224", or a folder with
            `config.json` and weights.
        num_classes: K; by default that of the weights. Another number begins with a new head, which
            an evaluation refuses without a checkpoint.
        folder: where downloads are kept and looked for; by default the library's cache.
        pretrained: read the weights; False leaves them random, to train or for a checkpoint.
        mean, std: normalisation, in pixel fractions; by default those of the model's own
            `preprocessor_config.json`.
        head, layers, size, checkpointed: as in `Wrapped`.
        config: the architecture, as `config.json` writes it, in place of the one that `name` has;
            the weights are random then, and nothing is downloaded.

    Raises:
        UserError: no such package or model, a download that fails, images that the model wants in
            another form, or an unknown mean and std.
    """

    @typed
    def __init__(  # noqa: PLR0913
        self,
        name: str,
        num_classes: int | None = None,
        folder: Path | str | None = None,
        pretrained: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
        layers: Sequence[str] = (),
        size: int | None = None,
        checkpointed: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if (mean is None) != (std is None):
            raise UserError("mean and std: one is given without the other")
        if num_classes is not None and num_classes < 2:
            raise UserError(f"num_classes: expected a whole number >= 2, got {num_classes}")
        transformers = _library()
        cache = None if folder is None else str(folder)
        pretrained = pretrained and config is None
        architecture = _architecture(transformers, name, config, cache, num_classes)
        model: Any = transformers.AutoModelForImageClassification
        untrained: list[str] = []  # names of weights that the model does not have
        if pretrained:
            build = _reader(model, name, architecture, cache, untrained)
        else:
            build = _maker(model, architecture)
        module = build_module(f"transformers' {name}", build, _BY_HAND if config is None else "")
        if mean is None or std is None:
            scale = _normalisation(transformers, name, cache)
            mean = scale.mean
            std = scale.std
        super().__init__(module, mean, std, head, layers, size, checkpointed)
        if len(untrained) > _OF_A_HEAD:
            notify(f"net: {name} lacks {len(untrained)} tensors of the network, which are random")
        # A new head needs training, or a checkpoint.
        self.pretrained = pretrained and not untrained
        if Path(name).is_dir():  # scores do not depend on where it lies
            name = Path(name).name
        self.settings = named_settings(self, name, num_classes, mean, std, head, layers)
        self.settings["config"] = _plain(architecture)


class _Normalisation(NamedTuple):
    """mean, std: one value a channel, in pixel fractions."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "net: HuggingFace needs the package transformers; pip install 'robust-ood[huggingface]'"
        ) from error
    return transformers


def _architecture(
    transformers: Any,
    name: str,
    config: Mapping[str, Any] | None,
    cache: str | None,
    num_classes: int | None,
) -> Any:
    """Return the library's configuration object of a model, with so many classes."""

    def read() -> Any:
        load: Any = transformers.AutoConfig.from_pretrained
        return load(name, cache_dir=cache, trust_remote_code=False)

    def make() -> Any:
        settings = dict(config or {})
        kind = settings.pop("model_type", "")
        return transformers.AutoConfig.for_model(kind, **settings)

    if config is None:
        architecture: Any = build_module(f"transformers' {name}", read, _BY_HAND)
    else:
        _check_config(config)
        architecture = build_module(f"transformers' {name}", make)
    if num_classes is not None and num_classes != architecture.num_labels:
        architecture.num_labels = num_classes
    return architecture


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse an architecture that could choose files, code or downloads: checkpoints hold them."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"config: expected a model_type, got {shown(kind)}")
    if kind == "timm_wrapper":
        raise UserError("config: a model of timm; take --net Timm")
    for field in ("auto_map", "backbone", "use_pretrained_backbone"):
        if config.get(field):
            raise UserError(f"config: {field} is not accepted; give weights as --checkpoint")


def _reader(
    model: Any, name: str, architecture: Any, cache: str | None, untrained: list[str]
) -> Callable[[], nn.Module]:
    """Return what reads a model with its weights, and says which of them are random.

    A head of other classes is new, and so is that of a model without one.
    """

    def read() -> nn.Module:
        with _silent():
            module, report = model.from_pretrained(
                name,
                config=architecture,
                cache_dir=cache,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        untrained.extend(map(str, report["missing_keys"]))
        untrained.extend(map(str, report["mismatched_keys"]))
        return _anonymous(module)

    return read


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the library's bar and its report of a new head, and restore both afterwards."""
    logging: Any = import_module("transformers.utils.logging")  # which has no types
    level = logging.get_verbosity()
    shows_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()


def _maker(model: Any, architecture: Any) -> Callable[[], nn.Module]:
    """Return what makes a model with random weights."""

    def make() -> nn.Module:
        return _anonymous(model.from_config(architecture, trust_remote_code=False))

    return make


def _anonymous(module: Any) -> nn.Module:
    """Return a model in float32 that does not say where it is from: scores do not depend on it."""
    module.config._name_or_path = ""
    for part in module.modules():
        if hasattr(part, "name_or_path"):
            part.name_or_path = ""
    network: nn.Module = module.float()
    return network


def _normalisation(transformers: Any, name: str, cache: str | None) -> _Normalisation:
    """Return the mean and std of a model's own preprocessing.

    Raises: `UserError` where it has none, or does more than scale and normalise.
    """
    try:
        load: Any = transformers.AutoImageProcessor.from_pretrained
        processor = load(name, cache_dir=cache)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"mean: not known for {name}, nor std (no preprocessor_config.json can be read); give "
            "both, such as [0.5, 0.5, 0.5] for images in [-1, 1]"
        ) from error
    if getattr(processor, "do_flip_channel_order", False):
        raise UserError(f"net: {name} takes images in the order blue, green, red; not supported")
    # The library's images are in 0..255: scaled, perhaps shifted, then normalised.
    scale = 1.0
    if getattr(processor, "do_rescale", True):
        scale = 255 * float(getattr(processor, "rescale_factor", 1 / 255))
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    means = [0.0, 0.0, 0.0]
    deviations = [1.0, 1.0, 1.0]
    if getattr(processor, "do_normalize", False):
        means = list(processor.image_mean)
        deviations = list(processor.image_std)
    mean = tuple((value + offset) / scale for value in means)
    std = tuple(value / scale for value in deviations)
    return _Normalisation(mean, std)


def _plain(architecture: Any) -> dict[str, Any]:
    """Return an architecture as the plain values in which it differs from the library's own."""
    differing: dict[str, Any] = dict(architecture.to_diff_dict())
    for field in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"):
        differing.pop(field, None)
    # JSON makes names of classes of their numbers; the library reads both.
    differing["model_type"] = architecture.model_type
    return differing
