"""Images and logits at the border: what users may pass, and what networks take and return.

Images are fastest in channels-last memory, but a network that flattens with `view` cannot take
them so; and a network that works in place (`x.sub_(mean)`) writes into the images that it is
given. Each network is therefore tried once, on two images, and what it needs is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np
import torch
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.modes import evaluating, ordinary

_TOLERANCE = 1e-6
"""How far a pixel may be outside [0, 1] by rounding; it is clipped then."""


def checked(images: Tensor, field: str = "images") -> Tensor:
    """Return images that users passed, clipped where rounding left [0, 1].

    Args:
        images: `(N, C, H, W)`, float32 or float64, in [0, 1]; a NumPy array is converted.
        field: the argument's name, for the message.

    Raises:
        UserError: another type, shape or precision, or pixels outside [0, 1]. The device is
            waited for once.
    """
    images = from_numpy(images)
    check_form(images, field)
    if not images.numel():
        return images
    low, high = pixel_range(images).tolist()
    check_range(low, high, field)
    return images.clamp(0, 1) if low < 0 or high > 1 else images


def from_numpy(images: Any) -> Any:
    """Return a NumPy array of floats as a tensor of any shape, and everything else as it is."""
    if not isinstance(images, np.ndarray) or images.dtype.kind != "f":
        return images
    return torch.from_numpy(np.ascontiguousarray(images))


def as_batch(images: Any) -> Tensor:
    """Return images that a detector is to score, without a look at their pixels.

    Args:
        images: `(N, C, H, W)`, floating-point numbers; a NumPy array is converted.

    Raises:
        UserError: anything else.
    """
    images = from_numpy(images)
    if not isinstance(images, Tensor):
        raise UserError(f"images: expected a tensor (N, C, H, W), got a {type(images).__name__}")
    if images.dim() != 4:
        raise UserError(f"images: expected shape (N, C, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(f"images: expected floating-point numbers in [0, 1], got {kind}")
    return images


def check_form(images: object, field: str) -> None:
    """Raise `UserError` for anything but a batch of floating-point images `(N, C, H, W)`."""
    if not isinstance(images, Tensor):
        raise UserError(f"{field}: expected a tensor (N, C, H, W), got a {type(images).__name__}")
    if images.dim() != 4:
        raise UserError(f"{field}: expected shape (N, C, H, W), got {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(f"{field}: expected float32 or float64 in [0, 1], got {kind}")


def pixel_range(images: Tensor) -> Tensor:
    """Return the smallest and the largest pixel, `(2,)`, on the device; NaN where there is one."""
    return torch.stack(list(images.detach().aminmax()))


def check_range(low: float, high: float, field: str) -> None:
    """Raise `UserError` where pixels are outside [0, 1], or NaN."""
    if math.isnan(low) or math.isnan(high):
        raise UserError(f"{field}: a pixel is NaN; expected pixels in [0, 1]")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise UserError(
            f"{field}: pixels are in [{low:.4g}, {high:.4g}], expected [0, 1]; divide 8-bit pixels "
            "by 255, and let the network normalise (robust_ood.models.wrap)"
        )


def check_labels(labels: Tensor, classes: int, field: str = "labels") -> None:
    """Raise `UserError` for labels `(N,)` of classes that a network of so many does not have."""
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise UserError(
            f"{field}: an image is of class {int(outside[0])}, but the network gives {classes} "
            f"logits, for the classes 0..{classes - 1}"
        )


def logits_of(output: Any) -> Any:
    """Return the logits `(N, K)` in what a network returned.

    They are its attribute or entry `logits`, or the one tensor `(N, K)` of a tuple, list or
    mapping, the first of several of one shape. Anything else comes back as it is.

    Raises: `UserError` for several tensors `(N, ...)` of different shapes, such as logits and
        features.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else None
    if named is None:
        named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, Mapping):
        output = list(output.values())
    if not isinstance(output, (tuple, list)):
        return output
    matrices = [part for part in output if isinstance(part, Tensor) and part.dim() == 2]
    shapes = [tuple(matrix.shape) for matrix in matrices]
    if len(set(shapes)) > 1:
        raise UserError(
            f"net: returns several tensors, of shapes {', '.join(map(str, shapes))}; "
            "which are the logits is not known: return them alone"
        )
    return matrices[0] if matrices else output


class _Form(NamedTuple):
    """What decides whether a network takes images: their shape, and what is channels last."""

    shape: torch.Size
    images_last: bool
    weights_last: bool


_trials: WeakKeyDictionary[nn.Module, dict[_Form, bool]] = WeakKeyDictionary()
"""Whether a network takes images of a form as they are; forms that always fail are not kept."""
_OWN = {
    f"robust_ood.models.{name}"
    for name in ("autoencoder", "densenet", "glow", "resnet", "wide_resnet")
}
_given_copies: WeakSet[nn.Module] = WeakSet()
"""Networks that work in place, and get a copy of their images."""


