"""Trying a network on random images, and how many channels it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.inputs import accepted
from robust_ood.models.normalize import Normalize
from robust_ood.modes import evaluating

_SIZES = (32, 28, 224, 64, 16, 8, 96, 128, 256, 299)
"""Heights and widths that are tried where no image has been seen, the commonest first."""


def class_name(net: nn.Module) -> str:
    """Return a network's class, for messages; of one behind `wrap`, the user's own."""
    if hasattr(type(net), "given_head"):
        return type(net.module).__name__
    return type(net).__name__


def random_images(like: Tensor) -> Tensor:
    """Return two seeded random images in [0, 1], in all else like the given `(N, C, H, W)`.

    Blank ones would not do: a network without biases gives 0 for them in all its layers.
    """
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2, *like.shape[1:], generator=draws)
    layout = torch.contiguous_format
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return images.to(like.device, dtype).contiguous(memory_format=layout)


@contextmanager
def trying(net: nn.Module, images: Tensor) -> Iterator[None]:
    """Run a network for its own sake: eval mode, no gradients, random state as before."""
    devices = [images.device] if images.is_cuda else []
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices),
        torch.autocast(images.device.type, enabled=False),
        evaluating(net),
    ):
        yield


def images_to_try(
    net: nn.Module, channels: int | None = None, image_shape: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """Yield random images `(2, C, H, W)` of usual sizes, on a network's device, of its precision.

    Args:
        net: any classifier.
        channels: C; by default what its first convolution takes, or else 3, then 1.
        image_shape: the one height and width; by default several, the commonest first.
    """
    parameter = next(net.parameters(), torch.empty(0))
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    counts = [channels or first_channels(net) or 3]
    if channels is None and first_channels(net) is None:
        counts.append(1)
    sizes = list(_SIZES)
    side = declared_side(net)
    if side is not None:
        sizes.insert(0, side)
    shapes = [(size, size) for size in dict.fromkeys(sizes)]
    if image_shape is not None:
        shapes = [image_shape]
    for count in counts:
        for height, width in shapes:
            like = torch.empty((2, count, height, width), device=parameter.device, dtype=dtype)
            yield random_images(like)


def first_channels(net: nn.Module) -> int | None:
    """Return the channels that the first normalisation or convolution takes, as registered.

    None for a network without any.
    """
    for module in net.modules():
        if isinstance(module, Normalize):
            return module.mean.shape[1]
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None


def declared_side(net: nn.Module) -> int | None:
    """Return the height and width that a network says it takes, as transformers do; None for none.

    A network that resizes its images itself takes any.
    """
    if getattr(net, "size", None) is not None:
        return None
    for module in net.modules():
        for holder in (module, getattr(module, "config", None)):
            side = _side(getattr(holder, "img_size", None) or getattr(holder, "image_size", None))
            if side is not None:
                return side
    return None


def _side(size: Any) -> int | None:
    """Return the one number of a size `n` or `(n, n)`; None for anything else."""
    if isinstance(size, (tuple, list)) and len(set(size)) == 1:
        size = size[0]
    return size if isinstance(size, int) and size > 0 else None


def side_problem(net: nn.Module, images: Tensor) -> str:
    """Return what to say of images `(N, C, H, W)` that failed for their size, or "".

    Only a failure makes it a problem: many networks take other sizes than those they declare.
    """
    side = declared_side(net)
    if side is None or images.dim() != 4 or tuple(images.shape[2:]) == (side, side):
        return ""
    height, width = images.shape[2:]
    return (
        f"net: {class_name(net)} takes {side} x {side} images, these are {height} x {width}; set "
        f"data.size: {side}, or have the network resize them (net.size: {side}; in Python "
        f"robust_ood.models.wrap(net, size={side}))"
    )


def channels_of(net: nn.Module, image_shape: tuple[int, int] | None = None) -> int | None:
    """Return how many channels a network's images have; None where no number that is tried works.

    Tried are what its convolutions take, then 3 and 1.

    Args:
        net: any classifier.
        image_shape: height and width of its images; by default usual ones are tried.
    """
    choices = [first_channels(net) or 3, 3, 1]
    for channels in dict.fromkeys(choices):
        for images in images_to_try(net, channels, image_shape):
            if takes(net, images):
                return channels
    return None


def takes(net: nn.Module, images: Tensor) -> bool:
    """Whether a network gives anything for images `(N, C, H, W)`."""
    try:
        with trying(net, images):
            net(accepted(images, net))
    except Exception:  # whatever it is, the network does not take them
        return False
    return True


def channel_problem(net: nn.Module, images: Tensor) -> str:
    """Return what to say of images `(N, C, H, W)` that failed for their number of channels, or "".

    Only a failure makes it a problem: the first convolution registered may not be the first called.
    """
    channels = first_channels(net)
    if channels is None or images.dim() != 4 or images.shape[1] == channels:
        return ""
    return (
        f"net: {class_name(net)} takes {_counted(channels)}, the images have {images.shape[1]}; "
        f"set data.channels: {channels}"
    )


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"
