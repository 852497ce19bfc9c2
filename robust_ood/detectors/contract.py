"""What every detector promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors.fitting import Pass, Rounds, Seen, Source, fit
from robust_ood.detectors.statistics import Statistic
from robust_ood.errors import UserError
from robust_ood.models import Outputs, find_head, outputs

if TYPE_CHECKING:
    from typing_extensions import Self


class Detector(nn.Module, ABC):
    """Images to scores: float32, finite, one per image, images independent of each other, higher =
    in-distribution.

    A detector that needs in-distribution statistics names its buffers with `declare`, overrides
    `learn` and reads them with `learned`. A detector whose score is not, or not usefully,
    differentiable overrides `surrogate`.

    needs_float32: whether attacks that differentiate it in bfloat16 are weaker than in float32;
    they then keep to that.
    """

    needs_float32: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.declared: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)` in [0,
        1].
        """

    def surrogate(self, images: Tensor) -> Tensor:
        """Return a differentiable stand-in for the score, `(N,)`, for attackers; the score itself
        by default.
        """
        scores: Tensor = self(images)
        return scores

    @property
    def exact_surrogate(self) -> bool:
        """Whether the surrogate orders images exactly as the score does, so that no attack needs to
        compare both.
        """
        return type(self).surrogate is Detector.surrogate

    @property
    def surrogates(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """All stand-ins that an attack should follow: `surrogate`, then others that may lead
        further on some images.
        """
        return (self.surrogate,)

    @property
    def unmoved(self) -> Detector:
        """The detector without its own movement of the images (ODIN, PRO, input noise); itself
        where it has none.

        Published attacks differentiate this one.
        """
        return self

    def fit(
        self,
        loader: Iterable[Any],
        *,
        validation: Iterable[Any] | None = None,
        outliers: Iterable[Any] | None = None,
    ) -> Self:
        """Learn from batches of images what the score needs, and return the detector; see
        `detectors.fit`.
        """
        fit([self], loader, validation=validation, outliers=outliers)
        return self

    def learn(self) -> Rounds:
        """Yield the passes over images that fitting needs, and keep what they give; none by
        default.
        """
        yield from ()

    @property
    def learns_from(self) -> Mapping[Source, str]:
        """What `learn` reads besides in-distribution images, and in words what it does without
        them.
        """
        return {source: text for part in self.inside for source, text in part.learns_from.items()}

    @property
    def fitted(self) -> bool:
        """Whether everything that this detector and those inside it must learn has been learned or
        loaded.
        """
        own = all(self.get_buffer(name).numel() for name in self.declared)
        return own and all(part.fitted for part in self.inside)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifiers that the score reads, each once: what the published softmax attacks
        differentiate.
        """
        return tuple({id(net): net for part in self.inside for net in part.networks}.values())

    @property
    def inside(self) -> list[Detector]:
        """The detectors that this one is made of: its children, and those in a list among them."""
        lists = [child for child in self.children() if isinstance(child, nn.ModuleList)]
        found = [*self.children(), *(part for one in lists for part in one)]
        return [part for part in found if isinstance(part, Detector)]

    def declare(self, *names: str) -> None:
        """Make empty buffers for what `learn` will keep; `state_dict` saves them, loading gives
        them their shape.
        """
        self.declared += names
        for name in names:
            self.register_buffer(name, torch.empty(0))

    def keep(self, **learned: Tensor) -> None:
        """Store tensors of any shape on the network's device, in float64 for a float64 network and
        else in float32.
        """
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        for name, value in learned.items():
            # Contiguous, as it will be after loading: products of other memory layouts differ in
            # their last bits.
            plain = value.detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, plain.to(like.device, dtype if value.is_floating_point() else None))

    def learned(self, name: str) -> Tensor:
        """Return what was learned under that name, of any shape, or raise `UserError` where nothing
        has been fitted.
        """
        value = self.get_buffer(name)
        if not value.numel():
            raise UserError(
                f"{type(self).__name__}: not fitted; call fit(loader) with in-distribution images, or load its state"
            )
        return value

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state, all of it or nothing.

        Raises: `UserError` for the state of another detector or network; the first differing keys
        are named.
        """
        own, learned = self.state_dict(), self._declared_keys()
        differing = [key for key in own if key not in state_dict] + [
            key for key in state_dict if key not in own
        ]
        differing += [
            key
            for key in own.keys() & (state_dict.keys() - learned)
            if not _alike(own[key], state_dict[key])
        ]
        if differing and strict:
            shown = ", ".join(sorted(differing)[:3]) + (", ..." if len(differing) > 3 else "")
            over = ", ".join(type(net).__name__ for net in self.networks)
            raise UserError(
                f"{type(self).__name__}: the state is of another detector or network than this one over {over}: "
                f"{len(differing)} entries differ or are missing ({shown})"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def _declared_keys(self) -> set[str]:
        """Return the keys of all learned buffers, whose shapes a state determines."""
        return {
            f"{prefix}.{name}".lstrip(".")
            for prefix, part in self.named_modules()
            if isinstance(part, Detector)
            for name in part.declared
        }

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        for name in self.declared:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                own = self.get_buffer(name)
                setattr(self, name, torch.empty(saved.shape, device=own.device, dtype=saved.dtype))
        super()._load_from_state_dict(state_dict, prefix, *others)


def full_precision(images: Tensor) -> torch.autocast:
    """Return a context without autocast: the network may run in half precision, distances and
    softmaxes may not.
    """
    return torch.autocast(images.device.type, enabled=False)


def widened(out: Outputs) -> Outputs:
    """Return a forward pass in float32 or wider: many operations, and many scores, do not bear half
    precision.
    """
    maps = {name: losses.wide(one) for name, one in out.maps.items()}
    return out._replace(
        logits=losses.wide(out.logits), features=losses.wide(out.features), maps=maps
    )


def _alike(own: Any, other: Any) -> bool:
    """Whether a loaded entry can take the place of an own one: a tensor of its shape, or the same
    setting.
    """
    if isinstance(own, Tensor) and isinstance(other, Tensor):
        return own.shape == other.shape
    return bool(own == other)


class OutputsDetector(Detector):
    """A detector that reads only what one forward pass of one classifier gives.

    `score(outputs)` lets many such detectors share that pass.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        layers: names of the submodules whose feature maps the score reads besides logits and
            penultimate features.
    """

    def __init__(self, net: nn.Module, layers: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.net = net
        self.layers = layers

    @abstractmethod
    def score(self, out: Outputs) -> Tensor:
        """Return scores `(N,)`, float32, higher = more in-distribution, of a forward pass."""

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the differentiable stand-in, `(N,)`, of a forward pass; the score itself by
        default.
        """
        return self.score(out)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)` in [0,
        1].
        """
        out = outputs(self.net, images, self.layers)
        with full_precision(images):
            return self.score(widened(out))

    def surrogate(self, images: Tensor) -> Tensor:
        """Return a differentiable stand-in for the score, `(N,)`, for attackers."""
        out = outputs(self.net, images, self.layers)
        with full_precision(images):
            return self.surrogate_score(widened(out))

    @property
    def exact_surrogate(self) -> bool:
        """Whether the surrogate orders images exactly as the score does."""
        return type(self).surrogate_score is OutputsDetector.surrogate_score

    def confidence(self, images: Tensor) -> Tensor:
        """Return the log-odds of the predicted class, `(N,)`.

        A stand-in for scores that follow the softmax but not smoothly enough for their own gradient
        to lead everywhere.
        """
        return losses.log_odds(self.net(images))

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
                f"{type(self).__name__}: the state was learned from the layers {state.get('layers')}, "
                f"this detector reads {list(self.layers)}"
            )

    @property
    def num_classes(self) -> int:
        """How many logits the classifier gives."""
        return find_head(self.net).out_features

    def reading(
        self,
        statistic: Statistic,
        read: Callable[[Seen], tuple[Tensor, ...]],
        source: Source = "inliers",
    ) -> Pass:
        """Return a pass of the classifier whose outputs `read` turns into what the statistic
        adds.
        """
        return Pass(statistic, read, self.net, self.layers, source=source)


class Wrapper(Detector):
    """A detector that changes what another one sees or says.

    Args:
        detector: the wrapped detector; in-distribution statistics are its own to learn.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    @property
    def exact_surrogate(self) -> bool:
        """Whether the wrapped detector's surrogate is exact: a wrapper asks it at the very point it
        scores.
        """
        return self.detector.exact_surrogate

    def learn(self) -> Rounds:
        """Fit the wrapped detector."""
        return self.detector.learn()
