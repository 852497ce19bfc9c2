"""What every detector promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface, OldName, Surrogate
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch, Split, fit
from robust_ood.detectors.fitting.statistics import Statistic
from robust_ood.errors import UserError
from robust_ood.inputs import accepted, as_batch, logits_of
from robust_ood.models import Outputs, outputs
from robust_ood.models.heads import require, require_classes
from robust_ood.models.wrap import Network, as_network
from robust_ood.modes import evaluating, ordinary

if TYPE_CHECKING:
    from typing_extensions import Self


class Detector(nn.Module, ABC):
    """Images to scores: float32, finite, one per image, higher = in-distribution.

    Images do not influence one another. A detector that needs in-distribution statistics names its
    buffers with `declare`, overrides `learn` and reads them with `learned`. A detector whose score
    is not, or not usefully, differentiable overrides `surrogate`; one that knows more about how it
    is attacked overrides `attack_surface`.
    """

    surrogates = OldName("surrogates", lambda detector: detector.attack_surface().surrogates)
    exact_surrogate = OldName("exact_surrogate", lambda detector: detector.attack_surface().exact)
    needs_float32 = OldName(
        "needs_float32", lambda detector: detector.attack_surface().needs_float32
    )
    unmoved = OldName("unmoved", lambda detector: _without_movement(detector))

    def __init__(self) -> None:
        super().__init__()
        self.declared: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)`."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores `(N,)` in eval mode, whatever mode the networks are in.

        In train mode a score would depend on the other images of its batch.
        """
        images = as_batch(images)
        scored = self.networks or (self,)
        if not any(module.training for part in scored for module in part.modules()):
            return self._scores(images)
        with evaluating(self):
            return self._scores(images)

    def _scores(self, images: Tensor) -> Tensor:
        scores: Tensor = super().__call__(accepted(images, *self.networks))
        return scores

    def published(self, images: Tensor) -> Tensor:
        """Return the score as its paper defines it, `(N,)`, of images `(N, C, H, W)`.

        It orders images as the detector's own value does, which some scores give in another form:
        where float32 rounds the published one, images tie.
        """
        with evaluating(self):
            return self.published_forward(accepted(as_batch(images), *self.networks))

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the published value `(N,)` in the mode that the networks are in."""
        scores: Tensor = self.forward(images)
        return scores

    def surrogate(self, images: Tensor) -> Tensor:
        """Return a differentiable stand-in for the score, `(N,)`; the score itself by default."""
        scores: Tensor = self(images)
        return scores

    def attack_surface(self) -> AttackSurface:
        """Return what an attacker may use; by default the surrogate alone."""
        exact = type(self).surrogate is Detector.surrogate
        return AttackSurface((self.surrogate,), exact=exact)

    def fit(
        self,
        loader: Iterable[Any],
        *,
        validation: Iterable[Any] | None = None,
        outliers: Iterable[Any] | None = None,
    ) -> Self:
        """Learn from batches of images what the score needs; see `detectors.fit`."""
        fit([self], loader, validation=validation, outliers=outliers)
        return self

    def learn(self) -> Rounds:
        """Yield the passes over images that fitting needs, and keep what they give.

        No passes by default.
        """
        yield from ()

    @property
    def learns_from(self) -> Mapping[Split, str]:
        """What `learn` reads besides training images, and in words what it does without."""
        learned: dict[Split, str] = {}
        for detector in self.inside:
            learned.update(detector.learns_from)
        return learned

    @property
    def fitted(self) -> bool:
        """Whether this detector and those inside it have learned, or loaded, all they need."""
        learned = all(self.get_buffer(name).numel() for name in self.declared)
        return learned and all(detector.fitted for detector in self.inside)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifiers that the score reads, each once.

        The published softmax attacks differentiate them.
        """
        by_identity: dict[int, nn.Module] = {}
        for detector in self.inside:
            for net in detector.networks:
                by_identity[id(net)] = net
        return tuple(by_identity.values())

    @property
    def classifiers(self) -> tuple[nn.Module, ...]:
        """The networks that give logits; a flow or an auto-encoder is none."""
        return tuple(net for net in self.networks if getattr(net, "classifies", True))

    @property
    def inside(self) -> list[Detector]:
        """The detectors that this one is made of: its children, and those in a list among them."""
        candidates = list(self.children())
        for child in self.children():
            if isinstance(child, nn.ModuleList):
                candidates.extend(child)
        return [candidate for candidate in candidates if isinstance(candidate, Detector)]

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register a buffer that autograd accepts, also inside `torch.inference_mode()`."""
        if tensor is not None:
            tensor = ordinary(tensor)
        super().register_buffer(name, tensor, persistent)

    def declare(self, *names: str) -> None:
        """Make empty buffers for what `learn` will keep.

        `state_dict` saves them, and loading gives them their shape.
        """
        self.declared += names
        for name in names:
            self.register_buffer(name, torch.empty(0))

    def keep(self, **learned: Tensor) -> None:
        """Store tensors of any shape on the network's device.

        They are float64 for a float64 network, else float32.
        """
        floating = (weight for weight in self.parameters() if weight.is_floating_point())
        like = next(floating, torch.empty(0))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        for name, value in learned.items():
            # Contiguous, as it will be after loading: products of other memory layouts differ in
            # their last bits.
            plain = value.detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, plain.to(like.device, dtype if value.is_floating_point() else None))

    def learned(self, name: str) -> Tensor:
        """Return what was learned under that name, of any shape.

        Raises: `UserError` where nothing has been fitted.
        """
        value = self.get_buffer(name)
        if not value.numel():
            raise UserError(
                f"{type(self).__name__}: not fitted; call fit(loader) with in-distribution images, "
                "or load its state"
            )
        return value

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state, all of it or nothing.

        Raises: `UserError` for the state of another detector or network; the first differing keys
        are named.
        """
        differing = self._differing_keys(state_dict)
        if differing and strict:
            shown = ", ".join(sorted(differing)[:3])
            if len(differing) > 3:
                shown += ", ..."
            networks = ", ".join(type(net).__name__ for net in self.networks)
            raise UserError(
                f"{type(self).__name__}: the state is of another detector or network than this "
                f"one over {networks}: {len(differing)} entries differ or are missing ({shown})"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _differing_keys(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Return the keys that only one side has, and those whose values do not fit."""
        current = self.state_dict()
        # The shapes of learned buffers are the state's to determine.
        learned = self._declared_keys()
        differing = [key for key in current if key not in state_dict]
        for key, value in state_dict.items():
            if key not in current or (key not in learned and not _alike(current[key], value)):
                differing.append(key)
        return differing

    def _declared_keys(self) -> set[str]:
        keys: set[str] = set()
        for prefix, module in self.named_modules():
            if isinstance(module, Detector):
                keys.update(f"{prefix}.{name}".lstrip(".") for name in module.declared)
        return keys

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        for name in self.declared:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                device = self.get_buffer(name).device
                with torch.inference_mode(False):
                    empty = torch.empty(saved.shape, device=device, dtype=saved.dtype)
                setattr(self, name, empty)
        super()._load_from_state_dict(state_dict, prefix, *others)


def full_precision(images: Tensor) -> torch.autocast:
    """Return a context without autocast.

    The network may run in half precision; distances and softmaxes may not.
    """
    return torch.autocast(images.device.type, enabled=False)


def widened(out: Outputs) -> Outputs:
    """Return a forward pass in float32 or wider.

    Many operations, and many scores, do not work in half precision.
    """
    maps = {name: losses.wide(feature_map) for name, feature_map in out.maps.items()}
    wide = out._replace(logits=losses.wide(out.logits), maps=maps)
    if not out.has_features:
        return wide
    return wide._replace(features=losses.wide(out.features))


def _alike(current: Any, loaded: Any) -> bool:
    """Whether a loaded entry fits: a tensor of the same shape, or the same setting."""
    if isinstance(current, Tensor) and isinstance(loaded, Tensor):
        return current.shape == loaded.shape
    return bool(current == loaded)


class OutputsDetector(Detector):
    """A detector that reads only what one forward pass of one classifier gives.

    `score(outputs)` lets many such detectors share that pass.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`; a plain function, too.
        layers: names of the submodules whose feature maps the score reads besides logits and
            penultimate features.
    """

    needs: ClassVar[Literal["logits", "features", "head"]] = "logits"
    """What the score cannot do without. A network that lacks it is refused when it is given."""

    @typed
    def __init__(self, net: Network, layers: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.net = as_network(net)
        if not getattr(self.net, "classifies", True):
            raise UserError(
                f"net: {type(self).__name__} reads the logits of a classifier, and "
                f"{type(self.net).__name__} is none"
            )
        self.layers = layers
        if self.needs != "logits":
            require(self.net, self.needs, type(self).__name__)

    @abstractmethod
    def score(self, out: Outputs) -> Tensor:
        """Return scores `(N,)`, float32, higher = more in-distribution, of a forward pass."""

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the differentiable stand-in, `(N,)`, of a forward pass; by default the score."""
        return self.score(out)

    def published_score(self, out: Outputs) -> Tensor:
        """Return the score `(N,)` as its paper defines it; by default the score."""
        return self.score(out)

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the published value `(N,)` of images `(N, C, H, W)`."""
        if type(self).published_score is OutputsDetector.published_score:
            return self.forward(images)
        out = outputs(self.net, images, self.layers)
        with full_precision(images):
            return self.published_score(widened(out))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)`."""
        out = outputs(self.net, images, self.layers)
        with full_precision(images):
            return self.score(widened(out))

    def surrogate(self, images: Tensor) -> Tensor:
        """Return a differentiable stand-in for the score, `(N,)`, for attackers."""
        return self.stand_in(self.surrogate_score)(images)

    def stand_in(self, read: Callable[[Outputs], Tensor]) -> Surrogate:
        """Return a function of images that reads a forward pass otherwise than `score` does.

        Args:
            read: a forward pass to values `(N,)`.
        """

        def value(images: Tensor) -> Tensor:
            out = outputs(self.net, images, self.layers)
            with full_precision(images):
                return read(widened(out))

        return value

    def attack_surface(self) -> AttackSurface:
        """Return what an attacker may use; by default the surrogate alone."""
        same_score = type(self).surrogate_score is OutputsDetector.surrogate_score
        same_images = type(self).surrogate is OutputsDetector.surrogate
        return AttackSurface((self.surrogate,), exact=same_score and same_images)

    def confidence(self, images: Tensor) -> Tensor:
        """Return the log-odds of the predicted class, `(N,)`.

        A stand-in for scores that follow the softmax but not smoothly enough for their own gradient
        to lead everywhere.
        """
        return losses.log_odds(logits_of(self.net(images)))

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)

    def get_extra_state(self) -> dict[str, list[str]]:
        """Return what else a state depends on: the layers that were read."""
        return {"layers": list(self.layers)}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        """Raise `UserError` where a state was learned from other layers."""
        if state != self.get_extra_state():
            raise UserError(
                f"{type(self).__name__}: the state was learned from the layers "
                f"{state.get('layers')}, this detector reads {list(self.layers)}"
            )

    @property
    def num_classes(self) -> int:
        """How many logits the classifier gives."""
        return require_classes(self.net, type(self).__name__)

    def reading(
        self,
        statistic: Statistic,
        read: Callable[[SeenBatch], tuple[Tensor, ...]],
        split: Split = "inliers",
    ) -> Pass:
        """Return a pass whose outputs `read` turns into what the statistic adds."""
        return Pass(statistic, read, self.net, self.layers, split=split)


def _without_movement(detector: Detector) -> Detector:
    from robust_ood.detectors.wrapper import without_movement  # it builds on this module

    return without_movement(detector)