def sample_indices(indices: Tensor | None, count: int) -> Tensor:
    """Return the indices `(N,)` that key the images' random draws, 0..N-1 by default.

    Raises: `UserError` for another number of them, or for anything but whole numbers.
    """
    if indices is None:
        return torch.arange(count)
    if indices.shape != (count,):
        raise UserError(
            f"indices: shape {tuple(indices.shape)} for {count} images, expected one each"
        )
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        kind = str(indices.dtype).removeprefix("torch.")
        raise UserError(f"indices: expected whole numbers, got {kind}")
    return indices


def accepted(images: Tensor, *networks: nn.Module) -> Tensor:
    """Return the images in a memory layout that all the networks take: their own where possible.

    A network that cannot take channels-last memory gets contiguous weights, and contiguous images
    are returned. A network that works in place gets copies from now on. Our own networks take any
    layout and are not tried.

    Args:
        images: `(N, C, H, W)`; the values stay as they are, and gradients pass. They get the
            precision of networks in float32 or float64.
        networks: whatever the images are handed to.
    """
    for net in networks:
        images = _as_precise(images, net)
        if not is_ours(net) and not _takes(net, images):
            _make_contiguous(net)
            images = images.contiguous()
    return images


def _as_precise(images: Tensor, net: nn.Module) -> Tensor:
    """Return images in the precision of the network's weights, where that is 32 or 64 bits."""
    both = (torch.float32, torch.float64)
    weight = _first_weight(net)
    if weight is None or weight.dtype not in both or not images.is_floating_point():
        return images
    return images.to(weight.dtype)


_first_weights: WeakKeyDictionary[nn.Module, ref[Tensor]] = WeakKeyDictionary()


def _first_weight(net: nn.Module) -> Tensor | None:
    """Return a network's first parameter, which is looked for only once: this is a hot loop."""
    known = _first_weights.get(net)
    weight = None if known is None else known()
    if weight is None:
        weight = next(net.parameters(), None)
        if weight is not None:
            _first_weights[net] = ref(weight)
    return weight


def is_ours(net: nn.Module) -> bool:
    """Whether the network is one of this package, and not somebody's behind our contract."""
    return type(net).__module__ in _OWN


def _takes(net: nn.Module, images: Tensor) -> bool:
    """Return whether a network takes images of this form; True where another one does not help."""
    if torch.compiler.is_compiling():  # a trace has no pixels to try, and was preceded by a pass
        return True
    if images.dim() != 4 or not len(images):
        return True
    weights_last = any(_is_last(parameter) for parameter in net.parameters())
    form = _Form(images.shape[1:], _is_last(images), weights_last)
    trials = _trials.setdefault(net, {})
    if form not in trials:
        sample = ordinary(images[:2])
        problem = _problem(net, sample)
        if problem is None:
            trials[form] = True
        elif form.images_last or form.weights_last:
            _make_contiguous(net)
            remaining = _problem(net, sample.contiguous())
            if remaining is None:
                trials[form] = False
            elif remaining != problem:
                return False  # the layout only hides what is wrong
            elif form.weights_last:
                _make_channels_last(net)
    # What fails alike in both layouts fails for another reason, and says so itself.
    return trials.get(form, True)


def _problem(net: nn.Module, images: Tensor) -> str | None:
    """Return why a network does not take images as they are; None where it does.

    One that works in place gets copies from then on. Nothing else is left behind: modes, and
    torch's random state, are as before.
    """
    devices = [images.device] if images.is_cuda else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        given = images.clone()
        try:
            with evaluating(net):
                net(given)
        except Exception as error:  # whatever it is, the caller's own pass raises it again
            return repr(error)
        # Values too, because `x.data.sub_(...)` is not counted as a change.
        changed = given._version > 0 or not torch.equal(given.nan_to_num(), images.nan_to_num())
    if changed:
        _give_copies(net)
    return None


def _give_copies(net: nn.Module) -> None:
    # Code that was compiled by `torch.compile` runs without its wrapper in `models.outputs`.
    for module in (net, getattr(net, "_orig_mod", net)):
        if module not in _given_copies:
            module.register_forward_pre_hook(_copied, prepend=True)
            _given_copies.add(module)


def _copied(_: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    """Return a network's inputs, copied; a function of the module, so that networks pickle."""
    copies = []
    for given in inputs:
        copies.append(given.clone() if isinstance(given, Tensor) else given)
    return tuple(copies)


def _is_last(tensor: Tensor) -> bool:
    """Whether a tensor is channels last, and not at once contiguous as a one-channel one is."""
    if tensor.dim() != 4 or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _make_contiguous(net: nn.Module) -> None:
    net.to(memory_format=torch.contiguous_format)


def _make_channels_last(net: nn.Module) -> None:
    net.to(memory_format=torch.channels_last)
